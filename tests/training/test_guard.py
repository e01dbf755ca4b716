"""Warnings, each given once; and losses that are not finite."""

import json
from types import SimpleNamespace

import pytest
import tiny
import torch

from sda.methods.class_bank import ClassBankMethod
from sda.methods.parts.teacher import top_share
from sda.methods.supervised import Supervised
from sda.recipe import Recipe
from sda.runs import checkpoint
from sda.training.guard import Guard

NAMES = ["road", "sky", "train"]
RECIPE = Recipe(target="field", labels=3, size=[64, 64], backbone="resnet50", steps=100, unlabelled_start=20, bank_start=10)


def looks(values, method=None, steps=None):
    """Return a guard's warnings for a series of losses, one per step."""
    guard = Guard(RECIPE, NAMES)
    method = method or SimpleNamespace(bank=None, watched_loss="sup")
    said = []
    for step, value in zip(steps or range(len(values)), values, strict=True):
        said += guard.look(step, {"sup": 1.0, **value}, method)
    return said


def test_a_falling_loss_gives_no_warning():
    assert looks([{"sup": 3.0 / (1 + k)} for k in range(50)]) == []
    noisy = torch.rand(200, generator=torch.manual_seed(0)).tolist()
    assert looks([{"sup": 1 + x} for x in noisy]) == []


def test_a_method_without_watched_loss_gives_no_warning():
    """Its losses may have any names."""
    method = SimpleNamespace(bank=None, watched_loss=None)
    assert looks([{"sup": 1.5**k} for k in range(50)], method) == []


def test_a_rising_loss_gives_a_warning():
    falling, rising = [3.0 - 0.1 * k for k in range(25)], [0.6 * 1.2**k for k in range(30)]
    [said] = looks([{"sup": value} for value in falling + rising])
    assert "the supervised loss has risen from" in said and "lower learning_rate" in said


def test_a_collapsed_teacher_gives_a_warning():
    assert looks([{"teacher_top": 0.97}] * 50) == []
    assert looks([{"teacher_top": 1.0}] * 9 + [{"teacher_top": 0.5}] * 9) == []
    [said] = looks([{"teacher_top": 0.99}] * 50)
    assert "the teacher assigns 99 % of the unlabelled pixels to one class" in said


def test_a_class_without_bank_entries_gives_a_warning():
    valid = torch.tensor([[True, False], [False, False], [False, False]])
    method = SimpleNamespace(bank=SimpleNamespace(valid=valid), watched_loss="sup")
    assert looks([{}] * 2, method, [0, 34]) == []
    [said] = looks([{}] * 3, method, [0, 35, 40])
    assert said.startswith("step 35: the bank has no entries of sky, train, although it has been filled since step 10")


def test_top_share_by_hand():
    assert top_share(torch.tensor([[0, 1, 1], [1, 2, 1]]), 4) == pytest.approx(4 / 6)


# Losses that are not finite


@pytest.fixture
def world(own_world):
    return own_world


def poison(monkeypatch, method, *steps):
    """Make the losses of these steps NaN."""
    original = method.step

    def step(self, batch, step):
        losses = original(self, batch, step)
        return {**losses, "sup": losses["sup"] * float("nan")} if step in steps else losses

    monkeypatch.setattr(method, "step", step)


def test_a_nonfinite_loss_stops_and_saves_the_batch(world, sda, tmp_path, monkeypatch):
    poison(monkeypatch, Supervised, 5)
    flags = ["--steps", 8, "--checkpoint-every", 2, "--device", "cpu", "--out", "run"]
    status, shown = sda("train", world.recipe, *flags)
    assert status == 2 and "step 5: the loss sup is not finite" in shown.err
    assert "nonfinite-step5.pt" in shown.err and "; to resume: --resume run/last.pt, which is intact (step 4)" in shown.err
    kept = torch.load("run/nonfinite-step5.pt", weights_only=True)
    assert kept["step"] == 5 and kept["losses"]["sup"] != kept["losses"]["sup"]
    assert kept["source"]["images"].shape == (2, 3, 48, 64) and kept["labelled"]["labels"].dtype == torch.uint8
    last = checkpoint.load(tmp_path / "run/last.pt")
    assert last["step"] == 4 and all(value.isfinite().all() for value in last["student"].values())


def test_nonfinite_steps_are_skipped_and_counted(world, sda, tmp_path, monkeypatch):
    """A skipped step does not change the network."""
    poison(monkeypatch, ClassBankMethod, 0, 5)
    flags = [*tiny.SETTINGS["semi-supervised DA"], "--steps", 8, "--device", "cpu", "--nonfinite", "skip", "--out", "run"]
    status, shown = sda("train", world.recipe, *flags)
    assert status == 0 and "step 5: skipped: sup is not finite; its batch is saved in run/nonfinite-step5.pt" in shown.err
    assert json.loads((tmp_path / "run/result.json").read_text())["skipped_steps"] == 2
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log if "skipped" in record] == [0, 5]
    assert all(value.isfinite().all() for value in checkpoint.load(tmp_path / "run/last.pt")["student"].values())


def test_the_gradient_norm_is_logged(world, sda, tmp_path):
    assert sda("train", world.recipe, "--device", "cpu", "--out", "run")[0] == 0
    first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert 0 < first["gradient"] < 1e4 and first["rate"] == 2e-4
