"""Set-up for all tests: one thread, and torchvision's shim before anything (torchmetrics) imports torchvision."""

import os
import tempfile

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

import sda.models.torchvision_shim
from sda.models.grid import Grid
from sda.models.preprocessing import IMAGENET, Normalise, as_float

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache():
    """Keep the caches that tests write out of the user's cache folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SDA_CACHE"] = folder
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_backbone():
    tiny.add_small()


# Class c has this colour (0..1); the fake network below recognises classes by colour.
PALETTE = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two tiny datasets and a recipe, shared by the tests of a module, which must not change them."""
    return tiny.write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def do():
    """`do(arguments)`: run sda in this process for the shared files of a module; the command must succeed."""

    def do(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            assert tiny.run_main(patch, *arguments) == 0

    return do


@pytest.fixture(scope="module")
def cached_run(world, do, tmp_path_factory):
    """The folder of a class_bank run, with a feature cache of its teacher."""
    out = tmp_path_factory.mktemp("runs") / "a"
    do("train", world.recipe, *tiny.BANK, "--steps", 6, "--out", out, "--device", "cpu")
    do("features", out, "--device", "cpu")
    return out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Run the test in its own folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_world(here, monkeypatch):
    """Two tiny datasets and a recipe that a test may change, with a cache folder of its own."""
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    return tiny.write_world(here / "world")


@pytest.fixture
def farm(own_world):
    """The descriptor of a second source in `own_world`."""
    return tiny.write_farm(own_world)


@pytest.fixture
def sda(monkeypatch, capsys):
    """`sda(arguments)` → the exit status and the captured output."""

    def sda(*arguments):
        status = tiny.run_main(monkeypatch, *arguments)
        return status, capsys.readouterr()

    return sda


class FakeNetwork(nn.Module):
    """Images (B, 3, H, W) → logits and features at 1/stride. Recognises the class by colour; `sharpness` scales its certainty."""

    feature_channels = 6
    precision = torch.float32

    def __init__(self, stride: int = 2, sharpness: float = 20.0):
        super().__init__()
        self.stride = stride
        self.grid = Grid()
        self.normalise = Normalise(IMAGENET)
        self.embed = nn.Conv2d(3, self.feature_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(self.feature_channels)
        self.classify = nn.Conv2d(self.feature_channels, len(PALETTE), 1)
        self.sharpness = nn.Parameter(torch.tensor(sharpness))
        self.register_buffer("palette", torch.tensor(PALETTE)[None, :, :, None, None])

    def forward(self, images, note_statistics=True, drop_in=0):
        self.norm.momentum = 0.1 if note_statistics else 0.0
        small = F.avg_pool2d(as_float(images), self.stride)
        features = self.norm(self.embed(small))
        distance = (small[:, None] - self.palette).square().sum(dim=2)
        return self.classify(features) - self.sharpness * distance, features


@pytest.fixture
def fake_network():
    return FakeNetwork


@pytest.fixture
def paint():
    """Label maps (B, H, W) → uint8 images (B, 3, H, W) in the colours of the classes; 255 is grey."""
    colours = torch.full((256, 3), 128, dtype=torch.uint8)
    colours[: len(PALETTE)] = (torch.tensor(PALETTE) * 255).byte()
    return lambda labels: colours[labels.long()].permute(0, 3, 1, 2).contiguous()
