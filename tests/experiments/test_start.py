"""`sda init`: from a folder of photos to a recipe that trains."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import tiny

from sda.data import descriptor as descriptors
from sda.recipe import load

SMALL = ["--backbone", "small", "--weights", "none", "--steps", 2, "--device", "cpu", "--eval-every", 0]


@pytest.fixture
def world(own_world):
    """Field, of whose 8 training images 5 have labels, without a validation split; and Toy town."""
    for name in ("pictures", "labels"):
        shutil.rmtree(own_world.root / "field" / name / "val")
    shutil.copytree(own_world.root / "field/labels", own_world.root / "masks")
    for file in sorted((own_world.root / "field/labels/train").rglob("*.png"))[5:]:
        file.unlink()
    return own_world


def test_photos_with_a_few_labels_are_trained_without_an_edit(world, sda):
    before = tiny.files(world.root)
    status, shown = sda("init", world.root / "field")
    assert status == 0 and tiny.files(world.root) == before
    assert "field: 8 images, 5 of them labelled" in shown.err
    assert "1 of the 5 labelled images are held out to score on: field-sda/held-out.txt lists them" in shown.err
    command = next(line for line in shown.out.splitlines() if line.startswith("sda train"))
    recipe = load(command.removeprefix("sda train "))
    held_out = world.folder.parent / "field-sda/held-out.txt"
    assert recipe.labels == 4 and recipe.val_list == str(held_out) and len(held_out.read_text().splitlines()) == 1
    assert recipe.setting == "SSL" or recipe.method == "supervised"
    status, shown = sda(*command.split()[1:], *SMALL, "--out", "run")
    assert status == 0 and (world.folder.parent / "run/splits/val.txt").read_text() == held_out.read_text()
    assert "The score is of 1 image, so it is rough" in shown.err and "Next: sda report run" in shown.out
    assert sda("report", "run")[0] == 0

    for file in (world.root / "masks").rglob("*.png"):  # more labels do not change what is scored
        shutil.copy(file, world.root / "field/labels" / file.relative_to(world.root / "masks"))
    status, shown = sda(*command.split()[1:], *SMALL, "--labels", 7, "--out", "more")
    assert status == 0 and (world.folder.parent / "more/splits/val.txt").read_text() == held_out.read_text()


def test_a_source_in_a_folder_gets_a_descriptor_and_a_map(world, sda):
    (world.root / "field/pictures/train/north/extra.jpg").write_bytes(
        next((world.root / "field/pictures/train").rglob("*.jpg")).read_bytes()
    )
    assert sda("init", world.root / "field", "--source", world.root / "toy", "--out", "mine")[0] == 0
    text = (world.folder.parent / "mine/train-field.toml").read_text()
    assert 'mine/toy.toml"' in text and (world.folder.parent / "mine/toy.toml").is_file()
    assert sda("init", world.root / "field", "--out", "mine")[1].err.strip() == (
        "error: mine: it exists and is not overwritten; choose another --out"
    )


def test_a_named_source_needs_its_folder_and_is_mapped_by_similar_names(world, sda):
    status, shown = sda("init", world.root / "field", "--source", world.toy)
    assert status == 2 and "give its folder with --root DIR" in shown.err
    described = world.folder.parent / "field-sda/field.toml"
    assert not described.exists()
    status, shown = sda("init", world.root / "field", "--source", world.toy, "--root", world.root / "toy")
    last = " ".join(shown.err.split()).rpartition("before that: ")[2]
    assert status == 1 and last.startswith("no class of Toy town (street, house, man, cloud) is a class of the target (class_")
    assert last.endswith('map them in field-sda/train-field.toml, such as: source_map = {"street" = "class_0"}')
    assert described.exists()


def test_photos_without_labels_to_score_on_are_refused(world, sda):
    shutil.rmtree(world.root / "field/labels")
    status, shown = sda("init", world.root / "field")
    assert status == 2 and "0 of its 8 images have labels that sda can read: label at least two images" in shown.err


def test_photos_without_labels_and_a_source_are_trained_without_scores(world, sda):
    """The target has the classes of the source."""
    world.toy.write_text(tiny.TOY.partition("[maps.field]")[0])
    shutil.rmtree(world.root / "field/labels")
    status, shown = sda("init", world.root / "field", "--source", world.toy, "--root", world.root / "toy")
    assert status == 0 and "no image has a label, so the training has no scores" in shown.err
    commands = [line for line in shown.out.splitlines() if line.startswith("sda ")]
    described = descriptors.load("field-sda/field.toml")
    assert described.table().colors == descriptors.load(str(world.toy)).table().colors
    status, shown = sda(*commands[0].split()[1:], *SMALL)
    assert status == 0 and "without labels" in shown.out and "UDA" in shown.err, shown.err
    assert sda(*commands[1].split()[1:], "--device", "cpu")[0] == 0 and commands[1].startswith("sda predict runs/train-field ")


def test_one_label_is_to_score_on_if_there_is_a_source(world, sda):
    world.toy.write_text(tiny.TOY.partition("[maps.field]")[0])
    labels = sorted((world.root / "field/labels/train").rglob("*.png"))
    for file in labels[1:]:
        file.unlink()
    assert sda("init", world.root / "field", "--source", world.toy, "--root", world.root / "toy")[0] == 1
    recipe = load("field-sda/train-field.toml")
    assert recipe.labels == 0 and recipe.setting in ("source-only", "UDA")
    source_map = ["--source-map", '{street = "class_0", house = "class_1", man = "class_2"}']
    status, shown = sda("train", "field-sda/train-field.toml", *SMALL, *source_map, "--out", "run")
    assert status == 0 and "val: 1 images" in shown.err, shown.err


def test_photos_of_different_shapes_keep_them(world, sda):
    for number, file in enumerate(sorted((world.root / "field/pictures/train").rglob("*.jpg"))):
        if number % 2:
            image, _ = tiny.draw(number, [0, 1, 2], [(90, 80, 70)] * 3)
            tiny.save(image.transpose(1, 0, 2), file)
            label = world.root / "field/labels" / file.relative_to(world.root / "field/pictures").with_suffix(".png")
            label.unlink(missing_ok=True)
    status, shown = sda("init", world.root / "field")
    text = (world.folder.parent / "field-sda/train-field.toml").read_text()
    assert status == 0 and "have different shapes: they keep them" in shown.err and 'fit = "inside"' in text


def test_labels_that_are_not_understood_are_named(world, sda):
    shutil.rmtree(world.root / "field/labels")
    for file in (world.root / "field/pictures").rglob("*.jpg"):
        file.with_suffix(".mat").write_bytes(b"not a matrix")
    status, shown = sda("init", world.root / "field")
    assert status == 2 and "no labels were understood: " in shown.err and "8 .mat files" in shown.err
    assert not (world.folder.parent / "field-sda").exists()


def test_labelme_files_are_trained_without_an_edit(world, sda):
    """Polygons have names, so nothing is left to edit."""
    shutil.rmtree(world.root / "field/labels")
    pictures = sorted((world.root / "field/pictures").rglob("*.jpg"))
    for file in pictures[:5]:
        shapes = [
            {"label": name, "shape_type": "polygon", "points": [[0, top], [64, top], [64, top + 16], [0, top + 16]]}
            for name, top in (("sky", 0), ("wall", 16), ("road", 32))
        ]
        about = {"version": "5", "flags": {}, "imagePath": file.name, "imageData": None, "imageHeight": 48, "imageWidth": 64}
        file.with_suffix(".json").write_text(json.dumps({**about, "shapes": shapes}))
    status, shown = sda("init", world.root / "field")
    assert status == 0 and "?" not in (world.folder.parent / "field-sda/field.toml").read_text()
    assert "lines with ?" not in shown.out
    status, shown = sda("train", "field-sda/train-field.toml", *SMALL, "--out", "run")
    assert status == 0 and all(name in shown.out for name in ("sky", "wall", "road"))


@pytest.mark.parametrize("legend", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_exported_predictions_come_back_as_the_same_classes(world, sda, legend):
    """Select, label, train: classes without names have ids in the user's masks, and colours in those that come back."""
    field = world.root / "field"
    assert sda("init", field)[0] == 0
    first = descriptors.load("field-sda/field.toml")
    assert sda("train", "field-sda/train-field.toml", *SMALL, "--out", "run")[0] == 0
    assert sda("features", "run", "--device", "cpu")[0] == 0
    status, shown = sda("select", "run/features.h5", "--budget", 3, "--export", "export", "--device", "cpu")
    assert status == 0 and "3 images with predictions as labels, for cvat, because the target's labels are masks" in shown.out
    with open("export/exported.csv", newline="") as file:
        for row in csv.DictReader(file):
            mask = Path("export/SegmentationClass") / Path(row["file"]).with_suffix(".png").name
            label = (field / row["image"].replace("pictures", "labels")).with_suffix(".png")
            label.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mask, label)
    if legend:
        shutil.copy("export/labelmap.txt", field)
    status, shown = sda("init", field, "--out", "again")
    assert status == 0 and "field: 8 images, 8 of them labelled" in shown.err, shown.err
    second = descriptors.load("again/field.toml")
    assert second.table().colors == first.table().colors and second.ids == first.ids and second.void == first.void
    assert sda("train", "again/train-field.toml", *SMALL, "--out", "second")[0] == 0


def test_photos_that_a_list_does_not_name_are_unlabelled(world, sda):
    """A folder as of VOC, whose train.txt and val.txt name the labelled images only."""
    voc = world.root / "voc"
    for number in range(8):
        for index in range(2):
            image, label = tiny.draw(10 * number + index, [2, 1, 0], [(60, 60, 90), (90, 50, 40), (40, 60, 40)])
            tiny.save(image, voc / f"JPEGImages/{number}{index}.jpg")
        tiny.save(label, voc / f"SegmentationClass/{number}1.png")
    lists = voc / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("".join(f"{number}1\n" for number in range(6)))
    (lists / "val.txt").write_text("61\n71\n")
    status, shown = sda("init", voc)
    assert status == 0 and "other images in" in shown.err and "are the unlabelled images of the recipe" in shown.err
    recipe = load("voc-sda/train-voc.toml")
    assert recipe.unlabelled == str(voc / "JPEGImages") and recipe.method == "mean_teacher" and recipe.labels == 6
    status, shown = sda("train", "voc-sda/train-voc.toml", *SMALL, "--out", "run")
    assert status == 0 and "unlabelled: 8 images" in shown.err, shown.err
