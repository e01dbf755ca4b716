"""The main job on the embedded data: few target labels in, three networks and their per-class IoU out."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sda import experiment, report, run_folder
from sda import recipe as recipes
from sda.data import descriptor as descriptors
from sda.data.assemble import evaluation_set, find_root
from sda.progress import Bars, Relay, play
from sda.recipe import Recipe

RECIPES = {"streets-target-only": "target-only", "streets-source-only": "source-only", "streets-ssda": "semi-supervised DA"}
PICTURES = 6


def run(out: Path, seed: int, device_name: str, bars: Bars) -> dict:
    """Train the three recipes with one seed, compare them, and write demo.png and summary.json into `out`.

    A run of the demo replaces the picture and the summary of the demo before it, and nothing else. On a CPU of several
    cores two networks train at a time: networks as small as these gain little from more threads.

    Returns:
        The summary: `protocol`, and per recipe its mIoU and IoU (percent), seed, steps and seconds of training.
    """
    device = experiment.pick_device(device_name)
    jobs = {name: recipes.load(name, {"seed": seed}) for name in RECIPES}
    folders = {name: run_folder.free(out, f"{name}-seed{seed}") for name in jobs}
    cores = os.cpu_count() or 1
    if device.type == "cpu" and cores > 1:
        results = train_side_by_side(jobs, folders, cores // 2, bars)
    else:
        results = {name: experiment.run(jobs[name], name, folders[name], device, bars) for name in jobs}
    summary = {
        "protocol": results["streets-ssda"]["protocol"],
        "runs": {
            name: {
                **{key: result[key] for key in ("miou", "miou_all", "iou", "seed", "steps", "seconds", "protocol")},
                "folder": str(folders[name]),
            }
            for name, result in results.items()
        },
    }
    draw(out / "demo.png", folders, device)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def train_side_by_side(jobs: dict[str, Recipe], folders: dict[str, Path], threads: int, bars: Bars) -> dict[str, dict]:
    """Two trainings at a time on the CPU, each in a process of its own, the longest first."""
    first = next(iter(jobs.values()))
    find_root(descriptors.load(first.target), first.target_root, "", bars.count)  # drawn once, before both want it
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(2, context) as pool:
        queue = manager.Queue()
        futures = {
            name: pool.submit(train_one, jobs[name], name, folders[name], threads, queue)
            for name in sorted(jobs, key=lambda name: not jobs[name].unlabelled)
        }
        while not all(future.done() for future in futures.values()):
            play(queue, bars, seconds=0.2)
            for future in futures.values():
                if future.done():
                    future.result()  # raise what went wrong at once, not when the others are through
        play(queue, bars, seconds=0.2)
        return {name: futures[name].result() for name in jobs}


def train_one(recipe: Recipe, name: str, folder: Path, threads: int, queue) -> dict:
    """One training in a process of its own, which reports to `queue`."""
    torch.set_num_threads(threads)
    return experiment.run(recipe, name, folder, torch.device("cpu"), Relay(queue))


@torch.no_grad()
def draw(path: Path, folders: dict[str, Path], device: torch.device) -> None:
    """Target images, truth, and each network's prediction, side by side."""
    runs = {name: experiment.load_run(folder, "last", device) for name, folder in folders.items()}
    first = next(iter(runs.values()))
    recipe = first.recipe
    data = evaluation_set(first.table_name, first.table, recipe.input_size, recipe.target, recipe.target_root, "val")
    colors = list(data.table.colors.values())
    rows = []
    for index in range(0, len(data.val), len(data.val) // PICTURES)[:PICTURES]:
        sample = data.val[index]
        image = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize(sample.label.shape[::-1])
        row = [np.asarray(image), report.colorize(sample.label.numpy(), colors)]
        for trained in runs.values():
            logits = trained.network(trained.normalise(sample.image[None].to(device)))[0]
            large = torch.nn.functional.interpolate(logits, size=sample.label.shape, mode="bilinear", align_corners=False)
            row.append(report.colorize(large[0].argmax(dim=0).byte().cpu().numpy(), colors))
        rows.append(row)
    report.picture_table(path, rows, ["target image", "truth", *(RECIPES[name] for name in runs)], data.table.colors)
