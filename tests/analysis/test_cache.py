"""The feature cache: content, interruptions, stale and damaged files, and reading."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sda.analysis.cache import FeatureCache, all_texts, text_hash
from sda.analysis.make_cache import check_made_by, load_projection
from sda.errors import SdaError
from sda.runs import trained

CPU = torch.device("cpu")
DOCUMENT = Path(__file__).parents[2] / "docs/features.md"


@pytest.fixture(scope="module")
def run(world, do, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    do("train", world.recipe, *tiny.BANK, "--out", out, "--device", "cpu")
    return out


@pytest.fixture(scope="module")
def made(run, do, tmp_path_factory):
    """A cache of all pixels."""
    file = tmp_path_factory.mktemp("cache") / "all.h5"
    do("features", run, "--per-class", 0, "--out", file, "--device", "cpu")
    return file


def contents(file):
    with h5py.File(file) as opened:
        found = {}
        opened.visititems(lambda name, part: found.update({name: part[:]}) if isinstance(part, h5py.Dataset) else None)
        return found


def test_values_equal_a_plain_forward_pass(world, run, made):
    """In both domains, compare the teacher's features, the output of its head g and the label at each position."""
    network = trained.load(run, "last", "teacher", CPU)
    head = load_projection(network)
    found = FeatureCache(made)
    assert found.domains == ["toy", "field"] and len(found) == 4 + 8
    assert found.about["weights"] == "teacher"
    for index in (0, 3, 4, 11):
        toy = index < 4
        file = world.root / ("toy" if toy else "field") / found.paths[index]
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        logits, f = network.network(pixels)
        label = (
            file.parents[1] / "train_masks" / f"{file.stem}_mask.png"
            if toy
            else world.root / "field/labels" / "/".join((*file.parts[-3:-1], f"{file.stem}.png"))
        )
        with Image.open(label) as opened:
            label = np.asarray(opened).astype(int)
        if toy:
            label = np.select([label == 7, label == 8, label == 9], [0, 1, 2], 255)
        rows = found[index]
        height, width = f.shape[2:]
        assert len(rows["label"]) == height * width
        for place in (0, 7, len(rows["label"]) - 1):
            row, column = divmod(place, width)
            assert tuple(rows["position"][place]) == (row * 4 + 2, column * 4 + 2)
            assert np.allclose(rows["features"][place], f[0, :, row, column], atol=2e-3, rtol=2e-3)
            p = logits[0, :, row, column].softmax(dim=0)
            assert rows["prediction"][place] == p.argmax() and rows["confidence"][place] == pytest.approx(
                p.max().item(), rel=1e-4
            )
            assert rows["entropy"][place] == pytest.approx(-(p * p.log()).sum().item() / np.log(3), rel=1e-4)
            assert rows["label"][place] == label[row * 4 + 2, column * 4 + 2]
            z = head(f[0, :, row, column][None, None], torch.ones(1, 1, dtype=torch.bool))[0, 0]
            assert np.allclose(rows["projected"][place], z, atol=5e-3, rtol=5e-3)
        prediction = F.one_hot(logits[0].argmax(dim=0), 3).double()
        assert np.allclose(found.of_images("share")[index], prediction.mean(dim=(0, 1)), atol=1e-6)
        assert np.allclose(found.of_images("mean")[index], f[0].mean(dim=(1, 2)), atol=2e-3, rtol=2e-3)
        assert (rows["image"] == index).all()


def test_per_class_limits_the_pixels(sda, run, made, tmp_path):
    assert sda("features", run, "--per-class", 5, "--out", tmp_path / "few.h5", "--device", "cpu")[0] == 0
    few, whole = FeatureCache(tmp_path / "few.h5"), FeatureCache(made)
    for index in range(len(few)):
        rows, everything = few[index], whole[index]
        of_each = np.bincount(everything["label"][everything["label"] < 3], minlength=3)
        by_label, by_prediction = rows["drawn"] & 2 > 0, rows["drawn"] & 1 > 0
        assert np.bincount(rows["label"][by_label], minlength=3).tolist() == np.minimum(of_each, 5).tolist()
        of_each = np.bincount(everything["prediction"], minlength=3)
        assert np.bincount(rows["prediction"][by_prediction], minlength=3).tolist() == np.minimum(of_each, 5).tolist()
        assert (by_label | by_prediction).all()
        place = (rows["position"][:, 0] // 4) * 16 + rows["position"][:, 1] // 4
        assert np.array_equal(rows["features"], everything["features"][place])


def test_features_of_a_folder_without_labels(sda, run, world, tmp_path):
    """Pixels are chosen by prediction, and all labels are 255."""
    folder = world.root / "field/pictures/train"
    status, shown = sda(
        "features", run, "--dataset", folder, "--per-class", 3, "--out", tmp_path / "f.h5", "--json", "--device", "cpu"
    )
    assert status == 0, shown.err
    assert json.loads(shown.out)["images"] == 8
    found = contents(tmp_path / "f.h5")
    assert (found["label"] == 255).all()
    assert max(np.bincount(found["prediction"][found["image"] == 0])) == 3


def test_cache_of_a_run_without_a_bank_has_no_projection(sda, world, tmp_path):
    assert sda("train", world.recipe, "--out", tmp_path / "run", "--device", "cpu")[0] == 0
    assert sda("features", tmp_path / "run", "--device", "cpu")[0] == 0
    found = FeatureCache(tmp_path / "run/features.h5")
    assert not found.has_projection and found.about["weights"] == "student" and "projected" not in found[0]
    with pytest.raises(SdaError, match=r"features\.h5: has no projected features"):
        next(found.blocks("image", "projected"))


def test_the_same_command_again_changes_nothing(sda, run, made):
    before = made.stat()
    assert sda("features", run, "--per-class", 0, "--out", made, "--device", "cpu")[0] == 0
    assert (made.stat().st_mtime_ns, made.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--per-class", 7], "made with other settings: per_class is 0, not 7"),
        (["--network", "student"], "another network or other weights"),
        (["--dataset", "FIELD"], "other images"),
    ],
)
def test_a_cache_made_with_other_settings_is_refused(sda, world, run, made, flags, words):
    before = made.read_bytes()
    flags = [str(world.field) if flag == "FIELD" else flag for flag in flags]
    status, shown = sda("features", run, "--per-class", 0, *flags, "--out", made, "--device", "cpu")
    assert (
        status == 2
        and words in shown.err
        and "and is not overwritten; remove it or choose another --out" in shown.err
        and made.read_bytes() == before
    )


def test_a_stale_cache_is_detected(run, made, tmp_path):
    check_made_by(FeatureCache(made), trained.load(run, "last", "teacher", CPU))
    with pytest.raises(SdaError, match="made by another network or other weights than"):
        check_made_by(FeatureCache(made), trained.load(run, "last", "student", CPU))


@contextlib.contextmanager
def full_disk(monkeypatch):
    """Simulate a disk with room for the shards but not for the HDF5 file."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=1000))
        yield


def redraw(copy, which):
    image, label = tiny.draw(9, [2, 1, 0], [(9, 9, 9)] * 3)
    tiny.save(image if which == "*.jpg" else label, next((copy.root / "field").rglob(f"train/*/{which}")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda copy: redraw(copy, "*.jpg"), "have changed"),
        (lambda copy: redraw(copy, "*.png"), "have changed"),
        (lambda copy: copy.field.write_text(f"void = [7]\n{tiny.FIELD}"), "labels decoded with other classes, ids or colours"),
    ],
    ids=["an image", "a label", "a descriptor"],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_of_changed_files_is_refused(sda, run, tmp_path, monkeypatch, change, words, finished):
    copy = tiny.write_world(tmp_path / "world")
    command = ["features", run, "--dataset", copy.field, "--root", copy.root / "field", "--out", tmp_path / "f.h5"]
    with contextlib.nullcontext() if finished else full_disk(monkeypatch):
        assert sda(*command, "--device", "cpu")[0] == (0 if finished else 2)
    change(copy)
    status, shown = sda(*command, "--device", "cpu")
    assert status == 2 and words in shown.err
    assert (
        "already exists (made with other settings" if finished else "f.h5.parts: was started with other settings"
    ) in shown.err


def interrupted(sda, run, out, monkeypatch):
    """Leave a folder with a shard, and no cache. Return the folder."""
    with full_disk(monkeypatch):
        assert sda("features", run, "--per-class", 0, "--out", out, "--device", "cpu")[0] == 2
    parts = out.with_name(f"{out.name}.parts")
    assert list(parts.glob("*.npz")) and not out.exists()
    return parts


def test_shards_of_another_network_are_not_used(sda, run, made, tmp_path, monkeypatch):
    """Nor are shards without settings.json."""
    parts = interrupted(sda, run, tmp_path / "f.h5", monkeypatch)
    command = ["features", run, "--per-class", 0, "--network", "student", "--device", "cpu", "--out"]
    status, shown = sda(*command, tmp_path / "f.h5")
    assert status == 2 and "was started with other settings (another network or other weights)" in shown.err
    (parts / "settings.json").unlink()
    assert sda(*command, tmp_path / "f.h5")[0] == sda(*command, tmp_path / "clean.h5")[0] == 0
    mine, clean, other = (contents(file)["features"] for file in (tmp_path / "f.h5", tmp_path / "clean.h5", made))
    assert np.array_equal(mine, clean) and not np.array_equal(mine, other)


def test_parts_beside_a_finished_cache_are_removed(sda, run, made, tmp_path):
    shutil.copy(made, tmp_path / "f.h5")
    parts = tmp_path / "f.h5.parts"
    parts.mkdir()
    (parts / "00000000-00000012.npz").write_bytes(b"left by a kill")
    assert sda("features", run, "--per-class", 0, "--out", tmp_path / "f.h5", "--device", "cpu")[0] == 0
    assert not parts.exists()


@pytest.mark.parametrize("name", ["settings.json", "*.npz"])
def test_empty_files_after_a_power_cut_are_recreated(sda, run, made, tmp_path, monkeypatch, name):
    parts = interrupted(sda, run, tmp_path / "f.h5", monkeypatch)
    next(parts.glob(name)).write_bytes(b"")
    command = ["features", run, "--per-class", 0, "--out", tmp_path / "f.h5", "--device", "cpu"]
    if name == "*.npz":
        status, shown = sda(*command)
        assert status == 2 and "damaged on the disk" in shown.err and "run the same command again" in shown.err
    assert sda(*command)[0] == 0 and np.array_equal(contents(tmp_path / "f.h5")["features"], contents(made)["features"])


def test_files_that_are_not_caches_are_not_overwritten(sda, run, tmp_path):
    (tmp_path / "f.h5").write_text("mine")
    status, shown = sda("features", run, "--out", tmp_path / "f.h5", "--device", "cpu")
    assert status == 2 and re.search(r"f\.h5: already exists \(cannot be read \(.*\)\) and is not overwritten", shown.err)
    assert (tmp_path / "f.h5").read_text() == "mine"


def test_features_of_an_exported_network(sda, run, tmp_path):
    """It has no checkpoint, so no teacher and no head g."""
    (tmp_path / "alone").mkdir()
    shutil.copy(run / "student.safetensors", tmp_path / "alone/model.safetensors")
    assert sda("features", tmp_path / "alone", "--device", "cpu")[0] == 0
    assert sda("features", run, "--network", "student", "--out", tmp_path / "whole.h5", "--device", "cpu")[0] == 0
    alone, whole = contents(tmp_path / "alone/features.h5"), contents(tmp_path / "whole.h5")
    assert "projected" not in alone and np.array_equal(alone["features"], whole["features"])


def test_loader_workers_read_the_cache(made):
    """The cache is opened before the fork and read in every process."""
    found = FeatureCache(made)
    first = found[0]
    for index, rows in enumerate(DataLoader(found, batch_size=None, num_workers=2)):
        assert torch.equal(rows["features"], torch.from_numpy(found[index]["features"]))
    assert np.array_equal(found[0]["features"], first["features"])
    blocks = [block["label"] for block in found.blocks("label", rows=100)]
    assert max(map(len, blocks)) == 100 and np.array_equal(np.concatenate(blocks), contents(made)["label"])


def test_a_damaged_cache_is_detected(made, tmp_path):
    file = tmp_path / "damaged.h5"
    data = bytearray(made.read_bytes())
    with h5py.File(made) as opened:
        place = opened["features"].id.get_chunk_info(0).byte_offset + 50
    data[place] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(SdaError, match="cannot be read"):
        FeatureCache(file)[0]
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(SdaError, match="cannot be read"):
        FeatureCache(file)
    data = bytearray(made.read_bytes())
    data[data.rindex(b"pictures/train") + 3] ^= 0x01
    file.write_bytes(data)
    with pytest.raises(SdaError, match="damaged: the checksum of its text is wrong"):
        FeatureCache(file)
    data = bytearray(made.read_bytes())
    data[data.rindex(b'"building": [') + 3] ^= 0x01  # in the attribute about
    file.write_bytes(data)
    with pytest.raises(SdaError, match="damaged: the checksum of its text is wrong"):
        FeatureCache(file)
    with pytest.raises(SdaError, match="no such file"):
        FeatureCache(tmp_path / "nothing.h5")
    with h5py.File(tmp_path / "foreign.h5", "w") as foreign:
        foreign["features"] = [1]
    with pytest.raises(SdaError, match="not a feature cache"):
        FeatureCache(tmp_path / "foreign.h5")


def test_a_bad_image_is_reported(sda, run, world, tmp_path):
    folder = tmp_path / "photos"
    for index in range(3):
        tiny.save(tiny.draw(index, [0, 1, 2], [(9, 9, 9), (90, 90, 9), (9, 90, 90)])[0], folder / f"{index}.png")
    (folder / "1.png").write_bytes(b"no picture")
    status, shown = sda("features", run, "--dataset", folder, "--out", tmp_path / "f.h5", "--device", "cpu")
    assert status == 2 and "1.png: this image cannot be read" in shown.err and not (tmp_path / "f.h5").exists()
    status, shown = sda(
        "features", run, "--dataset", folder, "--out", tmp_path / "f.h5", "--bad-files", "skip", "--device", "cpu"
    )
    assert status == 0 and "skipped: " in shown.err
    found = FeatureCache(tmp_path / "f.h5")
    assert found.paths == ["0.png", "2.png"] and len(found.left_out) == 1
    for index in range(3):
        (folder / f"{index}.png").write_bytes(b"no picture")
    status, shown = sda(
        "features", run, "--dataset", folder, "--out", tmp_path / "none.h5", "--bad-files", "skip", "--device", "cpu"
    )
    assert status == 2 and not (tmp_path / "none.h5").exists()
    assert re.search(r"none\.h5: no image can be used; the first error: \S+0\.png: this image cannot be read", shown.err)


def test_folders_with_the_same_name_are_two_domains(sda, run, world, tmp_path):
    places = [world.root / f"field/pictures/train/{place}" for place in ("north", "south")]
    for place in places:
        shutil.copytree(place, tmp_path / place.name / "images")
    sets = [flag for place in places for flag in ("--dataset", tmp_path / place.name / "images")]
    assert sda("features", run, *sets, "--out", tmp_path / "f.h5", "--device", "cpu")[0] == 0
    found = FeatureCache(tmp_path / "f.h5")
    assert found.domains == ["images", "images-2"] and found.items("images-2")[0].image.is_relative_to(tmp_path / "south")


def test_a_second_process_is_refused(sda, run, tmp_path):
    """The lock is released when its process ends, even by a kill."""
    parts = tmp_path / "f.h5.parts"
    with tiny.owned_elsewhere(parts) as other:
        status, shown = sda("features", run, "--out", tmp_path / "f.h5", "--device", "cpu")
    assert status == 2 and f"f.h5: process {other.pid} on " in shown.err and "is writing it; wait until it ends" in shown.err
    assert sda("features", run, "--out", tmp_path / "f.h5", "--device", "cpu")[0] == 0


def test_hdf5_does_not_write_to_a_full_disk(sda, run, made, tmp_path, monkeypatch):
    """HDF5 would crash on closing the file. The computed values stay in the shards."""
    out = tmp_path / "f.h5"
    with full_disk(monkeypatch):
        status, shown = sda("features", run, "--per-class", 0, "--out", out, "--device", "cpu")
    assert status == 2 and not out.exists()
    assert re.search(
        rf"{out}: cannot be written \(No space left on device: \d+ MB needed, 0 MB free\); free disk space", shown.err
    )
    assert len(list(out.with_name("f.h5.parts").glob("*.npz"))) == 1
    assert sda("features", run, "--per-class", 0, "--out", out, "--device", "cpu")[0] == 0
    assert np.array_equal(contents(out)["features"], contents(made)["features"])


def test_source_and_target_may_be_one_dataset_in_two_folders(sda, world, tmp_path):
    """For example two cities with one descriptor. The target is the second domain."""
    shutil.copytree(world.root / "field", tmp_path / "other")
    flags = ["--source", world.field, "--source-root", world.root / "field", "--target-root", tmp_path / "other", "--labels", 2]
    for index, image in enumerate(sorted((tmp_path / "other/pictures").rglob("*.jpg"))):
        tiny.save(tiny.draw(500 + index, [2, 1, 0], [(60, 60, 90), (90, 50, 40), (40, 60, 40)])[0], image)
    assert sda("train", world.recipe, *flags, "--steps", 1, "--out", tmp_path / "run", "--device", "cpu")[0] == 0
    assert sda("features", tmp_path / "run", "--device", "cpu")[0] == 0
    found = FeatureCache(tmp_path / "run/features.h5")
    assert found.domains == ["field", "field-2"] and found.about["target"] == "field-2"
    assert found.items("field")[0].image.is_relative_to(world.root)
    assert found.items("field-2")[0].image.is_relative_to(tmp_path / "other")


def launch(run, file, log, limit=None):
    """Start the command in a separate process with small shards. Its stderr goes to the file `log`."""
    code = (
        "import tiny; tiny.add_small(); from sda.analysis import make_cache; make_cache.SHARD_BYTES = 60_000; "
        "from sda.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "features", run, "--per-class", 0, "--out", file, "--device", "cpu"]
    limits = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{DOCUMENT.parents[1]}{os.pathsep}{DOCUMENT.parents[1] / 'tests'}",
    }
    return subprocess.Popen([*map(str, command)], env=environment, stderr=log, preexec_fn=limits)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 40])
def test_kills_do_not_change_the_cache(run, made, tmp_path, most):
    """After many kills, the cache equals that of an uninterrupted run."""
    file, kills = tmp_path / "killed.h5", 0
    random = np.random.default_rng(0)
    for _ in range(most):
        process = launch(run, file, subprocess.DEVNULL)
        parts = file.with_name("killed.h5.parts")
        before = len(list(parts.glob("*.npz"))) if parts.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if parts.exists() and len(list(parts.glob("*.npz"))) > before:
                time.sleep(random.random() * 0.05)
                break
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert launch(run, file, subprocess.DEVNULL).wait() == 0 and kills >= min(2, most)
    assert not file.with_name("killed.h5.parts").exists()
    mine, theirs = contents(file), contents(made)
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        assert np.array_equal(mine[name], values), name


@pytest.mark.slow
def test_a_full_disk_is_reported(run, made, tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert launch(run, tmp_path / "full.h5", log, limit=300_000).wait() == 2
    text = (tmp_path / "log").read_text()
    assert "full.h5: cannot be written" in text and "it resumes from" in text
    assert launch(run, tmp_path / "full.h5", subprocess.DEVNULL).wait() == 0
    assert np.array_equal(contents(tmp_path / "full.h5")["features"], contents(made)["features"])


def test_plain_h5py_reads_it(made, tmp_path):
    """The example in docs/features.md works in a process without sda."""
    [code] = re.findall(r"```python\n(import h5py.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 6
    code = "import sys; sys.modules['sda'] = None; sys.modules['torch'] = None\n" + code.replace("features.h5", str(made))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


# Damaged and crafted caches


def content_of(path):
    """Read everything of a cache."""
    cache = FeatureCache(path)
    found = {name: getattr(cache, name) for name in ("about", "paths", "domains", "domain", "left_out", "labelled", "scored")}
    found["blocks"] = list(cache.blocks())
    return {**found, **{name: cache.of_images(name) for name in ("size", "mean", "share", "class_entropy")}}


def test_damage_is_noticed(made, tmp_path):
    shutil.copy(made, tmp_path / "f.h5")
    tiny.check_damage(tmp_path / "f.h5", content_of, 60)


def rewrite(path, name, values):
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=values, maxshape=(None, *np.shape(values)[1:]), chunks=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("label", lambda values: values * 0 + 7),
        ("prediction", lambda values: values * 0 + 200),
        ("image", lambda values: values + 1),
        ("image", lambda values: values - 5),
        ("position", lambda values: values - 1000),
        ("position", lambda values: values + 1000),
        ("features", lambda values: values * np.float16("nan")),
        ("features", lambda values: values[:-1]),
        ("features", lambda values: values.astype(np.float64)),
        ("features", lambda values: values[:, 0]),
        ("confidence", lambda values: values + np.float32("inf")),
        ("images/pixels", lambda values: values + 3),
        ("images/pixels", lambda values: values[::-1].copy()),
        ("images/pixels", lambda values: values * 10**15),
        ("images/domain", lambda values: values + 9),
        ("images/size", lambda values: values * 0),
        ("images/size", lambda values: values * 0 + 2**30),
        ("images/mean", lambda values: values[:, :-1]),
        ("images/share", lambda values: values[:, :-1]),
        ("images/share", lambda values: values * np.float32("nan")),
    ],
)
def test_values_that_are_impossible_are_refused(made, tmp_path, name, change):
    file = tmp_path / "f.h5"
    shutil.copy(made, file)
    with h5py.File(made) as opened:
        values = opened[name][:]
    rewrite(file, name, change(values))
    with pytest.raises(SdaError, match=rf"^{file}: cannot be read \("):
        content_of(file)


def test_metadata_of_other_types_are_refused(made, tmp_path):
    with h5py.File(made) as opened:
        whole = json.loads(opened.attrs["about"])
    wrong = [3, None, [1], "text", {}]
    for key in ("classes", "domains", "settings", "run", "target"):
        wrong += [{**whole, key: value} for value in (3, None, [1], {"a": 1})]
    wrong += [{**whole, "classes": {"a": [1, 2, 3]}}, {**whole, "domains": []}, {**whole, "domains": [{"name": "a"}]}]
    for number, about in enumerate(wrong):
        file = shutil.copy(made, tmp_path / f"{number}.h5")
        with h5py.File(file, "r+") as opened:
            opened.attrs["about"] = json.dumps(about)
            opened.attrs["text_sha256"] = text_hash(*all_texts(opened))
        with pytest.raises(SdaError) as caught:
            content_of(file)
        assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_features_of_other_files_are_not_read(made, tmp_path):
    file = tmp_path / "f.h5"
    shutil.copy(made, file)
    with h5py.File(file, "r+") as opened:
        shape = opened["label"].shape
        del opened["label"]
        opened.create_dataset("label", shape, np.uint8, external=[(str(made), 0, shape[0])])
    with pytest.raises(SdaError, match="the data of label are in another file"):
        FeatureCache(file)
