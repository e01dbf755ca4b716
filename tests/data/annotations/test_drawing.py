"""Painting: polygons against the definition, run lengths against pycocotools, sizes and EXIF, and bad annotations."""

import json
import re
import threading

import numpy as np
import pytest
import tiny
from PIL import ExifTags, Image
from pycocotools import mask
from test_forms import HEIGHT, NAMES, OBJECTS, WIDTH, coco, coco_content, decode, drawn, inside, labelme, photo, write_json

from sda.data import descriptor as descriptors
from sda.data.annotations import forms
from sda.data.annotations.drawing import Drawing, Shape, Unusable, ellipse, fill, paint, runs
from sda.data.annotations.forms import Annotated, form_of, index_of, match_names
from sda.data.annotations.masks import Masks
from sda.data.files import FileError, LabelCodec, label_of, read_pair
from sda.data.item import Item
from sda.data.listing import find_orphans, list_items
from sda.data.packs.pack import entry_of
from sda.data.splits.contents import fingerprint
from sda.errors import SdaError


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_filled_as_defined(seed):
    """Also polygons that cross themselves, and reach out of the image."""
    random = np.random.default_rng(seed)
    corners = random.uniform(-8, 30, (random.integers(3, 9), 2))
    expected = [[inside(column + 0.5, row + 0.5, corners.tolist()) for column in range(24)] for row in range(17)]
    assert np.array_equal(fill(corners, (17, 24)), expected)


def test_a_rectangle_covers_its_pixels_as_in_pycocotools():
    corners = [[10.0, 10.0, 30.0, 10.0, 30.0, 20.0, 10.0, 20.0]]
    with pytest.warns(DeprecationWarning) if np.__version__ >= "2" else pytest.warns():
        expected = mask.decode(mask.frPyObjects(corners, 40, 40))[..., 0]
    assert np.array_equal(fill(np.reshape(corners, (-1, 2)), (40, 40)), expected) and expected.sum() == 200


def test_parts_add_up_and_holes_are_left_out(tmp_path):
    image = photo(tmp_path / "a.png")
    square = [(0, 0), (10, 0), (10, 10), (0, 10)]
    parts = Shape("road", (square, [(5, 5), (15, 5), (15, 15), (5, 15)]), ([(2, 2), (4, 2), (4, 4), (2, 4)],))
    values = paint(Drawing([parts]), image, image).values
    assert values.sum() == 100 + 75 - 4 and not values[2:4, 2:4].any() and values[7, 7]


@pytest.mark.parametrize("origin", [(-3, -2), (35, 25), (0, 0), (50, 2), (-9, 40)])
def test_masks_are_cut_off_at_the_border(tmp_path, origin):
    image, shape = photo(tmp_path / "a.png"), Shape("road", mask=np.ones((8, 9), bool), origin=origin)
    expected = np.zeros((100, 100), np.uint8)
    expected[30 + origin[1] : 38 + origin[1], 30 + origin[0] : 39 + origin[0]] = 1
    assert np.array_equal(paint(Drawing([shape]), image, image).values, expected[30 : 30 + HEIGHT, 30 : 30 + WIDTH])


def test_a_circle_is_round():
    assert abs(fill(np.array(ellipse(20, 20, 10, 10)), (40, 40)).sum() - np.pi * 100) < 6


def test_run_lengths_that_do_not_fit_are_refused():
    """pycocotools would return memory that was never written."""
    area = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (7, 5), np.uint8))
    text = mask.encode(area)["counts"].decode()
    assert np.array_equal(runs(text, (7, 5)), area)
    for counts, size in [
        (text, (7, 6)),
        (text, (7, 4)),
        ([3, 100], (4, 4)),
        ([1, 2], (4, 4)),
        ([-3, 19], (4, 4)),
        ([1.5], (1, 1)),
    ]:
        with pytest.raises(Unusable):
            runs(counts, size)
    with pytest.raises(Unusable, match="a size of 1000000x1000000 pixels"):
        runs(text, (10**6, 10**6))


def test_without_pycocotools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(SdaError, match=re.escape('pip install pycocotools (or "sda[coco]")')):
        runs("abc", (4, 4))


@pytest.mark.parametrize("turn", range(1, 9))
def test_annotations_are_turned_with_the_image_if_they_fit_it_as_it_is_stored(tmp_path, turn):
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shapes = [{"label": "road", "shape_type": "polygon", "points": [(0, 0), (12, 0), (12, 5), (0, 5)]}]
    stored, shown = (WIDTH, HEIGHT), (HEIGHT, WIDTH) if turn >= 5 else (WIDTH, HEIGHT)
    codec = LabelCodec(described(classes={"road": [0, 0, 0]}), "names", np.arange(256, dtype=np.uint8))
    for width, height in {stored, shown}:
        content = {"imagePath": "a.png", "shapes": shapes, "imageWidth": width, "imageHeight": height}
        path = write_json(tmp_path / "a.json", content)
        image, label = read_pair(Item("a.png", tmp_path / "a.png", path, drawn=Annotated("labelme", path)), codec)
        rows, columns = np.nonzero(label == 0)
        assert len(rows) == 60 and image.size == shown
        if (width, height) == shown:
            assert rows.max() == 4 and columns.max() == 11
        else:  # the pixels of the image below the object are those that were annotated
            assert sorted(map(tuple, np.asarray(image)[rows, columns])) == sorted(map(tuple, pixels[:5, :12].reshape(-1, 3)))


def described(**values):
    return descriptors.Descriptor(**{"title": "Set", "layout": [{"images": "{name}.jpg", "labels": "{name}.json"}], **values})


def labelled(root, form, text=None, **changes):
    """Return an item with an annotation file of one image, with other content on request."""
    image = photo(root / "a.jpg")
    shape = {"label": "road", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    content = {"imagePath": "a.jpg", "shapes": [shape | changes.pop("shape", {})], "imageHeight": HEIGHT, "imageWidth": WIDTH}
    path = root / f"a{forms.FORMS[form].suffix}"
    path.write_text(json.dumps({**content, **changes}) if text is None else text)
    return Item("a.jpg", image, path, drawn=Annotated(form, path))


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("labelme", {"text": "{"}, r"a\.json: not valid JSON"),
        ("labelme", {"text": "[" * 100_000}, r"a\.json: not valid JSON"),
        ("labelme", {"text": "{}"}, r"a\.json: this is not a labelme file"),
        ("labelme", {"imageWidth": 41}, r"a\.json: it gives a\.jpg a size of 41x30, but .*a\.jpg is 40x30"),
        ("labelme", {"shape": {"shape_type": "line"}}, "a line of 'road', which covers no pixels"),
        ("labelme", {"shape": {"points": [[1, 1], [2, 2]]}}, "a polygon of 2 points"),
        ("labelme", {"shape": {"points": [[1, 1], [2, 2], [1e300, 5]]}}, "coordinates that are no numbers, or too large"),
        ("labelme", {"shape": {"points": [[1, 1], [2, 2], [None, 5]]}}, "coordinates that are no numbers, or too large"),
        ("labelme", {"shape": {"points": "abc"}}, "cannot be used"),
        ("labelme", {"shape": {"shape_type": "mask", "mask": "!"}}, "a mask that cannot be read"),
        ("labelme", {"shapes": [{"points": []}]}, "'label' is missing"),
        (
            "supervisely",
            {"text": '{"objects": [{"geometryType": "point", "classTitle": "x"}], "size": {"width": 40, "height": 30}}'},
            "a point",
        ),
        ("yolo", {"text": "0 0.5 0.5 0.1 0.1\n"}, "line 1 is a box, not a polygon"),
        ("yolo", {"text": "0 0.5 0.5 0.1 0.1 0.3 0.3\n1 7 8 9 1 2 3\n"}, "not a YOLO file|line 2 is not"),
    ],
)
def test_bad_annotations_are_errors_of_one_line(tmp_path, form, content, message):
    with pytest.raises(FileError, match=message) as error:
        label_of(labelled(tmp_path, form, **content))
    assert "\n" not in str(error.value) and "--bad-files skip" in str(error.value)


def test_an_unknown_name_is_told_with_the_line_to_add(tmp_path):
    codec = LabelCodec(described(classes={"sky": [0, 0, 0]}), "names", np.arange(256, dtype=np.uint8))
    with pytest.raises(
        FileError, match=r"a\.json: the descriptor knows no class of the name 'road'; .*\"road\" = CLASS to \[names\]"
    ):
        codec.read_item(labelled(tmp_path, "labelme"))


def test_names_void_names_and_background_have_their_meaning(tmp_path):
    item = labelled(tmp_path, "labelme")
    for values, expected in [
        ({"names": {"road": "way"}}, {0, 255}),
        ({"names": {"road": "way"}, "background": "rest"}, {0, 1}),
        ({"void_names": ["road"], "background": "rest"}, {1, 255}),
    ]:
        described_so = described(classes={"way": [0, 0, 0], "rest": [1, 1, 1]}, **values)
        label = LabelCodec(described_so, "names", np.arange(256, dtype=np.uint8)).read_item(item)
        assert set(np.unique(label).tolist()) == expected


@pytest.mark.parametrize(
    "line", ['names = {a = "b"}', 'background = "b"', "other_colors = {b = [[1, 1, 1]]}", 'void_names = ["a"]']
)
def test_descriptors_name_known_classes(tmp_path, line):
    layout = '[[layout]]\nimages = "{n}.jpg"\nlabels = "{n}.json"\nformat = "labelme"\n'
    text = f'title = "x"\n{line}\nclasses = {{a = [1, 1, 1]}}\n{layout}'
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(SdaError, match=r"x\.toml: " + line.split(" ")[0]):
        descriptors.load(str(tmp_path / "x.toml"))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"labels": "{name}.json", "format": "coco"}, "and no other word"),
        ({"labels": None, "format": "coco"}, "needs labels"),
        ({"labels": "{class}/{name}.json", "format": "labelme"}, "one mask per class"),
        ({"labels": "{name}.json", "format": "labelmee"}, "Input should be"),
    ],
)
def test_layouts_of_annotations_are_checked(layout, message):
    with pytest.raises(ValueError, match=message):
        descriptors.Layout(images="{name}.jpg", **layout)


# One file for many images


def test_a_file_of_many_images_is_read_once(tmp_path, monkeypatch):
    path, count = write_json(tmp_path / "a.json", coco_content("abcd")), []
    monkeypatch.setattr(forms, "load", lambda path, load=forms.load: count.append(path) or load(path))
    threads = [threading.Thread(target=index_of, args=("coco", path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1 and index_of("coco", path).keys() == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    write_json(path, coco_content("abc"))
    assert len(index_of("coco", path)) == 3 and len(count) == 2


def test_an_image_with_two_different_annotations_is_an_error(tmp_path):
    content = coco_content("ab")
    content["images"].append({**content["images"][0], "id": 99})
    with pytest.raises(SdaError, match=r"a\.json: it lists a\.jpg twice, with different annotations"):
        index_of("coco", write_json(tmp_path / "a.json", content))
    content["annotations"] += [{**each, "image_id": 99} for each in content["annotations"] if each["image_id"] == 10]
    assert len(index_of("coco", write_json(tmp_path / "b.json", content))) == 2


def test_names_match_images_by_their_folders(tmp_path):
    match = lambda names, keys: match_names(tmp_path / "a.json", names, keys)  # noqa: E731
    assert match(["x/1.jpg", "y/1.jpg"], ["images/y/1.jpg"]) == {"images/y/1.jpg": "y/1.jpg"}
    assert match(["y/1.jpg"], ["x/1.jpg", "y/1.jpg"]) == {"y/1.jpg": "y/1.jpg"}
    assert match(["1"], ["x/1.jpg"]) == {"x/1.jpg": "1"} and match(["1.png"], ["1.jpg"]) == {}
    with pytest.raises(SdaError, match="1.jpg could be x/1.jpg or y/1.jpg"):
        match(["1.jpg"], ["x/1.jpg", "y/1.jpg"])
    with pytest.raises(SdaError, match="could be y/1.jpg or x/1.jpg"):
        match(["x/1.jpg", "y/1.jpg"], ["1.jpg"])


def test_a_file_of_another_form_is_told(tmp_path):
    path = write_json(tmp_path / "a.json", coco_content("ab"))
    with pytest.raises(SdaError, match="this is not a VIA file but a COCO file; correct format"):
        index_of("via", path)
    (tmp_path / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><annotations/>')
    with pytest.raises(SdaError, match="XML with entities is not read"):
        index_of("cvat", tmp_path / "a.xml")
    assert form_of(tmp_path / "a.xml") is None


def test_images_that_a_file_names_in_vain_are_orphans_and_others_unlabelled(tmp_path):
    coco(tmp_path)
    (tmp_path / "train2017/a.jpg").unlink()
    photo(tmp_path / "train2017/z.jpg")
    layout = {"images": "{split}2017/{n}.jpg", "labels": "annotations/instances_{split}2017.json", "format": "coco"}
    dataset = described(classes={"road": [0, 0, 0]}, layout=[layout])
    listing = list_items(dataset, tmp_path, "train")
    assert [(item.key[-5], item.label is not None) for item in listing.items] == [("b", True), ("c", True), ("z", False)]
    assert find_orphans(dataset, tmp_path, "train", listing) == ["annotations/instances_train2017.json: a.jpg"]


def test_annotations_that_alone_tell_the_split_list_its_images(tmp_path):
    for stem in OBJECTS:
        photo(tmp_path / f"images/{stem}.jpg")
    write_json(tmp_path / "train.json", coco_content("abc"))
    write_json(tmp_path / "val.json", coco_content("d"))
    dataset = described(
        classes={"road": [0, 0, 0]}, layout=[{"images": "images/{n}.jpg", "labels": "{split}.json", "format": "coco"}]
    )
    assert [item.key[7] for item in list_items(dataset, tmp_path, "train").items] == ["a", "b", "c"]
    assert [item.key[7] for item in list_items(dataset, tmp_path, "val").items] == ["d"]


# One mask per class


def test_a_mask_belongs_to_the_image_with_the_longest_name(tmp_path):
    for stem in ("1", "1_b"):
        photo(tmp_path / f"{stem}.jpg")
    for name in ("1_road", "1_b_road", "1_traffic_light"):
        tiny.save(np.full((HEIGHT, WIDTH), 255, np.uint8), tmp_path / f"{name}.png")
    dataset = described(classes={"road": [0, 0, 0]}, layout=[{"images": "{name}.jpg", "labels": "{name}_{class}.png"}])
    items = {item.key: item.drawn for item in list_items(dataset, tmp_path, "train").items}
    assert items["1.jpg"].classes == ("road", "traffic_light") and items["1_b.jpg"].classes == ("road",)


def test_bad_masks_of_a_class_are_errors(tmp_path):
    image = photo(tmp_path / "1.jpg")
    one = tiny.save(np.full((5, 5), 255, np.uint8), tmp_path / "a.png")
    two = tiny.save(np.arange(25, dtype=np.uint8).reshape(5, 5), tmp_path / "b.png")
    other = tiny.save(np.ones((4, 5), np.uint8), tmp_path / "c.png")
    with pytest.raises(FileError, match=r"b\.png: a mask of one class has 0 and one other value, found 1, 2, 3"):
        Masks((one, two), ("a", "b")).read(image)
    with pytest.raises(FileError, match=r"c\.png: this mask is 5x4, but a\.png is 5x5"):
        Masks((one, other), ("a", "c")).read(image)


# Freshness


def test_a_changed_annotation_or_mask_is_noticed(tmp_path):
    image = photo(tmp_path / "1.jpg")
    files = tuple(tiny.save(np.full((5, 5), value, np.uint8), tmp_path / f"{value}.png") for value in (1, 2))
    item = Item("1.jpg", image, files[0], drawn=Masks(files, ("a", "b")))
    before = fingerprint([item]), entry_of(item)
    tiny.save(np.tri(5, dtype=np.uint8), files[1])
    after = fingerprint([item]), entry_of(item)
    assert before[0] != after[0] and before[1].stamps != after[1].stamps
    fewer = Item("1.jpg", image, files[0], drawn=Masks(files[:1], ("a",)))
    assert fingerprint([fewer]) != after[0] and entry_of(fewer).stamps != after[1].stamps


def test_the_doctor_reads_changed_annotations_again(here, sda, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    labelme(here / "set")
    assert sda("init-dataset", "set")[0] == 0 and sda("doctor", "set.toml", "--root", "set", "--processes", 1)[0] == 0
    path = here / "set/a.json"
    path.write_text(path.read_text().replace('"road"', '"lane"'))
    status, output = sda("doctor", "set.toml", "--root", "set", "--processes", 1)
    assert status == 1 and "no class of the name 'lane'" in " ".join(output.out.split())


def test_training_packs_and_splits_read_annotations(own_world, here, sda):
    coco(root := here / "set")
    assert sda("init-dataset", "set")[0] == 0
    options = ["--source", "", "--target", "set.toml", "--target-root", "set", "--labels", 2, "--steps", 2, "--device", "cpu"]
    status, output = sda("train", own_world.recipe, *options, "--out", "run")
    assert status == 0, output
    status, output = sda("pack", "set.toml", "--root", "set", "--size", "32x48", "--out", "set.h5", "--processes", 1)
    assert status == 0, output
    assert sda("split", "set.toml", "--root", "set", "--labels", 2, "--by", "balanced", "--out", "two.txt")[0] == 0
    labels, _ = decode(here / "set.toml", root)
    assert np.array_equal(labels["a"], drawn(OBJECTS["a"])) and len(NAMES) == 4
