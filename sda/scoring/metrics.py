"""Counts of predictions and labels, and scores computed from them. Pure functions."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def confusion_matrix(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count pixels by true and predicted class, on the tensors' device.

    Args:
        predicted: int64, any shape, in 0..C-1. label: same shape, train ids; values ≥ C (255) are ignored.

    Returns:
        (C, C) int64: rows are true classes, columns predicted classes.
    """
    valid = label < classes
    pairs = torch.where(valid, label.long() * classes + predicted, classes * classes)
    counts = torch.bincount(pairs.flatten(), minlength=classes * classes + 1)
    return counts[:-1].view(classes, classes)


def iou(confusion: Tensor) -> Tensor:
    """Compute the IoU per class, TP / (TP + FP + FN): (C,) float64, NaN for classes in neither labels nor predictions."""
    matrix = confusion.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(0) + matrix.sum(1) - hit)


def score(confusion: Tensor, names: list[str]) -> dict:
    """Compute the scores of a confusion matrix, in percent.

    Returns:
        `miou`: mean IoU over the classes present in labels or predictions (as in cityscapesscripts);
        `miou_all`: mean IoU over all classes, absent classes counting as 0; `accuracy`: share of correct pixels;
        `fwiou`: mean IoU weighted by each class's share of the labelled pixels; `iou`: class → IoU, None if absent.
    """
    matrix = confusion.cpu()
    values = 100 * iou(matrix)
    total = max(matrix.sum().item(), 1)
    per_class = {name: None if value.isnan() else value.item() for name, value in zip(names, values, strict=True)}
    present = values[~values.isnan()]
    return {
        "miou": present.mean().item() if len(present) else None,
        "miou_all": values.nan_to_num(0).mean().item(),
        "accuracy": 100 * matrix.diagonal().sum().item() / total,
        "fwiou": (values.nan_to_num(0) * matrix.sum(1)).sum().item() / total,
        "iou": per_class,
    }


def bootstrap(confusions: np.ndarray, draws: int = 1000, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the bootstrap confidence interval of `miou`, in percent: percentiles over images drawn with replacement, seed 0.

    Args:
        confusions: (N, C, C), one confusion matrix per image.
    """
    count, classes = confusions.shape[:2]
    random = np.random.default_rng(0)
    means = []
    for times in random.multinomial(count, np.full(count, 1 / count), size=draws):
        matrix = (times @ confusions.reshape(count, -1)).reshape(classes, classes)
        hit, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
        if union.any():
            means.append(100 * (hit[union > 0] / union[union > 0]).mean())
    low, high = np.percentile(means, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


# Boundary IoU: Cheng et al., CVPR 2021. A pixel is on a boundary if another label or the image's edge is within distance d.

BOUNDARY = 0.02  # d, as a share of the image's diagonal


def boundary(label: Tensor) -> Tensor:
    """Return which pixels of a label map (H, W) are on a boundary: (H, W) bool. Chebyshev distances, as in the authors' code."""
    height, width = label.shape
    d = max(1, round(BOUNDARY * math.hypot(height, width)))
    maps = torch.stack([label, -label.long()]).float()[:, None]
    outside = F.pad(maps, (d, d, d, d), value=1e4)  # different from any label
    for kernel in ((2 * d + 1, 1), (1, 2 * d + 1)):
        outside = F.max_pool2d(outside, kernel, stride=1)
    return (outside != maps).any(dim=0)[0]


def boundary_counts(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count pixels per class: correct and on the boundary of both label and prediction, on the label's, on the prediction's.

    Args:
        predicted, label: (H, W) as in `confusion_matrix`. Ignored pixels form a region of their own and are not counted.

    Returns:
        (3, C) int64.
    """
    ignored = label >= classes
    label = torch.where(ignored, classes, label.long())
    predicted = torch.where(ignored, classes, predicted.long())
    truly, claimed = boundary(label), boundary(predicted)

    def count(which: Tensor, names: Tensor) -> Tensor:
        return torch.bincount(torch.where(which, names, classes).flatten(), minlength=classes + 1)[:classes]

    return torch.stack([count(truly & claimed & (label == predicted), label), count(truly, label), count(claimed, predicted)])


def boundary_iou(counts: Tensor) -> Tensor:
    """Compute Boundary IoU from sums of `boundary_counts`: (C,) float64, NaN for absent classes."""
    both, truly, claimed = counts.double()
    return both / (truly + claimed - both)


# Calibration

BINS = 15


def calibration_counts(confidence: Tensor, right: Tensor) -> Tensor:
    """Count pixels, sum their confidence, and count correct pixels, in BINS confidence bins of equal width.

    Args:
        confidence: (N,) in 0..1. right: (N,) bool, whether the prediction is correct.

    Returns:
        (3, BINS) float64.
    """
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    found = torch.zeros(3, BINS, dtype=torch.float64, device=confidence.device)
    for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
        found[row] = torch.bincount(place, weights=values.double(), minlength=BINS)
    return found


def calibration(counts: Tensor) -> dict:
    """Compute calibration scores from sums of `calibration_counts`.

    Returns:
        `ece`: expected calibration error in percent (Guo et al., ICML 2017). `reliability`: for each non-empty bin, mean
        `confidence` and `accuracy` in percent, and its `share` of all pixels, 0 to 1.
    """
    pixels, confidence, right = counts.cpu()
    filled = pixels > 0
    share = (pixels / pixels.sum().clamp(min=1))[filled]
    sure, true = (100 * part[filled] / pixels[filled] for part in (confidence, right))
    rows = zip(sure.tolist(), true.tolist(), share.tolist(), strict=True)
    return {
        "ece": (share * (sure - true).abs()).sum().item(),
        "reliability": [{"confidence": s, "accuracy": t, "share": n} for s, t, n in rows],
    }
