"""Curves and pictures on TensorBoard and Weights & Biases."""

import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sda.runs import checkpoint
from sda.training import boards


@pytest.fixture
def world(tmp_path):
    return tiny.write_world(tmp_path)


def train(sda, world, out, *flags):
    status, shown = sda("train", world.recipe, *tiny.BANK, "--out", out, "--eval-every", 2, *flags)
    assert status == 0, shown.err
    return checkpoint.load(out / "last.pt")


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_gets_curves_and_pictures(sda, world, tmp_path):
    plain = train(sda, world, tmp_path / "plain")
    watched = train(sda, world, tmp_path / "watched", "--board", "tensorboard")
    for name, value in plain["student"].items():
        assert torch.equal(value, watched["student"][name]), f"watching changed {name}"
    events = read(tmp_path / "watched/tensorboard")
    tags = events.Tags()
    assert {"train/loss", "train/sup", "train/bank_fill", "val/miou", "IoU/human"} <= {*tags["scalars"]}
    assert [event.step for event in events.Scalars("val/miou")] == [2, 3]
    assert {*tags["images"]} == {"validation", "unlabelled"}
    assert [event.step for event in events.Images("validation")] == [2, 3]
    first = events.Images("unlabelled")[0]
    assert first.width > 3 * 384 and first.height > 4 * 288  # columns image, pseudo-label, confidence; four rows


def test_a_resumed_run_continues_its_curves(sda, world, tmp_path):
    out = tmp_path / "run"
    status, shown = sda(
        "train", world.recipe, *tiny.BANK, "--out", out, "--eval-every", 1, "--board", "tensorboard", "--stop-at", 2
    )
    assert status == 0, shown.err
    train(sda, world, out, "--eval-every", 1, "--board", "tensorboard", "--resume", "auto")
    assert [event.step for event in read(out / "tensorboard").Scalars("val/miou")] == [1, 2, 3]


def test_a_missing_board_is_reported_before_the_run_folder_is_created(sda, world, tmp_path, monkeypatch):
    monkeypatch.setattr(boards.importlib.util, "find_spec", lambda name: None)
    status, shown = sda("train", world.recipe, "--out", tmp_path / "run", "--board", "tensorboard")
    assert status == 2 and "the package tensorboard is not installed: pip install tensorboard" in shown.err
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_gets_curves_and_pictures(sda, world, tmp_path, monkeypatch):
    """A fake package records the values. A resumed run keeps its id."""
    began, logged = [], []

    class Run:
        log = staticmethod(lambda values, step: logged.append((step, values)))
        finish = staticmethod(lambda: logged.append("finish"))

    def init(**given):
        began.append(given)
        return Run

    stand_in = SimpleNamespace(
        init=init,
        Image=lambda picture: ("picture", picture.size),
        errors=SimpleNamespace(Error=RuntimeError),
        __spec__=SimpleNamespace(),  # importlib needs it
    )
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    out = tmp_path / "run"
    status, shown = sda("train", world.recipe, *tiny.BANK, "--out", out, "--board", "wandb", "--stop-at", 2)
    assert status == 0, shown.err
    train(sda, world, out, "--board", "wandb", "--resume", "auto")
    assert began[0]["id"] == began[1]["id"] and began[0]["config"]["method"] == "class_bank"
    assert logged.count("finish") == 2
    keys = {key for entry in logged if entry != "finish" for key in entry[1]}
    assert {"train/loss", "val/miou", "validation", "unlabelled"} <= keys
