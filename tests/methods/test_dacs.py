"""DACS: one step against its equations, and the pasted pixels."""

import pytest
import torch
from torch.nn import functional as F

from sda.data.batch import Batch, Labelled
from sda.methods.base import Task
from sda.methods.dacs import DACS
from sda.methods.parts.augment import Augment, Strength, half_of_classes
from sda.methods.settings import DacsSettings

NOTHING = Strength(flip=0, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0)
CLASSES, SIDE, IGNORE = 4, 16, 255


@pytest.fixture
def make(fake_network):
    def make(**changes):
        torch.manual_seed(0)
        settings = {
            "balance_classes": False, "classmix_labelled": 0.0, "teacher_momentum": 0.99, "released": False,
            "teacher_schedule": "constant", "confidence_threshold": 0.968, "weight_pseudo": 1.0,
            "strong_statistics": False, **changes,
        }  # fmt: skip
        method = DACS(fake_network(1, 5.0), DacsSettings(**settings), Task(CLASSES, 20, 6)).train()
        method.weak = method.strong = Augment(NOTHING)
        return method

    return make


@pytest.fixture
def batch(paint):
    """Source images of classes 0 and 1 (some pixels ignored) and target images of classes 2 and 3, in class colours."""
    draw = torch.Generator().manual_seed(0)
    y_s = torch.randint(0, 2, (2, SIDE, SIDE), generator=draw)
    x_s = paint(y_s)
    y_s[:, :2] = IGNORE
    y_u = torch.randint(2, 4, (3, SIDE, SIDE), generator=draw)
    noise = 40 * torch.randn(3, 3, SIDE, SIDE, generator=draw)
    return Batch(Labelled(x_s, y_s.byte()), None, (paint(y_u) + noise).clamp(0, 255).byte())


def mixed_input(method, batch):
    """Return the second batch of images that the student sees in a step, and the losses of the step."""
    seen = []
    handle = method.student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    losses = method.step(batch, 0)
    handle.remove()
    return seen[1], losses


@pytest.mark.parametrize("threshold", [0.968, 0.9])
def test_step_follows_the_equations(make, batch, threshold):
    """In L_mix, source pixels keep their labels with weight 1; the others have the share of confident pixels of their image."""
    method = make(confidence_threshold=threshold)
    x_m, losses = mixed_input(method, batch)
    x_u = batch.unlabelled / 255
    pasted = (x_m - x_u).abs().amax(1) > 1e-3
    reference = make()
    logits = reference.teacher.model(x_u)[0].softmax(1)
    confidence, y_u = logits.max(1)
    sure = (confidence > threshold).float().mean((1, 2))
    assert sure.min() > 0 and sure.max() < 1
    total, count = torch.zeros(()), 0
    student = make().student
    student(torch.cat([batch.source.images / 255]))  # the first forward pass changes no statistics that normalise in training
    log_p = student(x_m)[0].log_softmax(1)
    for b in range(3):
        sources = [(batch.source.images[n] / 255 - x_m[b])[:, pasted[b]].abs().max() < 1e-3 for n in range(2)]
        label = batch.source.labels[sources.index(True)]
        for i in range(SIDE):
            for j in range(SIDE):
                y, w = (label[i, j].item(), 1.0) if pasted[b, i, j] else (y_u[b, i, j].item(), sure[b])
                assert y != IGNORE, "ignored source pixels are not pasted"
                total, count = total - w * log_p[b, y, i, j], count + 1
    torch.testing.assert_close(losses["mix"], total / count, rtol=1e-4, atol=1e-5)
    y_s = batch.source.labels.long()
    expected = F.cross_entropy(make().student(batch.source.images / 255)[0], y_s, ignore_index=IGNORE)
    torch.testing.assert_close(losses["sup"], expected)


def test_half_of_the_source_classes_are_pasted(make, batch):
    """One of two classes is pasted: all of its pixels and no others."""
    for seed in range(5):
        method = make()
        torch.manual_seed(seed)
        x_m, _ = mixed_input(method, batch)
        x_u = batch.unlabelled / 255
        pasted = (x_m - x_u).abs().amax(1) > 1e-3
        for b in range(3):
            fits = [(batch.source.labels[n] == c)[pasted[b]].all() and pasted[b][batch.source.labels[n] == c].all()
                    for n in range(2) for c in range(2)]  # fmt: skip
            assert any(fits)


def test_target_labels_enter_the_supervised_loss(make, batch, paint):
    labels = torch.full((1, SIDE, SIDE), 3)
    with_labels = Batch(batch.source, Labelled(paint(labels), labels.byte()), batch.unlabelled)
    assert make().step(batch, 0)["sup"] != make().step(with_labels, 0)["sup"]


def test_teacher_follows_the_student(make, batch):
    method = make()
    with torch.no_grad():
        method.student.classify.bias.add_(1)
    method.follow(0)
    assert torch.equal(method.teacher.model.classify.bias, method.student.classify.bias)


@pytest.mark.parametrize(
    ("present", "down", "up"), [((), 0, 0), ((1,), 0, 1), ((0, 2), 1, 1), ((0, 1, 3), 1, 2), ((0, 1, 2, 3), 2, 2)]
)
@pytest.mark.parametrize("round_up", [False, True])
def test_half_of_classes(present, down, up, round_up):
    """Whole classes, floor(n/2) or ceil(n/2) of n, and no ignored pixel; over many draws, every class occurs."""
    taken = up if round_up else down
    labels = torch.tensor([*present, IGNORE]).repeat(1, 3, 4)
    ever = set()
    for seed in range(30):
        torch.manual_seed(seed)
        chosen = half_of_classes(labels, CLASSES, round_up)
        classes = set(labels[chosen].tolist())
        assert len(classes) == taken and chosen.sum() == 12 * taken
        ever |= classes
    assert ever == (set(present) if taken else set())
