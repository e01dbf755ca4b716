"""Confusion matrix and IoU against a loop, hand numbers, torchmetrics and cityscapesscripts."""

import math
import types

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from sda.metrics import confusion_matrix, iou, score

NAMES = ["road", "car", "sky", "train", "bus"]
CLASSES = len(NAMES)


def random_maps(seed, labels=CLASSES, predictions=CLASSES, ignored=0.2):
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(labels, (2, 8, 9), generator=draw)
    predicted = torch.where(
        torch.rand(label.shape, generator=draw) < 0.5, label, torch.randint(predictions, label.shape, generator=draw)
    )
    label[torch.rand(label.shape, generator=draw) < ignored] = 255
    return predicted, label


def slow_confusion(predicted, label):
    matrix = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for p, y in zip(predicted.numpy().ravel(), label.numpy().ravel(), strict=True):
        if y != 255:
            matrix[y, p] += 1
    return matrix


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_confusion_matrix_is_the_loop(dtype):
    for seed in range(4):
        predicted, label = random_maps(seed)
        matrix = confusion_matrix(predicted, label.to(dtype), CLASSES)
        assert matrix.dtype == torch.int64
        assert np.array_equal(matrix.numpy(), slow_confusion(predicted, label))
        assert matrix.sum() == (label != 255).sum()


def test_confusion_matrix_of_ignored_pixels_only():
    matrix = confusion_matrix(torch.tensor([0, 4]), torch.tensor([255, 255]), CLASSES)
    assert torch.equal(matrix, torch.zeros(CLASSES, CLASSES, dtype=torch.int64))
    assert score(matrix, NAMES)["miou"] is None


def test_labels_beyond_the_classes_are_ignored():
    predicted = torch.arange(CLASSES).repeat(3)
    label = torch.tensor([CLASSES, CLASSES + 1, 255]).repeat_interleave(CLASSES)
    assert torch.equal(confusion_matrix(predicted, label, CLASSES), torch.zeros(CLASSES, CLASSES, dtype=torch.int64))


def test_iou_by_hand():
    """Class 0: 3 right, 1 missed, 2 wrongly claimed: 3/6. Class 1: 4/(4 + 2 + 1). Class 2 absent."""
    matrix = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    values = iou(matrix).tolist()
    assert values[:2] == pytest.approx([3 / 6, 4 / 7])
    assert math.isnan(values[2])


def test_score_by_hand():
    """A class that is only predicted (2) counts with 0; one that is nowhere (3) does not count, but in `miou_all`."""
    matrix = torch.tensor([[6, 0, 2, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = score(matrix, ["a", "b", "c", "d"])
    assert result["iou"] == {"a": pytest.approx(75), "b": pytest.approx(100), "c": 0, "d": None}
    assert result["miou"] == pytest.approx(175 / 3)
    assert result["miou_all"] == pytest.approx(175 / 4)
    assert result["accuracy"] == pytest.approx(80)


def test_large_counts_are_exact():
    """More pixels than float32 counts."""
    n = 2**24 + 1
    assert iou(torch.tensor([[n, 1], [0, 1]]))[0].item() == n / (n + 1)


def test_names_must_fit():
    with pytest.raises(ValueError, match="zip"):
        score(torch.zeros(3, 3, dtype=torch.int64), NAMES)


# all classes; class 4 absent from both; class 4 predicted but never a label
CASES = [(CLASSES, CLASSES), (4, 4), (4, CLASSES), (2, 2)]


@pytest.mark.parametrize(("labels", "predictions"), CASES)
def test_score_agrees_with_torchmetrics(labels, predictions):
    predicted, label = random_maps(7, labels, predictions)
    result = score(confusion_matrix(predicted, label, CLASSES), NAMES)
    arguments = {"task": "multiclass", "num_classes": CLASSES, "ignore_index": 255}
    macro = JaccardIndex(**arguments, average="macro")(predicted, label)
    each = JaccardIndex(**arguments, average="none", zero_division=0.0)(predicted, label)
    assert result["miou"] == pytest.approx(100 * macro.item(), abs=1e-4)
    assert [value or 0 for value in result["iou"].values()] == pytest.approx((100 * each).tolist(), abs=1e-4)


@pytest.mark.parametrize(("labels", "predictions"), CASES)
def test_score_agrees_with_cityscapesscripts(labels, predictions):
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    from cityscapesscripts.helpers.labels import trainId2label

    names = [trainId2label[c].name for c in range(19)]
    predicted, label = random_maps(8, labels, predictions)
    result = score(confusion_matrix(predicted, label, 19), names)
    ids = np.array([trainId2label[c].id for c in range(19)] + [0])  # 0: unlabelled, which is ignored
    matrix = np.zeros((34, 34), dtype=np.uint64)
    for p, y in zip(predicted.numpy().ravel(), label.numpy().ravel(), strict=True):
        matrix[ids[min(y, 19)], ids[p]] += 1
    args = types.SimpleNamespace(evalLabels=[int(one) for one in (*ids[:19], 0)])
    theirs = {name: evaluation.getIouScoreForLabel(int(ids[c]), matrix, args) for c, name in enumerate(names)}
    for name, value in result["iou"].items():
        assert math.isnan(theirs[name]) if value is None else value == pytest.approx(100 * theirs[name])
    assert result["miou"] == pytest.approx(100 * evaluation.getScoreAverage(theirs, args))
