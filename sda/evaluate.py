"""The only evaluator: a network over a labelled dataset, under a named protocol."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from sda import distributed
from sda.data.dataset import Dataset, Sample
from sda.data.files import FileError
from sda.errors import SdaError
from sda.metrics import confusion_matrix, score
from sda.models.weights import Preprocessing


class _Guarded(torch.utils.data.Dataset):
    """Samples, or the faults in their place, so that a loader process can report a file by name."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | FileError:
        try:
            return self.dataset[index]
        except FileError as error:
            return error


def protocol(size: tuple[int, int] | None) -> dict:
    """How scores are made: the whole image at `size` in, logits enlarged to each label's own size, one scale, no flip.

    Args:
        size: (height, width), or None for each image's own.
    """
    return {
        "name": f"whole-{'x'.join(map(str, size)) if size else 'native'}-native",
        "input": list(size) if size else "native size",
        "labels": "native size",
        "window": "whole image",
        "scales": [1.0],
        "flip": False,
    }


@torch.no_grad()
def evaluate(
    network: nn.Module,
    dataset: Dataset,
    normalise: Preprocessing,
    names: list[str],
    device: torch.device,
    batch: int = 8,
    workers: int = 0,
    skip: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Score a network.

    Args:
        network: images → (logits, features); its training mode is restored afterwards.
        dataset: samples resized to the protocol's input size, labels at their own. Without a size they go one by one.
        names: the C classes.
        skip: leave unusable files out (they are listed under `skipped`) rather than raise.

    Returns:
        `protocol`, `images`, `skipped`, the fields of `sda.metrics.score`, `confusion` (C×C list), and `infomax`:
        entropy of the mean prediction less the mean entropy, over log C, a criterion that needs no labels.
    """
    classes = len(names)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    mean_p, mean_h = torch.zeros(classes, device=device), torch.zeros((), device=device)
    skipped, images_seen = [], 0
    was_training = network.training
    network.eval()
    mine = range(distributed.rank(), len(dataset), distributed.size())
    loader = DataLoader(_Guarded(dataset), batch if dataset.size else 1, sampler=mine, num_workers=workers, collate_fn=list)
    for samples in loader:
        faults = [str(sample) for sample in samples if isinstance(sample, FileError)]
        if faults and not skip:
            raise SdaError(faults[0])
        skipped += faults
        samples = [sample for sample in samples if isinstance(sample, Sample)]
        if samples:
            logits = network(normalise(torch.stack([sample.image for sample in samples]).to(device)))[0]
            p = logits.softmax(dim=1)
            mean_p += p.mean(dim=(2, 3)).sum(dim=0)
            mean_h -= (p * p.clamp(min=1e-12).log()).sum(dim=1).mean(dim=(1, 2)).sum()
            for one, sample in zip(logits, samples, strict=True):
                large = nn.functional.interpolate(one[None], size=sample.label.shape, mode="bilinear", align_corners=False)
                confusion += confusion_matrix(large[0].argmax(dim=0), sample.label.to(device), classes)
        images_seen += len(samples)
        progress(min(distributed.size() * (images_seen + len(skipped)), len(dataset)), len(dataset))
    network.train(was_training)
    images_seen = int(distributed.total(torch.tensor(images_seen, device=device)))
    skipped = distributed.listed(skipped)
    confusion, mean_p, mean_h = (distributed.total(part) for part in (confusion, mean_p, mean_h))
    if not images_seen:
        raise SdaError(f"no image could be evaluated; the first fault: {skipped[0]}")
    if not confusion.any():
        raise SdaError(
            f"no labelled pixel in the {images_seen} images to evaluate: every label, such as "
            f"{dataset.items[0].label}, is void in the classes {', '.join(names)}"
        )
    mean_p = mean_p / images_seen
    marginal = -(mean_p * mean_p.clamp(min=1e-12).log()).sum()
    infomax = ((marginal - mean_h / images_seen) / math.log(classes)).item()
    return {
        "protocol": protocol(dataset.size),
        "images": images_seen,
        "skipped": skipped,
        **score(confusion, names),
        "infomax": infomax,
        "confusion": confusion.tolist(),
    }
