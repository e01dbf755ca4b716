"""Two tiny datasets on disk with their own descriptors, a tiny network, a function that runs the command line, and damage."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from torch import nn

from sda.models.backbones.base import Backbone
from sda.models.backbones.by_name import BUILDERS

HEIGHT, WIDTH = 48, 64

# A source with its own class ids, void 0, and a map to the classes of the target.
TOY = """
title = "Toy town"
classes = {street = [128, 64, 128], house = [70, 70, 70], man = [220, 20, 60], cloud = [1, 2, 3]}
ids = {7 = "street", 8 = "house", 9 = "man", 10 = "cloud"}
void = [0]
[[layout]]
images = "{split}/{frame}.png"
labels = "{split}_masks/{frame}_mask.png"
[maps.field]
street = "ground"
house = "building"
man = "human"
"""

# A target whose labels are the positions in its class table.
FIELD = """
title = "Field"
classes = {ground = [1, 1, 1], building = [2, 2, 2], human = [3, 3, 3]}
[[layout]]
images = "pictures/{split}/{place}/{frame}.jpg"
labels = "labels/{split}/{place}/{frame}.png"
"""

# A second source, which has other ids, no person, labels stored as colours, and a class that the target lacks.
FARM = """
title = "Farm"
classes = {path = [128, 64, 128], barn = [70, 70, 70], cow = [9, 9, 99]}
ids = {30 = "path", 31 = "barn", 32 = "cow"}
void_colors = [[0, 0, 0]]
[[layout]]
images = "photos/{split}/{frame}.png"
labels = "colours/{split}/{frame}.png"
[maps.field]
path = "ground"
barn = "building"
"""

RECIPE = """# sda train tiny.toml
description = "a tiny run"
source = "{toy}"
target = "{field}"
labels = 3
root = "{root}"
size = [48, 64]
batch_source = 2
batch_labelled = 2
workers = 0
backbone = "{backbone}"
weights = "none"
steps = 3
"""

# The flags that turn the recipe above into each setting.
BANK = ["--method", "class_bank", "--unlabelled", "target", "--bank-start", "0", "--unlabelled-start", "1", "--bank-size", "8",
        "--contrast-pixels", "8", "--bank-confidence", "0"]  # fmt: skip
SETTINGS = {
    "source-only": ["--labels", "0"],
    "target-only": ["--source", ""],
    "joint": [],
    "SSL": ["--source", "", *BANK],
    "semi-supervised DA": BANK,
    "UDA": ["--labels", "0", *BANK],
    "oracle": ["--source", "", "--labels", "all"],
}

REAL = "mobilenet_v3_small"  # the smallest real backbone


class Small(Backbone):
    """Two convolutions. A training takes a quarter of the time of one with the smallest real backbone."""

    light = True

    def __init__(self, output_stride: int):
        super().__init__()
        self.channels, self.strides = [8, 16], [4, output_stride]
        self.low = nn.Sequential(nn.Conv2d(3, 8, 7, 4, padding=3), nn.BatchNorm2d(8), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 16, 5, output_stride // 4, padding=2), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, images):
        low = self.low(images)
        return [low, self.high(low)]


def add_small() -> None:
    """Let recipes of this process name the backbone `small`."""
    BUILDERS["small"] = Small


@dataclass(frozen=True)
class World:
    """Paths of the datasets, descriptors and recipe."""

    folder: Path
    recipe: Path
    real: Path  # the same recipe with a real backbone, for commands in another process, which does not know the small one
    toy: Path
    field: Path

    @property
    def root(self) -> Path:
        return self.folder / "data"


def draw(seed: int, ids: list[int], colors: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy picture of three bands and its label. The seed determines the heights of the bands."""
    random = np.random.default_rng(seed)
    rows = np.sort(random.integers(8, HEIGHT - 8, 2))
    band = np.searchsorted(rows, np.arange(HEIGHT), side="right")
    band = np.repeat(band[:, None], WIDTH, axis=1)
    image = np.array(colors)[band] + random.integers(-20, 20, (HEIGHT, WIDTH, 3))
    return image.clip(0, 255).astype(np.uint8), np.array(ids, np.uint8)[band]


def save(array: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_world(folder: Path) -> World:
    """Write Toy town (4 training images) and Field (8 training, 3 validation images) with their descriptors and a recipe."""
    world = World(folder, folder / "tiny.toml", folder / "real.toml", folder / "sets/toy.toml", folder / "sets/field.toml")
    for index in range(6):
        split = "train" if index < 4 else "val"
        image, label = draw(index, [0, 8, 7], [(200, 200, 255), (180, 90, 60), (90, 90, 90)])
        save(image, world.root / f"toy/{split}/{index:02d}.png")
        save(label, world.root / f"toy/{split}_masks/{index:02d}_mask.png")
    for index in range(11):
        split, place = ("train", "north south"[index % 2 * 6 :][:5]) if index < 8 else ("val", "west")
        image, label = draw(100 + index, [2, 1, 0], [(60, 60, 90), (90, 50, 40), (40, 60, 40)])
        save(image, world.root / f"field/pictures/{split}/{place}/{index:02d}.jpg")
        save(label, world.root / f"field/labels/{split}/{place}/{index:02d}.png")
    world.toy.parent.mkdir()
    world.toy.write_text(TOY)
    world.field.write_text(FIELD)
    for recipe, backbone in ((world.recipe, "small"), (world.real, REAL)):
        recipe.write_text(RECIPE.format(toy=world.toy, field=world.field, root=world.root, backbone=backbone))
    return world


def write_farm(world: World) -> Path:
    """Write Farm, a second source with 6 training images, into a world, and return the path of its descriptor."""
    for index in range(6):
        image, label = draw(200 + index, [2, 1, 0], [(190, 220, 190), (150, 60, 60), (110, 110, 80)])
        save(image, world.root / f"farm/photos/train/{index:02d}.png")
        colors = np.array([[128, 64, 128], [70, 70, 70], [9, 9, 99]], np.uint8)
        save(colors[label], world.root / f"farm/colours/train/{index:02d}.png")
    farm = world.toy.with_name("farm.toml")
    farm.write_text(FARM)
    return farm


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `sda ARGUMENTS` in this process. Return the exit status."""
    from sda.cli import main as cli

    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # as main does, but undone after the test
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setattr(sys, "argv", ["sda", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as exit:
        return exit.code or 0
    return 0


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def owned_elsewhere(folder: Path):
    """Let another process own a folder; yield the process."""
    code = (
        "import pathlib, sys; from sda.system.owned import owned\n"
        "with owned(pathlib.Path(sys.argv[1])): print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"1\n"
            yield other
        finally:
            other.kill()


# Damage to files


def damage(data: bytes, random: Random) -> bytes:
    """Flip a bit, overwrite, remove, insert or exchange bytes in a copy of `data`, or cut it short."""
    changed, place = bytearray(data), random.randrange(len(data))
    length = random.choice([1, 2, 8, 64, 512, 4096])
    part = changed[place : place + length]
    kind = random.choice(["flip", "flip", "flip", "zeros", "ones", "noise", "remove", "insert", "exchange", "cut"])
    if kind == "flip":
        changed[place] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "remove":
        del changed[place : place + length]
    elif kind == "insert":
        changed[place:place] = random.randbytes(length)
    elif kind == "exchange":
        other = random.randrange(len(data))
        changed[place : place + length], changed[other : other + length] = changed[other : other + length], part
    else:
        changed[place : place + length] = {"zeros": bytes, "ones": lambda n: b"\xff" * n, "noise": random.randbytes}[kind](
            len(part)
        )
    return bytes(changed)


def check_damage(path: Path, read: Callable[[Path], object], times: int, seed: int = 0) -> None:
    """Damage a file again and again: reading it gives the same content, or an SdaError of one line that names the file."""
    from sda.errors import SdaError

    data, random, whole, refused = path.read_bytes(), Random(seed), read(path), 0
    for number in range(times):
        path.write_bytes(damage(data, random))
        try:
            found = read(path)
        except SdaError as error:
            refused += 1
            assert f"{path}: " in str(error) and "\n" not in str(error), (number, str(error))
        except Exception as error:
            raise AssertionError(f"damage {number}") from error
        else:
            assert same(found, whole), f"damage {number} went unnoticed"
    path.write_bytes(data)
    assert refused > times / 4


def same(one: object, other: object) -> bool:
    """Return whether two nested values are equal to the last bit, with the same types and order."""
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "dtype"):
        equal = one.dtype == getattr(other, "dtype", None) and one.shape == other.shape
        return equal and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    return type(one) is type(other) and one == other
