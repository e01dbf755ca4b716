"""Every recipe of the package with every variant: its network at full size, and two steps on tiny images.

And what a run with several sources writes.
"""

import json
import re

import numpy as np
import pytest
import tiny
import torch

from sda import recipe, shelf, streets
from sda.data import descriptor as descriptors
from sda.data.assemble import training_classes
from sda.experiments import run as experiment
from sda.methods.by_name import METHODS
from sda.models.build import build_network
from sda.models.preprocessing import IMAGENET
from sda.system.progress import Bars

RECIPES = shelf.names("recipes")
VARIANTS = [(name, {}) for name in RECIPES]
VARIANTS += [
    (name, {field: value})
    for name in RECIPES
    for field, value, _ in recipe.variants(shelf.parse(shelf.find("recipes", name)), shelf.find("recipes", name))
]


def label(variant):
    name, changes = variant
    return " ".join([name, *(f"{key}={value}" for key, value in changes.items())])


@pytest.mark.parametrize("variant", VARIANTS, ids=label)
def test_network_of_every_recipe_at_full_size(variant):
    """Run the network of the recipe on a batch of crops on the meta device, which takes no memory and little time."""
    name, changes = variant
    loaded = recipe.load(name, {**changes, "precision": "float32"})  # autocast does not support the meta device
    _, table = training_classes(loaded)
    with torch.device("meta"):
        network = build_network(loaded, len(table.names), "torchvision", IMAGENET)
        logits, features = network(torch.empty(2, 3, *loaded.crop_size))
    height, width = loaded.crop_size
    assert logits.shape == (2, len(table.names), -(-height // network.stride), -(-width // network.stride))
    assert features.shape[1] == network.feature_channels


def write_dataset(name, root):
    """Write a few tiny images per split, each in the first layout with that split. The labels have all ids of the descriptor."""
    described = descriptors.load(name)
    values = sorted(descriptors.label_values(described, "ids"))
    for split, count in (("train", 8), ("val", 2)):
        fitting = [one for one in described.layout if one.split in (None, split)]
        layout = next((one for one in fitting if one.by_split or one.split or split == "train"), None)
        if layout is None:
            continue
        words = {"split": described.splits.get(split, split)}
        names = []
        for index in range(count):
            filled = {**words, **{word: f"{word}{index}" for word in re.findall(r"{(\w+)}", layout.images) if word != "split"}}
            random = np.random.default_rng([*name.encode(), index, count])
            image = random.integers(0, 255, (64, 96, 3), dtype=np.uint8)
            ids = np.array(values, np.uint8)[random.integers(len(values), size=(16, 24))].repeat(4, 0).repeat(4, 1)
            for pattern, array in ((layout.images, image), (layout.labels, ids)):
                path = root / pattern.format(**filled)
                tiny.save(array, path)
            names.append((root / layout.images.format(**filled)).stem)
        if layout.list:
            listed = root / layout.list.format(**words)
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text("".join(f"{name}\n" for name in names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of all datasets, each of which is written once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def root(folder, monkeypatch):
    """`root(recipe)`: write the datasets of a recipe and return their folder."""
    write = streets.write
    counts = {"game": 4, "camera_train": 8, "camera_val": 2, "processes": 1}
    monkeypatch.setattr(streets, "write", lambda root, progress: write(root, progress=progress, **counts))

    def prepare(loaded):
        for name in filter(None, (loaded.source, loaded.target)):
            if not descriptors.load(name).generated and not (folder / name).exists():
                write_dataset(name, folder / name)
        return folder

    return prepare


# Recipes with large networks, and recipes that differ from those of streets only in their datasets
SLOW = [variant for variant in VARIANTS if not variant[0].startswith("streets") and label(variant) != "cityscapes-ssl"]
SLOW.remove(("camvid-idd_lite-ssda", {}))


@pytest.mark.parametrize(
    "variant",
    [pytest.param(variant, marks=pytest.mark.slow if variant in SLOW else ()) for variant in VARIANTS],
    ids=label,
)
def test_two_steps_of_every_recipe(variant, root, tmp_path):
    """Train on tiny crops with random weights. All losses begin in the first two steps."""
    name, changes = variant
    data = root(recipe.load(name, changes))
    small = {
        "root": str(data), "steps": 2, "workers": 0, "weights": "none", "crop": [48, 64], "eval_every": 0,
        "batch_source": 2, "batch_labelled": 2, "batch_unlabelled": 2, "bank_start": 0, "unlabelled_start": 1,
        "bank_confidence": 0.0, "contrast_pixels": 16,
    }  # fmt: skip
    loaded = recipe.load(name, changes)
    small["protocol"] = "whole"  # the size below, not that of the paper
    small |= {key: [64, 96] for key in ("size", "source_size") if getattr(loaded, key) not in (None, "native")}
    if "patch14" in loaded.backbone:
        small["crop"] = [42, 56]
    if loaded.backbone == "resnet101":
        small["backbone"] = "resnet50"  # same blocks, fewer of them; the test above builds the deeper one
    if loaded.labels not in (0, "all"):
        small["labels"] = 2
    tried = recipe.load(name, {**changes, **small}).with_absolute_paths()
    result = experiment.run(tried, name, tmp_path / "run", torch.device("cpu"), Bars())
    assert result["steps"] == 2 and 0 <= result["miou"] <= 100
    assert tried.setting == loaded.setting and tried.method in METHODS


# Several sources


def test_the_run_folder_report_and_model_card_name_all_sources(own_world, farm, sda):
    run, both = own_world.folder / "run", f"{own_world.toy},{farm}"
    flags = ["--source", both, "--source-weights", "3,1", "--steps", 2, "--device", "cpu", "--out", run, "--json"]
    status, shown = sda("train", own_world.recipe, *flags)
    assert status == 0, shown.err
    assert "source-toy: 4 images, 75.0% of the draws" in shown.err
    assert "source-farm: 6 images, 25.0% of the draws" in shown.err
    assert json.loads(shown.out)["missing_classes_of"] == {"source": [], "target": []}
    facts = json.loads((run / "environment.json").read_text())
    assert {name: split["images"] for name, split in facts["splits"].items()}["source-farm"] == 6
    assert len((run / "splits/source-toy.txt").read_text().splitlines()) == 4
    assert recipe.load(str(run / "recipe.toml")).source == [str(own_world.toy), str(farm)]
    assert sda("eval", run, "--dataset", farm, "--split", "train", "--device", "cpu")[0] == 0  # finds its folder by itself
    assert sda("report", run, "--out", own_world.folder / "page")[0] == 0
    page = (own_world.folder / "page/report.html").read_text(encoding="utf-8")
    assert "toy + farm → field" in page and "4 toy source" in page and "6 farm source" in page
    assert sda("export", run, "--as", "safetensors")[0] == 0
    assert not [path for path, content in tiny.files(run / "export").items() if str(own_world.folder).encode() in content]
    card = (run / "export/README.md").read_text()
    assert "| source | Toy town: 4 labelled images, 75.0% of the draws |" in card
    assert "| source | Farm: 6 labelled images, 25.0% of the draws |" in card
    assert "**Farm** (source)" in card and "**Toy town** (source)" in card
