"""Regression tests: faulty folders that the doctor, lists and packs once handled wrongly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from sda.data.descriptor import load
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.doctor import examine
from sda.data.inspect.propose import propose
from sda.data.inspect.scan import cache_file
from sda.data.listing import list_folder, list_items
from sda.errors import SdaError

LISTED = """title = "Listed"
classes = {a = [1, 1, 1], b = [2, 2, 2]}
[[layout]]
list = "sets/{split}.txt"
images = "I/{place}/{frame}.png"
labels = "L/{place}/{frame}.png"
"""


@pytest.fixture
def world(own_world):
    return own_world


@pytest.fixture
def field(world):
    return world.root / "field"


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Write images of two places with the same names, and a descriptor with lists; returns its path and the root."""
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    for place in "ab":
        for frame in range(3):
            seed = 10 * "ab".index(place) + frame
            image, label = tiny.draw(seed, [0, 1, 0], [(90, 90, 90), (200, 10, 10), (20, 20, 200)])
            tiny.save(image, tmp_path / f"set/I/{place}/{frame}.png")
            tiny.save(label, tmp_path / f"set/L/{place}/{frame}.png")
    (tmp_path / "listed.toml").write_text(LISTED)
    (tmp_path / "set/sets").mkdir()
    return tmp_path / "listed.toml", tmp_path / "set"


def keys(path, root, split):
    return [item.key for item in list_items(load(str(path)), root, split).items]


# Lists in layouts


def test_folders_in_a_list_distinguish_equal_names(listed):
    path, root = listed
    (root / "sets/train.txt").write_text("# mine\nI/a/1.png\nI/a/2.png\n")
    (root / "sets/val.txt").write_text("b/1\n")
    assert keys(path, root, "train") == ["I/a/1.png", "I/a/2.png"] and keys(path, root, "val") == ["I/b/1.png"]


def test_one_image_in_two_lists_is_reported(listed):
    path, root = listed
    for split in ("train", "val"):
        (root / f"sets/{split}.txt").write_text("I/a/1.png\n")
    found, _ = examine("listed", load(str(path)), root, processes=1)
    [problem] = found.problems
    assert problem.kind == "duplicate" and problem.split == "val" and "the same bytes as I/a/1.png of train" in problem.detail


def test_a_list_that_names_a_missing_image_is_an_error(listed):
    """The doctor must not treat it as a missing split."""
    path, root = listed
    (root / "sets/train.txt").write_text("I/a/1.png\n")
    (root / "sets/val.txt").write_text("I/a/7.png\n")
    with pytest.raises(SdaError, match=r"val.txt: line 1: 'I/a/7.png' is not among the 6 images"):
        examine("listed", load(str(path)), root, processes=1)


# Effects of the doctor's findings


def spoil(field, key="pictures/train/north/00.jpg"):
    label = field / key.replace("pictures", "labels").replace(".jpg", ".png")
    label.write_bytes(label.read_bytes()[:50])
    return key


def test_a_pack_skips_what_the_doctor_found(world, field, sda):
    """This includes images that can be read: only the doctor rejects a black image."""
    Image.new("RGB", (tiny.WIDTH, tiny.HEIGHT)).save(field / "pictures/train/north/02.jpg")
    assert sda("doctor", world.field, "--root", field, "--processes", 1)[0] == 1
    command = ["pack", world.field, "--root", field, "--size", "48x64", "--processes", 1, "--out", "field.h5"]
    status, shown = sda(*command)
    assert status == 2 and "02.jpg" in shown.err and "sda doctor found that" in shown.err
    assert sda(*command, "--bad-files", "skip")[0] == 0
    status, shown = sda("doctor", world.field, "--root", "field.h5", "--json")
    assert status == 0 and json.loads(shown.out)["splits"]["train"]["images"] == 7


def test_a_list_with_only_bad_images_is_refused(world, field, sda):
    key = spoil(field)
    assert sda("doctor", world.field, "--root", field, "--processes", 1)[0] == 1
    Path("mine.txt").write_text(f"{key}\n")
    status, shown = sda("train", world.recipe, "--split", "mine.txt", "--device", "cpu")
    assert status == 2 and "mine.txt: sda doctor found all 1 images in this list bad" in shown.err
    Path("mine.txt").write_text(f"{key}\npictures/train/north/02.jpg\n")
    status, shown = sda("train", world.recipe, "--split", "mine.txt", "--device", "cpu")
    assert status == 0 and f"mine.txt: 1 of its 2 images are skipped, such as {key}" in shown.err


def test_findings_apply_to_one_descriptor(world, field, tmp_path):
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(tiny.FIELD.replace("human = [3, 3, 3]", "").replace("[2, 2, 2], ", "[2, 2, 2]"))
    found, _ = examine("wrong", load(str(wrong)), field, processes=1)
    assert len(found.bad) == 11
    items = list_items(load(str(wrong)), field, "train").items
    assert len(bad_pairs(field, items, load(str(wrong)))) == 8 and bad_pairs(field, items, load(str(world.field))) == {}


def test_damaged_lines_of_the_bad_pairs_are_ignored(world, field):
    described, key = load(str(world.field)), spoil(field)
    examine("field", described, field, processes=1)
    path = cache_file("bad", field)
    path.write_text("cut o\nnull\n[1]\n" + path.read_text())
    assert list(bad_pairs(field, list_items(described, field, "train").items, described)) == [key]


def test_two_descriptors_of_a_folder_do_not_share_findings(world, field, tmp_path):
    """Their labels are different files with equal sizes and times."""
    other = tmp_path / "other.toml"
    other.write_text(tiny.FIELD.replace("labels/", "others/"))
    for path in (field / "labels").rglob("*.png"):
        twin = tiny.save(np.full((tiny.HEIGHT, tiny.WIDTH), 1, np.uint8), Path(str(path).replace("/labels/", "/others/")))
        size = max(path.stat().st_size, twin.stat().st_size)
        for file in (path, twin):
            file.write_bytes(file.read_bytes() + bytes(size - file.stat().st_size))
            os.utime(file, ns=(1, 1))
    first, _ = examine("field", load(str(world.field)), field, processes=1)
    second, _ = examine("other", load(str(other)), field, processes=1)
    assert first.frequencies["human"]["images"] > 0 and second.frequencies["building"] == {"pixels": 1.0, "images": 1.0}


# Splits with different encodings, and datasets without labels


def cityscapes(root, kind="labelIds", values=(7, 11, 23), split="train", count=2):
    for index in range(count):
        image, label = tiny.draw(index + 50 * (split == "val"), list(values), [(200, 200, 255), (180, 90, 60), (90, 90, 90)])
        stem = f"{split}/ulm/ulm_{index:06}_000019"
        tiny.save(image, root / f"leftImg8bit/{stem}_leftImg8bit.png")
        tiny.save(label, root / f"gtFine/{stem}_gtFine_{kind}.png")


def test_each_split_has_its_own_encoding(world, sda, tmp_path):
    cityscapes(tmp_path / "cs")
    cityscapes(tmp_path / "cs", "labelTrainIds", (0, 2, 255), "val")
    status, shown = sda("doctor", "cityscapes", "--root", tmp_path / "cs", "--processes", 1, "--json")
    facts = json.loads(shown.out)
    assert status == 0 and facts["problems"] == [] and facts["encodings"] == {"ids": 2, "train_ids": 2}
    assert [facts["splits"][split]["encoding"] for split in ("train", "val")] == ["ids", "train_ids"]
    assert (Path(facts["out"]) / "contact.png").exists()


def test_a_mistyped_label_pattern_is_reported(world, sda, tmp_path):
    cityscapes(tmp_path / "cs", "labelsId")
    status, shown = sda("doctor", "cityscapes", "--root", tmp_path / "cs", "--processes", 1)
    assert status == 1 and "no image of train has a label file: is the pattern gtFine/" in shown.out
    assert "looked for gtFine/{split}/{city}/" in shown.out


def test_labels_without_an_image_are_named(world, sda, tmp_path):
    cityscapes(tmp_path / "cs")
    next((tmp_path / "cs").rglob("*000001_*_leftImg8bit.png")).unlink()
    _, shown = sda("doctor", "cityscapes", "--root", tmp_path / "cs", "--processes", 1)
    assert "ulm_000001_000019_gtFine_labelIds.png: this label file has no image" in shown.out.replace("\n", "")


# Copies and overlaps


def test_copies_of_validation_images_are_skipped(world, field, sda):
    """sda split and training agree, and training does not fail because of a copy."""
    copy = field / "pictures/train/north/00.jpg"
    copy.write_bytes((field / "pictures/val/west/08.jpg").read_bytes())
    status, shown = sda("split", world.field, "--root", field, "--labels", 7, "--out", "list.txt")
    assert status == 0 and "1 images that are copies of validation images are skipped" in shown.err
    assert "north/00" not in Path("list.txt").read_text()
    assert sda("train", world.recipe, "--labels", "all", "--device", "cpu", "--out", "run")[0] == 0
    assert "north/00" not in Path("run/splits/labelled.txt").read_text()


def test_source_and_target_must_not_share_images(world, field, sda):
    flags = ["--source", world.field, "--source-root", field, "--device", "cpu"]
    status, shown = sda("train", world.recipe, *flags)
    assert status == 2 and "must not share images" in shown.err


def test_a_link_to_a_parent_folder_is_walked_once(tmp_path):
    tiny.save(np.zeros((8, 8, 3), np.uint8), tmp_path / "a/0.png")
    (tmp_path / "a/up").symlink_to("..")
    assert [item.key for item in list_folder(tmp_path).items] == ["a/0.png"]


# init-dataset


def test_a_proposal_follows_links_and_skips_an_unreadable_label(tmp_path):
    for index in range(6):
        image, label = tiny.draw(index, [0, 1, 2], [(200, 200, 255), (180, 90, 60), (90, 90, 90)])
        tiny.save(image, tmp_path / f"elsewhere/{index}.jpg")
        tiny.save(label, tmp_path / f"set/gt/{index}.png")
    (tmp_path / "set/rgb").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/gt/2.png").write_bytes(b"")
    text, *_ = propose(tmp_path / "set")
    assert 'images = "rgb/{frame}.jpg"' in text and 'labels = "gt/{frame}.png"' in text


def test_braces_in_a_folder_become_a_word(tmp_path):
    for index in range(3):
        tiny.save(np.zeros((8, 8, 3), np.uint8), tmp_path / f"set/im{{1}}/{index}.jpg")
    text, *_ = propose(tmp_path / "set")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert len(list_items(load(str(path)), tmp_path / "set", "train").items) == 3


# Descriptors that contradict themselves


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('ids = {3 = "ground", 03 = "human"}', "the value 3 occurs twice in ids and void"),
        ('ids = {3 = "ground"}\nvoid = [0, 3]', "the value 3 occurs twice in ids and void"),
        ('[maps.cityscapes19]\ngruond = "road"', "maps.cityscapes19: the class table has no class 'gruond'.*'ground'"),
    ],
)
def test_contradictory_descriptors_are_refused(tmp_path, change, says):
    head, layout = tiny.FIELD.split("[[layout]]")
    path = tmp_path / "mine.toml"
    path.write_text(f"{head}{change}\n[[layout]]{layout}" if not change.startswith("[") else f"{tiny.FIELD}{change}\n")
    with pytest.raises(SdaError, match=says):
        load(str(path))


def test_missing_map_names_the_existing_ones(tmp_path, world, sda):
    status, shown = sda("train", world.recipe, "--classes", "voc21", "--device", "cpu")
    assert (
        status == 2
        and "none of its classes is in the class table voc21" in shown.err
        and "its descriptor has maps for field" in shown.err
    )


# One line instead of a traceback


@pytest.mark.parametrize("share", ["nan", "inf", "-1", "0", "1.5"])
def test_invalid_hold_out_shares_are_refused(world, field, sda, share):
    status, shown = sda("split", world.field, "--root", field, "--hold-out", share)
    assert status == 2 and "one side would be empty" in shown.err


def test_workers_end_when_the_doctor_is_killed(tmp_path):
    root = tmp_path / "gta5"
    image, label = tiny.draw(0, [7, 8, 11], [(200, 200, 255), (180, 90, 60), (90, 90, 90)])
    for folder, array in (("images", image), ("labels", label)):
        first = tiny.save(array.repeat(16, 0).repeat(16, 1), root / folder / "00000.png")
        for index in range(1, 300):
            (root / folder / f"{index:05d}.png").hardlink_to(first)
    command = [sys.executable, "-m", "sda", "doctor", "gta5", "--root", root, "--processes", "2", "--out", tmp_path / "out"]
    environment = {**os.environ, "SDA_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        children = []
        while len(children) < 2 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
            if list(tmp_path.glob("cache/scans/*")):
                children = [pid for task in Path(f"/proc/{process.pid}/task").iterdir() for pid in children_of(task)]
        process.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    while [child for child in children if alive(child)] and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if alive(child)]


def children_of(task):
    try:
        return (task / "children").read_text().split()
    except OSError:  # a thread that has ended
        return []


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
