"""fit = "inside" holds the same way in training, scores, predictions, feature caches and packs, for photos of several shapes."""

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sda.analysis.cache import FeatureCache
from sda.data.evaluation import evaluation_set
from sda.data.files import size_of
from sda.export.build import metadata
from sda.export.card import card
from sda.protocol import Protocol
from sda.runs import trained
from sda.scoring.evaluate import evaluate
from sda.scoring.metrics import confusion_matrix
from sda.sizes import fitted

SHAPES = ((48, 64), (80, 40), (64, 48), (60, 60), (40, 96))  # height, width
CPU = torch.device("cpu")
FLAGS = ["--crop", "48x48", "--learning-rate", 0.02, "--steps", 6, "--device", "cpu"]


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """The tiny world, with images of the target of several shapes; all are unlike its size, 48x64."""
    world = tiny.write_world(tmp_path_factory.mktemp("shaped"))
    for number, picture in enumerate(sorted((world.root / "field/pictures").rglob("*.jpg"))):
        height, width = SHAPES[number % len(SHAPES)]
        label = world.root / "field/labels" / picture.relative_to(world.root / "field/pictures").with_suffix(".png")
        for path, how in ((picture, Image.Resampling.BILINEAR), (label, Image.Resampling.NEAREST)):
            with Image.open(path) as image:
                image.resize((width, height), how).save(path)
    return world


@pytest.fixture(scope="module")
def run(shaped, do, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "inside"
    do("train", shaped.recipe, *tiny.BANK, *FLAGS, "--fit", "inside", "--out", out)
    return out


def read(path):
    return json.loads(path.read_text())


def test_scores_equal_those_of_each_image_alone(shaped, run):
    """Each image is resized with Pillow, by hand, and scored at its own size: no batches, no shapes to mix up."""
    network, matrix = trained.load(run, device=CPU), torch.zeros(3, 3, dtype=torch.int64)
    data = evaluation_set(
        network.table_name, network.table, (48, 64), str(shaped.field), str(shaped.root / "field"), "val", fit="inside"
    )
    assert len({fitted(size_of(item.image), (48, 64), "inside") for item in data.val.items}) > 1
    for item in data.val.items:
        with Image.open(item.image) as image, Image.open(item.label) as label:
            height, width = image.size[::-1]
            scale = min(48 / height, 64 / width)
            small = image.resize((max(32, round(width * scale)), max(32, round(height * scale))), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
            logits = torch.nn.functional.interpolate(network.network(pixels)[0], (height, width), mode="bilinear")
            matrix += confusion_matrix(logits[0].argmax(dim=0), torch.from_numpy(np.array(label)), 3)
    found = read(run / "result.json")
    assert found["confusion"] == matrix.tolist() and (matrix.sum(dim=0) > 0).sum() > 1  # several classes are predicted
    assert found["protocol"]["fit"] == "inside" and found["protocol"]["name"] == "whole-inside48x64-native"
    assert evaluate(network.network, data.val, network.table.names, CPU, network.protocol())["confusion"] == matrix.tolist()
    with pytest.raises(ValueError, match="inside"):
        evaluate(network.network, data.val, network.table.names, CPU, Protocol((48, 64)))


def test_predictions_have_the_score_of_the_evaluation(shaped, run, do, tmp_path):
    folder, matrix = shaped.root / "field/pictures/val", torch.zeros(3, 3, dtype=torch.int64)
    do("predict", run, folder, "--as", "train_ids", "--out", tmp_path, "--device", "cpu")
    for file in (tmp_path / "train_ids").rglob("*.png"):
        label = shaped.root / "field/labels/val" / file.relative_to(tmp_path / "train_ids")
        with Image.open(file) as predicted, Image.open(label) as truth:
            assert predicted.size == truth.size
            matrix += confusion_matrix(*(torch.from_numpy(np.array(image)).long() for image in (predicted, truth)), 3)
    assert matrix.tolist() == read(run / "result.json")["confusion"]


def test_feature_caches_have_the_size_of_each_image(shaped, run, do, tmp_path):
    do("features", run, "--out", tmp_path / "f.h5", "--device", "cpu", "--dataset", shaped.field, "--root", shaped.root / "field")
    cache = FeatureCache(tmp_path / "f.h5")
    sizes = {path: tuple(size) for path, size in zip(cache.paths, cache.of_images("size").tolist(), strict=True)}
    images = {path: size_of(shaped.root / "field" / path) for path in cache.paths}
    assert sizes == {path: fitted(size, (48, 64), "inside") for path, size in images.items()}
    assert cache.paths == sorted(cache.paths) and len(set(sizes.values())) > 2


def test_a_pack_trains_the_same_network(shaped, run, do, sda, tmp_path):
    pack = ["pack", shaped.field, "--root", shaped.root / "field", "--size", "48x64", "--processes", 1]
    flags = [*tiny.BANK, *FLAGS, "--target-root"]
    do(*pack, "--fit", "inside", "--out", tmp_path / "inside.h5")
    do("train", shaped.recipe, "--fit", "inside", "--out", tmp_path / "run", *flags, tmp_path / "inside.h5")
    one, other = (torch.load(folder / "last.pt", weights_only=True) for folder in (run, tmp_path / "run"))
    assert tiny.same({k: v.numpy() for k, v in one["student"].items()}, {k: v.numpy() for k, v in other["student"].items()})
    assert read(tmp_path / "run/result.json")["confusion"] == read(run / "result.json")["confusion"]
    status, shown = sda("train", shaped.recipe, "--out", tmp_path / "no", *flags, tmp_path / "inside.h5")
    assert status == 2 and 'was made with fit = "inside", but fit = "stretch" is needed: pack with --fit stretch' in shown.err
    status, shown = sda(*pack, "--out", tmp_path / "inside.h5")
    assert status == 2 and "fit is inside, not stretch" in shown.err
    assert not (tmp_path / "no").exists()


def test_scores_of_both_fits_are_not_compared(shaped, run, sda, tmp_path):
    status, shown = sda("train", shaped.recipe, "--out", tmp_path / "stretch", "--device", "cpu")
    assert status == 0 and "are squashed more than 1.5 times to fill 48x64" in shown.err + shown.out
    status, shown = sda("compare", run, tmp_path / "stretch")
    assert status == 2 and "different protocols" in shown.err and "(fit: inside and stretch)" in shown.err


def test_exports_say_how_images_are_resized(run):
    network = trained.load(run, device=CPU)
    facts = metadata(network)
    assert (facts["size"], facts["fit"]) == ([48, 64], "inside") and "fits inside 48x64" in facts["input"]
    text = card(network, facts, {"model.onnx": "equal"})
    assert "factor = min(size[0] / image.height, size[1] / image.width)\n" in text and "fits inside 48x64; trained on" in text
