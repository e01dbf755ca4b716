"""The parts of `mean_teacher` that the paper's method does not have: each changes what its definition says, and nothing else."""

import pytest
import tiny
import torch
from torch.nn import functional as F

from sda.data.batch import Batch, Labelled
from sda.methods.base import Task
from sda.methods.mean_teacher import MeanTeacher
from sda.methods.parts.augment import Augment, Strength
from sda.methods.settings import MeanTeacherSettings
from sda.runs import checkpoint

NOTHING = Strength(flip=0, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0)
CLASSES, SIDE = 4, 16


@pytest.fixture
def make(fake_network):
    def make(**changes):
        torch.manual_seed(0)
        settings = MeanTeacherSettings(**{"ramp_steps": 0, "classmix_unlabelled": 0.0, "views": 1, **changes})
        method = MeanTeacher(fake_network(1, 5.0), settings, Task(CLASSES, 20, 6)).train()
        method.weak = method.strong = Augment(NOTHING)
        return method

    return make


@pytest.fixture
def batch(paint):
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (7, SIDE, SIDE), generator=draw)
    x = (paint(y) + 40 * torch.randn(7, 3, SIDE, SIDE, generator=draw)).clamp(0, 255).byte()
    return Batch(Labelled(x[:2], y[:2].byte()), Labelled(x[2:4], y[2:4].byte()), x[4:])


def seen(method, batch):
    """Return the losses of a step, and the inputs of the student's forward passes."""
    inputs = []
    handle = method.student.register_forward_pre_hook(lambda module, given: inputs.append(given))
    torch.manual_seed(1)
    losses = method.step(batch, 5)
    handle.remove()
    return losses, inputs


def test_the_masked_view_has_the_pseudo_labels_of_the_whole_image(make, batch):
    method = make(weight_masked=0.5, mask_patch=4, mask_ratio=0.6)
    losses, (_, (plain, *_), (masked, *_)) = seen(method, batch)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    hidden = ((masked - mean).abs() < 1e-6).all(dim=1)
    assert 0.45 < hidden.float().mean() < 0.75
    torch.testing.assert_close(torch.where(hidden.unsqueeze(1), 0, masked), torch.where(hidden.unsqueeze(1), 0, plain))
    with torch.no_grad():
        p, y = make().teacher.model(batch.unlabelled / 255)[0].softmax(1).max(1)
    other = make()
    other.student(torch.cat([batch.source.images, batch.labelled.images]) / 255)
    logits = other.student(masked)[0]
    expected = 0.5 * (p**6 * F.cross_entropy(logits, y, reduction="none")).mean()
    torch.testing.assert_close(losses["masked"], expected, rtol=1e-4, atol=1e-6)
    losses, _ = seen(make(), batch)
    assert "masked" not in losses


def test_channel_dropout_concerns_the_strong_views_alone(make, batch):
    _, (labelled, strong, masked) = seen(make(channel_dropout=True, views=2, weight_masked=1.0), batch)
    assert len(labelled) == len(masked) == 1, "the others are not changed"
    assert strong[2] == 2 and len(strong[0]) == 2 * 3
    assert seen(make(), batch)[1][1][2] == 0


def test_classes_of_labelled_images_are_mixed_into_the_strong_views(make, batch):
    method = make(classmix_unlabelled=1.0, unlabelled_start=0, mix_from="source")
    _, (_, (images, *_)) = seen(method, batch)
    changed = ((images - batch.unlabelled / 255).abs() > 1e-3).any(dim=1)
    assert changed.flatten(1).any(dim=1).all()
    sources = batch.source.images / 255
    for image, mask in zip(images, changed, strict=True):
        assert any(torch.allclose(image[:, mask], source[:, mask], atol=1e-3) for source in sources)


def test_all_parts_together_resume_bit_for_bit(world, sda, tmp_path):
    parts = ["--mix-from", "all", "--weight-masked", 1, "--mask-patch", 16, "--channel-dropout", "true", "--color-transfer", 0.5]
    command = ["train", world.recipe, *tiny.BANK, *parts, "--steps", 6, "--device", "cpu"]
    assert sda(*command, "--out", tmp_path / "whole")[0] == 0
    assert sda(*command, "--out", tmp_path / "cut", "--stop-at", 3)[0] == 0
    assert sda(*command, "--out", tmp_path / "cut", "--resume", "auto")[0] == 0
    first, second = (checkpoint.load(tmp_path / run / "last.pt")["method"] for run in ("whole", "cut"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "cut/metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--mix-from", "source", "--source", ""], "no source images: set source, or mix_from = unlabelled"),
        (["--mix-from", "labelled", "--labels", "0"], "no labelled target images: set labels, or mix_from = unlabelled"),
        (["--mix-from", "source", "--alternate", "true"], "only every other step has source images: set alternate = false, or"),
        (["--rare-class-sampling", 0.1, "--rare-class-pixels", 4000], "a crop of 48x64 has only 3072 pixels: reduce it"),
        (["--color-transfer", "0.5", "--source", ""], "color_transfer changes the colours of source images: set a source"),
    ],
)
def test_parts_without_their_stream_are_refused(world, sda, tmp_path, flags, says):
    status, shown = sda("train", world.recipe, *tiny.BANK, *flags, "--device", "cpu", "--out", tmp_path / "run")
    assert status == 2 and says in shown.err
