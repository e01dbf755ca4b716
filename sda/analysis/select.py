"""Active learning: choose the images of a target domain to label next, from a feature cache."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sda.analysis.bank import Contents, of_run
from sda.analysis.cache import FeatureCache, unit
from sda.analysis.make_cache import check_made_by
from sda.analysis.prelabels import check_export, unlabelled
from sda.analysis.prelabels import export as write_prelabels
from sda.data.files import read_image
from sda.data.item import Item
from sda.data.splits.lists import read_keys, write_list
from sda.data.splits.rules import rank
from sda.errors import SdaError
from sda.pictures import contact_sheet
from sda.runs import trained
from sda.system.atomic import written_picture
from sda.system.console import Count, ignore_count
from sda.system.devices import pick_device

Blocks = Callable[[], Iterator[tuple[int, np.ndarray]]]  # see FeatureCache.blocks_of_images
STRATEGIES = ("random", "k-medoids", "k-centre", "entropy", "bank")  # see docs/features.md
MOST_CONTACTS = 100  # maximum number of images on a contact sheet


@dataclass(frozen=True)
class Selection:
    """What `write_selection` wrote.

    Attributes:
        file: the list. labelled: paths of the images that have labels, first in the list. chosen: paths of the images to label.
        sheet: the contact sheet, or None because the image file `missing` does not exist.
        exported: paths of the chosen images that were exported with pre-labels: those without a label.
    """

    file: Path
    labelled: list[str]
    chosen: list[str]
    sheet: Path | None
    missing: Path | None
    exported: list[str]


def write_selection(
    out: Path,
    cache: FeatureCache,
    budget: int,
    strategy: str,
    domain: str = "",
    labelled: Path | None = None,
    bank_run: Path | None = None,
    seed: int = 0,
    megabytes: int = 1024,
    export: Path | None = None,
    form: str = "cvat",
    device: str = "cpu",
    progress: Count = ignore_count,
) -> Selection:
    """Choose images to label, and write the list of labelled and chosen images and a contact sheet of the chosen ones.

    With `export`, first write a folder of the chosen images that have no label, with pre-labels.

    Args:
        out: the list; the contact sheet has the same name with the suffix .png.
        domain: "" for the target of the run that made the cache.
        labelled: list of the images that have labels; None for those that the run was trained on.
        bank_run: run whose memory bank strategy bank uses; None for the run that made the cache.
        budget, strategy, seed, megabytes: see `select`.
        export, form, device, progress: see `sda.analysis.prelabels.export`; None: no export.

    Raises:
        SdaError: see `select` and `sda.analysis.prelabels.export`; or a file exists, or cannot be read or written.
    """
    sheet = out.with_suffix(".png") if out.suffix == ".txt" else out.with_name(f"{out.name}.png")
    for file in (sheet, out):
        if file.exists():
            raise SdaError(f"{file}: this file exists and is not overwritten; choose another --out")
    if export is not None:
        check_export(export, cache, form)
    domain = domain or cache.about["target"]
    items = cache.items(domain)
    known = list(cache.labelled) if domain == cache.about["target"] else []
    if labelled is not None:
        known = read_keys(labelled, items, f"images of {domain}")
    bank = None
    if strategy == "bank":
        folder = bank_run or Path(cache.about["run"])
        bank = of_run(folder)
        check_made_by(cache, trained.load(folder, "last", "teacher", torch.device("cpu")))
    chosen = select(cache, domain, budget, strategy, known, seed, bank, megabytes)
    exported = [] if export is None else unlabelled(cache, domain, chosen)
    if export is not None and exported:
        of_key = {item.key: item for item in items}
        write_prelabels(export, form, cache, [of_key[key] for key in exported], pick_device(device), progress)
    write_list(out, [*known, *chosen])
    missing = _write_contact_sheet(sheet, items, chosen[:MOST_CONTACTS])
    return Selection(out, known, chosen, None if missing else sheet, missing, exported)


def _write_contact_sheet(path: Path, items: list[Item], keys: list[str]) -> Path | None:
    """Write the images with these keys to a contact sheet, in this order. Return an image that is missing, if there is one."""
    files = {item.key: item.image for item in items}
    missing = next((files[key] for key in keys if not files[key].exists()), None)
    if missing is not None:
        return missing
    titles = [f"{number}  {Path(key).stem}" for number, key in enumerate(keys, start=1)]
    sheet = contact_sheet([read_image(files[key]) for key in keys], titles)
    with written_picture(path) as file:
        sheet.save(file, "PNG")
    return None


def select(
    cache: FeatureCache,
    domain: str,
    budget: int,
    strategy: str,
    labelled: list[str],
    seed: int = 0,
    bank: Contents | None = None,
    megabytes: int = 1024,
) -> list[str]:
    """Return the paths of `budget` images in the order in which they were chosen: a smaller budget gives the start of the list.

    Labels in the cache are not used.

    Args:
        domain: choose images of this domain.
        labelled: paths of the images that have labels. They are not chosen, and neither are those that the network was scored on.
        strategy: one of STRATEGIES.
        seed: for random, and for the sample of images that k-medoids draws if the distances of all images do not fit in memory.
        bank: the memory bank of the network that made the cache; only for strategy bank.
        megabytes: memory for features.

    Raises:
        SdaError: no such domain, fewer images than `budget`, too little memory, or no bank.
    """
    known, images = set(labelled), cache.images_of(domain)
    excluded = known | (set(cache.scored) if domain == cache.about["target"] else set())
    candidates = np.array([index for index in images if cache.paths[index] not in excluded], dtype=int)
    if budget > len(candidates):
        raise SdaError(
            f"{cache.path}: --budget {budget}, but {domain} has only {len(candidates)} images to choose from, without those "
            "that have labels or that the run was scored on; lower --budget"
        )
    if strategy == "random":
        return rank([cache.paths[index] for index in candidates], seed)[:budget]
    centres = [index for index in images if cache.paths[index] in known]
    if strategy == "k-medoids":
        index_of = {cache.paths[index]: index for index in candidates}
        most = int((megabytes * 2**20 / 8) ** 0.5)  # the distances take half of the memory
        if budget > most:
            raise SdaError(f"k-medoids with --budget {budget} needs more --memory: {megabytes} MB is enough for {most} images")
        sample = np.array([index_of[path] for path in rank(list(index_of), seed)[:most]])
        chosen = k_medoids(cache, np.sort(sample), centres, budget, megabytes)
    elif strategy == "k-centre":
        chosen = k_centre(cache, candidates, centres, budget, megabytes)
    else:
        share = cache.of_images("share")[candidates]
        if strategy == "entropy":
            value = share * cache.of_images("class_entropy")[candidates]
        else:
            if bank is None:
                raise SdaError("strategy bank needs a memory bank: give a run that has one with --bank")
            value = share * unknown_to(bank, cache, megabytes)[candidates]
        chosen = candidates[by_turns(value, share.mean(axis=0), budget)].tolist()
    return [cache.paths[index] for index in chosen]


def k_medoids(cache: FeatureCache, candidates: np.ndarray, centres: list[int], budget: int, megabytes: int = 1024) -> list[int]:
    """Choose images by greedy k-medoids (Kaufman and Rousseeuw, 1990) on their mean features.

    Each step adds the image that minimises the mean distance of all candidates to their nearest centre. Takes 4 bytes per pair
    of candidates.

    Args:
        candidates: indices in ascending order. centres: indices of the images to start from.
    """
    means = torch.from_numpy(np.concatenate(list(_rows_of(candidates, cache.blocks_of_images("mean", megabytes)))))
    nearest = torch.full((len(candidates), 1), torch.inf)
    for centre in centres:
        row = torch.from_numpy(cache.image_row("mean", centre).astype(np.float32))
        nearest = torch.minimum(nearest, torch.cdist(means, row[None]))
    distance = torch.empty(len(candidates), len(candidates))
    cost = torch.zeros(len(candidates), dtype=torch.float64)  # sum of all distances if this image is added
    for rows in torch.arange(len(candidates)).split(512):
        distance[rows] = torch.cdist(means[rows], means)
        cost += torch.minimum(distance[rows], nearest[rows]).sum(dim=0)
    chosen: list[int] = []
    while True:
        chosen.append(int(cost.argmin()))
        if len(chosen) == budget:
            return candidates[chosen].tolist()
        now = torch.minimum(nearest, distance[:, chosen[-1:]])
        for rows in (now < nearest)[:, 0].nonzero()[:, 0].split(512):
            cost += (torch.minimum(distance[rows], now[rows]) - torch.minimum(distance[rows], nearest[rows])).sum(dim=0)
        nearest, cost[chosen[-1]] = now, torch.inf


def k_centre(cache: FeatureCache, candidates: np.ndarray, centres: list[int], budget: int, megabytes: int = 1024) -> list[int]:
    """Choose images by greedy k-centre (Sener and Savarese, ICLR 2018) on their mean features.

    Each step adds the image that is farthest from its nearest centre; without centres, the first is the one nearest to the mean.
    """
    means = cache.blocks_of_images("mean", megabytes)
    nearest = np.full(len(cache), np.inf)
    for centre in centres:
        _approach(nearest, means, cache.image_row("mean", centre))
    chosen: list[int] = []
    while len(chosen) < budget:
        if np.isinf(nearest).all():
            total = sum(rows.sum(axis=0, dtype=np.float64) for rows in _rows_of(candidates, means))
            from_mean = np.full(len(cache), np.inf)
            _approach(from_mean, means, total / len(candidates))
            best = int(candidates[from_mean[candidates].argmin()])
        else:
            best = int(candidates[nearest[candidates].argmax()])
        chosen.append(best)
        _approach(nearest, means, cache.image_row("mean", best))
        nearest[best] = -1.0
    return chosen


def _rows_of(images: np.ndarray, blocks: Blocks) -> Iterator[np.ndarray]:
    """Yield the rows of some images, given in ascending order, as float32, block by block."""
    for first, block in blocks():
        yield block[images[(images >= first) & (images < first + len(block))] - first].astype(np.float32)


def _approach(nearest: np.ndarray, blocks: Blocks, centre: np.ndarray) -> None:
    """Update the squared distance of each image to its nearest centre, in place, for a new centre."""
    centre = centre.astype(np.float32)
    for first, block in blocks():
        part = nearest[first : first + len(block)]
        np.minimum(part, np.square(block.astype(np.float32) - centre).sum(axis=1), out=part)


def unknown_to(bank: Contents, cache: FeatureCache, megabytes: int = 1024) -> np.ndarray:
    """Return for each image and class the mean cosine distance of pixels to the nearest entry of that class in the bank.

    Returns:
        (M, C), 0 to 2, over the pixels predicted as the class; 2 if the bank has no entry of the class; 0 if there are no pixels.

    Raises:
        SdaError: cache and bank have different classes.
    """
    if list(bank.classes) != list(cache.classes):
        raise SdaError(f"{cache.path}: this cache and the bank have different classes")
    classes, entries = len(cache.classes), bank.unit().astype(np.float32)
    total, count = np.zeros((len(cache), classes)), np.zeros((len(cache), classes))
    rows = max(1, int(megabytes * 2**20) // (8 * (entries.shape[2] + entries.shape[1])))
    for block in cache.blocks("projected", "image", "prediction", "drawn", rows=rows):
        block = {name: values[block["drawn"] & 1 > 0] for name, values in block.items()}  # the others were sampled by label
        z = unit(block["projected"].astype(np.float32))
        distance = np.full(len(z), 2.0)
        for c in range(classes):
            pixels = np.flatnonzero(block["prediction"] == c)
            if bank.valid[c].any():
                distance[pixels] = 1 - (z[pixels] @ entries[c, bank.valid[c]].T).max(axis=1, initial=-1)
        np.add.at(total, (block["image"], block["prediction"]), distance)
        np.add.at(count, (block["image"], block["prediction"]), 1)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def by_turns(value: np.ndarray, frequency: np.ndarray, budget: int) -> list[int]:
    """Choose rows of `value` (M, C) class by class in turn, the rarest first: the row with the highest value for the class.

    A class whose remaining values are all 0 is skipped. If all classes are, the remaining rows are chosen in order.
    """
    value = value.copy()
    chosen: list[int] = []
    order = np.argsort(frequency, kind="stable")
    while len(chosen) < budget:
        before = len(chosen)
        for c in order:
            best = int(value[:, c].argmax())
            if value[best, c] > 0 and len(chosen) < budget:
                chosen.append(best)
                value[best] = -1.0
        if len(chosen) == before:
            rest = np.flatnonzero(value[:, 0] >= 0)
            chosen += rest[: budget - len(chosen)].tolist()
    return chosen
