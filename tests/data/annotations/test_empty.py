"""Images that annotations list without an object: unlabelled, unless the form or the descriptor says that they are background."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import test_forms
from test_forms import EXPECTED, OBJECTS, photo, write_json

from sda.data import descriptor as descriptors
from sda.data.annotations.forms import FORMS, Annotated
from sda.data.files import LabelCodec
from sda.data.listing import list_items
from sda.data.packs.pack import decoding
from sda.errors import SdaError


def in_json(change):
    """Return a function that changes the content of a JSON file."""

    def without(path):
        content = json.loads(path.read_text())
        change(content)
        write_json(path, content)

    return without


def without_image(content):
    number = next(image["id"] for image in content["images"] if image["file_name"].endswith("c.jpg"))
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != number]


def without_shapes(path):
    tree = ElementTree.parse(path)
    image = next(image for image in tree.iter("image") if image.attrib["name"] == "c.jpg")
    for shape in [shape for shape in image if shape.tag != "tag"]:
        image.remove(shape)
    tree.write(path)


UNLABELLED_BY_LABELBOX = json.dumps(
    {"data_row": {"external_id": "c.jpg", "row_data": "https://x/c.jpg"}, "projects": {"p": {"labels": []}}}
)
# form → (writer of a dataset in test_forms, file, how to empty the annotations of image c)
EMPTY = {
    "labelme": (test_forms.labelme, "c.json", in_json(lambda content: content["shapes"].clear())),
    "supervisely": (test_forms.supervisely, "ds0/ann/c.jpg.json", in_json(lambda content: content["objects"].clear())),
    "cityscapes": (
        test_forms.cityscapes,
        f"gtFine/train/ulm/ulm_{ord('c'):06}_000019_gtFine_polygons.json",
        in_json(lambda content: [each.update(deleted=1) for each in content["objects"]]),
    ),
    "darwin": (test_forms.darwin, "annotations/c.json", in_json(lambda content: content.update(annotations=[{"tag": {}}]))),
    "coco": (test_forms.coco_runs, "annotations.json", in_json(without_image)),
    "coco-panoptic": (test_forms.coco_panoptic, "annotations/panoptic_train2017.json", in_json(without_image)),
    "label-studio": (
        test_forms.label_studio,
        "project-1-at-2026.json",
        in_json(lambda content: content[2].update(annotations=content[2]["annotations"][:1])),
    ),
    "label-studio-min": (test_forms.label_studio_min, "export.json", in_json(lambda content: content[2].pop("label"))),
    "cvat": (test_forms.cvat_xml, "annotations.xml", without_shapes),
    "datumaro": (
        test_forms.datumaro,
        "annotations/default.json",
        in_json(lambda content: content["items"][2].update(annotations=[{"type": "label", "label_id": 0}])),
    ),
    "labelme-xml": (
        test_forms.labelme_xml,
        "Annotations/c.xml",
        lambda path: path.write_text(re.sub("<object>.*</object>", "", path.read_text(), flags=re.DOTALL)),
    ),
    "labelbox": (
        test_forms.labelbox,
        "export.ndjson",
        lambda path: path.write_text(path.read_text().replace(path.read_text().splitlines()[2], UNLABELLED_BY_LABELBOX)),
    ),
    "via": (
        test_forms.via,
        "via_project.json",
        in_json(lambda content: content["_via_img_metadata"]["c.jpg123"].update(regions={})),
    ),
}


@pytest.fixture
def root(here, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    (root := here / "set").mkdir()
    return root


def labels_of(described, root):
    """Return key → label, None without one, of the images of train."""
    listing = list_items(described, root, "train")
    codec = LabelCodec(described, listing.encoding, np.arange(256, dtype=np.uint8))
    return {item.key: codec.read_item(item) if item.label else None for item in listing.items}


@pytest.mark.parametrize("form", EMPTY)
def test_an_image_without_an_object_is_unlabelled(root, sda, form):
    write, name, empty = EMPTY[form]
    write(root)
    empty(root / name)
    status, shown = sda("init-dataset", "set")
    assert status == 0 and re.search(r"1 images have annotations without an object, such as .*: they count as unl", shown.err)
    described = descriptors.load("set.toml")
    found = labels_of(described, root)
    assert [label is None for label in found.values()] == [False, False, True, False][: len(found)]
    status, shown = sda("doctor", "set.toml", "--root", "set", "--processes", 1)
    assert status == 0 and "1 images that annotations list without an object (empty_images in the descriptor" in shown.out, (
        shown.out
    )
    assert "label files without an image" not in shown.out


@pytest.mark.parametrize("form", EMPTY)
def test_the_user_can_say_that_such_images_are_background(root, sda, form):
    write, name, empty = EMPTY[form]
    write(root)
    empty(root / name)
    assert sda("init-dataset", "set")[0] == 0
    given = descriptors.load("set.toml")
    keys = {"classes": {**given.table().colors, "rest": [9, 9, 9]}, "background": "rest", "empty_images": "background"}
    described = descriptors.Descriptor(**{**given.model_dump(), **keys})
    found = list(labels_of(described, root).values())
    assert set(np.unique(found[2])) == {3} and all(label is not None for label in found)
    assert "they are labelled as 'rest'" in "".join(list_items(described, root, "train").notes)


def test_packs_with_another_meaning_are_stale():
    layout = [{"images": "{n}.jpg", "labels": "{n}.json", "format": "labelme"}]
    given = descriptors.Descriptor(title="Set", classes={"a": [0, 0, 0]}, background="a", layout=layout)
    assert decoding(given) != decoding(given.model_copy(update={"empty_images": "background"}))


def test_empty_files_of_yolo_are_background_if_there_is_one(root, sda):
    """Its documentation says so; without a class for the background, they tell nothing."""
    test_forms.yolo(root)
    (root / "labels/train/b.txt").write_text("")
    (root / "labels/train/a.txt").write_text("\n")
    assert sda("init-dataset", "set")[0] == 0
    given = descriptors.load("set.toml").model_dump()
    assert [label is None for label in labels_of(descriptors.Descriptor(**given), root).values()] == [True, True, False]
    given |= {"classes": {**given["classes"], "rest": [9, 9, 9]}, "background": "rest"}
    assert all(label is not None for label in labels_of(descriptors.Descriptor(**given), root).values())
    given |= {"empty_images": "unlabelled"}
    assert [label is None for label in labels_of(descriptors.Descriptor(**given), root).values()] == [True, True, False]


def test_empty_rows_of_kaggle_are_background_if_there_is_one(root, sda):
    test_forms.kaggle(root)
    rows = [row if not row.startswith("c.jpg") else "c.jpg,," for row in (root / "masks.csv").read_text().splitlines()]
    (root / "masks.csv").write_text("\n".join(rows))
    assert sda("init-dataset", "set")[0] == 0
    given = descriptors.load("set.toml").model_dump()
    assert [label is None for label in labels_of(descriptors.Descriptor(**given), root).values()] == [False, False, True, False]
    given |= {"classes": {**given["classes"], "rest": [9, 9, 9]}, "background": "rest"}
    assert all(label is not None for label in labels_of(descriptors.Descriptor(**given), root).values())


def test_few_files_of_yolo_with_objects_among_many_without(root):
    for number in range(40):
        photo(root / f"images/{number:02}.jpg")
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{number:02}.txt").write_text("0 0 0 1 0 1 1\n" if number == 7 else "")
    from sda.data.inspect.propose import propose

    text, notes, unread = propose(root)
    assert 'format = "yolo"' in text and not unread
    assert "39 images have annotations without an object" in "".join(notes) and "labelled as 'background'" in "".join(notes)


def test_a_file_of_all_images_of_which_few_are_annotated(root, sda):
    """As annotation programs export it. The training and the recipe count only those with objects."""
    content = test_forms.coco_content("abcd")
    for number in range(20):
        photo(root / f"images/x{number}.jpg")
        content["images"].append({"id": 100 + number, "file_name": f"x{number}.jpg", "width": 40, "height": 30})
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
    write_json(root / "all.json", content)
    status, shown = sda("init", "set")
    assert status == 0 and "set: 24 images, 4 of them labelled" in shown.err
    assert "set: 20 images have annotations without an object, such as images/x0.jpg in all.json: they count as unl" in shown.err


def test_images_of_a_split_that_the_annotations_tell_stay_in_it(root):
    """Also if they have no object: all images are in one folder, and only the files say which are of train."""
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
    content = test_forms.coco_content("abc")
    without_image(content)
    write_json(root / "train.json", content)
    write_json(root / "val.json", test_forms.coco_content("d"))
    layout = [{"images": "images/{name}.jpg", "labels": "{split}.json", "format": "coco"}]
    described = descriptors.Descriptor(title="Set", classes={"road": [1, 1, 1]}, layout=layout)
    listing = list_items(described, root, "train")
    assert [bool(item.label) for item in listing.items] == [True, True, False] and [*listing.empty] == ["images/c.jpg"]


def test_nothing_annotated_is_told(root, sda):
    for stem in OBJECTS:
        photo(root / f"{stem}.jpg")
        write_json(root / f"{stem}.json", {"imagePath": f"{stem}.jpg", "shapes": []})
    status, shown = sda("init", "set")
    assert status == 2 and "4 images have labelme annotations without an object: none is annotated yet" in shown.err


def test_of_two_files_the_one_with_objects_is_read(root, sda):
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
    write_json(root / "a.json", {**test_forms.coco_content("abcd"), "annotations": []})
    write_json(root / "b.json", test_forms.coco_content("abcd"))
    assert sda("init-dataset", "set")[0] == 0
    assert descriptors.load("set.toml").layout[0].labels == "b.json"


def test_large_files_are_read_in_part(root, monkeypatch):
    """labelme may store the photo in its file: such files need not be read to see that they have objects."""
    content = {"shapes": [{"label": "road", "points": []}], "imagePath": "a.jpg", "imageData": "A" * 2**17}
    full = write_json(root / "full.json", content)
    empty = write_json(root / "empty.json", {**content, "shapes": []})
    assert Annotated("labelme", empty).is_empty()
    monkeypatch.setitem(FORMS, "labelme", FORMS["labelme"]._replace(objects=None))
    assert not Annotated("labelme", full).is_empty()


def test_background_needs_a_class():
    layout = [{"images": "{n}.jpg", "labels": "{n}.json", "format": "labelme"}]
    with pytest.raises(ValueError, match="needs background = CLASS"):
        descriptors.Descriptor(title="Set", classes={"a": [0, 0, 0]}, layout=layout, empty_images="background")


def test_a_changed_file_is_noticed(root):
    path = write_json(root / "a.json", {"imagePath": "a.jpg", "shapes": []})
    assert Annotated("labelme", path).is_empty()
    write_json(path, {"imagePath": "a.jpg", "shapes": [{}]})
    assert not Annotated("labelme", path).is_empty()


def test_what_cannot_be_read_is_not_empty(root):
    """Whoever reads the label says what is wrong."""
    (root / "a.json").write_text("{")
    assert not Annotated("labelme", root / "a.json").is_empty() and not Annotated("coco", root / "b.json", "a.jpg").is_empty()
    with pytest.raises(SdaError):
        Annotated("labelme", root / "a.json").read(photo(root / "a.jpg"))


def test_every_form_counts_its_objects():
    assert {"yolo", "kaggle-rle", *EMPTY} >= FORMS.keys() and set(EXPECTED) == set(OBJECTS)
