"""Every family of encoders, through the whole program: trained, resumed bit for bit, scored, used on any size, and exported."""

import json

import numpy as np
import pytest
import tiny
import torch

import sda as package
from sda.runs import checkpoint

COMMON = [
    *tiny.BANK, "--weights", "none", "--optimizer", "adamw", "--warmup-steps", 3, "--clip-gradient", 1, "--device", "cpu",
    "--checkpoint-every", 0,
]  # fmt: skip
PATCHES = ["--crop", "42x56"]  # of 14 pixels; the images have 48x64


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


FAMILIES = [
    ("tf_efficientnet_lite0", "deeplabv3plus", []),
    slow("tf_efficientnet_lite0", "deeplabv2", ["--precision", "auto"]),
    slow("convnext_atto", "segformer", ["--drop-path", 0.2, "--layer-decay", 0.8]),
    slow("resnet18d", "deeplabv3plus", ["--recompute", "true"]),
    slow("pvt_v2_b0", "segformer", []),
    slow("swin_tiny_patch4_window7_224", "segformer", []),
    slow("hieradet_small", "segformer", []),
    slow("vit_tiny_patch16_224", "linear", ["--layer-decay", 0.7, "--size", "48x64"]),
    slow("vit_tiny_patch16_224", "segformer", ["--lora", 2]),
    slow("vit_small_patch14_dinov2", "dpt", PATCHES),
    slow("vit_small_patch14_dinov2", "linear", [*PATCHES, "--freeze", "encoder", "--precision", "auto"]),
    slow("vit_small_patch16_dinov3", "dpt", ["--recompute", "true"]),
]


@pytest.mark.parametrize(("backbone", "network", "flags"), FAMILIES)
def test_a_family_goes_through_the_whole_program(world, sda, tmp_path, monkeypatch, request, backbone, network, flags):
    steps, cut = (20, 7) if request.node.get_closest_marker("slow") else (4, 2)
    command = ["train", world.recipe, *COMMON, "--steps", steps, "--backbone", backbone, "--network", network, *flags]
    assert sda(*command, "--out", tmp_path / "whole")[0] == 0
    assert sda(*command, "--out", tmp_path / "cut", "--stop-at", cut)[0] == 0
    status, shown = sda(*command, "--out", tmp_path / "cut", "--resume", "auto")
    assert status == 0 and "resuming" in shown.err
    first, second = (checkpoint.load(tmp_path / run / "last.pt") for run in ("whole", "cut"))
    assert all(torch.equal(value, second["method"][key]) for key, value in first["method"].items())
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "cut/metrics.jsonl").read_text()

    run = package.load(tmp_path / "whole", device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (75, 61, 3), dtype=np.uint8)
    assert run.predict(image, size="native").labels.shape == (75, 61)
    assert sda("features", tmp_path / "whole", "--device", "cpu", "--network", "student")[0] == 0

    form = "onnx" if request.node.get_closest_marker("slow") else "torchscript"
    status, shown = sda("export", tmp_path / "whole", "--as", form, "--as", "hub", "--json")
    assert status == 0, shown.err  # the export compares the file with the network
    files = json.loads(shown.out)["files"]
    assert {"model.safetensors", "README.md", "config.json"} < {entry["file"].rpartition("/")[2] for entry in files}
    again = package.load(tmp_path / "whole/export", device="cpu").predict(image, size="native")
    assert np.array_equal(again.labels, run.predict(image, size="native").labels)
