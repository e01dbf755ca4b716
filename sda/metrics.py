"""Confusion matrix → IoU. Pure functions."""

import torch
from torch import Tensor


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
        `iou`: class → percent, None where absent.
    """
    values = 100 * iou(confusion.cpu())
    accuracy = 100 * confusion.diagonal().sum().item() / max(confusion.sum().item(), 1)
    per_class = {name: None if value.isnan() else value.item() for name, value in zip(names, values, strict=True)}
    present = values[~values.isnan()]
    return {
        "miou": present.mean().item() if len(present) else None,
        "miou_all": values.nan_to_num(0).mean().item(),
        "accuracy": accuracy,
        "iou": per_class,
    }
