"""Which images of a target domain to label next, from what a network makes of them now: a feature cache."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from sda.analysis.bank import Contents
from sda.analysis.cache import FeatureCache, unit
from sda.data.splits.rules import rank
from sda.errors import SdaError

Blocks = Callable[[], Iterator[tuple[int, np.ndarray]]]  # see FeatureCache.blocks_of_images
STRATEGIES = ("random", "k-medoids", "k-centre", "entropy", "bank")  # docs/features.md


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
    """The paths of `budget` images, in the order in which they were chosen: a shorter list is the beginning of a longer one.

    Labels in the cache are not looked at.

    Args:
        domain: whose images. labelled: paths of those that have labels already; they are not proposed, nor are those that the
            network was scored on.
        strategy: a name in STRATEGIES. seed: of random, and of the sample that k-medoids takes of more images than memory holds.
        bank: of the network that made the cache.
        megabytes: of memory that features may take at a time.

    Raises:
        SdaError: no such domain, fewer images than asked for, too little memory, or no bank to compare with.
    """
    known, mine = set(labelled), cache.images_of(domain)
    barred = known | (set(cache.scored) if domain == cache.about["target"] else set())
    open_to = np.array([index for index in mine if cache.paths[index] not in barred], dtype=int)
    if budget > len(open_to):
        raise SdaError(
            f"{cache.path}: {budget} images are asked for; {len(open_to)} of {domain} are left: those that have labels, "
            "or that the run is scored on, are not proposed"
        )
    if strategy == "random":
        return rank([cache.paths[index] for index in open_to], seed)[:budget]
    centres = [index for index in mine if cache.paths[index] in known]
    if strategy == "k-medoids":
        place = {cache.paths[index]: index for index in open_to}
        fits = int((megabytes * 2**20 / 8) ** 0.5)  # the distances take half of it
        if budget > fits:
            raise SdaError(f"k-medoids of {budget} images takes more --memory: {megabytes} MB hold the distances of {fits}")
        sample = np.array([place[path] for path in rank(list(place), seed)[:fits]])
        chosen = k_medoids(cache, np.sort(sample), centres, budget, megabytes)
    elif strategy == "k-centre":
        chosen = k_centre(cache, open_to, centres, budget, megabytes)
    else:
        share = cache.of_images("share")[open_to]
        if strategy == "entropy":
            worth = share * cache.of_images("class_entropy")[open_to]
        else:
            if bank is None:
                raise SdaError("strategy bank compares with a memory bank: give one, or the run that has it, with --bank")
            worth = share * unknown_to(bank, cache, megabytes)[open_to]
        chosen = open_to[by_turns(worth, share.mean(axis=0), budget)]
    return [cache.paths[index] for index in chosen]


def k_medoids(cache: FeatureCache, candidates: np.ndarray, centres: list[int], budget: int, megabytes: int = 1024) -> list[int]:
    """Greedy k-medoids (Kaufman and Rousseeuw, 1990) on the images' mean features: with the next one the mean distance of all
    candidates, in ascending order, from their nearest centre is smallest. Takes 4 bytes for each pair of candidates."""
    means = torch.from_numpy(np.concatenate(list(_rows_of(candidates, cache.blocks_of_images("mean", megabytes)))))
    nearest = torch.full((len(candidates), 1), torch.inf)
    for centre in centres:
        row = torch.from_numpy(cache.image_row("mean", centre).astype(np.float32))
        nearest = torch.minimum(nearest, torch.cdist(means, row[None]))
    away = torch.empty(len(candidates), len(candidates))
    cost = torch.zeros(len(candidates), dtype=torch.float64)  # if this one came next: the sum of all distances
    for rows in torch.arange(len(candidates)).split(512):
        away[rows] = torch.cdist(means[rows], means)
        cost += torch.minimum(away[rows], nearest[rows]).sum(dim=0)
    chosen: list[int] = []
    while True:
        chosen.append(int(cost.argmin()))
        if len(chosen) == budget:
            return candidates[chosen].tolist()
        now = torch.minimum(nearest, away[:, chosen[-1:]])
        for rows in (now < nearest)[:, 0].nonzero()[:, 0].split(512):
            cost += (torch.minimum(away[rows], now[rows]) - torch.minimum(away[rows], nearest[rows])).sum(dim=0)
        nearest, cost[chosen[-1]] = now, torch.inf


def k_centre(cache: FeatureCache, candidates: np.ndarray, centres: list[int], budget: int, megabytes: int = 1024) -> list[int]:
    """Greedy k-centre (Sener and Savarese, ICLR 2018) on the images' mean features: the farthest from its nearest centre is next.

    Without any centre the first is the one nearest to the mean of all.
    """
    means = cache.blocks_of_images("mean", megabytes)
    nearest = np.full(len(cache), np.inf)
    for centre in centres:
        _approach(nearest, means, cache.image_row("mean", centre))
    chosen: list[int] = []
    while len(chosen) < budget:
        if np.isinf(nearest).all():
            total = sum(rows.sum(axis=0, dtype=np.float64) for rows in _rows_of(candidates, means))
            away = np.full(len(cache), np.inf)
            _approach(away, means, total / len(candidates))
            best = int(candidates[away[candidates].argmin()])
        else:
            best = int(candidates[nearest[candidates].argmax()])
        chosen.append(best)
        _approach(nearest, means, cache.image_row("mean", best))
        nearest[best] = -1.0
    return chosen


def _rows_of(images: np.ndarray, blocks: Blocks) -> Iterator[np.ndarray]:
    """Block by block the rows of some images, given in ascending order, as float32."""
    for first, block in blocks():
        yield block[images[(images >= first) & (images < first + len(block))] - first].astype(np.float32)


def _approach(nearest: np.ndarray, blocks: Blocks, centre: np.ndarray) -> None:
    """Lower each image's squared distance to its nearest centre, where `centre` is nearer."""
    centre = centre.astype(np.float32)
    for first, block in blocks():
        part = nearest[first : first + len(block)]
        np.minimum(part, np.square(block.astype(np.float32) - centre).sum(axis=1), out=part)


def unknown_to(bank: Contents, cache: FeatureCache, megabytes: int = 1024) -> np.ndarray:
    """(M, C) mean, over an image's pixels that are predicted as a class, of 1 less the cosine to the nearest entry of that class
    in the bank: 0 to 2; 2 for a class of which the bank holds nothing; 0 where no pixel is so predicted."""
    if list(bank.classes) != list(cache.classes):
        raise SdaError(f"{cache.path}: a cache in other classes than those of the bank")
    classes, held = len(cache.classes), bank.unit().astype(np.float32)
    total, count = np.zeros((len(cache), classes)), np.zeros((len(cache), classes))
    rows = max(1, int(megabytes * 2**20) // (8 * (held.shape[2] + held.shape[1])))
    for block in cache.blocks("projected", "image", "prediction", "drawn", rows=rows):
        block = {name: values[block["drawn"] & 1 > 0] for name, values in block.items()}  # the others were drawn by label
        z = unit(block["projected"].astype(np.float32))
        away = np.full(len(z), 2.0)
        for c in range(classes):
            pixels = np.flatnonzero(block["prediction"] == c)
            if bank.valid[c].any():
                away[pixels] = 1 - (z[pixels] @ held[c, bank.valid[c]].T).max(axis=1, initial=-1)
        np.add.at(total, (block["image"], block["prediction"]), away)
        np.add.at(count, (block["image"], block["prediction"]), 1)
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def by_turns(worth: np.ndarray, frequency: np.ndarray, budget: int) -> list[int]:
    """Rows of `worth` (M, C): by turns over the classes, the rarest first, the row that is worth most to this class.

    A class that is worth nothing in any row that is left passes its turn.
    """
    worth, chosen = worth.copy(), []
    order = np.argsort(frequency, kind="stable")
    while len(chosen) < budget:
        before = len(chosen)
        for c in order:
            best = int(worth[:, c].argmax())
            if worth[best, c] > 0 and len(chosen) < budget:
                chosen.append(best)
                worth[best] = -1.0
        if len(chosen) == before:  # nothing is worth anything any more: the rest as they come
            rest = np.flatnonzero(worth[:, 0] >= 0)
            chosen += rest[: budget - len(chosen)].tolist()
    return chosen
