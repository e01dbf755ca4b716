"""Descriptors: the files that layouts find, the classes of label values, and maps between class tables."""

import numpy as np
import pytest

from sda.data import descriptor
from sda.data.descriptor import Classes, label_values, map_classes
from sda.data.layouts.words import counterparts
from sda.data.listing import list_folder, list_items
from sda.errors import SdaError
from sda.labels import IGNORE

CITYSCAPES_IDS = {  # label id → train id of Cityscapes
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(dataset, root, split):
    """key → label path relative to the root."""
    items = list_items(descriptor.load(dataset), root, split).items
    assert all(item.image == root / item.key and item.image.is_file() for item in items)
    return {item.key: item.label and item.label.relative_to(root).as_posix() for item in items}


@pytest.fixture
def write(tmp_path):
    """Write a descriptor from the body of a TOML file; returns its path."""

    def write(body, name="mine"):
        path = tmp_path / f"{name}.toml"
        path.write_text('title = "Mine"\n' + body, encoding="utf-8")
        return str(path)

    return write


TWO = "classes = {stone = [1, 2, 3], wood = [4, 5, 6]}\n"
LAYOUT = '[[layout]]\nimages = "{split}/{frame}.png"\n'
PLAIN = TWO + '[[layout]]\nimages = "{split}/{frame}.png"\nlabels = "{split}_gt/{frame}.png"\n'


# Layouts


@pytest.mark.parametrize(("images", "labels"), [("", ""), ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/")])
def test_cityscapes(tmp_path, images, labels):
    names = [f"{split}/ulm/ulm_000001_00001{n}" for split in ("train", "val") for n in (8, 9)]
    touch(tmp_path, *(f"{images}leftImg8bit/{name}_leftImg8bit.png" for name in names))
    touch(tmp_path, *(f"{labels}gtFine/{name}_gtFine_labelIds.png" for name in names))
    touch(tmp_path, f"{labels}gtFine/{names[0]}_gtFine_color.png", f"{images}leftImg8bit/train/ulm/readme.png", "license.txt")
    for split in ("train", "val"):
        assert found("cityscapes", tmp_path, split) == {
            f"{images}leftImg8bit/{name}_leftImg8bit.png": f"{labels}gtFine/{name}_gtFine_labelIds.png"
            for name in names
            if name.startswith(split)
        }


def test_cityscapes_with_only_one_folder_nested(tmp_path):
    touch(tmp_path, "leftImg8bit_trainvaltest/leftImg8bit/val/ulm/a_leftImg8bit.png", "gtFine/val/ulm/a_gtFine_labelIds.png")
    assert list(found("cityscapes", tmp_path, "val").values()) == ["gtFine/val/ulm/a_gtFine_labelIds.png"]


def test_gta5_as_published(tmp_path):
    touch(tmp_path, "images/00001.png", "images/00002.png", "labels/00001.png")
    assert found("gta5", tmp_path, "train") == {"images/00001.png": "labels/00001.png", "images/00002.png": None}
    with pytest.raises(SdaError, match=r"no images of split 'val' .*: looked for images/val/\*.png; download"):
        found("gta5", tmp_path, "val")


def test_gta5_with_splits(tmp_path):
    touch(tmp_path, "images/train/1.png", "labels/train/1.png", "images/val/2.png", "labels/val/2.png")
    assert found("gta5", tmp_path, "train") == {"images/train/1.png": "labels/train/1.png"}
    assert found("gta5", tmp_path, "val") == {"images/val/2.png": "labels/val/2.png"}


def test_camvid(tmp_path):
    touch(tmp_path, "train/0001TP_1.png", "trainannot/0001TP_1.png", "val/2.png", "valannot/2.png", "test/3.png")
    assert found("camvid", tmp_path, "train") == {"train/0001TP_1.png": "trainannot/0001TP_1.png"}
    assert found("camvid", tmp_path, "val") == {"val/2.png": "valannot/2.png"}
    assert found("camvid", tmp_path, "test") == {"test/3.png": None}


def test_idd_lite(tmp_path):
    touch(tmp_path, "leftImg8bit/train/173/0_image.jpg", "gtFine/train/173/0_label.png", "gtFine/train/173/0_inst_label.png")
    assert found("idd_lite", tmp_path, "train") == {"leftImg8bit/train/173/0_image.jpg": "gtFine/train/173/0_label.png"}


VOC = ["2007_000032", "2007_000039", "2007_000063"]


@pytest.mark.parametrize("name", ["trainaug", "train_aug"])
@pytest.mark.parametrize(
    "line", ["{}", "JPEGImages/{}.jpg SegmentationClassAug/{}.png", "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png"]
)
def test_voc(tmp_path, name, line):
    """The lists contain names or the usual pairs of paths; all images are in one folder."""
    touch(tmp_path, *(f"JPEGImages/{image}.jpg" for image in VOC), *(f"SegmentationClassAug/{image}.png" for image in VOC))
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / f"{name}.txt").write_text("".join(line.format(image, image) + "\n" for image in VOC[:2]) + "\n")
    (lists / "val.txt").write_text(f"{VOC[2]}\n")
    assert found("voc2012", tmp_path, "train") == {
        f"JPEGImages/{image}.jpg": f"SegmentationClassAug/{image}.png" for image in VOC[:2]
    }
    assert list(found("voc2012", tmp_path, "val")) == [f"JPEGImages/{VOC[2]}.jpg"]


def test_voc_validation_with_the_published_masks(tmp_path):
    touch(tmp_path, f"JPEGImages/{VOC[0]}.jpg", f"SegmentationClass/{VOC[0]}.png")
    touch(tmp_path, "ImageSets/Segmentation/val.txt")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text(f"{VOC[0]}\n")
    assert found("voc2012", tmp_path, "val") == {f"JPEGImages/{VOC[0]}.jpg": f"SegmentationClass/{VOC[0]}.png"}


def test_a_listed_image_that_is_missing_is_named(tmp_path):
    touch(tmp_path, f"JPEGImages/{VOC[0]}.jpg", f"SegmentationClassAug/{VOC[0]}.png")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/trainaug.txt").write_text("\n".join(VOC))
    with pytest.raises(SdaError, match=rf"trainaug.txt: line 2: '{VOC[1]}' is not among the 1 images of JPEGImages/\*.jpg"):
        found("voc2012", tmp_path, "train")


def test_a_missing_list_is_reported(tmp_path):
    touch(tmp_path, f"JPEGImages/{VOC[0]}.jpg")
    with pytest.raises(SdaError, match=r"looked for JPEGImages/\*.jpg of ImageSets/Segmentation/trainaug.txt and"):
        found("voc2012", tmp_path, "train")


def test_order_does_not_depend_on_the_file_system(tmp_path):
    touch(tmp_path, *(f"train/{name}.png" for name in "cab"))
    assert list(found("camvid", tmp_path, "train")) == ["train/a.png", "train/b.png", "train/c.png"]


@pytest.mark.parametrize("root", ["with space", "br[ack]ets {x}", "größe-图像", "star*?"])
@pytest.mark.parametrize("frame", ["a b", "a[1]", "{frame}", "Zürich-日本", "a.b.c", "100%"])
def test_unusual_names_are_found(tmp_path, root, frame):
    touch(tmp_path / root, f"train/{frame}.png", f"trainannot/{frame}.png")
    assert found("camvid", tmp_path / root, "train") == {f"train/{frame}.png": f"trainannot/{frame}.png"}


def test_words_of_a_layout(tmp_path, write):
    name = write(
        TWO + '[[layout]]\nimages = "{split}/{town}/{town}_{n}.png"\nlabels = "{split}/{town}/gt[{n}].png"\n'
        '[splits]\nval = "test (old)"\n'
    )
    touch(tmp_path, "train/ulm/ulm_1.png", "train/ulm/gt[1].png", "train/ulm/bonn_2.png", "train/deep/er/er_3.png")
    touch(tmp_path, "test (old)/bonn/bonn_2.png", "val/bonn/bonn_2.png")
    assert found(name, tmp_path, "train") == {"train/ulm/ulm_1.png": "train/ulm/gt[1].png"}
    assert found(name, tmp_path, "val") == {"test (old)/bonn/bonn_2.png": None}


def test_labels_may_be_outside_the_root(tmp_path, write):
    name = write(TWO + '[[layout]]\nimages = "{split}/{frame}.png"\nlabels = "../masks/{frame}.png"\n')
    touch(tmp_path, "set/train/1.png", "masks/1.png")
    [item] = list_items(descriptor.load(name), tmp_path / "set", "train").items
    assert item.label.resolve() == tmp_path / "masks/1.png"


def test_layouts_for_one_split_each(tmp_path, write):
    name = write(
        TWO + '[[layout]]\nsplit = "train"\nimages = "a/{frame}.png"\n'
        '[[layout]]\nsplit = "val"\nimages = "b/{frame}.jpg"\nlabels = "b/{frame}.png"\nencoding = "train_ids"\n'
    )
    touch(tmp_path, "a/1.png", "b/2.jpg", "b/2.png")
    assert found(name, tmp_path, "train") == {"a/1.png": None}
    assert found(name, tmp_path, "val") == {"b/2.jpg": "b/2.png"}
    assert list_items(descriptor.load(name), tmp_path, "val").encoding == "train_ids"
    with pytest.raises(SdaError, match="no layout of its descriptor has a split 'test'"):
        found(name, tmp_path, "test")


def test_a_layout_without_split_is_training_data(tmp_path, write):
    name = write(TWO + '[[layout]]\nimages = "{frame}.png"\n')
    touch(tmp_path, "1.png")
    assert found(name, tmp_path, "train") == {"1.png": None}
    with pytest.raises(SdaError, match="has a split 'val'"):
        found(name, tmp_path, "val")


def test_layouts_with_labels_take_precedence(tmp_path, write):
    name = write(TWO + "".join(f'[[layout]]\nimages = "{x}/{{n}}.png"\nlabels = "{x}_gt/{{n}}.png"\n' for x in "abc"))
    touch(tmp_path, "b/1.png", "c/1.png")
    assert found(name, tmp_path, "train") == {"b/1.png": None}
    touch(tmp_path, "c_gt/1.png")
    assert found(name, tmp_path, "train") == {"c/1.png": "c_gt/1.png"}
    touch(tmp_path, "a/1.png", "a_gt/1.png")
    assert found(name, tmp_path, "train") == {"a/1.png": "a_gt/1.png"}


def test_cityscapes_train_ids(tmp_path):
    touch(tmp_path, "leftImg8bit/val/ulm/a_leftImg8bit.png", "gtFine/val/ulm/a_gtFine_labelTrainIds.png")
    listing = list_items(descriptor.load("cityscapes"), tmp_path, "val")
    assert listing.encoding == "train_ids" and listing.items[0].label.name == "a_gtFine_labelTrainIds.png"
    touch(tmp_path, "gtFine/val/ulm/a_gtFine_labelIds.png")
    assert list_items(descriptor.load("cityscapes"), tmp_path, "val").encoding == "ids"


def test_missing_root_is_named(tmp_path):
    with pytest.raises(SdaError, match=r"Cityscapes: the folder \S*/nowhere does not exist; download"):
        found("cityscapes", tmp_path / "nowhere", "train")


def test_missing_images_name_the_patterns(tmp_path):
    with pytest.raises(SdaError) as caught:
        found("cityscapes", tmp_path, "train")
    message = str(caught.value)
    assert str(tmp_path) in message and "'train'" in message and "download" in message
    assert "leftImg8bit/train/*/*_leftImg8bit.png and leftImg8bit_trainvaltest/leftImg8bit/train/" in message


def test_hidden_files_are_ignored(tmp_path):
    touch(tmp_path, "train/1.png", "train/._1.png")
    assert list(found("camvid", tmp_path, "train")) == ["train/1.png"]


# Folders of images


def test_folder_of_images(tmp_path):
    touch(tmp_path, "b.PNG", "deep/er [1]/a.jpeg", "notes.txt", "c.tif")
    listing = list_folder(tmp_path)
    assert [item.key for item in listing.items] == ["b.PNG", "c.tif", "deep/er [1]/a.jpeg"]
    assert all(item.label is None for item in listing.items)


def test_a_folder_without_images_is_refused(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(SdaError, match="contains no images"):
        list_folder(tmp_path)
    with pytest.raises(SdaError, match="no such folder"):
        list_folder(tmp_path / "nowhere")


def test_a_folder_named_like_an_image_is_ignored(tmp_path):
    touch(tmp_path, "a.png", "b.png/readme.txt")
    assert [item.key for item in list_folder(tmp_path).items] == ["a.png"]


# Faults in a descriptor


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (TWO, "key 'layout' is missing"),
        (TWO + "layout = []", "at least 1 item"),
        ('[[layout]]\nimages = "a"', "key 'classes' is missing"),
        (PLAIN + 'imagse = "a"', "unknown key 'layout.0.imagse'"),
        ("lisence = 'x'\n" + PLAIN, "unknown key 'lisence' \\(did you mean 'licence'"),
        (TWO + '[[layout]]\nimages = "{frame}.png"\nlabels = "{farme}.png"', "labels uses {farme}"),
        ("classes = 3\n[[layout]]\nimages = 'a'", "classes"),
        ("classes = {stone = [1, 2]}\n[[layout]]\nimages = 'a'", "at least 3"),
        ("classes = {stone = [1, 2, 300]}\n[[layout]]\nimages = 'a'", "300"),
        ("classes = 'cityscape19'\n[[layout]]\nimages = 'a'", "did you mean 'cityscapes19'"),
        ("classes = 'camvid11'\nids = {3 = 'raod'}\n[[layout]]\nimages = 'a'", "'raod': .* has no such class .*'road'"),
        ("ids = {3 = 'glass'}\n" + PLAIN, "'glass', which is not in classes"),
        ("ids = {256 = 'stone'}\n" + PLAIN, "'256' must be a whole number from 0 to 255"),
        ("ids = {-1 = 'stone'}\n" + PLAIN, "'-1' must be"),
        ("void = [1.5]\n" + PLAIN, "1.5"),
        ("void = [true]\n" + PLAIN, "True"),
        ("classes = {}\n[[layout]]\nimages = 'a'", "classes = {}: expected 1 to 250 classes, found 0"),
        ("[classes]\n" + "".join(f"c{n} = [0, {n // 256}, {n % 256}]\n" for n in range(251)) + LAYOUT, "classes.* found 251$"),
        ("classes = {a = [1, 2, 3], b = [4, 5, 6], c = [1, 2, 3]}\n" + LAYOUT, "'a' and 'c' have the same colour .1, 2, 3."),
        ("classes = {'far object' = [1, 2, 3], Far-Object = [4, 5, 6]}\n" + LAYOUT, "'far object' and 'Far-Object' are the same"),
        ("void_colors = [[9, 9, 9], [4, 5, 6]]\n" + PLAIN, "void_colors: .4, 5, 6. is also the colour of the class 'wood'"),
        ("void_colors = [[128, 64, 128]]\nclasses = 'camvid11'\n" + LAYOUT, "void_colors: .* class 'road'"),
        ("ids = {3 = 'wood'}\nvoid = [3]\n" + PLAIN, "the value 3 occurs twice in ids and void: as 'void' and as 'wood'"),
        ("ids = {3 = 'wood', 03 = 'stone'}\n" + PLAIN, "the value 3 occurs twice in ids and void: as 'wood' and as 'stone'"),
    ],
)
def test_faults_are_named(write, body, says):
    with pytest.raises(SdaError, match=says) as caught:
        descriptor.load(write(body))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "layout",
    [
        'images = "/abs/{frame}.png"',
        'images = ""',
        'images = "{split}/{1st}.png"',
        'images = "{split}/{frame}.png"\nlabels = "{frame-x}.png"',
        'images = "{split}/{frame}.png"\nlabels = "{frame.png"',
        'images = "{split}/{frame}.png"\nlabels = "{}.png"',
        'images = "{split}/{frame}.png"\nlabels = "{frame:03d}.png"',
    ],
)
def test_faulty_patterns_are_refused(tmp_path, write, layout):
    touch(tmp_path, "train/1.png")
    with pytest.raises(SdaError, match="mine.toml"):
        list_items(descriptor.load(write(TWO + "[[layout]]\n" + layout)), tmp_path, "train")


# Label values


@pytest.mark.parametrize("dataset", ["cityscapes", "gta5", "streets-game", "streets-camera"])
def test_cityscapes_label_ids(dataset):
    values = label_values(descriptor.load(dataset), "ids")
    assert {value: train_id for value, train_id in values.items() if train_id != IGNORE} == CITYSCAPES_IDS
    assert values[0] == IGNORE
    assert 255 not in values  # a file that contains 255 has train ids


@pytest.mark.parametrize("dataset", ["cityscapes", "gta5"])
def test_cityscapes_table_is_that_of_cityscapesscripts(dataset):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    loaded = descriptor.load(dataset)
    table = loaded.table()
    expected = {label.id: label.trainId if 0 <= label.trainId < 19 else IGNORE for label in labels if label.id >= 0}
    assert label_values(loaded, "ids") == {**expected, 34: IGNORE}  # 34: licence plates in GTA5
    for label in labels:
        if 0 <= label.trainId < 19:
            assert table.names[label.trainId] == label.name
            assert table.colors[label.name] == list(label.color)
        else:  # the colours of pole groups and licence plates are also those of poles and cars
            assert list(label.color) in [*loaded.void_colors, table.colors["pole"], table.colors["car"]]


def test_ids_default_to_positions(write):
    loaded = descriptor.load(write("void = [7]\n" + PLAIN))
    assert label_values(loaded, "ids") == {0: 0, 1: 1, 7: IGNORE, 255: IGNORE}


def test_a_position_in_void_is_refused(write):
    """Else the first class would never occur, and [void, stone, wood] would be read as [void, wood, unknown]."""
    with pytest.raises(SdaError, match="without .ids., the value 0 means the class 'stone'.*add .ids., or remove 0 from void"):
        descriptor.load(write("void = [0]\n" + PLAIN))


def test_train_ids_are_read():
    values = label_values(descriptor.load("cityscapes"), "train_ids")
    assert {value: values[value] for value in (*range(19), 250, 255)} == {**{n: n for n in range(19)}, 250: IGNORE, 255: IGNORE}


def test_void_applies_to_train_ids(write):
    values = label_values(descriptor.load(write("void = [2]\n" + PLAIN)), "train_ids")
    assert values == {0: 0, 1: 1, 2: IGNORE, 250: IGNORE, 255: IGNORE}


# Mapping between class tables


def mapped(source, target):
    """Return class of the source → class of the target, by the lookup table, and the dropped classes."""
    there, here = descriptor.class_table(target).names, descriptor.load(source).table().names
    lut, dropped = map_classes(descriptor.load(source), Classes(target, descriptor.class_table(target)))
    assert lut.dtype == np.uint8 and lut.shape == (256,)
    assert (lut[len(here) :] == IGNORE).all()
    return {name: there[lut[index]] for index, name in enumerate(here) if lut[index] != IGNORE}, dropped


def test_camvid_maps_to_idd_lite():
    pairs, dropped = mapped("camvid", "idd_lite7")
    assert dropped == []
    assert pairs == {
        "road": "drivable",
        "pavement": "non-drivable",
        "pedestrian": "living things",
        "bicyclist": "living things",
        "car": "vehicles",
        "pole": "roadside objects",
        "sign": "roadside objects",
        "fence": "roadside objects",
        "building": "far objects",
        "tree": "far objects",
        "sky": "sky",
    }


def test_camvid_to_idd_lite_by_number():
    lut, _ = map_classes(descriptor.load("camvid"), Classes("idd_lite7", descriptor.class_table("idd_lite7")))
    #  sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist
    assert lut[:11].tolist() == [6, 5, 4, 0, 1, 5, 4, 4, 3, 2, 2]


def test_equal_tables_map_to_themselves():
    lut, dropped = map_classes(descriptor.load("gta5"), Classes("cityscapes19", descriptor.class_table("cityscapes19")))
    assert lut[:19].tolist() == list(range(19)) and dropped == []


def test_unmatched_classes_are_dropped():
    pairs, dropped = mapped("camvid", "cityscapes19")
    assert pairs == {name: name for name in ("sky", "building", "pole", "road", "fence", "car")}
    assert dropped == ["pavement", "tree", "sign", "pedestrian", "bicyclist"]


def test_names_match_in_different_spellings(write):
    table = descriptor.ClassTable(colors={"Traffic-Light": [1, 1, 1], "far objects": [2, 2, 2]})
    name = write('classes = {traffic_light = [0, 0, 0], "Far  Objects" = [1, 1, 1]}\n[[layout]]\nimages = "a"\n')
    lut, dropped = map_classes(descriptor.load(name), Classes("other", table))
    assert lut[:2].tolist() == [0, 1] and dropped == []


def test_tables_without_common_classes_are_refused(write):
    with pytest.raises(SdaError, match=r"none of its classes .*idd_lite7; add a map to the recipe, such as source_map = "):
        mapped(write(PLAIN), "idd_lite7")


@pytest.mark.parametrize(
    ("line", "says"),
    [('ston = "sky"', "no class 'ston' .*'stone'"), ('stone = "skyy"', "no class 'skyy' .*'sky'")],
)
def test_a_typo_in_a_map_is_named(write, line, says):
    with pytest.raises(SdaError, match=says):
        mapped(write(PLAIN + f"[maps.idd_lite7]\n{line}\n"), "idd_lite7")


def test_a_class_table_by_path(tmp_path, write):
    (tmp_path / "table.toml").write_text('[colors]\n"a b" = [1, 2, 3]\nc = [4, 5, 6]\n')
    loaded = descriptor.load(write(f'classes = "{tmp_path}/table.toml"\n[[layout]]\nimages = "a"\n'))
    assert loaded.table().names == ["a b", "c"]


def test_faults_of_a_class_table_name_its_file(tmp_path, write):
    (tmp_path / "table.toml").write_text("[colors]\na = [1, 2, 3]\nb = [1, 2, 3]\n")
    with pytest.raises(SdaError, match=r"table.toml: colors.*: 'a' and 'b' have the same colour"):
        descriptor.load(write('classes = "table.toml"\n[[layout]]\nimages = "a"\n'))


def test_a_class_table_beside_the_descriptor(tmp_path, write):
    (tmp_path / "table.toml").write_text("[colors]\nc = [4, 5, 6]\n")
    assert descriptor.load(write('classes = "table.toml"\n[[layout]]\nimages = "a"\n')).table().names == ["c"]


# Maps of the target and of the recipe

MINE = descriptor.ClassTable(colors={name: [index, 0, 0] for index, name in enumerate(["way", "person", "car", "plants"])})
PAIRS = """
[classes]
tarmac = [1, 1, 1]
walker = [2, 2, 2]
car = [3, 3, 3]
tree = [4, 4, 4]

[maps.mine]
tarmac = "plants"
"""


def by_maps(write, maps):
    loaded = descriptor.load(write(PAIRS + '[[layout]]\nimages = "a"\n'))
    lut, dropped = map_classes(loaded, Classes("mine", MINE, maps(loaded)))
    return {name: MINE.names[lut[index]] for index, name in enumerate(loaded.table().names) if lut[index] != IGNORE}, dropped


@pytest.mark.parametrize(
    ("maps", "pairs", "dropped"),
    [
        (lambda source: {}, {"tarmac": "plants", "car": "car"}, ["walker", "tree"]),
        (lambda source: {source.name: {"tarmac": "way"}}, {"tarmac": "way", "car": "car"}, ["walker", "tree"]),
        (lambda source: {"another": {"tarmac": "way"}}, {"tarmac": "plants", "car": "car"}, ["walker", "tree"]),
        (
            lambda source: {source.name: {"tarmac": "way", "walker": "car"}, "": {"walker": "person", "cow": "car"}},
            {"tarmac": "way", "walker": "person", "car": "car"},
            ["tree"],
        ),
        (lambda source: {"": {"tarmac": "car", "tree": ""}}, {"tarmac": "car", "car": "car"}, ["walker"]),
    ],
    ids=["the source's own", "the target's", "of another source", "the recipe's counts most", "many to one, and ignored"],
)
def test_maps_of_the_target_and_the_recipe(write, maps, pairs, dropped):
    assert by_maps(write, maps) == (pairs, dropped)


def test_maps_that_name_no_class_are_refused(write):
    with pytest.raises(SdaError, match=r"source_map: 'tarmac' = 'ways': no class 'ways' \(did you mean 'way'"):
        by_maps(write, lambda source: {"": {"tarmac": "ways"}})
    with pytest.raises(SdaError, match=r"source_maps\.\w+: 'tarmack' = 'way': no class 'tarmack' \(did you mean 'tarmac'"):
        by_maps(write, lambda source: {source.name: {"tarmack": "way"}})


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("pavement", ["road", "sidewalk"], "sidewalk"),
        ("Tarmac", ["sky", "Street"], "Street"),
        ("column_pole", ["pole", "sky"], "pole"),
        ("traffic-sign", ["sign", "light"], "sign"),
        ("vegetaton", ["vegetation", "sky"], "vegetation"),
        ("cow", ["road", "sky"], None),
    ],
)
def test_counterparts_have_synonyms_or_similar_spellings(name, known, found):
    assert counterparts([name], known) == ({name: found} if found else {})
