"""The demo: train three settings on the embedded data with few target labels, and compare their per-class IoU."""

import json
from pathlib import Path

import torch

from sda import recipe as recipes
from sda.errors import SdaError
from sda.experiments import pool
from sda.runs import folder as run_folder
from sda.runs import trained
from sda.scoring.gallery import spread, truth_and_predictions
from sda.system.devices import pick_device
from sda.system.progress import Bars

RECIPES = {"streets-target-only": "target-only", "streets-source-only": "source-only", "streets-ssda": "semi-supervised DA"}
PICTURES = 6


def run(out: Path, seed: int, device_name: str, bars: Bars) -> dict:
    """Train the three recipes with one seed, and write demo.png and summary.json into `out`.

    Overwrites the picture and the summary of an earlier demo in `out`, and nothing else.

    Returns:
        The summary: `protocol`, and `runs`: recipe → mIoU and IoU (percent), seed, steps, seconds of training and run folder.
    """
    device = pick_device(device_name)
    loaded = {name: recipes.load(name, {"seed": seed}) for name in RECIPES}
    folders = {name: run_folder.first_free(out, f"{name}-seed{seed}") for name in RECIPES}
    longest_first = sorted(RECIPES, key=lambda name: not loaded[name].unlabelled)
    jobs = [pool.Job(name, loaded[name], folders[name]) for name in longest_first]
    results = {}
    for job, result in pool.train_all(jobs, pool.default_size(device), device, bars):
        if isinstance(result, SdaError):
            raise result
        results[job.name] = result
    summary = {
        "protocol": results["streets-ssda"]["protocol"],
        "runs": {
            name: {
                **{key: result[key] for key in ("miou", "miou_all", "iou", "seed", "steps", "seconds", "protocol")},
                "folder": str(folders[name]),
            }
            for name, result in ((name, results[name]) for name in RECIPES)
        },
    }
    draw(out / "demo.png", folders, device)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def draw(path: Path, folders: dict[str, Path], device: torch.device) -> None:
    """Draw target images with the ground truth and each network's prediction, and save the picture."""
    runs = {name: trained.load(folder, device=device) for name, folder in folders.items()}
    first = next(iter(runs.values()))
    data = first.labelled_images(first.protocol())
    assert data.val is not None
    networks = {RECIPES[name]: run.network for name, run in runs.items()}
    truth_and_predictions(data.val, spread(len(data.val), PICTURES), networks, data.table, device).save(path)
