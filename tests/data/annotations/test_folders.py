"""Folders as people have them: proposed, checked and read, or named if they are not understood."""

import json
import re
from random import Random

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw
from test_forms import HEIGHT, OBJECTS, WIDTH, coco_content, labelme, photo, supervisely, write_json

from sda.data import descriptor as descriptors
from sda.data.annotations.forms import FORMS, Annotated, index_of
from sda.data.files import FileError, LabelCodec, read_label
from sda.data.inspect.propose import propose
from sda.data.listing import list_items
from sda.errors import SdaError


@pytest.fixture
def root(here, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    (root := here / "set").mkdir()
    return root


@pytest.fixture
def check(sda, root):
    """`check()`: init-dataset and the doctor find no fault. Returns the descriptor."""

    def check():
        status, output = sda("init-dataset", "set")
        assert status == 0, output
        status, output = sda("doctor", "set.toml", "--root", "set", "--processes", 1)
        assert status == 0, output.out
        return descriptors.load("set.toml")

    return check


def decoded(described, root, split="train"):
    listing = list_items(described, root, split)
    codec = LabelCodec(described, listing.encoding, np.arange(256, dtype=np.uint8))
    return {item.key: codec.read_item(item) for item in listing.items if item.label}


# Labels that are not understood


@pytest.mark.parametrize(
    ("folder", "name", "content", "line"),
    [
        ("labels", "{}.mat", b"MATLAB 5.0", "8 .mat files, such as labels/0.mat, are not understood"),
        ("labels", "{}.npy", b"\x93NUMPY", "8 .npy files, such as labels/0.npy, are not understood"),
        ("Annotations", "{}.xml", b"<annotation><object><name>car</name></object></annotation>", "8 .xml files, such as"),
        ("", "{}.json", b"{}", "8 .json files, such as 0.json, are not understood"),
        (
            "labels",
            "{}.txt",
            b"0 0.5 0.5 0.1 0.1\n",
            "8 images have YOLO annotations that cannot be used: .*a box, not a polygon",
        ),
        ("", "runs{}.csv", b"image,xmin\n0.jpg,3\n", "8 .csv files, such as runs0.csv, are not understood"),
        (
            "ann",
            "q{}.json",
            b'{"imagePath": "q.jpg", "shapes": []}',
            "8 labelme files name no image in this folder, such as ann/q0",
        ),
    ],
)
def test_what_is_not_understood_is_named_with_its_number(root, here, sda, folder, name, content, line):
    for number in range(8):
        photo(root / ("images" if folder else "") / f"{number}.jpg")
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name.format(number)).write_bytes(content)
    status, output = sda("init-dataset", "set")
    assert status == 1 and not (here / "set.toml").exists()
    first, *_, last = output.err.splitlines()
    assert re.match(line, first), first
    assert last == "set: no labels were understood, so no descriptor is written"


def test_images_alone_are_images_without_labels(root, sda):
    for number in range(3):
        photo(root / f"{number}.jpg")
    (root / "README.txt").write_text("Photos of a town.")
    assert sda("init-dataset", "set")[0] == 0


def test_boxes_of_coco_are_told(root, sda):
    content = coco_content("abcd")
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    write_json(root / "a.json", content)
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
    status, output = sda("init-dataset", "set")
    assert status == 1 and "4 images have COCO annotations that cannot be used" in output.err
    assert "with a box only, without a segmentation" in output.err


def test_masks_of_labelbox_are_at_addresses(root, sda):
    lines = []
    for stem in OBJECTS:
        photo(root / f"{stem}.jpg")
        objects = [{"name": "road", "annotation_kind": "ImageSegmentationMask", "mask": {"url": "https://api.labelbox.com/x"}}]
        row = {"data_row": {"external_id": f"{stem}.jpg"}, "projects": {"p": {"labels": [{"annotations": {"objects": objects}}]}}}
        lines.append(json.dumps(row))
    (root / "export.ndjson").write_text("\n".join(lines))
    status, output = sda("init-dataset", "set")
    assert status == 1 and "4 images have Labelbox annotations that cannot be used" in output.err
    assert "only the address at Labelbox: draw polygons, or download the masks as masks/CLASS/IMAGE.png" in output.err


def test_tables_of_kaggle(root, check):
    """The class in the name of the image or in no column; a sample submission is no label."""
    for folder, stems in (("train_images", "ab"), ("test_images", "cd")):
        for stem in stems:
            photo(root / f"{folder}/{stem}.jpg")
    (root / "train.csv").write_text("ImageId_ClassId,EncodedPixels\na.jpg_1,1 30 91 2\na.jpg_12,31 5\nb.jpg_2,1200 1\nb.jpg_1,\n")
    (root / "sample_submission.csv").write_text("ImageId_ClassId,EncodedPixels\nc.jpg_1,1 1\nd.jpg_1,1 1\n")
    described = check()
    assert described.table().names == ["class_1", "class_2", "class_12"]
    first, second = decoded(described, root).values()
    expected = np.full((HEIGHT, WIDTH), 255)
    expected[:, 0], expected[:2, 3], expected[:5, 1] = 0, 0, 2
    assert np.array_equal(first, expected)
    assert second[-1, -1] == 1 and (second == 255).sum() == HEIGHT * WIDTH - 1


def test_a_table_without_classes_has_one(root, check):
    for stem in "ab":
        photo(root / f"{stem}.png")
    (root / "train.csv").write_text("id,rle_mask\na,1 30 91 2\nb,2 5\n")
    assert check().table().names == ["object", "background"]


@pytest.mark.parametrize("runs", ["0 5", "1 1201", "5 0", "1 2 3"])
def test_run_lengths_that_do_not_fit_are_named(root, runs):
    photo(root / "a.jpg")
    (root / "a.csv").write_text(f"image,class,rle\na.jpg,road,{runs}\nb.jpg,road,1 2\n")
    with pytest.raises(SdaError, match="a.csv") as error:
        Annotated("kaggle-rle", root / "a.csv", "a.jpg").read(root / "a.jpg")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("program", "file"), [("segments.ai", "{}.jpg"), ("kili", "data/{}.jpg"), ("roboflow", "{}_jpg.rf.0a1b.jpg")]
)
def test_coco_of_other_programs(root, check, program, file):
    """Segments.ai, Kili and Roboflow write further keys, categories that are not used, and images without annotations."""
    content = coco_content("abcd", file)
    for stem in OBJECTS:
        photo(root / "train" / file.format(stem).removeprefix("data/"))
    content["categories"] = [{"id": 0, "name": "objects", "supercategory": "none"}, *content["categories"]]
    for each in content["annotations"]:
        each |= {"attributes": {}, "score": None} if program == "segments.ai" else {}
        each["bbox"] = None if program == "kili" else each["bbox"]
    content["images"].append({"id": 99, "file_name": "none.jpg", "width": WIDTH, "height": HEIGHT, "extra": {"name": "n"}})
    photo(root / "train/none.jpg")
    write_json(root / ("train/_annotations.coco.json" if program == "roboflow" else "export.json"), content)
    described = check()
    assert len(described.table().names) == 3 and len(decoded(described, root)) == 4


# Splits and suffixes


@pytest.mark.parametrize("images", ["images/{stem}.jpg", "images/{split}/{stem}.jpg", "{split}/{stem}.jpg"])
@pytest.mark.parametrize("file", ["annotations/{split}.json", "{split}/_annotations.coco.json"])
def test_files_of_splits(root, check, images, file):
    """With the images of all splits in one folder or not, and with one name in two splits if not."""
    names = {"train": "train", "val": "valid"}
    own = "{split}" in images
    stems = {"train": "abc", "val": "ab" if own else "d"}
    for split, name in names.items():
        for stem in stems[split]:
            photo(root / images.format(split=name, stem=stem))
        write_json(root / file.format(split=name), coco_content(stems[split]))
    described = check()
    for split in names:
        assert [key[-5] for key in decoded(described, root, split)] == list(stems[split])
        assert len(list_items(described, root, split).items) == len(stems[split])


def test_images_with_two_suffixes_and_names_with_both(root, check):
    supervisely(root)
    (root / "ds0/img/b.jpg").rename(root / "ds0/img/b.png")
    (root / "ds0/ann/b.jpg.json").rename(root / "ds0/ann/b.png.json")
    assert len(decoded(check(), root)) == 4


def test_some_images_may_have_no_annotations(root, check):
    labelme(root)
    (root / "c.json").unlink()
    described = check()
    assert len(decoded(described, root)) == 3 and len(list_items(described, root, "train").items) == 4


def test_masks_win_over_annotations_of_the_same_images(root, check):
    labelme(root / "photos")
    for number, stem in enumerate(OBJECTS):
        tiny.save(np.tri(HEIGHT, WIDTH, number, dtype=np.uint8), root / f"masks/{stem}.png")
    assert "4 images have labelme annotations, too, which are not read" in "".join(propose(root).notes)
    assert check().layout[0].labels == "masks/{frame}.png"


def test_lists_in_a_folder_that_name_other_images_are_told(root, sda):
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
        tiny.save(np.tri(HEIGHT, WIDTH, dtype=np.uint8), root / f"masks/{stem}.png")
    (root / "train.txt").write_text("a\nz\n")
    text, notes, unread = propose(root)
    assert "list =" not in text and not unread
    assert any("train.txt: line 2: 'z' is not among the 4 images" in note for note in notes)


# Names of classes


def test_names_in_two_spellings_are_one_class(root, check):
    labelme(root)
    for stem in ("a", "c"):
        (root / f"{stem}.json").write_text((root / f"{stem}.json").read_text().replace('"road"', '"Road "'))
    described = check()
    assert len(described.table().names) == 3 and len(described.names) == 1


def test_names_that_are_numbers_are_kept(root, check):
    """Only YOLO's numbers stand for other names; those of a class that was never named come back as they were exported."""
    names = {"3": 0, "class 4": 9, "class_5": 18}
    for stem in OBJECTS:
        photo(root / f"{stem}.jpg")
        shapes = [
            {"label": name, "points": [[at, 0], [at + 9, 0], [at + 9, 9]]} for name, at in zip(names, (0, 9, 18), strict=True)
        ]
        write_json(root / f"{stem}.json", {"imagePath": f"{stem}.jpg", "shapes": shapes})
    described = check()
    assert described.table().names == [*names] and not described.names


@pytest.mark.parametrize("void", ["background", "__ignore__", "Unlabeled"])
def test_the_only_class_needs_another(root, check, void):
    """A name such as background is void beside two classes, and a class beside one."""
    write_json(root / "x.json", {})  # another file, which belongs to nothing
    for stem in OBJECTS:
        photo(root / f"{stem}.jpg")
        squares = [{"label": name, "points": [[at, 0], [at + 9, 0], [at + 9, 9]]} for at, name in ((0, void), (20, "road"))]
        write_json(root / f"{stem}.json", {"imagePath": f"{stem}.jpg", "shapes": squares})
    assert set(check().table().names) == {void, "road"}


def test_one_class_gets_a_background(root, check):
    for stem in OBJECTS:
        photo(root / f"{stem}.jpg")
        write_json(
            root / f"{stem}.json", {"imagePath": f"{stem}.jpg", "shapes": [{"label": "road", "points": [[0, 0], [9, 0], [9, 9]]}]}
        )
    described = check()
    assert described.table().names == ["road", "background"] and described.background == "background"
    assert all(set(np.unique(label)) == {0, 1} for label in decoded(described, root).values())


def test_categories_of_coco_name_the_ids_of_its_masks(root, check):
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
        label = np.full((HEIGHT, WIDTH), 105, np.uint8)
        label[:9], label[9:11] = 92, 255
        tiny.save(label, root / f"pixelmaps/{stem}.png")
    write_json(root / "stuff.json", {"categories": [{"id": 92, "name": "banner"}, {"id": 105, "name": "clouds"}]})
    described = check()
    assert described.ids == {"92": "banner", "105": "clouds"} and described.void == [255]


# Colours


def test_binary_masks_are_two_classes(root, check):
    for number, stem in enumerate(OBJECTS):
        photo(root / f"images/{stem}.jpg")
        tiny.save(np.tri(HEIGHT, WIDTH, number, dtype=np.uint8) * 255, root / f"masks/{stem}.png")
    for number, label in enumerate(decoded(check(), root).values()):
        assert np.array_equal(label, np.tri(HEIGHT, WIDTH, number, dtype=np.uint8))


def test_anti_aliased_colours_are_the_nearest_class(root, check):
    colours = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    for number, stem in enumerate(OBJECTS):
        photo(root / f"images/{stem}.jpg")
        large = Image.new("RGB", (WIDTH * 4, HEIGHT * 4), colours[0])
        pen = ImageDraw.Draw(large)
        pen.ellipse((8 + number, 8, 80, 80), fill=colours[1])
        pen.polygon([(100, 10 + number), (150, 40), (110, 115)], fill=colours[2])
        (root / "masks").mkdir(exist_ok=True)
        large.resize((WIDTH, HEIGHT), Image.Resampling.BOX).save(root / f"masks/{stem}.png")
    described = check()
    known = np.array(list(described.table().colors.values()))
    assert described.color_tolerance and len(known) == 3
    for key, label in decoded(described, root).items():
        colours = np.asarray(Image.open(root / f"masks/{key[7]}.png")).astype(int)
        distance = abs(colours[:, :, None] - known).max(axis=3)
        tie = (distance == distance.min(axis=2, keepdims=True)).sum(axis=2) > 1
        assert np.array_equal(label, np.where(tie, 255, distance.argmin(axis=2)))


def test_a_tolerance_has_an_end_and_ties_are_void(root):
    layout = [{"images": "{n}.jpg", "labels": "{n}.png"}]
    classes = {"road": [0, 0, 0], "sky": [0, 0, 100]}
    values = {"title": "Set", "layout": layout, "classes": classes, "other_colors": {"sky": [[200, 0, 0], [250, 0, 0]]}}
    described = descriptors.Descriptor(**values, color_tolerance=50)
    codec = LabelCodec(described, "ids", np.arange(256, dtype=np.uint8))
    colours = [[0, 0, 0], [0, 0, 50], [0, 0, 51], [0, 50, 0], [200, 0, 0], [225, 0, 0], [160, 9, 9]]
    path = tiny.save(np.array([colours], np.uint8), root / "1.png")
    assert codec.read(path).tolist() == [[0, 255, 1, 0, 1, 1, 1]]
    path = tiny.save(np.array([[[0, 51, 0], [0, 0, 151]]], np.uint8), root / "2.png")
    with pytest.raises(FileError, match="#000097, #003300 are not in the dataset's descriptor"):
        codec.read(path)


# Arrays


def test_arrays_that_are_no_labels_are_errors_of_one_line(root):
    arrays = {
        "floats": np.full((4, 4), 0.5),
        "cube": np.zeros((4, 4, 5), int),
        "text": np.array([["a"]]),
        "none": np.zeros((0, 3)),
    }
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    np.savez(root / "two.npz", a=np.zeros((2, 2), int), b=np.zeros((2, 2), int))
    np.save(root / "object.npy", np.array([{}]), allow_pickle=True)
    for path in root.iterdir():
        with pytest.raises(FileError, match=path.name) as error:
            read_label(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_arrays_are_noticed_or_read_in_part(root, suffix):
    """Damage of an .npy cannot be noticed in its numbers, only in its beginning."""
    path, random = root / f"a{suffix}", Random(0)
    (np.savez_compressed if suffix == ".npz" else np.save)(path, np.tri(20, dtype=np.uint8))
    data = path.read_bytes()
    for _ in range(80):
        path.write_bytes(tiny.damage(data, random))
        try:
            assert read_label(path).values.ndim == 2
        except FileError as error:
            assert "\n" not in str(error)


def test_damaged_annotations_are_noticed_or_read(root):
    """Whatever happens to a file, there is no other exception."""
    labelme(root)
    supervisely(root)
    write_json(root / "coco.json", coco_content("abcd"))
    random = Random(0)
    for form, path in (("labelme", root / "b.json"), ("supervisely", root / "ds0/ann/b.jpg.json"), ("coco", root / "coco.json")):
        data = path.read_bytes()
        for _ in range(40):
            path.write_bytes(tiny.damage(data, random))
            try:
                for name in index_of(form, path) if FORMS[form].parts else [""]:
                    Annotated(form, path, name).read(root / "b.jpg")
            except SdaError as error:
                assert "\n" not in str(error) and path.name in str(error)
