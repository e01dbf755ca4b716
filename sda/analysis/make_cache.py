"""Make feature caches (`sda features`).

A large dataset takes a long time, so finished work is kept as shards (`sda.system.resumable`).
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import ConcatDataset

from sda.analysis.cache import FORMAT, FeatureCache
from sda.analysis.shards import Shard, Writer, describe, finished_shards, shard_path
from sda.data.dataset import Dataset, Guarded, Loader, Sample
from sda.data.files import FileError
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.methods.parts.mlp import projection
from sda.models.stored import fit
from sda.runs import checkpoint
from sda.runs.trained import Run
from sda.scoring.evaluate import batch_size
from sda.system.console import Count
from sda.system.resumable import difference, new_hdf5, write_resumable

SHARD_BYTES = 16 * 2**20  # size of a shard: collected in memory, and lost if the process is killed
WORDING = {  # descriptions of settings that differ
    "network": "another network or other weights",
    "preprocessing": "another preprocessing",
    "images": "other images, or image or label files that have changed",
    "labels": "labels decoded with other classes, ids or colours",
}


@dataclass(frozen=True)
class Domain:
    """The images of one split of one dataset, with the labels that exist."""

    name: str
    split: str
    root: str
    dataset: Dataset


def open_domain(run: Run, dataset: str, root: str, split: str, progress: Count) -> tuple[Domain, list[str]]:
    """Open the images of a split of a dataset, or of a folder, at the input size of a run's network.

    Args:
        dataset: a name, the path of a TOML file, or a folder.
        root: the dataset's folder; "" for the one used in training.

    Returns:
        The domain, and notes for the user.
    """
    images, folder, notes = run.all_images(dataset, root, split, progress)
    name = Path(dataset).stem.encode(errors="replace").decode()  # bytes that are not UTF-8 become ?
    return Domain(name, split, os.path.abspath(folder), images), notes


def distinct(domains: list[Domain]) -> list[Domain]:
    """Return the domains with unique names: A, A-2, …"""
    named: dict[str, Domain] = {}
    for domain in domains:
        name, number = domain.name, 2
        while name in named:
            name, number = f"{domain.name}-{number}", number + 1
        named[name] = replace(domain, name=name)
    return list(named.values())


def network_hash(*modules: nn.Module | None) -> str:
    """Return the SHA-256 of the names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in ({} if module is None else module.state_dict()).items():
            digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_projection(run: Run) -> nn.Module | None:
    """Load the projection head g of a run's student or teacher, which maps features to the space of the bank.

    Return None for methods without a bank, for best.pt and for exported networks, which have none.
    """
    file = run.folder / f"{run.which}.pt"
    state = checkpoint.load(file).get("method", {}) if file.exists() else {}
    prefix = "g_teacher.model." if run.network_name == "teacher" else "g."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        return None
    shape = weights["weight1"].shape[1:] if "weight1" in weights else ()
    if len(shape) != 2:
        raise SdaError(f"{file}: its projection head has no weights of the right shape")
    head = projection(*shape)
    fit(head, weights, f"{file}: the projection head")
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
    """Write the features of all images of `domains` to the file `out`, or resume what an interrupted call left in OUT.parts.

    `out` appears only when it is complete. If it exists and was made by this network from these files, it is kept.

    Args:
        domains: their datasets give images at the size of the network's input and labels at their own size.
        per_class: number of random pixels to keep per image: this many of each predicted class and, if the image has a label,
            this many of each class in the label; 0 keeps all pixels. The choice is the same in every run.
        compression: a name in `shards.COMPRESSIONS`.
        skip: skip unusable files instead of raising FileError.

    Returns:
        Why files were skipped.

    Raises:
        FileError: a file is unusable.
        SdaError: `out` exists and was made by another network, of other images or with other settings; another process is
            writing it; the disk is full. The next call resumes.
    """
    head = load_projection(run)
    own = run.protocol()
    settings = {
        "format": FORMAT,
        "network": network_hash(run.network, head),
        "preprocessing": run.network.preprocessing.to_dict(),
        "input": list(own.input or ()) or "native size",
        "fit": own.fit,
        "per_class": per_class,
        "compression": compression,
        "images": _digest(domains),
        "labels": [hashlib.sha256(d.dataset.codec.rules()).hexdigest() if d.dataset.codec else "" for d in domains],
    }
    about = {
        "run": os.path.abspath(run.folder),
        "checkpoint": run.which,
        "weights": run.network_name,
        "step": run.step,
        "classes": run.table.colors,
        "target": _target(run, domains),
        "sources": [source.name for source in run.recipe.sources],
        "domains": [{"name": domain.name, "split": domain.split, "root": domain.root} for domain in domains],
        "labelled": run.splits.get("labelled", []),
        "scored": run.splits.get("val", []) + run.splits.get("held_out", []),
    }

    def existing() -> list[str]:
        cache = FeatureCache(out)
        if other := difference({"fit": "stretch", **cache.settings}, settings, WORDING):  # earlier versions had no fit
            raise SdaError(f"made with other settings: {other}")
        return cache.left_out

    def write(parts: Path) -> list[str]:
        return _compute(parts, out, run, head, domains, settings, about, progress, skip)

    return write_resumable(out, settings, existing, write, WORDING)


def _target(run: Run, domains: list[Domain]) -> str:
    """Return the name of the domain that is the run's target: the last one in the target's folder, else the target's name."""
    r = run.recipe
    own = [d.name for d in domains if r.target_root and d.root == os.path.abspath(os.path.expanduser(r.target_root))]
    return own[-1] if own else Path(r.target).stem


def _digest(domains: list[Domain]) -> str:
    """Return the SHA-256 of the names, sizes and modification times of all files."""
    digest = hashlib.sha256()
    for domain in domains:
        digest.update(f"{domain.name}\n{domain.split}\n".encode())
        for item in domain.dataset.items:
            for file in (item.image, *(item.label_files or [None])):
                stat = file.stat() if file is not None and file.exists() else None
                digest.update(f"{item.key}\n{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def check_made_by(cache: FeatureCache, run: Run) -> None:
    """Raise SdaError unless the run's network, with its preprocessing, made the cache."""
    now = {"network": network_hash(run.network, load_projection(run)), "preprocessing": run.network.preprocessing.to_dict()}
    if other := difference(cache.settings, now, WORDING):
        raise SdaError(f"{cache.path}: made by {other} than {run.folder} has now; make it again with sda features")


# Computing the features


@torch.no_grad()
def _compute(
    parts: Path,
    out: Path,
    run: Run,
    head: nn.Module | None,
    domains: list[Domain],
    settings: dict,
    about: dict,
    progress: Count,
    skip: bool,
) -> list[str]:
    """Write the missing shards, and join all shards in the file `out`. Return why files were skipped."""
    whole: ConcatDataset = ConcatDataset([Guarded(domain.dataset) for domain in domains])
    domain_of = [place for place, domain in enumerate(domains) for _ in domain.dataset.items]
    keys = [item.key for domain in domains for item in domain.dataset.items]
    finished, done = finished_shards(parts)
    begin, batch, shard = done, batch_size(run.protocol()), Shard()
    # The loader starts its processes before HDF5 opens a file and a thread writes to it.
    loader = Loader(whole, batch, range(done, len(whole)), run.recipe.workers)
    with loader as batches, new_hdf5(parts, out) as file:
        with Writer(file, finished, settings["compression"]) as writer:
            progress("features", done, len(whole))
            for found in batches:
                groups: dict[torch.Size, dict[int, Sample]] = {}  # of the same size: number → sample
                for number, (_, sample) in enumerate(found, start=done):
                    if isinstance(sample, FileError):
                        if not skip:
                            raise sample
                        shard.faults.append(str(sample))
                    else:
                        groups.setdefault(sample.image.shape, {})[number] = sample
                rows: dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
                for samples in groups.values():
                    paths = [keys[number] for number in samples]
                    rows |= zip(samples, _rows(run, head, list(samples.values()), paths, settings["per_class"]), strict=True)
                for number, (of_pixels, of_image) in sorted(rows.items()):
                    shard.add(domain_of[number], of_pixels, of_image)
                done += len(found)
                if shard.bytes > SHARD_BYTES or done == len(whole):
                    writer.write(shard_path(parts, begin, done), shard)
                    shard, begin = Shard(), done
                progress("features", done, len(whole))
            skipped = writer.finish()
        if len(skipped) == len(whole):
            raise SdaError(f"{out}: no image can be used; the first error: {skipped[0]}")
        describe(file, settings, {**about, "left_out": skipped})
    return skipped


def _rows(
    run: Run, head: nn.Module | None, samples: list[Sample], paths: list[str], per_class: int
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Compute the cached values of images of the same size, with few copies from the device.

    Args:
        paths: of the images; they seed the random choice of pixels.

    Returns:
        Per image: its pixels by the names in PIXELS, and its values by the names in IMAGES.
    """
    grid = run.network.grid
    logits, features = run.network(torch.stack([sample.image for sample in samples]).to(run.device))
    if logits.shape[2:] != features.shape[2:]:
        logits = grid.enlarge(logits, features.shape[2:])
    (count, classes, height, width), (image_height, image_width) = logits.shape, samples[0].image.shape[1:]
    p = logits.softmax(dim=1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum(dim=1).flatten() / np.log(classes)
    confidence, prediction = (part.flatten() for part in p.max(dim=1))

    # values of each image
    cell = torch.arange(count, device=p.device).repeat_interleave(height * width) * classes + prediction
    pixels = torch.zeros(count * classes, device=p.device).index_add_(0, cell, torch.ones_like(entropy))
    uncertain = torch.zeros_like(pixels).index_add_(0, cell, entropy)
    share, uncertain = (pixels / (height * width)).cpu(), (uncertain / pixels.clamp(min=1)).cpu()
    mean = features.mean(dim=(2, 3)).cpu().numpy()

    # the chosen pixels
    predicted = prediction.byte().cpu().numpy().reshape(count, -1)
    labels = np.full_like(predicted, IGNORE)
    for row, sample in zip(labels, samples, strict=True):
        if sample.label is not None:
            row[:] = grid.shrink(sample.label[None], (height, width)).flatten().numpy()
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
    rows_at, columns_at = (grid.pixels(*side).numpy() for side in sides)
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
    """Choose up to `most` indices of each value except IGNORE, at random with `path` as the seed; all if `most` is 0. Sorted."""
    if not most:
        return np.flatnonzero(groups != IGNORE)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:8]))
    order = random.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    values = groups[order]
    place = np.arange(len(order)) - np.searchsorted(values, values)  # rank among the indices of the same value
    return np.sort(order[(place < most) & (values != IGNORE)])
