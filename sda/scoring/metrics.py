"""What is counted of predictions and labels, and the scores made of it. Pure functions."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def confusion_matrix(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Pixel counts, rows the true class, columns the predicted one, counted where the tensors are.

    Args:
        predicted: int64, any shape, in 0..C-1. label: same shape, train ids; values ≥ C (255) are ignored.

    Returns:
        (C, C) int64.
    """
    valid = label < classes
    pairs = torch.where(valid, label.long() * classes + predicted, classes * classes)
    counts = torch.bincount(pairs.flatten(), minlength=classes * classes + 1)
    return counts[:-1].view(classes, classes)


def iou(confusion: Tensor) -> Tensor:
    """(C,) float64 IoU per class, TP / (TP + FP + FN), NaN for a class that is neither in labels nor in predictions."""
    matrix = confusion.double()
    hit = matrix.diagonal()
    return hit / (matrix.sum(0) + matrix.sum(1) - hit)


def score(confusion: Tensor, names: list[str]) -> dict:
    """What is reported of a confusion matrix, in percent.

    Returns:
        `miou`: mean over the classes present (in labels or predictions; as cityscapesscripts averages);
        `miou_all`: mean over all classes, an absent one counting 0; `accuracy`: share of right pixels;
        `fwiou`: mean weighted by each class's share of the labelled pixels; `iou`: class → percent, None where absent.
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
    """Confidence interval of mIoU (classes present) in percent: percentiles over sets of images drawn with replacement.

    Args:
        confusions: (N, C, C), one per image. The draws are those of seed 0.
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


# Boundary IoU: Cheng et al., CVPR 2021. A pixel is on a boundary when another label, or the image's edge, is within d of it.

BOUNDARY = 0.02  # d, as a share of the image's diagonal


def boundary(label: Tensor) -> Tensor:
    """Which pixels of a label map (H, W) lie on a boundary: (H, W) bool. Distances are those of a square, as the authors'."""
    height, width = label.shape
    d = max(1, round(BOUNDARY * math.hypot(height, width)))
    maps = torch.stack([label, -label.long()]).float()[:, None]
    outside = F.pad(maps, (d, d, d, d), value=1e4)  # other than any label
    for kernel in ((2 * d + 1, 1), (1, 2 * d + 1)):
        outside = F.max_pool2d(outside, kernel, stride=1)
    return (outside != maps).any(dim=0)[0]


def boundary_counts(predicted: Tensor, label: Tensor, classes: int) -> Tensor:
    """Pixels on both boundaries, on the label's, and on the prediction's, per class: (3, C) int64.

    Args:
        predicted, label: (H, W) as in `confusion_matrix`. Ignored pixels are ignored in both, and are one region in both.
    """
    ignored = label >= classes
    label = torch.where(ignored, classes, label.long())
    predicted = torch.where(ignored, classes, predicted.long())
    truly, claimed = boundary(label), boundary(predicted)

    def count(which: Tensor, names: Tensor) -> Tensor:
        return torch.bincount(torch.where(which, names, classes).flatten(), minlength=classes + 1)[:classes]

    return torch.stack([count(truly & claimed & (label == predicted), label), count(truly, label), count(claimed, predicted)])


def boundary_iou(counts: Tensor) -> Tensor:
    """(C,) float64 from sums of `boundary_counts`; NaN for a class that is nowhere."""
    both, truly, claimed = counts.double()
    return both / (truly + claimed - both)


# Calibration

BINS = 15


def calibration_counts(confidence: Tensor, right: Tensor) -> Tensor:
    """Pixels, their confidence summed, and how many are right, in BINS bins of equal width: (3, BINS) float64.

    Args:
        confidence: (N,) in 0..1. right: (N,) bool.
    """
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    found = torch.zeros(3, BINS, dtype=torch.float64, device=confidence.device)
    for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
        found[row] = torch.bincount(place, weights=values.double(), minlength=BINS)
    return found


def calibration(counts: Tensor) -> dict:
    """From sums of `calibration_counts`: `ece`, the expected calibration error in percent (Guo et al., ICML 2017), and
    `reliability`, per bin that is not empty, mean confidence, share of right pixels (both in percent) and share of all pixels."""
    pixels, confidence, right = counts.cpu()
    filled = pixels > 0
    share = (pixels / pixels.sum().clamp(min=1))[filled]
    sure, true = (100 * part[filled] / pixels[filled] for part in (confidence, right))
    rows = zip(sure.tolist(), true.tolist(), share.tolist(), strict=True)
    return {
        "ece": (share * (sure - true).abs()).sum().item(),
        "reliability": [{"confidence": s, "accuracy": t, "share": n} for s, t, n in rows],
    }
