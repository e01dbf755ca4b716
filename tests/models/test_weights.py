"""Pretrained weights: loading, reports and errors."""

import json
import logging
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch

from sda.errors import SdaError
from sda.models import stored
from sda.models.backbones.by_name import build_backbone
from sda.models.build import build
from sda.models.torchvision_shim import models
from sda.models.weights.load import load_weights
from sda.models.weights.read import Pretrained, read_weights

SMALL = "mobilenet_v3_small"


@pytest.fixture
def small_state():
    """A state dict of torchvision's smallest network, with distinct batch-norm statistics."""
    return scrambled_state(SMALL)


def scrambled_state(name):
    torch.manual_seed(1)
    state = getattr(models, name)().state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value + 7 for key, value in state.items()}


def load(body, name, where, form="auto"):
    return load_weights(body, name, read_weights(name, where, form))


def save(content, path):
    torch.save(content, path)
    return str(path)


def downloads(monkeypatch, state):
    """Answer each download with a state dict. Return the list of (URL, beginning of the hash that is compared)."""
    asked = []

    def answer(url, path, hash_prefix, progress):
        asked.append((url, hash_prefix))
        torch.save(state, path)

    monkeypatch.setattr("torch.hub.download_url_to_file", answer)
    return asked


@pytest.fixture(autouse=True)
def empty_caches(tmp_path_factory, monkeypatch):
    """The caches of downloads are empty."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_torchvision_file_loads_completely(name, tmp_path, caplog):
    state = scrambled_state(name)
    path = save(state, tmp_path / "weights.pth")
    body = build_backbone(name, 16)
    report = load(body, name, path)
    assert report.missing == report.unexpected == report.unfit == []
    loaded = body.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)
    # Only the classifier is skipped, and in MobileNetV2 the one block (of six tensors) that only the classifier needs.
    unused = [key for key in state if key not in loaded and not key.startswith(("fc.", "classifier."))]
    assert len(unused) == (6 if name == "mobilenet_v2" else 0)
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
    body = build_backbone(SMALL, 16)
    load(body, SMALL, save(wrap(small_state), tmp_path / "weights.pt"))
    assert torch.equal(body.features[0][0].weight, small_state["features.0.0.weight"])


def test_file_without_step_counters_loads_completely(small_state, tmp_path, caplog):
    state = {key: value for key, value in small_state.items() if not key.endswith("num_batches_tracked")}
    load(build_backbone(SMALL, 16), SMALL, save(state, tmp_path / "old.pth"))
    assert caplog.records == []


def test_unmatched_tensors_are_reported(small_state, tmp_path, caplog):
    del small_state["features.1.block.0.0.weight"]
    small_state["features.0.0.weight"] = torch.zeros(16, 1, 3, 3)
    small_state["features.0.1.weight"] = torch.zeros(16, dtype=torch.int8)
    small_state["extra.weight"] = torch.zeros(1)
    body = build_backbone(SMALL, 16)
    before = body.features[0][1].weight.clone()
    with caplog.at_level(logging.WARNING):
        report = load(body, SMALL, save(small_state, tmp_path / "odd.pth"))
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
            load(build_backbone(SMALL, 16), SMALL, path)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "victim").exists()


@pytest.mark.filterwarnings("ignore:.*which is a no-op")  # copying to the meta device
@pytest.mark.parametrize(("file_of", "name"), [("mobilenet_v2", SMALL), ("resnet50", "resnet101")])
def test_weights_of_another_network_are_refused(file_of, name):
    # A resnet50 file matches more than half of a resnet101, but must still raise an error.
    with torch.device("meta"):
        body, foreign = build_backbone(name, 16), getattr(models, file_of)().state_dict()
    with pytest.raises(SdaError, match="other.pth: only .* tensors of .* match; expected names such as .*, found ") as caught:
        load_weights(body, name, Pretrained("other.pth", foreign))
    assert "\n" not in str(caught.value)
    assert next(iter(foreign)) in str(caught.value)


def test_a_failed_download_suggests_a_local_file(monkeypatch):
    def refuse(*arguments, **settings):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(
        SdaError, match="https://.*mobilenet_v2.*pth.*no network.*give a local file, --weights PATH.pth"
    ) as caught:
        read_weights("mobilenet_v2", "imagenet")
    assert "\n" not in str(caught.value)


def test_imagenet_downloads_the_file_of_torchvision(small_state, monkeypatch):
    asked = downloads(monkeypatch, small_state)
    body = build_backbone(SMALL, 16)
    load(body, SMALL, "imagenet")
    url = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url
    assert asked == [(url, url.rpartition("-")[2].removesuffix(".pth"))]
    assert torch.equal(body.features[0][0].weight, small_state["features.0.0.weight"])


def test_imagenet_weights_from_a_file():
    shared = os.environ.get("SDA_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data"
    path = Path(shared) / "weights" / "mobilenet_v2_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    network = build("deeplabv3plus", "mobilenet_v2", 7).eval()
    report = load(network.backbone, "mobilenet_v2", str(path))
    assert report.complete
    with torch.no_grad():
        logits, features = network(torch.rand(1, 3, 64, 96))
    assert logits.isfinite().all()
    assert features.isfinite().all()


# Files converted from DeepLabv2's Caffe model: names with the prefix "Scale." and a classifier called layer5


def converted_state(prefix="Scale."):
    torch.manual_seed(2)
    state = {key: value for key, value in models.resnet50().state_dict().items() if not key.startswith("fc.")}
    state |= {f"layer5.conv2d_list.{branch}.weight": torch.zeros(21, 4, 3, 3) for branch in range(4)}
    return {prefix + key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("prefix", ["Scale.", "", "module.Scale."])
def test_converted_files_load_as_caffe(prefix, tmp_path, caplog):
    state = converted_state(prefix)
    pretrained = read_weights("resnet50", save(state, tmp_path / "coco.pth"))
    assert pretrained.format == "caffe"
    body = build_backbone("resnet50", 8, caffe=True)
    with caplog.at_level(logging.INFO):
        report = load_weights(body, "resnet50", pretrained)
    details = report.details()
    assert "\nskipped:\n  layer5.conv2d_list.0.weight\n" in details and "\n  layer4.2.bn3.running_var\n" in details
    assert report.complete and len(report.matched) == 53 * 5 and len(report.skipped) == 4
    assert torch.equal(body.layer3[5].conv2.weight, state[f"{prefix}layer3.5.conv2.weight"])
    assert "265 tensors matched, 4 skipped (layer5.conv2d_list.0.weight, " in caplog.text
    assert "caffe format" in caplog.text
    assert (f"renamed like {prefix}conv1.weight → conv1.weight" in caplog.text) == bool(prefix)


def test_format_can_be_forced(tmp_path):
    path = save(converted_state(""), tmp_path / "coco.pth")
    assert read_weights("resnet50", path, "torchvision").format == "torchvision"
    assert read_weights("resnet50", save(models.resnet50().state_dict(), tmp_path / "tv.pth"), "caffe").format == "caffe"


def test_caffe_resnet_strides_in_the_first_convolution():
    """As in the ResNet-101 of converted Caffe models: stride in the 1x1, one dilation per layer, pooling rounds up."""
    with torch.device("meta"):
        body, ours = build_backbone("resnet101", 8, caffe=True), build_backbone("resnet101", 8)
    assert body.maxpool.ceil_mode and not ours.maxpool.ceil_mode
    assert (body.layer2[0].conv1.stride, body.layer2[0].conv2.stride) == ((2, 2), (1, 1))
    assert (ours.layer2[0].conv1.stride, ours.layer2[0].conv2.stride) == ((1, 1), (2, 2))
    assert {block.conv2.dilation for block in body.layer3} == {(2, 2)} == {block.conv2.padding for block in body.layer3}
    assert {block.conv2.dilation for block in body.layer4} == {(4, 4)}
    assert body(torch.empty(1, 3, 65, 129, device="meta"))[-1].shape == (1, 2048, 9, 17)
    with pytest.raises(SdaError, match="Caffe format need backbone resnet50 or resnet101, found mobilenet_v2"):
        build_backbone("mobilenet_v2", 8, caffe=True)


# COCO


def test_coco_is_deeplabv3_of_torchvision(monkeypatch, caplog):
    """Its backbone is loaded completely; its classifiers are skipped and reported."""
    state = models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).state_dict()
    asked = downloads(monkeypatch, state)
    body = build_backbone("resnet50", 16)
    with caplog.at_level(logging.INFO):
        report = load(body, "resnet50", "coco")
    assert [url for url, _ in asked] == [models.segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.url]
    assert report.complete and report.skipped
    assert torch.equal(body.layer4[2].conv3.weight, state["backbone.layer4.2.conv3.weight"])
    assert "renamed like backbone.conv1.weight → conv1.weight" in caplog.text


def test_blocks_of_the_coco_mobilenet_are_renumbered(monkeypatch):
    state = models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True).state_dict()
    downloads(monkeypatch, state)
    body = build_backbone("mobilenet_v3_large", 16)
    report = load(body, "mobilenet_v3_large", "coco")
    assert report.complete
    assert torch.equal(body.features[16][0].weight, state["backbone.16.0.weight"])


def test_backbones_without_coco_weights_are_refused():
    with pytest.raises(SdaError, match="no coco weights for mobilenet_v2, only for resnet50, resnet101, mobilenet_v3_large"):
        read_weights("mobilenet_v2", "coco")


# Files that contain something else, or damage


def a_checkpoint(name=SMALL, classes=5, form="torchvision"):
    torch.manual_seed(3)
    network = build("deeplabv3plus", name, classes, caffe=form == "caffe")
    return {"format": 1, "step": 7, "weights_format": form, "student": network.state_dict()}


@pytest.mark.parametrize("file", ["last.pt", "student.safetensors"])
@pytest.mark.parametrize(("name", "form"), [(SMALL, "torchvision"), ("resnet50", "caffe")])
def test_the_backbone_of_a_network_of_sda_is_read(tmp_path, caplog, file, name, form):
    """Its head belongs to other classes. The format is the stated one, not the one that the names suggest."""
    state = a_checkpoint(name, form=form)
    if file == "last.pt":
        torch.save(state, tmp_path / file)
    else:
        tensors = state.pop("student")
        (tmp_path / file).write_bytes(stored.write_safetensors(tensors, json.dumps(state)))
        state["student"] = tensors
    pretrained = read_weights(name, str(tmp_path / file))
    assert pretrained.format == form
    body = build_backbone(name, 16, caffe=form == "caffe")
    with caplog.at_level(logging.INFO):
        report = load_weights(body, name, pretrained)
    assert report.complete and not report.skipped
    assert pretrained.head.keys() == {key.removeprefix("head.") for key in state["student"] if key.startswith("head.")}
    assert all(torch.equal(value, state["student"][f"backbone.{key}"]) for key, value in body.state_dict().items())


def test_the_checkpoint_of_a_run_folder_is_read(tmp_path):
    torch.save(a_checkpoint(), tmp_path / "last.pt")
    assert load(build_backbone(SMALL, 16), SMALL, str(tmp_path)).complete
    with pytest.raises(SdaError, match=rf"weights {tmp_path.parent}: a folder without last.pt, student.safetensors"):
        read_weights(SMALL, str(tmp_path.parent))


def test_plain_safetensors_load(small_state, tmp_path):
    safetensors.torch.save_file(small_state, tmp_path / "plain.safetensors")
    body = build_backbone(SMALL, 16)
    assert load(body, SMALL, str(tmp_path / "plain.safetensors")).complete


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "optimizer": {}}, "found a dict without tensors, with the keys epoch, optimizer"),
        ({"state_dict": {"epoch": 3}}, "found a dict without tensors, with the keys epoch"),
        ([torch.zeros(1)], "found list"),
        ({}, "found dict"),
    ],
)
def test_the_keys_that_were_found_are_named(tmp_path, content, found):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(SdaError) as caught:
        read_weights(SMALL, str(tmp_path / "odd.pth"))
    assert "expected a state dict (name → tensor) with names such as features.0.0.weight, " in str(caught.value)
    assert found in str(caught.value)


def test_weights_that_are_not_finite_are_refused(small_state, tmp_path):
    small_state["features.0.1.bias"][3] = float("nan")
    path = save(small_state, tmp_path / "nan.pth")
    with pytest.raises(SdaError, match=r"nan\.pth: features\.0\.1\.bias have values that are NaN or infinite"):
        load(build_backbone(SMALL, 16), SMALL, path)


def test_a_flipped_bit_is_noticed(small_state, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save(small_state, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(SdaError, match=r"weights\.pth: .*the checksum of .* is wrong"):
        read_weights(SMALL, str(path))
    # in torchvision's cache, whose older files have no checksums inside
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / Path(models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url).name
    cached.parent.mkdir()
    cached.write_bytes(b"damaged")
    with pytest.raises(SdaError, match=rf"{cached}: damaged: its SHA-256 is wrong; remove this file"):
        read_weights(SMALL, "imagenet")


def test_files_of_old_pytorch_load(small_state, tmp_path):
    """They are not zip archives and have no checksums."""
    torch.save(small_state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load(build_backbone(SMALL, 16), SMALL, str(tmp_path / "old.pth")).complete
