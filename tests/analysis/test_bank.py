"""Statistics of memory banks, banks in files, and the pixels nearest to their entries."""

import json
import types

import h5py
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sda.analysis import bank as bank_contents
from sda.analysis import bank_pictures
from sda.analysis.bank import Contents
from sda.analysis.cache import FeatureCache
from sda.errors import SdaError
from sda.methods.parts import bank_file
from sda.methods.parts.bank import ClassBank
from sda.runs import checkpoint


def some_contents():
    """Class a has two entries at right angles, b has one, and c has none."""
    features = np.zeros((3, 2, 2), np.float32)
    features[0], features[1, 0] = [[2, 0], [0, 3]], [1, 1]
    valid = np.array([[True, True], [True, False], [False, False]])
    step, domain = np.array([[90, 40], [70, 0], [0, 0]]), np.array([[0, 1], [1, 0], [0, 0]])
    confidence = np.array([[1.0, 0.5], [0.75, 0.0], [0.0, 0.0]], np.float32)
    return Contents({"a": [1, 1, 1], "b": [2, 2, 2], "c": [3, 3, 3]}, 100, features, valid, domain, confidence, step)


def test_statistics_by_hand():
    a, b, c = some_contents().rows()
    half = 0.5**0.5
    assert a == {
        "class": "a", "entries": 2, "fill": 1.0, "source": 0.5, "confidence": 0.75, "age": 35.0, "oldest": 60, "within": 0.0,
        "nearest": "b", "between": pytest.approx(half),
    }  # fmt: skip
    assert (b["entries"], b["fill"], b["age"], b["within"], b["nearest"]) == (1, 0.5, 30.0, None, "a")
    assert c["entries"] == 0 and all(c[key] is None for key in ("source", "confidence", "age", "within", "nearest"))


def test_similarity_equals_a_loop_over_all_pairs():
    random = np.random.default_rng(0)
    features, valid = random.normal(size=(4, 7, 5)).astype(np.float32), random.random((4, 7)) < 0.6
    valid[3] = False
    zeros = np.zeros((4, 7), np.int64)
    found = Contents({name: [0, 0, 0] for name in "abcd"}, 0, features, valid, zeros, zeros, zeros).similarity()
    for one in range(4):
        for other in range(4):
            pairs = [
                float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
                for i, x in enumerate(features[one].astype(float))
                for j, y in enumerate(features[other].astype(float))
                if valid[one, i] and valid[other, j] and (one, i) != (other, j)
            ]
            assert found[one, other] == pytest.approx(np.mean(pairs)) if pairs else np.isnan(found[one, other])


def test_command_shows_the_statistics_of_a_run(sda, cached_run):
    status, shown = sda("bank", cached_run, "--json")
    rows = json.loads(shown.out)
    state = torch.load(cached_run / "last.pt", weights_only=True)["method"]
    assert status == 0 and [row["class"] for row in rows] == ["ground", "building", "human"]
    assert [row["entries"] for row in rows] == state["bank.valid"].sum(dim=1).tolist() and sum(row["entries"] for row in rows)
    for row in rows:
        if row["entries"]:
            assert 0 <= row["age"] <= row["oldest"] <= 6 and 0 < row["confidence"] <= 1 and -1 <= (row["within"] or 0) <= 1
    assert "cosine within" in sda("bank", cached_run)[1].out


def test_a_run_without_a_bank_is_refused(sda, world, tmp_path):
    assert sda("train", world.recipe, "--out", tmp_path / "run", "--device", "cpu")[0] == 0
    status, shown = sda("bank", tmp_path / "run")
    assert status == 2 and "contains no memory bank; its method is supervised" in shown.err


def test_training_can_start_from_a_bank_file(sda, world, cached_run, tmp_path):
    """The bank is filled from the first step, newest entries first; their step is 0."""
    file = tmp_path / "bank.h5"
    assert sda("bank", cached_run, "--export", file)[0] == 0
    status, shown = sda("bank", cached_run, "--export", file)
    assert status == 2 and "exists and is not overwritten" in shown.err
    flags = [*tiny.BANK, "--bank-start", 100, "--out", tmp_path / "run", "--device", "cpu"]
    status, shown = sda("train", world.recipe, *flags, "--bank", file, "--bank-size", 5)
    assert status == 0, shown.err
    old, new = (torch.load(folder / "last.pt", weights_only=True)["method"] for folder in (cached_run, tmp_path / "run"))
    assert torch.equal(new["bank.features"], old["bank.features"][:, :5]) and torch.equal(
        new["bank.valid"], old["bank.valid"][:, :5]
    )
    assert not new["bank.step"].any()
    flags[-3] = tmp_path / "large"
    assert sda("train", world.recipe, *flags, "--bank", file, "--bank-size", 12)[0] == 0
    large = torch.load(tmp_path / "large/last.pt", weights_only=True)["method"]
    assert torch.equal(large["bank.features"][:, :8], old["bank.features"]) and not large["bank.valid"][:, 8:].any()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.unlink(), "no such file"),
        (lambda file: file.write_bytes(b"nothing"), "cannot be read"),
        (lambda file: change(file, "format", 99), "not a bank of sda; make one with sda bank RUN"),
        (lambda file: change(file, "classes", ["a", "c", "b"]), "damaged: its SHA-256 is wrong"),
        (lambda file: change(file, "classes", 3), "the attribute classes is not a list of texts"),
    ],
)
def test_files_that_are_not_banks_are_refused(tmp_path, spoil, words):
    file = tmp_path / "bank.h5"
    some_contents().export(file, "run")
    spoil(file)
    with pytest.raises(SdaError, match=words):
        bank_file.fill(ClassBank(3, 2, 2), file, ["a", "b", "c"])


def test_a_bank_of_other_classes_is_refused(tmp_path):
    some_contents().export(tmp_path / "bank.h5", "run")
    with pytest.raises(SdaError, match="other classes than the recipe; only one of the two has c, d"):
        bank_file.fill(ClassBank(3, 2, 2), tmp_path / "bank.h5", ["a", "b", "d"])


@pytest.mark.parametrize("flags", [["--weights", "no.pth"], [*tiny.BANK, "--bank", "no.h5"]])
def test_missing_files_raise_before_the_run_folder_is_created(sda, world, tmp_path, flags):
    """The same command works once the file exists."""
    status, shown = sda("train", world.recipe, *flags, "--out", tmp_path / "run", "--device", "cpu")
    assert status == 2 and "no such file" in shown.err and not (tmp_path / "run").exists()


def change(file, name, value):
    with h5py.File(file, "a") as opened:
        opened.attrs[name] = value


def test_a_bank_with_classes_in_another_order_is_refused(tmp_path):
    some_contents().export(tmp_path / "bank.h5", "run")
    bank = ClassBank(3, 2, 2)
    bank_file.fill(bank, tmp_path / "bank.h5", ["b", "c", "a"])
    assert bank.valid.tolist() == [[True, False], [False, False], [True, True]]
    assert bank.features[2].tolist() == [[2, 0], [0, 3]]
    with pytest.raises(SdaError, match="its features have length 2, expected 7"):
        bank_file.fill(ClassBank(3, 2, 7), tmp_path / "bank.h5", ["a", "b", "c"])


def test_neighbours_are_the_nearest_images(cached_run):
    """Compare with the full matrix of cosines. Only the nearest pixel of each image counts."""
    contents, cache = bank_contents.of_run(cached_run), FeatureCache(cached_run / "features.h5")
    z, image = (np.concatenate([block[name] for block in cache.blocks(name)]) for name in ("projected", "image"))
    unit = z / np.linalg.norm(z.astype(np.float32), axis=1, keepdims=True)
    found = bank_pictures.neighbours(contents, cache, entries=2, nearest=3)
    assert found.keys() == contents.classes.keys()
    for c, lists in enumerate(found.values()):
        there = np.flatnonzero(contents.valid[c])
        assert len(lists) == min(2, len(there))
        for entry, pixels in zip((there[0], there[-1]) if len(there) else (), lists, strict=False):
            cosines = unit @ contents.unit()[c, entry]
            best = sorted(((cosines[image == index].max(), index) for index in range(len(cache))), reverse=True)[:3]
            assert [pixel.image for pixel in pixels] == [index for _, index in best]
            assert [pixel.cosine for pixel in pixels] == pytest.approx([cosine for cosine, _ in best], abs=1e-3)


def test_an_image_with_many_near_pixels_does_not_hide_others():
    """Three images with 40 identical pixels each."""
    angle = np.repeat([0.05, 0.4, 0.6], 40)
    block = {
        "projected": np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16),
        "image": np.repeat([0, 1, 2], 40),
        "position": np.zeros((120, 2), int),
        "label": np.zeros(120, np.uint8),
        "prediction": np.zeros(120, np.uint8),
    }
    cache = types.SimpleNamespace(blocks=lambda *names: iter([block]))
    found = bank_pictures.neighbours(some_contents(), cache)["a"][0]
    assert [(pixel.image, round(pixel.cosine, 2)) for pixel in found] == [(0, 1.0), (1, 0.92), (2, 0.83)]


def test_the_picture_is_drawn(sda, cached_run, tmp_path):
    status, shown = sda("bank", cached_run, "--features", cached_run / "features.h5", "--out", tmp_path / "bank.png")
    assert status == 0 and str(tmp_path / "bank.png") in shown.out
    with Image.open(tmp_path / "bank.png") as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


def test_the_command_writes_the_picture(sda, cached_run, tmp_path):
    status, shown = sda("bank", cached_run, "--out", tmp_path / "bank.png")
    assert status == 2 and "needs --features FILE.h5" in shown.err
    assert sda("bank", cached_run / "last.pt", "--export", tmp_path / "new/bank.h5")[0] == 0
    assert (tmp_path / "new/bank.h5").exists()


def test_a_cache_of_another_network_is_refused(sda, cached_run, tmp_path):
    assert sda("features", cached_run, "--network", "student", "--out", tmp_path / "student.h5", "--device", "cpu")[0] == 0
    status, shown = sda("bank", cached_run, "--features", tmp_path / "student.h5")
    assert status == 2 and "made by another network" in shown.err


def test_damage_to_a_bank_file_is_noticed(tmp_path):
    some_contents().export(tmp_path / "bank.h5", "run")
    tiny.check_damage(tmp_path / "bank.h5", lambda path: bank_file.read(path, ["a", "b", "c"]), 300)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("features", np.zeros((3, 2, 2), np.float64)),
        ("features", np.full((3, 2, 2), np.nan, np.float32)),
        ("features", np.zeros((3, 2), np.float32)),
        ("features", np.zeros((4, 2, 2), np.float32)),
        ("valid", np.zeros((3, 2), np.uint8)),
        ("domain", np.full((3, 2), 7)),
        ("confidence", np.full((3, 2), np.inf, np.float32)),
        ("step", np.zeros((3, 2), np.float32)),
    ],
)
def test_parts_that_are_no_bank_are_refused(tmp_path, name, values):
    file = tmp_path / "bank.h5"
    some_contents().export(file, "run")
    with h5py.File(file, "a") as opened:
        del opened.attrs["sha256"], opened[name]
        opened[name] = values
    with pytest.raises(SdaError, match=rf"^{file}: cannot be read \(.*{name}"):
        bank_file.read(file, ["a", "b", "c"])


def test_a_bank_in_a_checkpoint_is_checked(cached_run, tmp_path):
    state = checkpoint.load(cached_run / "last.pt")
    wrong = {"valid": torch.zeros(2, 8, dtype=torch.bool), "features": torch.zeros(3, 8), "domain": torch.zeros(3, 8)}
    for name, values in wrong.items():
        checkpoint.save(tmp_path / "last.pt", {**state, "method": {**state["method"], f"bank.{name}": values}})
        with pytest.raises(SdaError, match=f"last.pt: its memory bank cannot be read: {name} has shape"):
            bank_contents.of_run(tmp_path)


def test_a_bank_that_cannot_be_written_is_reported(sda, cached_run, tmp_path):
    (tmp_path / "file").write_text("")
    status, shown = sda("bank", cached_run, "--export", tmp_path / "file/bank.h5")
    assert status == 2 and "bank.h5: cannot be written (" in shown.err
