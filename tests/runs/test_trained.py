"""Loading trained runs: damaged and crafted files are refused, and the message names what can be loaded instead."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from sda.errors import SdaError
from sda.models import stored
from sda.models.preprocessing import IMAGENET
from sda.runs import checkpoint, trained


@pytest.fixture(scope="module")
def original(world, do, tmp_path_factory):
    """A run with last.pt, previous.pt, best.pt and student.safetensors, which tests must not change."""
    out = tmp_path_factory.mktemp("runs") / "a"
    do("train", world.recipe, "--steps", 2, "--checkpoint-every", 1, "--out", out, "--device", "cpu")
    return out


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_a_damaged_checkpoint_is_refused_and_the_intact_ones_are_named(sda, world, run, command):
    flip(run / "last.pt")
    photos = [world.root / "toy/train/00.png"] if command == "predict" else []
    status, shown = sda(command, run, *photos)
    assert status == 2 and f"{run / 'last.pt'}: not a readable checkpoint (damaged: the checksum of archive/data/" in shown.err
    assert f"is wrong); intact: {run / 'previous.pt'} (step 1) and {run / 'best.pt'} (step 2)" in shown.err


def test_the_intact_ones_can_be_loaded_as_the_message_says(run):
    flip(run / "last.pt")
    assert trained.load(run / "previous.pt", device="cpu").step == 1
    assert trained.load(run, "best", device="cpu").step == 2


def test_a_missing_checkpoint_names_the_others(run):
    (run / "last.pt").unlink()
    with pytest.raises(SdaError, match=r"last\.pt: no such checkpoint; intact: .*previous\.pt \(step 1\) and .*best\.pt"):
        trained.load(run)


def test_a_flipped_bit_in_safetensors_is_noticed(run):
    flip(run / "student.safetensors")
    with pytest.raises(SdaError, match=r"student\.safetensors: not a readable .* \(damaged: its SHA-256 is wrong\)"):
        trained.load(run / "student.safetensors")


@pytest.mark.parametrize("name", ["last.pt", "student.safetensors"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value.to(torch.int8), "and type int8, expected (8, 3, 7, 7) and float32"),
        (lambda value: value.double(), "and type float64, expected (8, 3, 7, 7) and float32"),
        (lambda value: value[:3].clone(), "has shape (3, 3, 7, 7) and type float32, expected (8, 3, 7, 7)"),
        (lambda value: value * float("inf"), "has values that are NaN or infinite"),
        (lambda value: None, "missing backbone.low.0.weight"),
    ],
)
def test_weights_of_other_types_are_refused(run, name, change, says):
    state = checkpoint.load(run / name)
    key = "backbone.low.0.weight"
    weights = state.pop("student")
    weights[key] = change(weights[key])
    weights = {name: value for name, value in weights.items() if value is not None}
    if name == "last.pt":
        checkpoint.save(run / name, {**state, "student": weights})
    else:
        (run / name).write_bytes(checkpoint.to_safetensors(weights, state))
    with pytest.raises(SdaError) as caught:
        trained.load(run / name)
    assert str(caught.value).startswith(f"{run / name}: ") and says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preprocessing": {**IMAGENET.to_dict(), "mean": [0.0, 0.0, float("nan")]}}, "last.pt: preprocessing: expected"),
        ({"preprocessing": {}}, "last.pt: preprocessing: expected"),
        ({"recipe": {}}, "last.pt: recipe: key 'target' is missing"),
        ({"classes": {}}, "last.pt: classes: colors = {}"),
        ({"classes": {"one": [1, 2, 3]}}, "last.pt: a network for 1 classes"),
    ],
)
def test_facts_that_fit_no_network_are_refused(run, change, says):
    checkpoint.save(run / "last.pt", {**checkpoint.load(run / "last.pt"), **change})
    with pytest.raises(SdaError) as caught:
        trained.load(run)
    assert says in str(caught.value)


def test_files_of_older_versions_load(run):
    """They have no hash."""
    state = checkpoint.load(run / "last.pt")
    torch.save(state, run / "last.pt")
    tensors, about = stored.read_safetensors(run / "student.safetensors")
    safetensors.torch.save_file(tensors, run / "student.safetensors", {"sda": about})
    assert json.loads(about)["step"] == trained.load(run).step == trained.load(run / "student.safetensors").step == 2


def test_runs_and_predictions_show_themselves_in_a_line(original, world):
    loaded = trained.load(original, device="cpu")
    assert repr(loaded) == (f"Run({str(original)!r}: student of last.pt, step 2, deeplabv3plus on small, 3 classes, cpu)")
    shown = repr(loaded.predict(world.root / "toy/train/00.png"))
    assert shown.startswith("Prediction(48x64, mean confidence 0.") and shown.endswith(")") and len(shown) < 100
