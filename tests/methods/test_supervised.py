"""Supervised training: the loss against a loop over pixels, for all combinations of streams."""

import pytest
import torch
from torch.nn import functional as F

from sda.data.batch import Batch, Labelled
from sda.methods.base import Task
from sda.methods.by_name import METHODS
from sda.methods.parts.augment import Augment, Strength
from sda.methods.settings import SETTINGS, AllSettings, SupervisedSettings
from sda.methods.supervised import Supervised

CLASSES, SIDE = 4, 16


def labelled(seed, count=2, classes=CLASSES):
    """Return random images and labels; some labels are ignored."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=draw) < 0.1] = 255
    return Labelled(torch.randint(256, (count, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8), labels)


def make(network, augmented=False, **settings):
    torch.manual_seed(0)
    method = Supervised(network(), SupervisedSettings(**settings), Task(CLASSES, steps=20, labelled_images=100))
    if not augmented:
        method.weak = Augment(Strength(0, 0, 0, 0, 0, 0, 0, 0))
    return method


STREAMS = {
    "source": Batch(labelled(1), None, None),
    "target": Batch(None, labelled(2, 3), None),
    "joint": Batch(labelled(1), labelled(2, 3), None),
}


def slow_sup(method, images, labels):
    """(1/V) Σ_pixels α_y (-log p_y), with α_c = sqrt(median(f)/f_c) from this batch's counts if classes are balanced."""
    logits, _ = method.student(images)
    log_p = F.interpolate(logits, labels.shape[1:], mode="bilinear").log_softmax(1)
    alpha = [1.0] * CLASSES
    if method.settings.balance_classes:
        counts = [(labels == c).sum().item() for c in range(CLASSES)]
        ordered = sorted(count for count in counts if count)
        median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        alpha = [(median / count) ** 0.5 if count else 1.0 for count in counts]
    terms = [
        -alpha[y] * log_p[b, y, i, j]
        for b in range(len(labels))
        for i in range(SIDE)
        for j in range(SIDE)
        if (y := labels[b, i, j].item()) != 255
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("streams", STREAMS)
def test_loss_equals_a_loop_over_pixels(streams, balance, fake_network):
    method, batch = make(fake_network, balance_classes=balance), STREAMS[streams]
    parts = [part for part in (batch.source, batch.labelled) if part]
    images, labels = torch.cat([part.images for part in parts]) / 255, torch.cat([part.labels for part in parts])
    losses = method.step(batch, 0)
    assert set(losses) == {"sup"}
    torch.testing.assert_close(losses["sup"], slow_sup(method, images, labels), rtol=1e-4, atol=1e-5)


def test_source_pixels_reach_the_loss(fake_network):
    """Changing the label or the colour of one source pixel changes the loss and its gradient."""
    batch = STREAMS["joint"]
    method = make(fake_network)
    before = method.step(batch, 0)["sup"]
    labels, images = batch.source.labels.clone(), batch.source.images.clone()
    labels[1, 5, 5] = (labels[1, 5, 5] + 1) % CLASSES
    images[1, :, 5, 5] = 255 - images[1, :, 5, 5]
    for source in (Labelled(batch.source.images, labels), Labelled(images, batch.source.labels)):
        assert abs(method.step(Batch(source, batch.labelled, None), 0)["sup"] - before).item() > 1e-5


def test_ignored_pixels_do_not_reach_the_loss(fake_network):
    method, batch, outputs = make(lambda: fake_network(stride=1)), STREAMS["joint"], []
    method.student.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    loss = method.step(batch, 0)["sup"]
    (grad,) = torch.autograd.grad(loss, outputs[0])
    ignored = torch.cat([batch.source.labels, batch.labelled.labels]) == 255
    assert torch.equal((grad == 0).all(dim=1), ignored)


def test_loss_without_valid_pixels_is_zero(fake_network):
    part = labelled(1)
    method = make(fake_network, augmented=True, balance_classes=True)
    loss = method.step(Batch(None, Labelled(part.images, torch.full_like(part.labels, 255)), None), 0)["sup"]
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in method.student.parameters() if p.grad is not None)


def test_loss_is_finite_if_a_class_is_absent(fake_network):
    method = make(fake_network, augmented=True, balance_classes=True)
    loss = method.step(Batch(labelled(3, classes=2), None, None), 0)["sup"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.student.parameters() if p.grad is not None)


def test_network_sees_images_from_0_to_1(fake_network):
    """The network normalises its input itself."""
    method, seen, part = make(fake_network), [], labelled(1)
    method.student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.step(Batch(part, None, None), 0)
    torch.testing.assert_close(seen[0], part.images / 255, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_classmix_mixes_labelled_images(mix, fake_network):
    method, seen, part = make(fake_network, classmix_labelled=mix), [], labelled(1)
    method.student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.step(Batch(part, None, None), 0)
    changed = ((seen[0] - part.images / 255).abs() > 1e-3).any(1).flatten(1).float().mean(1)
    assert ((changed > 0.2) & (changed < 0.8)).all() if mix else (changed == 0).all()


def test_loss_depends_on_the_seed_only(fake_network):
    losses = []
    for seed in (1, 1, 2):
        method = make(fake_network, augmented=True, classmix_labelled=0.5)
        torch.manual_seed(seed)
        losses.append(method.step(STREAMS["joint"], 0)["sup"].item())
    assert losses[0] == losses[1] != losses[2]


def test_state_dict_contains_student_and_balance(fake_network):
    method = make(fake_network, augmented=True, balance_classes=True)
    method.step(STREAMS["joint"], 0)
    method.follow(0)
    state = method.state_dict()
    assert {name.split(".")[0] for name in state} == {"student", "balance"}
    assert state["balance.frequency"].sum().item() == pytest.approx(1)
    assert method.diagnostics() == {}


def test_every_method_has_settings():
    assert METHODS.keys() == SETTINGS.keys()
    for name, kind in SETTINGS.items():
        assert issubclass(AllSettings, kind), name
