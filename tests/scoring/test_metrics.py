"""Scores against loops, values computed by hand, torchmetrics, cityscapesscripts and the definitions of the authors."""

import math
import types

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics import CalibrationError, JaccardIndex

from sda.scoring import metrics
from sda.scoring.metrics import confusion_matrix, iou, score
from sda.system.tables import mean_of_present

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
def test_confusion_matrix_equals_a_loop(dtype):
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
    """Class 0: 3 true positives, 1 false negative, 2 false positives: 3/6. Class 1: 4/(4 + 2 + 1). Class 2 is absent."""
    matrix = torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    values = iou(matrix).tolist()
    assert values[:2] == pytest.approx([3 / 6, 4 / 7])
    assert math.isnan(values[2])


def test_score_by_hand():
    """A class that is only predicted (2) counts as 0; an absent class (3) counts only in `miou_all`."""
    matrix = torch.tensor([[6, 0, 2, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = score(matrix, ["a", "b", "c", "d"])
    assert result["iou"] == {"a": pytest.approx(75), "b": pytest.approx(100), "c": 0, "d": None}
    assert result["miou"] == pytest.approx(175 / 3)
    assert result["miou_all"] == pytest.approx(175 / 4)
    assert result["accuracy"] == pytest.approx(80)


def test_large_counts_are_exact():
    """More pixels than float32 can count."""
    n = 2**24 + 1
    assert iou(torch.tensor([[n, 1], [0, 1]]))[0].item() == n / (n + 1)


def test_number_of_names_must_match():
    with pytest.raises(ValueError, match="zip"):
        score(torch.zeros(3, 3, dtype=torch.int64), NAMES)


# all classes; class 4 absent from both; class 4 predicted but not labelled
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
    ids = np.array([trainId2label[c].id for c in range(19)] + [0])  # 0: unlabelled, ignored
    matrix = np.zeros((34, 34), dtype=np.uint64)
    for p, y in zip(predicted.numpy().ravel(), label.numpy().ravel(), strict=True):
        matrix[ids[min(y, 19)], ids[p]] += 1
    args = types.SimpleNamespace(evalLabels=[int(one) for one in (*ids[:19], 0)])
    theirs = {name: evaluation.getIouScoreForLabel(int(ids[c]), matrix, args) for c, name in enumerate(names)}
    for name, value in result["iou"].items():
        assert math.isnan(theirs[name]) if value is None else value == pytest.approx(100 * theirs[name])
    assert result["miou"] == pytest.approx(100 * evaluation.getScoreAverage(theirs, args))


def test_frequency_weighted_iou_by_hand():
    """Class a: 8 of 10 labelled pixels, IoU 6/8; b: 2 of 10, IoU 1; c is never a label."""
    matrix = torch.tensor([[6, 0, 2], [0, 2, 0], [0, 0, 0]])
    assert score(matrix, ["a", "b", "c"])["fwiou"] == pytest.approx(100 * (0.8 * 6 / 8 + 0.2))


def test_miou_is_the_mean_of_the_present_classes():
    assert mean_of_present([10.0, None, 30.0]) == 20 and mean_of_present([None]) is None


def test_bootstrap_equals_a_loop():
    random = np.random.default_rng(3)
    matrices = random.integers(0, 50, (12, 4, 4))
    matrices[:, 3] = 0  # this class is only predicted
    low, high = metrics.bootstrap(matrices, draws=400)
    means = []
    for _ in range(400):
        drawn = matrices[random.integers(0, 12, 12)].sum(axis=0)
        means.append(score(torch.from_numpy(drawn), list("abcd"))["miou"])
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.8) and high == pytest.approx(np.percentile(means, 97.5), abs=0.8)
    assert low < score(torch.from_numpy(matrices.sum(axis=0)), list("abcd"))["miou"] < high
    assert metrics.bootstrap(np.repeat(matrices[:1], 5, axis=0))[0] == pytest.approx(
        metrics.bootstrap(np.repeat(matrices[:1], 5, axis=0))[1]
    )


def authors_boundary(mask, d):
    """As in the authors' code: the mask minus the mask eroded d times by a 3x3 square, with zeros around the image."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=d, border_value=0)


def blobs(seed, size=(60, 90)):
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(CLASSES, *size)), (0, 5, 5))
    return noise.argmax(axis=0)


def test_boundary_iou_equals_the_authors_per_class():
    counts, both, either = 0, np.zeros(CLASSES), np.zeros(CLASSES)
    for seed in range(3):
        label, predicted = blobs(seed), blobs(seed + 10)
        predicted[:, :40] = label[:, :40]
        counts = counts + metrics.boundary_counts(torch.from_numpy(predicted), torch.from_numpy(label), CLASSES)
        d = max(1, round(0.02 * math.hypot(60, 90)))
        for c in range(CLASSES):
            truly, claimed = authors_boundary(label == c, d), authors_boundary(predicted == c, d)
            both[c] += (truly & claimed).sum()
            either[c] += (truly | claimed).sum()
    assert metrics.boundary_iou(counts).tolist() == pytest.approx((both / either).tolist())
    assert (either > 0).all()


def test_predictions_inside_ignored_regions_have_no_boundary():
    """Predictions inside an ignored region have no effect."""
    label = blobs(1)
    label[20:40, 30:60] = 255
    one, other = blobs(2), blobs(2)
    other[20:40, 30:60] = blobs(5)[20:40, 30:60]
    counts = [metrics.boundary_counts(torch.from_numpy(p), torch.from_numpy(label), CLASSES) for p in (one, other)]
    assert torch.equal(*counts)
    perfect = np.where(label == 255, 3, label)
    found = metrics.boundary_iou(metrics.boundary_counts(torch.from_numpy(perfect), torch.from_numpy(label), CLASSES))
    assert found.tolist() == [1.0] * CLASSES


def test_calibration_error_agrees_with_torchmetrics():
    draw = torch.Generator().manual_seed(4)
    p = (2 * torch.randn(5000, CLASSES, generator=draw)).softmax(dim=1)
    label = torch.randint(CLASSES, (5000,), generator=draw)
    confidence, predicted = p.max(dim=1)
    counts = sum(
        metrics.calibration_counts(confidence[part], (predicted == label)[part]) for part in (slice(0, 2000), slice(2000, None))
    )
    found = metrics.calibration(counts)
    theirs = CalibrationError(task="multiclass", num_classes=CLASSES, n_bins=metrics.BINS, norm="l1")(p, label)
    assert found["ece"] == pytest.approx(100 * theirs.item(), rel=1e-4)
    assert sum(row["share"] for row in found["reliability"]) == pytest.approx(1)
    certain = metrics.calibration(metrics.calibration_counts(torch.ones(4), torch.tensor([True, True, True, False])))
    assert certain["ece"] == pytest.approx(25) and certain["reliability"] == [{"confidence": 100, "accuracy": 75, "share": 1}]
