"""Make a feature cache (sda/features.py reads it).

A run over a large set takes long, so what is done is kept in OUT.parts, and the same command goes on from there. Nothing
stands under the name OUT before it is complete.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from sda.analysis.cache import FORMAT, FeatureCache
from sda.analysis.shards import Shard, Writer, finish, shards
from sda.data.dataset import Dataset, Guarded, Sample
from sda.data.files import FileError
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.methods.parts.mlp import projection
from sda.runs import checkpoint
from sda.runs.trained import Run
from sda.scoring.evaluate import batch_size
from sda.system.atomic import written_whole

SHARD_BYTES = 16 * 2**20  # of a file in OUT.parts: what memory holds, and what a kill can lose

Count = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Domain:
    """The images of one split of one dataset, with labels where they have any."""

    name: str
    split: str
    root: str
    dataset: Dataset


def open_domain(run: Run, dataset: str, root: str, split: str, progress: Count) -> tuple[Domain, list[str]]:
    """The images of a split of a dataset, or of a folder, as a run's network takes them, and notes for the user.

    Args:
        dataset: a name, a TOML path or a folder. root: its folder; "" for where the training had it.
    """
    images, folder, notes = run.all_images(dataset, root, split, progress)
    return Domain(Path(dataset).stem, split, os.path.abspath(folder), images), notes


def distinct(domains: list[Domain]) -> list[Domain]:
    """The same under names of their own: A, A-2, …"""
    named: dict[str, Domain] = {}
    for domain in domains:
        name, number = domain.name, 2
        while name in named:
            name, number = f"{domain.name}-{number}", number + 1
        named[name] = replace(domain, name=name)
    return list(named.values())


def network_hash(*modules: nn.Module | None) -> str:
    """SHA-256 over the names and values of all weights and statistics."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in ({} if module is None else module.state_dict()).items():
            digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_projection(run: Run) -> nn.Module | None:
    """The head g of a run's student or teacher, into the space of its bank; None for methods without a bank, for best.pt and for
    exported networks."""
    file = run.folder / f"{run.which}.pt"
    state = checkpoint.load(file).get("method", {}) if file.exists() else {}
    prefix = "g_teacher.model." if run.network_name == "teacher" else "g."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        return None
    head = projection(*weights["weight1"].shape[1:])
    head.load_state_dict(weights)
    return head.to(run.device).eval().requires_grad_(False)


def write_features(
    out: Path,
    run: Run,
    domains: list[Domain],
    per_class: int = 32,
    compression: str = "lzf",
    progress: Count = lambda what, done, total: None,
    skip: bool = False,
) -> list[str]:
    """Cache the features of all images of `domains` in the file `out`, or go on with what an interrupted run left in `out`.parts.

    A cache that is there already, made by this network of these files, is left as it is.

    Args:
        domains: their datasets at the size of the network's input, labels at their own.
        per_class: pixels of each class that are kept of an image, at random, once by prediction and, where it has a label, once
            by that; 0: all pixels. The choice is the same in every run.
        skip: leave unusable files out rather than raise.

    Returns:
        Why files were left out.

    Raises:
        SdaError: `out` is there and is of another network, other images or settings, or is being written by another process; an
            unusable file; a full disk.
    """
    head = load_projection(run)
    settings = {
        "format": FORMAT,
        "network": network_hash(run.network, head),
        "preprocessing": run.network.preprocessing.to_dict(),
        "input": list(run.protocol().input or ()) or "native size",
        "per_class": per_class,
        "compression": compression,
        "images": _digest(domains),
        "labels": [hashlib.sha256(d.dataset.codec.rules()).hexdigest() if d.dataset.codec else "" for d in domains],
    }
    parts = out.with_name(f"{out.name}.parts")
    if out.exists():
        return _found_there(out, parts, settings)
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with _alone(parts):
            if out.exists():  # another process has come before
                return _found_there(out, parts, settings)
            _begin(parts, settings)
            left_out = _compute(parts, run, head, domains, settings, progress, skip)
            about = {
                "run": os.path.abspath(run.folder),
                "checkpoint": run.which,
                "weights": run.network_name,
                "step": run.step,
                "classes": run.table.colors,
                "target": _target(run, domains),
                "domains": [{"name": domain.name, "split": domain.split, "root": domain.root} for domain in domains],
                "left_out": left_out,
                "labelled": run.splits.get("labelled", []),
                "scored": run.splits.get("val", []) + run.splits.get("held_out", []),
            }
            finish(parts, out, settings, about)
            shutil.rmtree(parts, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise SdaError(
            f"{out}: cannot be written ({reason}); mend that, or make room, and run the same command again: it goes on "
            f"from {parts}"
        ) from None
    return left_out


def _found_there(out: Path, parts: Path, settings: dict) -> list[str]:
    """Remove what a kill at the end has left beside a cache that is there. Why files were left out of it; SdaError when it is
    another cache, or none."""
    try:
        there = FeatureCache(out)
    except SdaError:
        raise SdaError(
            f"{out}: exists, and is no feature cache that this version of sda reads; nothing is overwritten: name another --out"
        ) from None
    if other := _difference(there.settings, settings):
        raise SdaError(f"{out}: exists, and was made otherwise ({other}); nothing is overwritten: name another --out")
    shutil.rmtree(parts, ignore_errors=True)
    return there.left_out


def _target(run: Run, domains: list[Domain]) -> str:
    """The name of the domain that is the run's target: the last of its name that lies where the training had it."""
    r = run.recipe
    own = [d.name for d in domains if r.target_root and d.root == os.path.abspath(os.path.expanduser(r.target_root))]
    return own[-1] if own else Path(r.target).stem


def _digest(domains: list[Domain]) -> str:
    """Of all files as they are now: names, sizes and times."""
    digest = hashlib.sha256()
    for domain in domains:
        digest.update(f"{domain.name}\n{domain.split}\n".encode())
        for item in domain.dataset.items:
            for file in (item.image, item.label):
                stat = file.stat() if file is not None and file.exists() else None
                digest.update(f"{item.key}\n{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _difference(there: dict, here: dict) -> str:
    words = {
        "network": "another network, or other weights",
        "preprocessing": "another preprocessing",
        "images": "other images, or files that have changed since",
        "labels": "label files read otherwise: other classes, ids or colours",
    }
    for key, value in here.items():
        if there.get(key) != value:
            return words.get(key, f"{key} {there.get(key)}, not {value}")
    return ""


def check_made_by(cache: FeatureCache, run: Run) -> None:
    """SdaError when the network, or its preprocessing, is not the one that made the cache."""
    now = {"network": network_hash(run.network, load_projection(run)), "preprocessing": run.network.preprocessing.to_dict()}
    if other := _difference(cache.settings, now):
        raise SdaError(f"{cache.path}: made by {other} than {run.folder} has now; make it anew with sda features")


@contextlib.contextmanager
def _alone(parts: Path) -> Iterator[None]:
    """Only one process at a time. What it leaves when it is killed hinders nobody, its loader processes neither."""
    with (parts / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise SdaError(f"{parts}: another process is writing this cache; wait for it, or name another --out") from None
        yield


def _begin(parts: Path, settings: dict) -> None:
    """Note whose folder this is, or see that it is this cache's. Shards that nothing tells the owner of are removed: a kill
    leaves such, where it comes while the parts of a finished cache are being removed."""
    file = parts / "settings.json"
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        for path in parts.glob("*.npz"):
            path.unlink()
        with written_whole(file) as made:
            made.write(json.dumps(settings).encode())
        return
    if other := _difference(there, settings):
        raise SdaError(f"{parts}: holds an unfinished cache ({other}); remove this folder, or name another --out")


# What the network makes of the images


@torch.no_grad()
def _compute(
    parts: Path, run: Run, head: nn.Module | None, domains: list[Domain], settings: dict, progress: Count, skip: bool
) -> list[str]:
    """Write those shards that are not there yet, NUMBER-NUMBER.npz of the images from one to before the other, and all of them
    into features.h5.tmp. The faults."""
    whole = ConcatDataset([Guarded(domain.dataset) for domain in domains])
    domain_of = [place for place, domain in enumerate(domains) for _ in domain.dataset.items]
    keys = [item.key for domain in domains for item in domain.dataset.items]
    there = shards(parts)
    begun = done = int(there[-1].stem.split("-")[1]) if there else 0
    batch, shard = batch_size(run.protocol()), Shard()
    loader = DataLoader(whole, batch, sampler=range(done, len(whole)), num_workers=run.recipe.workers, collate_fn=list)
    batches = iter(loader)  # its processes begin before a thread writes HDF5
    with Writer(parts, there, settings["compression"]) as writer:
        progress("features", done, len(whole))
        for found in batches:
            samples, numbers = [], []  # of one size: where images keep their own, they come one by one
            for number, (_, sample) in enumerate(found, start=done):
                if isinstance(sample, FileError):
                    if not skip:
                        raise sample
                    shard.faults.append(str(sample))
                else:
                    samples.append(sample)
                    numbers.append(number)
            if samples:
                rows = _rows(run, head, samples, [keys[number] for number in numbers], settings["per_class"])
                for number, (of_pixels, of_image) in zip(numbers, rows, strict=True):
                    shard.add(domain_of[number], of_pixels, of_image)
            done += len(found)
            if shard.bytes > SHARD_BYTES or done == len(whole):
                writer.write(parts / f"{begun:08}-{done:08}.npz", shard)
                shard, begun = Shard(), done
            progress("features", done, len(whole))
        return writer.finish()


def _rows(
    run: Run, head: nn.Module | None, samples: list[Sample], paths: list[str], per_class: int
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """What is kept of the pixels of some images of one size, and of these images; few copies from the device for all of them.

    By its path it is decided which pixels of an image these are.
    """
    logits, features = run.network(torch.stack([sample.image for sample in samples]).to(run.device))
    if logits.shape[2:] != features.shape[2:]:
        logits = run.network.grid.enlarge(logits, features.shape[2:])
    (count, classes, height, width), (image_height, image_width) = logits.shape, samples[0].image.shape[1:]
    p = logits.softmax(dim=1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum(dim=1).flatten() / np.log(classes)
    confidence, prediction = (part.flatten() for part in p.max(dim=1))

    # of each image
    cell = torch.arange(count, device=p.device).repeat_interleave(height * width) * classes + prediction
    pixels = torch.zeros(count * classes, device=p.device).index_add_(0, cell, torch.ones_like(entropy))
    uncertain = torch.zeros_like(pixels).index_add_(0, cell, entropy)
    share, uncertain = (pixels / (height * width)).cpu(), (uncertain / pixels.clamp(min=1)).cpu()
    mean = features.mean(dim=(2, 3)).cpu().numpy()

    # of the pixels that are chosen
    predicted = prediction.byte().cpu().numpy().reshape(count, -1)
    labels = np.full_like(predicted, IGNORE)
    for row, sample in zip(labels, samples, strict=True):
        if sample.label is not None:
            row[:] = run.network.grid.shrink(sample.label[None], (height, width)).flatten().numpy()
    chosen, drawn = [], []
    for mine, label, sample, path in zip(predicted, labels, samples, paths, strict=True):
        by_prediction = _choose(mine, per_class, path)
        by_label = by_prediction if sample.label is None else _choose(label, per_class, path)
        chosen.append(np.union1d(by_prediction, by_label))
        drawn.append(np.isin(chosen[-1], by_prediction) + 2 * np.isin(chosen[-1], by_label))
    here = torch.from_numpy(np.concatenate([place + image * height * width for image, place in enumerate(chosen)])).to(p.device)
    rows = features.permute(0, 2, 3, 1).reshape(count * height * width, -1)[here]
    found = {
        "features": rows.half().cpu().numpy(),
        "confidence": confidence[here].cpu().numpy(),
        "entropy": entropy[here].cpu().numpy(),
    }
    if head is not None:
        valid = torch.ones(1, len(rows), dtype=torch.bool, device=rows.device)
        found["projected"] = head(rows[None], valid)[0].half().cpu().numpy()
    sides = (height, image_height), (width, image_width)
    rows_at, columns_at = (run.network.grid.pixels(*side).numpy() for side in sides)
    ends, made = np.cumsum([len(place) for place in chosen]), []
    for image, place in enumerate(chosen):
        mine = slice(ends[image] - len(place), ends[image])
        row, column = np.divmod(place, width)
        of_pixels = {name: values[mine] for name, values in found.items()}
        of_pixels |= {
            "label": labels[image, place],
            "prediction": predicted[image, place],
            "drawn": drawn[image],
            "position": np.stack([rows_at[row], columns_at[column]], axis=1),
        }
        of_image = {
            "path": np.array(paths[image]),
            "size": np.array([image_height, image_width]),
            "mean": mean[image],
            "share": share[image * classes : (image + 1) * classes].numpy(),
            "class_entropy": uncertain[image * classes : (image + 1) * classes].numpy(),
        }
        made.append((of_pixels, of_image))
    return made


def _choose(groups: np.ndarray, most: int, path: str) -> np.ndarray:
    """Up to `most` indices of each value but IGNORE, at random by the path, ascending; with 0 all of these."""
    if not most:
        return np.flatnonzero(groups != IGNORE)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:8]))
    order = random.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    values = groups[order]
    place = np.arange(len(order)) - np.searchsorted(values, values)  # within its value
    return np.sort(order[(place < most) & (values != IGNORE)])
