"""Pretrained weights: what loads, what is reported, what is refused; and the preprocessing."""

import logging
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from sda.errors import SdaError
from sda.models import Preprocessing, build, preprocessing_for, weights
from sda.models.backbones import build_backbone
from sda.models.torchvision_shim import models

SMALL = "mobilenet_v3_small"


@pytest.fixture
def small_state():
    """A state dict of torchvision's smallest network, with telling batch norm statistics."""
    return scrambled_state(SMALL)


def scrambled_state(name):
    torch.manual_seed(1)
    state = getattr(models, name)().state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value + 7 for key, value in state.items()}


def save(content, path):
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_torchvision_file_loads_completely(name, tmp_path, caplog):
    state = scrambled_state(name)
    path = save(state, tmp_path / "weights.pth")
    body = build_backbone(name, 16)
    report = weights.load_weights(body, name, path)
    assert report.missing == report.unexpected == report.unfit == []
    loaded = body.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    # Only the classifier is left out, and in MobileNetV2 the one block (of six tensors) that serves it.
    left_out = [key for key in state if key not in loaded and not key.startswith(("fc.", "classifier."))]
    assert len(left_out) == (6 if name == "mobilenet_v2" else 0)
    assert caplog.records == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.backbone.{key}": value for key, value in state.items()}},
    ],
    ids=["state_dict", "model", "module", "module.backbone"],
)
def test_wrapped_files_load(wrap, small_state, tmp_path):
    network = build("deeplabv3plus", SMALL, 3, weights=save(wrap(small_state), tmp_path / "weights.pt"))
    assert torch.equal(network.backbone.features[0][0].weight, small_state["features.0.0.weight"])


def test_file_without_step_counters_loads_completely(small_state, tmp_path, caplog):
    state = {key: value for key, value in small_state.items() if not key.endswith("num_batches_tracked")}
    build("deeplabv2", SMALL, 3, weights=save(state, tmp_path / "old.pth"))
    assert caplog.records == []


def test_what_did_not_match_is_reported(small_state, tmp_path, caplog):
    del small_state["features.1.block.0.0.weight"]
    small_state["features.0.0.weight"] = torch.zeros(16, 1, 3, 3)
    small_state["features.0.1.weight"] = torch.zeros(16, dtype=torch.int8)
    small_state["extra.weight"] = torch.zeros(1)
    body = build_backbone(SMALL, 16)
    before = body.features[0][1].weight.clone()
    with caplog.at_level(logging.WARNING):
        report = weights.load_weights(body, SMALL, save(small_state, tmp_path / "odd.pth"))
    assert report.missing == ["features.1.block.0.0.weight"]
    assert report.unexpected == ["extra.weight"]
    assert report.unfit == ["features.0.0.weight", "features.0.1.weight"]
    assert torch.equal(body.features[0][1].weight, before)
    for word in ("odd.pth", "1 missing (features.1.block.0.0.weight)", "extra.weight", "2 of another shape or type"):
        assert word in caplog.text


class Hostile:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (self.victim,)


def test_bad_files_are_refused_in_one_line(small_state, tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save(small_state, whole)
    (tmp_path / "truncated.pth").write_bytes(whole.read_bytes()[:100_000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("not weights\n")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps({"conv1.weight": Hostile(str(tmp_path / "victim"))}))
    torch.save({"conv1.weight": Hostile(str(tmp_path / "victim"))}, tmp_path / "hostile_zip.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "no_tensors.pth")
    for name in ("truncated", "empty", "text", "hostile", "hostile_zip", "list", "no_tensors", "missing", "."):
        path = str(tmp_path / name) + (".pth" if name != "." else "")
        with pytest.raises(SdaError) as caught:
            build("deeplabv3plus", SMALL, 3, weights=path)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(("file_of", "name"), [("mobilenet_v2", SMALL), ("resnet50", "resnet101")])
def test_weights_of_another_network_are_refused(file_of, name, monkeypatch):
    # A resnet50 file matches more than half of a resnet101, and must be refused all the same.
    with torch.device("meta"):
        body, foreign = build_backbone(name, 16), getattr(models, file_of)().state_dict()
    monkeypatch.setattr(weights, "read_state_dict", lambda path: foreign)
    monkeypatch.setattr(body, "load_state_dict", lambda state, strict: None)
    with pytest.raises(SdaError, match="other.pth: only .* tensors of .* for example .*expected for example") as caught:
        weights.load_weights(body, name, "other.pth")
    assert "\n" not in str(caught.value)
    assert next(iter(foreign)) in str(caught.value)


def test_imagenet_offline(monkeypatch):
    def refuse(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(SdaError, match="https://.*mobilenet_v2.*pth.*no network.*weights=/path/file.pth") as caught:
        build("deeplabv2", "mobilenet_v2", 3, weights="imagenet")
    assert "\n" not in str(caught.value)


def test_imagenet_downloads_torchvisions_file(small_state, monkeypatch):
    asked = []

    def answer(url, **settings):
        asked.append((url, settings["weights_only"], settings["check_hash"]))
        return small_state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", answer)
    network = build("deeplabv2", SMALL, 3, weights="imagenet")
    assert asked == [(models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url, True, True)]
    assert torch.equal(network.backbone.features[0][0].weight, small_state["features.0.0.weight"])


def test_shared_imagenet_weights():
    shared = os.environ.get("SDA_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data"
    path = Path(shared) / "weights" / "mobilenet_v2_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    report = weights.load_weights(build_backbone("mobilenet_v2", 16), "mobilenet_v2", str(path))
    assert report.missing == report.unexpected == report.unfit == []
    network = build("deeplabv3plus", "mobilenet_v2", 7, weights=str(path)).eval()
    with torch.no_grad():
        logits, features = network(preprocessing_for(str(path))(torch.rand(1, 3, 64, 96)))
    assert logits.isfinite().all()
    assert features.isfinite().all()


def test_preprocessing_by_hand():
    preprocessing = Preprocessing(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.5))
    images = torch.tensor([51, 153, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(2, 1, 2, 2)
    expected = torch.tensor([0.0, 1.0, 0.8]).reshape(1, 3, 1, 1).expand(2, 3, 2, 2)
    torch.testing.assert_close(preprocessing(images), expected)
    floats = (images / 255).contiguous(memory_format=torch.channels_last)
    before = floats.clone()
    normalised = preprocessing(floats)
    torch.testing.assert_close(normalised, expected)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(floats, before)


@pytest.mark.parametrize("name", ["none", "imagenet", "some/file.pth"])
def test_preprocessing_is_torchvisions_and_survives_a_checkpoint(name):
    preprocessing = preprocessing_for(name)
    transforms = models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert list(preprocessing.mean) == transforms.mean
    assert list(preprocessing.std) == transforms.std
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mean": [0.5] * 3},
        {"mean": [0.5] * 2, "std": [1] * 3},
        {"mean": [0.5] * 3, "std": [1, 0, 1]},
        None,
        {"mean": "abc", "std": [1] * 3},
    ],
)
def test_bad_preprocessing_is_refused(values):
    with pytest.raises(SdaError, match="preprocessing: expected"):
        Preprocessing.from_dict(values)
