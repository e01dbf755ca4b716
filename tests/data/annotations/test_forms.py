"""Every form of annotations: written by hand, proposed by init-dataset, checked by the doctor, and decoded as drawn."""

import base64
import csv
import io
import json
import re
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import scipy.io
import tiny
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.annotations.forms import FORMS
from sda.data.files import LabelCodec
from sda.data.listing import list_items

WIDTH, HEIGHT = 40, 30
NAMES = ["", "road", "sky", "traffic light"]
# Objects in the order of painting: the class and the corners. Corners lie between pixels and outside the image, too.
OBJECTS = {
    "a": [("road", [(-5, 14.3), (45, 12.7), (45, 35), (-5, 35)]), ("sky", [(3.2, 2.1), (20.6, 4.9), (8.4, 20.2)])],
    "b": [("sky", [(0, 0), (40, 0), (40, 10), (0, 10)]), ("traffic light", [(30, 5), (36, 5), (36, 25), (30, 25)])],
    "c": [("road", [(1.2, 20.3), (38.7, 20.3), (20, 29.1)]), ("traffic light", [(10, 3), (14, 3), (14, 12), (10, 12)])],
    "d": [("sky", [(0, 0), (20, 0), (20, 30), (0, 30)]), ("road", [(20, 0), (40, 0), (40, 30), (20, 30)])],
}


def inside(x, y, corners):
    """Whether a point is in a polygon: a ray to the right crosses its border an odd number of times."""
    odd = False
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            odd = not odd
    return odd


def drawn(objects):
    """Paint objects pixel by pixel: (H, W) places in NAMES."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for name, corners in objects:
        for row in range(HEIGHT):
            for column in range(WIDTH):
                if inside(column + 0.5, row + 0.5, corners):
                    label[row, column] = NAMES.index(name)
    return label


EXPECTED = {stem: drawn(objects) for stem, objects in OBJECTS.items()}


def photo(path):
    seed = sum(map(ord, path.stem))
    return tiny.save(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8), path)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def png(mask):
    file = io.BytesIO()
    Image.fromarray((mask * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def flat(corners, scale=(1, 1)):
    return [value * factor for corner in corners for value, factor in zip(corner, scale, strict=True)]


# Writers: each writes a dataset of the images a, b, c, d and returns the split of each stem.

ALL = dict.fromkeys(OBJECTS, "train")
PARTS = {"a": "train", "b": "train", "c": "train", "d": "val"}


def labelme(root):
    for stem, objects in OBJECTS.items():
        photo(root / f"{stem}.jpg")
        shapes = [{"label": name, "points": corners, "shape_type": "polygon"} for name, corners in objects]
        if stem == "b":  # a rectangle by two corners, and a mask
            shapes[0] |= {"shape_type": "rectangle", "points": [[40, 10], [0, 0]]}
            mask = {"shape_type": "mask", "points": [[30, 5], [35, 24]], "mask": base64.b64encode(png(np.ones((20, 6)))).decode()}
            shapes[1] |= mask
        content = {"version": "5.2", "flags": {}, "shapes": shapes, "imagePath": f"{stem}.jpg", "imageData": None}
        write_json(root / f"{stem}.json", {**content, "imageHeight": HEIGHT, "imageWidth": WIDTH})
    return ALL


def labelme_xml(root):
    for stem, objects in OBJECTS.items():
        photo(root / f"Images/{stem}.jpg")
        lines = [f"<annotation><filename>{stem}.jpg</filename>"]
        for name, corners in [*objects, ("deleted", [(0, 0), (40, 0), (40, 30)])]:
            points = "".join(f"<pt><x>{x}</x><y>\n{y}\n</y></pt>" for x, y in corners)
            deleted = int(name == "deleted")
            lines.append(f"<object><name>{name}\n</name><deleted>{deleted}</deleted><polygon>{points}</polygon></object>")
        lines.append(f"<imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize></annotation>")
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{stem}.xml").write_text("".join(lines))
    return ALL


def labelbox(root):
    lines = []
    for stem, objects in OBJECTS.items():
        photo(root / f"images/{stem}.jpg")
        found = [
            {"name": name, "annotation_kind": "ImagePolygon", "polygon": [{"x": x, "y": y} for x, y in corners]}
            for name, corners in objects
        ]
        if stem == "b":  # a rectangle
            del found[0]["polygon"]
            found[0]["bounding_box"] = {"top": 0, "left": 0, "height": 10, "width": 40}
        labels = [{"annotations": {"objects": found, "classifications": [], "relationships": []}}]
        row = {"id": "x", "row_data": f"https://storage.labelbox.com/u%2F{stem}.jpg?Expires=1"} | (
            {"external_id": f"{stem}.jpg"} if stem != "c" else {}
        )
        size = {"height": HEIGHT, "width": WIDTH, "mime_type": "image/jpeg"}
        lines.append({"data_row": row, "media_attributes": size, "projects": {"p": {"name": "town", "labels": labels}}})
    (root / "export.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ALL


def kaggle(root):
    """A row for each class, with the run lengths of Kaggle's own code: from 1, down the columns."""
    rows = [["ImageId", "ClassId", "EncodedPixels"]]
    for stem, label in EXPECTED.items():
        photo(root / f"images/{stem}.jpg")
        for value in (1, 2, 3):
            pixels = np.concatenate([[0], (label == value).T.flatten(), [0]]).astype(int)
            runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
            runs[1::2] -= runs[::2]
            rows.append([f"{stem}.jpg", NAMES[value], " ".join(map(str, runs))])
    with (root / "masks.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return ALL


def supervisely(root):
    write_json(root / "meta.json", {"classes": [{"title": name, "shape": "polygon"} for name in NAMES[1:]], "tags": []})
    for stem, objects in OBJECTS.items():
        photo(root / f"ds0/img/{stem}.jpg")
        listed = [
            {"classTitle": name, "geometryType": "polygon", "points": {"exterior": corners, "interior": []}}
            for name, corners in objects
        ]
        if stem == "b":
            data = base64.b64encode(zlib.compress(png(np.ones((20, 6))))).decode()
            bitmap = {"classTitle": "traffic light", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [30, 5]}}
            listed[1] = {**bitmap, "points": {"exterior": [], "interior": []}}
        size = {"height": HEIGHT, "width": WIDTH}
        write_json(root / f"ds0/ann/{stem}.jpg.json", {"description": "", "tags": [], "size": size, "objects": listed})
    return ALL


def cityscapes(root):
    for stem, objects in OBJECTS.items():
        place = f"{PARTS[stem]}/ulm/ulm_{ord(stem):06}_000019"
        photo(root / f"leftImg8bit/{place}_leftImg8bit.png")
        listed = [{"label": name, "polygon": corners} for name, corners in objects]
        write_json(root / f"gtFine/{place}_gtFine_polygons.json", {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": listed})
    return PARTS


def yolo(root):
    for stem, objects in OBJECTS.items():
        photo(root / f"images/{PARTS[stem]}/{stem}.jpg")
        lines = [[NAMES.index(name) - 1, *flat(corners, (1 / WIDTH, 1 / HEIGHT))] for name, corners in objects]
        file = root / f"labels/{PARTS[stem]}/{stem}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: road\n  1: sky\n  2: traffic light\n")
    return PARTS


def coco_content(stems, file_name="{}.jpg"):
    images = [
        {"id": 10 + at, "file_name": file_name.format(stem), "width": WIDTH, "height": HEIGHT} for at, stem in enumerate(stems)
    ]
    annotations = []
    for at, stem in enumerate(stems):
        for place, (name, corners) in enumerate(OBJECTS[stem]):
            found = {"id": len(annotations), "image_id": 10 + at, "category_id": 7 * NAMES.index(name), "iscrowd": 0}
            annotations.append({**found, "segmentation": [flat(corners)], "area": 500 - 100 * place, "bbox": [0, 0, 1, 1]})
    annotations.reverse()  # the area decides, not the order
    categories = [{"id": 7 * at, "name": name} for at, name in enumerate(NAMES) if name]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco(root):
    for split in ("train", "val"):
        stems = [stem for stem in PARTS if PARTS[stem] == split]
        for stem in stems:
            photo(root / f"{split}2017/{stem}.jpg")
        write_json(root / f"annotations/instances_{split}2017.json", coco_content(stems))
    write_json(root / "annotations/captions_train2017.json", {"images": [], "annotations": [{"caption": "a road"}]})
    return PARTS


def coco_runs(root):
    """Run lengths, compressed by pycocotools and not, in one file for all images, which names folders of another computer."""
    from pycocotools import mask

    content = coco_content("abcd", "/home/me/images/{}.jpg")
    for annotation in content["annotations"]:
        stem = "abcd"[annotation["image_id"] - 10]
        name = NAMES[annotation["category_id"] // 7]
        area = np.asfortranarray(drawn([each for each in OBJECTS[stem] if each[0] == name]) > 0)
        runs = mask.encode(area.astype(np.uint8))
        if stem in "ab":
            annotation["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
        else:
            change = np.flatnonzero(np.diff(np.concatenate([[0], area.T.ravel(), [1 - area[-1, -1]]])))
            counts = np.diff(np.concatenate([[0], change])).tolist()
            annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
    write_json(root / "annotations.json", content)
    for stem in OBJECTS:
        photo(root / f"images/{stem}.jpg")
    return ALL


def coco_panoptic(root):
    for split in ("train", "val"):
        stems = [stem for stem in PARTS if PARTS[stem] == split]
        content = coco_content(stems)
        content["annotations"] = []
        for at, stem in enumerate(stems):
            photo(root / f"{split}2017/{stem}.jpg")
            numbers = np.array([0, 70_000, 513, 9])  # segment ids: red + 256 green + 65536 blue
            ids = numbers[EXPECTED[stem]]
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
            tiny.save(colours, root / f"annotations/panoptic_{split}2017/{stem}.png")
            present = sorted(set(EXPECTED[stem].ravel().tolist()) - {0})
            segments = [{"id": int(numbers[value]), "category_id": 7 * value} for value in present]
            content["annotations"].append({"image_id": 10 + at, "file_name": f"{stem}.png", "segments_info": segments})
        write_json(root / f"annotations/panoptic_{split}2017.json", content)
    return PARTS


# The rectangle of "b" as label_studio_sdk.converter.brush.mask2rle of label-studio-sdk 2.0 encodes it.
BRUSH = [
    0,
    0,
    18,
    192,
    57,
    27,
    255,
    3,
    151,
    0,
    *[194, 255, 250, 28, 3, 11, 255, 232, 112, 12, 47, 255, 161, 192, 48, 191, 254, 135, 0] * 4,
]
BRUSH += [194, 255, 250, 28, 3, 11, 255, 232, 112, 12, 47, 255, 161, 192, 48, 191, 255, 3, 47, 0, 0]


def label_studio_min(root):
    tasks = []
    for at, (stem, objects) in enumerate(OBJECTS.items()):
        photo(root / f"images/{stem}.jpg")
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        areas = [
            {"points": [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in corners], "polygonlabels": [name], **size}
            for name, corners in objects
        ]
        tasks.append({"image": f"/data/local-files/?d=images/{stem}.jpg", "id": at, "label": areas, "annotator": 1})
    write_json(root / "export.json", tasks)
    return ALL


def datumaro(root):
    items = []
    for stem, objects in OBJECTS.items():
        photo(root / f"images/default/{stem}.jpg")
        listed = [
            {"id": at, "type": "polygon", "label_id": NAMES.index(name) - 1, "points": flat(corners), "z_order": at}
            for at, (name, corners) in enumerate(objects)
        ]
        image = {"path": f"{stem}.jpg", "size": [HEIGHT, WIDTH]}
        items.append({"id": stem, "annotations": [*listed[::-1], {"type": "label", "label_id": 0}], "image": image})
    labels = [{"name": name, "parent": "", "attributes": []} for name in NAMES[1:]]
    write_json(root / "annotations/default.json", {"info": {}, "categories": {"label": {"labels": labels}}, "items": items})
    return ALL


def darwin(root):
    for stem, objects in OBJECTS.items():
        photo(root / f"images/{stem}.jpg")
        listed = [{"name": name, "polygon": {"paths": [[{"x": x, "y": y} for x, y in corners]]}} for name, corners in objects]
        item = {"name": f"{stem}.jpg", "slots": [{"width": WIDTH, "height": HEIGHT}]}
        write_json(root / f"annotations/{stem}.json", {"version": "2.0", "item": item, "annotations": listed})
    return ALL


def label_studio(root):
    tasks = []
    for at, (stem, objects) in enumerate(OBJECTS.items()):
        photo(root / f"images/{stem}.jpg")
        results = []
        for name, corners in objects:
            points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in corners]
            value = {"points": points, "closed": True, "polygonlabels": [name]}
            if stem == "d":
                (x, y), (right, bottom) = points[0], points[2]
                value = {"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0, "rectanglelabels": [name]}
            size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
            if (stem, name) == ("b", "traffic light"):
                value = {"format": "rle", "rle": BRUSH, "brushlabels": [name]}
            results.append({"id": "x", "type": "polygonlabels", "value": value, **size})
        results.append({"type": "choices", "value": {"choices": ["sunny"]}})
        cancelled = {"was_cancelled": True, "result": []}
        annotations = [cancelled, {"was_cancelled": False, "result": results}]
        tasks.append({"id": at, "data": {"image": f"/data/upload/1/0f1e2d{at}c-{stem}.jpg"}, "annotations": annotations})
    write_json(root / "project-1-at-2026.json", tasks)
    return ALL


def cvat_xml(root):
    lines = ['<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task/></meta>']
    for at, (stem, objects) in enumerate(OBJECTS.items()):
        photo(root / f"images/{stem}.jpg")
        lines.append(f'<image id="{at}" name="{stem}.jpg" width="{WIDTH}" height="{HEIGHT}">')
        shapes = []
        for order, (name, corners) in enumerate(objects):
            points = ";".join(f"{x},{y}" for x, y in corners)
            shapes.append(f'<polygon label="{name}" points="{points}" z_order="{order}"></polygon>')
        if stem == "b":
            shapes[0] = '<box label="sky" xtl="0" ytl="0" xbr="40" ybr="10" z_order="0"></box>'
            shapes[1] = '<mask label="traffic light" rle="0, 120" left="30" top="5" width="6" height="20" z_order="1"></mask>'
        lines += [*reversed(shapes), '<tag label="sunny"></tag></image>']
    (root / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]))
    return ALL


def via(root):
    images = {}
    for stem, objects in OBJECTS.items():
        photo(root / f"images/{stem}.jpg")
        regions = []
        for name, corners in objects:
            xs, ys = zip(*corners, strict=True)
            form = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions.append({"shape_attributes": form, "region_attributes": {"class": name}})
        images[f"{stem}.jpg123"] = {"filename": f"{stem}.jpg", "size": 123, "regions": regions, "file_attributes": {}}
    write_json(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {}})
    return ALL


def masks_in_names(root):
    return write_masks(root, "masks/{image}_{name}.png")


def masks_in_folders(root):
    return write_masks(root, "masks/{name}/{image}.png")


def masks_by_image(root):
    return write_masks(root, "masks/{image}/{name}.png")


def write_masks(root, pattern):
    for stem, label in EXPECTED.items():
        photo(root / f"images/{stem}.jpg")
        for value in sorted(set(label.ravel().tolist()) - {0}):
            tiny.save(((label == value) * 255).astype(np.uint8), root / pattern.format(image=stem, name=NAMES[value]))
    return ALL


def npy(root):
    for stem, label in EXPECTED.items():
        photo(root / f"images/{stem}.jpg")
        (root / "masks").mkdir(exist_ok=True)
        np.save(root / f"masks/{stem}.npy", label.astype(np.float64 if stem == "a" else np.int64))
    return ALL


def mat(root):
    for stem, label in EXPECTED.items():
        photo(root / f"images/{stem}.jpg")
        (root / "cls").mkdir(exist_ok=True)
        scipy.io.savemat(root / f"cls/{stem}.mat", {"GTcls": {"Segmentation": label, "CategoriesPresent": [[1], [2]]}})
    return ALL


COLOURS = np.array([[0, 0, 0], [128, 64, 128], [70, 130, 180], [250, 170, 30]], np.uint8)


def cvat_masks(root):
    for stem, label in EXPECTED.items():
        photo(root / f"JPEGImages/{stem}.jpg")
        tiny.save(COLOURS[label], root / f"SegmentationClass/{stem}.png")
        tiny.save(COLOURS[::-1][label], root / f"SegmentationObject/{stem}.png")
    lines = [
        f"{name or 'background'}:{','.join(map(str, colour))}::" for name, colour in zip(NAMES, COLOURS.tolist(), strict=True)
    ]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        stems = [stem for stem in PARTS if PARTS[stem] == split]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(stems) + "\n")
    return PARTS


def roboflow_masks(root):
    for stem, label in EXPECTED.items():
        folder = root / {"train": "train", "val": "valid"}[PARTS[stem]]
        photo(folder / f"{stem}_jpg.rf.0a1b.jpg")
        tiny.save(label, folder / f"{stem}_jpg.rf.0a1b_mask.png")
        with (folder / "_classes.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["Pixel Value", " Class"], *enumerate(["background", *NAMES[1:]])])
    return PARTS


def lists_at_the_root(root):
    for stem, label in EXPECTED.items():
        photo(root / f"images/{stem}.jpg")
        tiny.save(COLOURS[label], root / f"masks/{stem}.png")
    (root / "class_dict.csv").write_text(
        "name,r,g,b\n"
        + "".join(f"{name or 'void'},{r},{g},{b}\n" for name, (r, g, b) in zip(NAMES, COLOURS.tolist(), strict=True))
    )
    (root / "train.txt").write_text("".join(f"images/{stem}.jpg\n" for stem in "abc"))
    (root / "val.txt").write_text("images/d.jpg\n")
    return PARTS


WRITERS = [labelme, supervisely, cityscapes, yolo, coco, coco_runs, coco_panoptic, label_studio, label_studio_min, cvat_xml, via]
WRITERS += [datumaro, darwin, labelme_xml, labelbox, kaggle]
WRITERS += [masks_in_names, masks_in_folders, masks_by_image, cvat_masks, roboflow_masks, lists_at_the_root]


def decode(toml, root, splits=("train", "val")):
    """Return stem → label, as places in NAMES, of the labelled images, and stem → split."""
    described = descriptors.load(str(toml))
    names = [*described.table().names]
    lut = np.zeros(256, np.uint8)
    lut[: len(names)] = [NAMES.index(name) for name in names]
    labels, parts = {}, {}
    for split in splits:
        if split in splits_of(described):
            listing = list_items(described, root, split)
            codec = LabelCodec(described, listing.encoding, np.arange(256, dtype=np.uint8))
            for item in listing.items:
                stem = re.match(r"ulm_(\d+)", Path(item.key).name)
                stem = chr(int(stem[1])) if stem else Path(item.key).name[0]
                labels[stem], parts[stem] = lut[codec.read_item(item)], split
    return labels, parts


@pytest.mark.parametrize("write", [npy, mat])
def test_arrays_are_labels(write, here, sda):
    write(root := here / "set")
    assert sda("init-dataset", "set")[0] == 0
    text = (here / "set.toml").read_text()
    for value, name in enumerate(NAMES[1:], start=1):
        text = text.replace(f"class_{value}", name.replace(" ", "_"))
    (here / "set.toml").write_text(text.replace("traffic_light =", '"traffic light" =').replace("traffic_light", "traffic light"))
    assert sda("doctor", "set.toml", "--root", "set", "--processes", 1)[0] == 0
    described = descriptors.load("set.toml")
    codec = LabelCodec(described, "ids", np.arange(256, dtype=np.uint8))
    for item in list_items(described, root, "train").items:
        assert np.array_equal(codec.read_item(item), EXPECTED[Path(item.key).stem])


def splits_of(described):
    return {"train", "val"} if any(layout.by_split or layout.split == "val" for layout in described.layout) else {"train"}


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_is_proposed_checked_and_decoded(write, here, sda, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    (root := here / "set").mkdir()
    expected = write(root)
    before = tiny.files(root)
    status, output = sda("init-dataset", "set")
    text = (here / "set.toml").read_text() if status == 0 else ""
    assert status == 0, output
    status, output = sda("doctor", "set.toml", "--root", "set", "--processes", 1)
    assert status == 0, (text, output.out)
    labels, parts = decode(here / "set.toml", root)
    assert parts == expected, text
    for stem, label in EXPECTED.items():
        assert np.array_equal(labels[stem], label), (stem, text)
    assert tiny.files(root) == before


def test_the_descriptor_knows_the_forms():
    assert set(get_args(descriptors.Form)) == FORMS.keys()
    assert set(descriptors.SHARED) == {name for name, form in FORMS.items() if form.parts}
