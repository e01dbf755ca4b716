"""sda select --export: polygons against a slow painter, the files of CVAT and labelme, and the way back to a training."""

import csv
import json
import shutil
import tomllib

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from sda.analysis.cache import FeatureCache
from sda.analysis.prelabels import file_names, form_of, polygons
from sda.data.descriptor import Classes, Descriptor, map_classes
from sda.data.files import LabelCodec
from sda.data.inspect.propose import propose
from sda.data.listing import list_items
from sda.runs import trained
from sda.shelf import check, toml_value

# Polygons


def paint(shapes, size):
    """Paint polygons pixel by pixel: a pixel is inside if a line from its centre to the left crosses the border an odd number of
    times."""
    found = np.full(size, 255, np.uint8)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    for value, ring in shapes:
        inside = np.zeros(size, bool)
        for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if y1 != y2:
                inside ^= ((y1 > y) != (y2 > y)) & (x > (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        found[inside] = value
    return found


maps = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None)
@given(maps)
def test_polygons_of_any_map_are_exact(drawn):
    height, width, classes, seed = drawn
    labels = np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.uint8)
    assert np.array_equal(paint(polygons(labels), labels.shape), labels)


def test_polygons_by_hand():
    """A square with a hole, in the hole a pixel of the first class, and a corner where two regions of a class touch."""
    labels = np.array(
        [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], np.uint8
    )
    shapes = polygons(labels)
    assert [value for value, _ in shapes] == [0, 1, 0, 1]
    assert set(shapes[0][1]) >= {(0, 0), (6, 0), (6, 5), (0, 5)} and set(shapes[2][1]) == {(2, 2), (3, 2), (3, 3), (2, 3)}
    assert np.array_equal(paint(shapes, labels.shape), labels)


@pytest.mark.parametrize("tolerance", [1.0, 2.5])
def test_simplified_polygons_differ_only_along_borders(tolerance):
    random = np.random.default_rng(2)
    fields = [ndimage.gaussian_filter(random.normal(size=(120, 160)), 8) for _ in range(4)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    labels[60:70, 60:70], labels[64, 64] = 0, 1  # a hole of one pixel
    exact, shapes = polygons(labels), polygons(labels, tolerance)
    painted = paint(shapes, labels.shape)
    wrong = painted != labels
    border = (ndimage.maximum_filter(labels, 3) != labels) | (ndimage.minimum_filter(labels, 3) != labels)
    assert ndimage.distance_transform_edt(~border)[wrong].max() <= tolerance
    assert wrong.mean() < 0.025 * tolerance and (painted != 255).all() and painted[64, 64] == 1
    assert len(shapes) == len(exact) and 4 * sum(len(ring) for _, ring in shapes) < sum(len(ring) for _, ring in exact)


# Names


def test_names_are_kept_and_unique():
    keys = ["x/a.jpg", "x/b.jpg", "y/B.png", "c d.png", "x_b.jpg", "z/e.tif", "z/e.jpg"]
    found = file_names(keys)
    assert found == ["a.jpg", "x_b-2.jpg", "y_B.png", "c_d.png", "x_b.jpg", "z_e.tif", "z_e-2.jpg"]
    assert file_names([f"{number}/1.png" for number in range(3)]) == ["0_1.png", "1_1.png", "2_1.png"]


# Exports


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A tiny world in which only 4 of the 8 training images of the target have labels; one without is turned by EXIF."""
    town = tiny.write_world(tmp_path_factory.mktemp("town"))
    for label in sorted((town.root / "field/labels/train").rglob("*.png"))[4:]:
        label.unlink()
    turned = town.root / "field/pictures/train/south/07.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(turned) as image:
        image.save(turned, exif=exif)
    return town


@pytest.fixture(scope="module")
def cache(town, do, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    do("train", town.recipe, *tiny.BANK, "--learning-rate", 0.02, "--steps", 6, "--out", out, "--device", "cpu")
    do("features", out, "--device", "cpu")
    return out / "features.h5"


@pytest.fixture(scope="module")
def made(do, cache, tmp_path_factory):
    """A folder with a finished export of each form, and their lists."""
    folder = tmp_path_factory.mktemp("exports")
    for form in ("cvat", "labelme"):
        out = ["--out", folder / f"{form}.txt", "--export", folder / form, "--form", form]
        do("select", cache, "--budget", 5, *out, "--device", "cpu")
    return folder


@pytest.fixture
def select(sda, cache, tmp_path):
    """`select(flags)`: choose all five images, one of which has a label, and export them to `tmp_path`/out."""

    def select(*flags, out="out"):
        listed = tmp_path / "next.txt"
        flags = ["--budget", 5, "--out", listed, "--export", tmp_path / out, "--device", "cpu", *flags]
        return sda("select", cache, *flags)

    return select


def exported(folder):
    with (folder / "exported.csv").open(newline="") as file:
        return {row["file"]: row["image"] for row in csv.DictReader(file)}


def check_copies(folder, town, images):
    """The images are copied byte by byte; the lists name them."""
    copies = exported(folder)
    assert len(copies) == 4 and set(copies) == {f"{images}/{path.name}" for path in (folder / images).glob("*.jpg")}
    assert (folder / "images.txt").read_text().splitlines() == list(copies.values())
    for copy, key in copies.items():
        assert (folder / copy).read_bytes() == (town.root / "field" / key).read_bytes()
    return copies


def test_the_command_says_what_to_do_next(select, town, tmp_path):
    before = tiny.files(town.root)
    status, shown = select()
    assert status == 0 and "1 of the 5 images have labels already and are not exported" in shown.out
    assert "out: 4 images with predictions as labels, for cvat, because the target's labels are masks" in shown.out
    assert "where the target's labels are, named alike: labels/{split}/{place}/{frame}.png for the image pictures/" in shown.out
    assert "python3 -m zipfile -c prelabels.zip" in shown.out and f"--split {tmp_path}/next.txt" in shown.out
    assert tiny.files(town.root) == before and not (tmp_path / "out.parts").exists()


def test_the_form_is_that_of_the_targets_labels(tmp_path):
    recipe = {
        "description": "x",
        "target": str(tmp_path / "field.toml"),
        "labels": 1,
        "size": [64, 64],
        "backbone": "small",
        "steps": 1,
    }
    lines = [f"{key} = {toml_value(value)}" for key, value in recipe.items()]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    form, why = form_of(tmp_path)
    assert form == "cvat" and why.startswith("the form of the target's labels is unknown (") and "field.toml" in why
    for form, expected in {"": "cvat", "labelme": "labelme", "coco": "cvat"}.items():
        layout = (
            '[[layout]]\nimages = "{n}.jpg"\nlabels = "labels.json"'
            if form == "coco"
            else ('[[layout]]\nimages = "{n}.jpg"\nlabels = "{n}.json"')
        )
        text = f'title = "Field"\nclasses = {{a = [1, 1, 1]}}\n{layout}\n' + f'format = "{form}"\n' * bool(form)
        (tmp_path / "field.toml").write_text(text)
        found, why = form_of(tmp_path)
        assert found == expected
        assert (
            why
            == {
                "": "the target's labels are masks",
                "labelme": "the target's labels are labelme files",
                "coco": "the target's labels are COCO files: export the corrected labels from CVAT in that form",
            }[form]
        )


def test_masks_for_cvat(made, town, cache):
    folder, run = made / "cvat", trained.load(cache.parent, network="teacher", device="cpu")
    copies = check_copies(folder, town, "JPEGImages")
    names = [file.removeprefix("JPEGImages/").removesuffix(".jpg") for file in copies]
    assert (folder / "ImageSets/Segmentation/default.txt").read_text().splitlines() == names
    assert (folder / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::", "ground:1,1,1::", "building:2,2,2::", "human:3,3,3::"
    ]  # fmt: skip
    assert json.loads((folder / "labels.json").read_text())[2] == {"name": "human", "color": "#030303", "attributes": []}
    assert sorted(path.name for path in (folder / "SegmentationClass").iterdir()) == sorted(f"{name}.png" for name in names)
    colors = np.array(list(run.table.colors.values()))
    for name in names:
        with Image.open(folder / f"SegmentationClass/{name}.png") as mask:
            predicted = run.predict(folder / f"JPEGImages/{name}.jpg").labels
            assert mask.mode == "RGB" and np.array_equal(mask, colors[predicted])
    assert any(len(np.unique(run.predict(folder / file).labels)) > 1 for file in copies)
    with Image.open(folder / "SegmentationClass/07.png") as mask:
        assert mask.size == (48, 64)  # as CVAT shows the image, turned
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["ImageSets", "JPEGImages", "SegmentationClass", "exported.csv", "images.txt", "labelmap.txt", "labels.json"]
    )


def test_what_comes_back_from_cvat_is_read_as_labels(made, cache):
    """The masks, read with a descriptor of the folder, are the predictions."""
    run = trained.load(cache.parent, network="teacher", device="cpu")
    back = Descriptor(
        title="Back",
        classes=run.table.colors,
        void_colors=[[0, 0, 0]],
        layout=[{"images": "JPEGImages/{name}.{ext}", "labels": "SegmentationClass/{name}.png"}],
    )
    listing = list_items(back, made / "cvat", "train")
    codec = LabelCodec(back, listing.encoding, map_classes(back, Classes("field", run.table))[0])
    assert len(listing.items) == 4
    for item in listing.items:
        assert np.array_equal(codec.read(item.label), run.predict(item.image).labels)


@pytest.mark.parametrize("form", ["cvat", "labelme"])
def test_a_proposal_for_what_comes_back_has_the_classes_of_the_run(made, cache, form):
    run = trained.load(cache.parent, network="teacher", device="cpu")
    text, notes, unread = propose(made / form)
    back = check(Descriptor, tomllib.loads(text), form)
    predicted = {value for image in (made / form).rglob("*.jpg") for value in np.unique(run.predict(image).labels)}
    names = run.table.names if form == "cvat" else [run.table.names[value] for value in predicted]
    assert set(back.table().names) == set(names) and not unread and "# ?" not in text, notes


def test_polygons_for_labelme(made, town, cache):
    folder, run = made / "labelme", trained.load(cache.parent, network="teacher", device="cpu")
    assert (folder / "labels.txt").read_text().split() == run.table.names
    for copy in check_copies(folder, town, "images"):
        found = json.loads((folder / copy).with_suffix(".json").read_text())
        labels = run.predict(folder / copy).labels
        assert found["imagePath"] == copy.removeprefix("images/") and found["imageData"] is None
        assert (found["imageHeight"], found["imageWidth"]) == labels.shape
        shapes = [(run.table.names.index(shape["label"]), shape["points"]) for shape in found["shapes"]]
        assert all(shape["shape_type"] == "polygon" and len(shape["points"]) > 2 for shape in found["shapes"])
        wrong = paint(shapes, labels.shape) != labels
        border = (ndimage.maximum_filter(labels, 3) != labels) | (ndimage.minimum_filter(labels, 3) != labels)
        assert not (wrong & ~ndimage.binary_dilation(border, iterations=1)).any() and wrong.mean() < 0.05


def test_the_loop_from_selection_to_training(made, sda, town, cache, tmp_path):
    """Label the exported images, put the labels where the target has its labels, and train with the list."""
    data = shutil.copytree(town.root / "field", tmp_path / "field")
    for file, key in exported(made / "cvat").items():
        mask = made / "cvat/SegmentationClass" / f"{file.removeprefix('JPEGImages/').removesuffix('.jpg')}.png"
        with Image.open(mask) as image:
            label = data / key.replace("pictures", "labels").replace(".jpg", ".png")
            label.parent.mkdir(parents=True, exist_ok=True)
            image.save(label)
    flags = ["--split", made / "cvat.txt", "--target-root", data, "--unlabelled", "", "--method", "supervised", "--steps", 1]
    status, shown = sda("train", cache.parent / "recipe.toml", *flags, "--out", tmp_path / "b", "--device", "cpu")
    assert status == 0, shown.err
    assert (tmp_path / "b/splits/labelled.txt").read_text() == (made / "cvat.txt").read_text()
    assert len((made / "cvat.txt").read_text().split()) == 8


def test_an_interrupted_export_is_made_again(select, tmp_path, monkeypatch):
    from sda.analysis import prelabels

    whole = prelabels._write_image

    def interrupted(parts, form, run, name, item):
        whole(parts, form, run, name, item)
        raise KeyboardInterrupt

    monkeypatch.setattr(prelabels, "_write_image", interrupted)
    assert select()[0] != 0
    assert not (tmp_path / "out").exists() and not (tmp_path / "next.txt").exists()
    (tmp_path / "out.parts/JPEGImages/stale.jpg").write_bytes(b"")
    monkeypatch.setattr(prelabels, "_write_image", whole)
    assert select()[0] == 0
    assert len(list((tmp_path / "out/JPEGImages").iterdir())) == 4 and not (tmp_path / "out.parts").exists()


def test_nothing_of_the_user_is_replaced(select, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "new.parts").mkdir()
    (tmp_path / "new.parts/mine.txt").write_text("mine")
    before = tiny.files(tmp_path)
    for out, words in {"out": "exists and is not overwritten", "file": "not overwritten", "new": "no unfinished export"}.items():
        status, shown = select(out=out)
        assert status == 2 and words in shown.err and "--export" in shown.err and shown.err.count("\n") == 1, shown.err
    assert tiny.files(tmp_path) == before


def test_only_labelled_images_export_nothing(sda, cache, town, tmp_path):
    known = FeatureCache(cache).labelled
    held = sorted(path for path in (town.root / "field/labels/train").rglob("*.png") if path.stem not in str(known))
    assert len(held) == 1
    left = [item.key for item in FeatureCache(cache).items("field") if item.key not in known and held[0].stem not in item.key]
    (tmp_path / "known.txt").write_text("\n".join([*known, *left]))
    flags = ["--budget", 1, "--labelled", tmp_path / "known.txt", "--out", tmp_path / "next.txt", "--export", tmp_path / "out"]
    status, shown = sda("select", cache, *flags, "--device", "cpu")
    assert status == 0 and "1 of the 1 images have labels already and are not exported" in shown.out
    assert not (tmp_path / "out").exists() and (tmp_path / "next.txt").exists()


def test_bad_requests(sda, cache, select, tmp_path, monkeypatch):
    status, shown = sda("select", cache, "--budget", 1, "--form", "cvat", "--out", tmp_path / "next.txt")
    assert status == 2 and "--form cvat needs --export DIR" in shown.err
    (tmp_path / "next.txt").write_text("mine")
    status, shown = select()
    assert status == 2 and "next.txt: this file exists and is not overwritten" in shown.err
    (tmp_path / "next.txt").unlink()
    monkeypatch.setattr("sda.analysis.make_cache.network_hash", lambda *modules: "other")
    status, shown = select()
    assert status == 2 and "made by another network" in shown.err and not (tmp_path / "out").exists()
