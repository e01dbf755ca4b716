"""The doctor on folders with planted faults: it names each, training skips it, and no user file is changed."""

import json
import os

import h5py
import numpy as np
import pytest
import tiny
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.files import LabelCodec
from sda.data.inspect import doctor, scan
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.doctor import examine
from sda.data.inspect.encoding import class_pixels
from sda.data.listing import list_items

IDS = [7, 8, 11, 21, 23, 26]  # road, sidewalk, building, vegetation, sky, car


@pytest.fixture(autouse=True)
def cache(here, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    return here / "cache"


def picture(seed, size=(32, 48)):
    return np.random.default_rng(seed).integers(20, 255, (*size, 3), dtype=np.uint8)


def ids(seed, size=(32, 48), values=IDS):
    return (
        np.array(values, np.uint8)[np.random.default_rng(seed).integers(len(values), size=(size[0] // 8, size[1] // 8))]
        .repeat(8, 0)
        .repeat(8, 1)
    )


def gta5(root, count=6, values=IDS, first=0):
    for index in range(first, first + count):
        tiny.save(picture(index), root / f"images/{index:05d}.png")
        label = Image.fromarray(ids(index, values=values))
        label.putpalette(list(range(256)) * 3)
        (root / "labels").mkdir(exist_ok=True)
        label.save(root / f"labels/{index:05d}.png")
    return root


def diagnose(name, root, **options):
    found, _ = examine(name, descriptors.load(name), root, processes=1, **options)
    return found


def keys(found, kind):
    return [problem.key for problem in found.problems if problem.kind == kind]


# A dataset without problems


def test_a_dataset_without_problems(tmp_path):
    root = gta5(tmp_path / "gta5")
    before = tiny.files(root)
    found = diagnose("gta5", root)
    assert found.problems == [] and found.advice == ""
    assert found.splits == {"train": {"images": 6, "labelled": 6, "bad": 0, "encoding": "ids"}}
    assert found.sizes == {"48x32": 6}
    assert sum(found.encodings.values()) == 6
    assert tiny.files(root) == before


def test_frequencies_by_hand(tmp_path):
    """One label is half road, a quarter sky and a quarter void; the other is all road."""
    half = np.full((4, 8), 7, np.uint8)
    half[:, 4:6], half[:, 6:] = 23, 0
    for index, label in enumerate((half, np.full((4, 8), 7, np.uint8))):
        tiny.save(picture(index, (4, 8)), tmp_path / f"images/{index}.png")
        tiny.save(label, tmp_path / f"labels/{index}.png")
    found = diagnose("gta5", tmp_path)
    assert found.frequencies["road"] == {"pixels": pytest.approx(48 / 56), "images": 1.0}
    assert found.frequencies["sky"] == {"pixels": pytest.approx(8 / 56), "images": 0.5}
    assert "car" in found.never and "road" not in found.never and len(found.never) == 17


# Planted faults


def test_every_planted_fault_is_named(tmp_path):
    root = gta5(tmp_path / "gta5", 12)
    images, labels = root / "images", root / "labels"
    (images / "00000.png").write_bytes((images / "00000.png").read_bytes()[:200])  # truncated
    (images / "00001.png").write_bytes(b"")
    (labels / "00002.png").write_bytes((labels / "00002.png").read_bytes()[:60])
    tiny.save(ids(3, (32, 40)), labels / "00003.png")  # another size
    tiny.save(ids(4, values=[7, 77, 200]), labels / "00004.png")
    tiny.save(np.zeros((32, 48, 3), np.uint8), images / "00005.png")
    tiny.save(np.zeros((32, 48), np.uint8), labels / "00006.png")
    (labels / "00007.png").unlink()
    (images / "00008.png").unlink()
    (images / "00009.png").write_bytes((images / "00010.png").read_bytes())
    found = diagnose("gta5", root)
    name = "images/{:05d}.png".format
    assert keys(found, "unreadable image") == [name(0), name(1)]
    assert keys(found, "unreadable label") == [name(2)]
    assert keys(found, "size mismatch") == [name(3)]
    assert keys(found, "unknown values") == [name(4)]
    assert keys(found, "black image") == [name(5)]
    assert keys(found, "void label") == [name(6)]
    assert keys(found, "no label") == [name(7)]
    assert keys(found, "no image") == ["labels/00008.png"]
    assert keys(found, "duplicate") == [name(10)]
    assert {problem.key for problem in found.bad} == {name(index) for index in range(6)}
    assert found.splits["train"] == {"images": 11, "labelled": 10, "bad": 6, "encoding": "ids"}
    details = {problem.key: problem.detail for problem in found.problems}
    assert details[name(4)].endswith(
        "00004.png: label values 77, 200 are not in the dataset's descriptor; add them to its [ids] or void"
    )
    assert "40x32" in details[name(3)] and "48x32" in details[name(3)]
    assert "00009.png" in details[name(10)]


def test_duplicates_across_splits_are_reported(tmp_path):
    for split, place in (("train", "ulm"), ("val", "bonn")):
        stem = f"{split}/{place}/{place}_000000_000019"
        tiny.save(picture(1), tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
        tiny.save(ids(1), tmp_path / f"gtFine/{stem}_gtFine_labelIds.png")
    found = diagnose("cityscapes", tmp_path)
    [problem] = [problem for problem in found.problems if problem.kind == "duplicate"]
    assert problem.split == "val" and "of train" in problem.detail


# Encodings


def test_labels_converted_to_train_ids_are_detected(tmp_path):
    """Some files contain 255 or 250, which only occur in train ids; then labels that could be either are bad too."""
    root = gta5(tmp_path, 3, values=[0, 1, 10, 255])
    gta5(root, 2, values=[0, 8, 250], first=3)
    gta5(root, 2, values=[0, 1, 8], first=5)
    found = diagnose("gta5", root)
    assert found.encodings == {"train_ids": 5, "ids or train_ids": 2}
    assert 'set encoding = "train_ids"' in found.advice and "sda datasets gta5 > mine.toml" in found.advice
    assert len(keys(found, "other encoding")) == 7 and len(found.bad) == 7


def test_an_incomplete_conversion_is_detected(tmp_path):
    root = gta5(tmp_path, 3, values=[0, 1, 10, 255])
    gta5(root, 3, values=[7, 8, 26, 33], first=3)
    found = diagnose("gta5", root)
    assert found.encodings == {"train_ids": 3, "ids": 3}
    assert "half-way" in found.advice
    assert keys(found, "other encoding") == [f"images/{index:05d}.png" for index in range(3)]


def test_unknown_colours_are_named(tmp_path):
    """RGB labels in the colours of the class table are valid; an unknown colour is named."""
    table = descriptors.load("gta5").table().colors
    for index, colors in enumerate(([table["road"], table["sky"]], [table["road"], [1, 2, 3]])):
        label = np.array(colors, np.uint8)[ids(index, values=[0, 1])]
        tiny.save(picture(index), tmp_path / f"images/{index}.png")
        tiny.save(label, tmp_path / f"labels/{index}.png")
    found = diagnose("gta5", tmp_path)
    assert found.encodings == {"colours": 1, "unknown values": 1}
    [problem] = found.bad
    assert problem.kind == "unknown values" and "#010203" in problem.detail
    assert found.frequencies["sky"]["images"] == 0.5


def test_synthia_ids_are_in_the_red_channel(tmp_path):
    for index in range(2):
        label = np.stack([ids(index, values=[1, 2, 3, 22]), ids(index + 9, values=[5, 99]), ids(0, values=[0])], axis=2)
        tiny.save(picture(index), tmp_path / f"RGB/{index}.png")
        tiny.save(label, tmp_path / f"GT/LABELS/{index}.png")
    found = diagnose("synthia", tmp_path)
    assert found.encodings == {"ids_in_red": 2} and found.problems == []
    assert found.frequencies["road"]["images"] == 1


# The cache


def test_second_scan_reads_only_changed_files(tmp_path, monkeypatch):
    root = gta5(tmp_path / "gta5")
    first = diagnose("gta5", root)
    looked = []
    monkeypatch.setattr(scan, "look_at", lambda item, look=scan.look_at: looked.append(item.key) or look(item))
    assert diagnose("gta5", root) == first and looked == []
    tiny.save(ids(77), root / "labels/00002.png")
    os.utime(root / "labels/00002.png", ns=(1, 1))
    diagnose("gta5", root)
    assert looked == ["images/00002.png"]


def test_interrupted_scan_resumes(tmp_path, monkeypatch):
    root = gta5(tmp_path / "gta5", 40)
    monkeypatch.setattr(scan, "CHUNK", 4)

    def stop(done, total):
        if done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose("gta5", root, progress=stop)
    looked = []
    monkeypatch.setattr(scan, "look_at", lambda item, look=scan.look_at: looked.append(item.key) or look(item))
    found = diagnose("gta5", root)
    assert len(looked) == 28 and found.splits["train"]["images"] == 40


def test_a_damaged_cache_is_ignored(tmp_path, cache):
    root = gta5(tmp_path / "gta5")
    first = diagnose("gta5", root)
    [file] = (cache / "scans").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40] + "\n[1]\nnull\n" + json.dumps({"version": 0, "key": "x"}) + "\n")
    assert diagnose("gta5", root) == first


def test_parallel_scan_equals_sequential_scan(tmp_path, monkeypatch):
    root = gta5(tmp_path / "gta5", 40)
    alone = diagnose("gta5", root)
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "other"))
    found, _ = examine("gta5", descriptors.load("gta5"), root, processes=2)
    assert found == alone


# What training does with the findings


def test_bad_pairs_are_skipped_until_they_are_fixed(tmp_path):
    root = gta5(tmp_path / "gta5")
    tiny.save(ids(3, (32, 40)), root / "labels/00003.png")
    described = descriptors.load("gta5")
    items = list_items(described, root, "train").items
    assert bad_pairs(root, items, described) == {}
    diagnose("gta5", root)
    [(key, why)] = bad_pairs(root, items, described).items()
    assert key == "images/00003.png" and "40x32" in why
    tiny.save(ids(3), root / "labels/00003.png")
    os.utime(root / "labels/00003.png", ns=(1, 1))
    assert bad_pairs(root, items, described) == {}


def cityscapes(root):
    """Two training pairs and a validation pair."""
    for seed, (split, place) in enumerate((("train", "ulm"), ("train", "bonn"), ("val", "lindau"))):
        stem = f"{split}/{place}/{place}_000000_000019"
        tiny.save(picture(seed), root / f"leftImg8bit/{stem}_leftImg8bit.png")
        tiny.save(ids(seed), root / f"gtFine/{stem}_gtFine_labelIds.png")
    return root


def test_findings_on_other_splits_are_kept(tmp_path):
    root, described = cityscapes(tmp_path / "cs"), descriptors.load("cityscapes")
    for label in root.rglob("*_labelIds.png"):
        label.write_bytes(label.read_bytes()[:50])
    for split in ("train", "val"):
        diagnose("cityscapes", root, splits=(split,))
    assert len(bad_pairs(root, list_items(described, root, "train").items, described)) == 2
    assert len(bad_pairs(root, list_items(described, root, "val").items, described)) == 1


def test_bad_pairs_of_a_split_list_are_skipped(sda, tmp_path):
    """A bad pair is skipped with a note. Names are matched against all images, so skipping one makes no other unambiguous."""
    world = tiny.write_world(tmp_path / "world")
    pictures = world.root / "field/pictures/train"
    label = world.root / "field/labels/train/north/00.png"
    label.write_bytes(label.read_bytes()[:50])
    assert sda("doctor", world.field, "--root", world.root / "field", "--processes", 1)[0] == 1
    (tmp_path / "mine.txt").write_text("north/00\nnorth/02\nsouth/01\n")
    options = ["--device", "cpu", "--split", tmp_path / "mine.txt"]
    status, shown = sda("train", world.recipe, *options, "--out", tmp_path / "run")
    assert status == 0 and "1 pairs that sda doctor found bad are skipped" in shown.err
    listed = (tmp_path / "run/splits/labelled.txt").read_text().splitlines()
    assert listed == ["pictures/train/north/02.jpg", "pictures/train/south/01.jpg"]
    (pictures / "south/00.jpg").write_bytes((pictures / "south/01.jpg").read_bytes()[:-1] + b"x")
    (tmp_path / "mine.txt").write_text("00\n")
    status, shown = sda("train", world.recipe, *options)
    assert status == 2 and "'00' matches 2 of the 9 target training images" in shown.err


def test_doctor_examines_packs(sda, tmp_path):
    """The counts are those of the folder; a damaged image is found, and training skips it."""
    world, pack = tiny.write_world(tmp_path / "world"), tmp_path / "field.h5"
    folder = world.root / "field"
    assert sda("pack", world.field, "--root", folder, "--size", 48, 64, "--processes", 1, "--out", pack)[0] == 0
    status, shown = sda("doctor", world.field, "--root", folder, "--processes", 1, "--json")
    of_folder = json.loads(shown.out)
    status, shown = sda("doctor", world.field, "--root", pack, "--json")
    of_pack = json.loads(shown.out)
    for name, share in of_folder["frequencies"].items():
        assert of_pack["frequencies"][name] == pytest.approx(share)
    assert status == 0
    with h5py.File(pack, "r") as file:
        key = json.loads(file["about"][()].tobytes())["splits"]["train"][2]["key"]
        place = file["images/train"].id.get_chunk_info(2).byte_offset
    with pack.open("r+b") as file:
        file.seek(place + 100)
        file.write(b"damage")
    status, shown = sda("doctor", world.field, "--root", pack, "--json")
    [problem] = json.loads(shown.out)["problems"]
    assert status == 1 and problem["kind"] == "unreadable image" and problem["key"] == key and str(pack) in problem["detail"]
    options = ["--source", "", "--labels", "all", "--target-root", pack, "--device", "cpu", "--out", tmp_path / "run"]
    status, shown = sda("train", world.recipe, *options)
    assert status == 0 and "1 pairs that sda doctor found bad are skipped" in shown.err
    assert sda("doctor", world.field, "--root", pack, "--split", "test")[0] == 2


def test_train_ids_equal_ids_that_are_positions(tmp_path):
    """If ids are positions, encoding = "train_ids" is the same encoding, in which 250 is void."""
    described = tmp_path / "mine.toml"
    described.write_text(
        'title = "Mine"\nclasses = {a = [1, 1, 1], b = [2, 2, 2]}\n'
        '[[layout]]\nencoding = "train_ids"\nimages = "images/{n}.png"\nlabels = "labels/{n}.png"'
    )
    gta5(tmp_path / "data", 3, values=[0, 1])
    gta5(tmp_path / "data", 3, values=[0, 1, 250], first=3)
    found, _ = examine("mine", descriptors.load(str(described)), tmp_path / "data", processes=1)
    assert found.bad == [] and found.advice == "" and found.encodings == {"train_ids": 6}


def test_ambiguous_labels_are_reported(tmp_path):
    """Train ids without any 255: if they were ids, road, sidewalk and building would be void."""
    found = diagnose("gta5", gta5(tmp_path, 6, values=[0, 1, 2, 8]))
    assert found.bad == [] and found.advice.startswith("every label could be ids or train ids: ")
    assert "void if they are ids, 0% if they are train ids" in found.advice and 'encoding = "train_ids"' in found.advice


def test_class_pixels_by_hand(tmp_path):
    root = gta5(tmp_path / "gta5", 3)
    listing = list_items(descriptors.load("gta5"), root, "train")
    counted = class_pixels(descriptors.load("gta5"), listing.encoding, listing.items, root)
    for index in range(3):
        label = ids(index)
        expected = [int((label == value).sum()) for value in sorted(descriptors.label_values(descriptors.load("gta5"), "ids"))]
        assert sum(counted[f"images/{index:05d}.png"]) == label.size == sum(expected)
        assert counted[f"images/{index:05d}.png"][0] == (label == 7).sum()


# The command


@pytest.mark.usefixtures("here")
def test_colours_are_what_the_descriptor_says(sda, tmp_path):
    root = gta5(tmp_path / "gta5")
    for path in (root / "labels").iterdir():
        tiny.save(np.full((32, 48, 3), [128, 64, 128], np.uint8), path)
    assert "Labels: 6 colours; the descriptor says ids or colours" in sda("doctor", "gta5", "--root", root)[1].out


@pytest.mark.usefixtures("here")
def test_command_writes_its_report(sda, tmp_path):
    root = gta5(tmp_path / "gta5")
    status, shown = sda("doctor", "gta5", "--root", root, "--processes", 1)
    assert status == 0 and "No problems found" in shown.out and "Classes that never occur: wall" in shown.out
    with Image.open(tmp_path / "runs/doctor-gta5/contact.png") as sheet:
        assert sheet.width > 3 * 300
    tiny.save(ids(3, (32, 40)), root / "labels/00003.png")
    status, shown = sda("doctor", "gta5", "--root", root, "--processes", 1, "--json")
    facts = json.loads(shown.out)
    assert status == 1 and facts["bad"] == 1 and facts["problems"][0]["kind"] == "size mismatch"
    assert facts["out"].endswith("doctor-gta5-2")
    assert sda("doctor", "gta5", "--root", tmp_path / "nowhere")[0] == 2


@pytest.mark.usefixtures("here")
def test_training_skips_bad_pairs(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    label = world.root / "field/labels/train/north/00.png"
    with Image.open(label) as image:
        image.resize((40, 40), Image.Resampling.NEAREST).save(label)
    options = ["--labels", "all", "--device", "cpu", "--source", ""]
    status, shown = sda("train", world.recipe, *options)
    assert status == 2 and "they must be equal" in shown.err
    assert sda("doctor", world.field, "--root", world.root / "field", "--processes", 1)[0] == 1
    status, shown = sda("train", world.recipe, *options, "--out", tmp_path / "run")
    assert status == 0 and "1 pairs that sda doctor found bad are skipped, such as pictures/train/north/00.jpg" in shown.err
    assert "pictures/train/north/00.jpg" not in (tmp_path / "run/splits/labelled.txt").read_text()
    status, shown = sda("train", world.recipe, *options, "--doctor", "false")
    assert status == 2 and "they must be equal" in shown.err


def test_frequencies_are_those_of_training(tmp_path):
    """The frequencies are those of the labels as training decodes them."""
    root = gta5(tmp_path / "gta5", 5)
    described = descriptors.load("gta5")
    found = diagnose("gta5", root)
    codec = LabelCodec(described, "ids", np.arange(256, dtype=np.uint8))
    decoded = np.concatenate([codec.read(path).ravel() for path in sorted((root / "labels").iterdir())])
    counts = np.bincount(decoded, minlength=256)[:19]
    for index, name in enumerate(described.table().names):
        assert found.frequencies[name]["pixels"] == pytest.approx(counts[index] / counts.sum())
    assert doctor.PROBLEM_KINDS.keys() >= {problem.kind for problem in found.problems}
