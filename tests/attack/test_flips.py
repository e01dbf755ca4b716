"""Damage every kind of file that is loaded, thousands of times: loading gives the same content, or an error with its name."""

import shutil

import numpy as np
import pytest
import tiny

from sda.analysis.cache import FeatureCache
from sda.data.packs.pack import Pack
from sda.errors import SdaError
from sda.methods.parts import bank_file
from sda.models.weights.read import read_weights
from sda.runs import checkpoint, trained

pytestmark = pytest.mark.slow
TIMES = 3000


def network(path):
    """What a run predicts depends on nothing else."""
    run = trained.load(path, device="cpu")
    return [run.recipe.model_dump(), run.table.colors, run.step, run.splits, dict(run.network.state_dict())]


def pack(path):
    found = Pack(path)
    images = [found.image(split, index) for split, entries in found.splits.items() for index in range(len(entries))]
    labels = [
        found.label(split, index)
        for split, entries in found.splits.items()
        for index, entry in enumerate(entries)
        if entry.has_label
    ]
    return [found.name, found.descriptor, found.settings, images, labels]


def cache(path):
    found = FeatureCache(path)
    return [found.about, found.paths, found.left_out, found.labelled, found.scored, list(found.blocks()), found.of_images("mean")]


def weights(path):
    found = read_weights("mobilenet_v3_small", str(path))
    return [found.format, found.state]


@pytest.fixture(scope="module")
def files(cached_run, world, do, tmp_path_factory):
    """One file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    do("bank", cached_run, "--export", folder / "bank.h5")
    do("pack", world.field, "--root", world.root / "field", "--size", 48, 64, "--processes", 1, "--out", folder / "pack.h5")
    for name in ("last.pt", "previous.pt", "best.pt", "student.safetensors", "features.h5"):
        if (cached_run / name).exists():
            shutil.copy(cached_run / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "read", "times"),
    [
        ("last.pt", checkpoint.load, TIMES // 5),
        ("best.pt", network, TIMES // 20),
        ("student.safetensors", network, TIMES // 20),
        ("student.safetensors", checkpoint.load, TIMES // 5),
        ("last.pt", weights, TIMES // 10),
        ("bank.h5", lambda path: bank_file.read(path, ["ground", "building", "human"]), TIMES),
        ("pack.h5", pack, TIMES),
        ("features.h5", cache, TIMES // 2),
    ],
)
def test_no_damage_goes_unnoticed(files, tmp_path, name, read, times):
    path = tmp_path / name
    shutil.copy(files / name, path)
    tiny.check_damage(path, read, times, seed=17)


def test_the_headers_of_every_part_are_covered(files, tmp_path):
    """Damage within the first and last bytes, where the headers are, is rare in a random choice of places."""
    random = np.random.default_rng(3)
    for name, read in (("last.pt", checkpoint.load), ("student.safetensors", checkpoint.load), ("pack.h5", pack)):
        path = tmp_path / name
        data = (files / name).read_bytes()
        shutil.copy(files / name, path)
        whole = read(path)
        for place in [*random.integers(0, 2000, 50), *(len(data) - random.integers(1, 20_000, 100))]:
            changed = bytearray(data)
            changed[place] ^= 1 << random.integers(8)
            path.write_bytes(changed)
            try:
                assert tiny.same(read(path), whole), (name, place)
            except SdaError as error:
                assert str(error).startswith(f"{path}: ")
