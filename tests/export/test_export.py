"""Exported models equal the network, even without sda and PyTorch."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import sda as package
from sda.data.descriptor import class_table
from sda.export import build as export
from sda.export import card as model_card
from sda.export import formats
from sda.export.rewrite import exportable
from sda.models.build import build_network
from sda.models.network import norms_of
from sda.models.preprocessing import IMAGENET, PREPROCESSING
from sda.recipe import Recipe
from sda.runs import checkpoint
from sda.runs.trained import Run
from sda.system import atomic
from sda.system.progress import Bars

ALONE = "import sys; sys.modules.update(dict.fromkeys(('sda', 'torch', 'torchvision')))\n"  # None makes the import fail
ODD = [(1, 33, 47), (2, 65, 129), (3, 50, 34), (1, 200, 311)]
ALL = ("--as", "onnx", "--as", "torchscript", "--as", "torch-export", "--as", "safetensors")
DOCS = Path(__file__).parents[2] / "docs/export.md"


def make_lively(network: nn.Module) -> nn.Module:
    """Fit the norms and scale the logits of a random network, so that it predicts different classes in different places."""
    network.requires_grad_(False).train()
    for norm in norms_of(network):
        nn.init.normal_(norm.bias, std=0.3)
    for number in range(20):
        network(export.picture(2, 64, 64, seed=number))
    classifiers = [network.head.classifier] if hasattr(network.head, "classifier") else network.head.branches
    scale = 3 / network.eval()(export.picture(1, 96, 96, seed=99))[0].std()
    for layer in classifiers:
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
    return network


def predict(network, images):
    """Return labels and confidence of a network, computing torchvision's preprocessing by its formula."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (images.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    logits, _ = network.head(network.backbone(torch.from_numpy(x).float()))
    logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
    confidence, labels = logits.softmax(dim=1).max(dim=1)
    return labels.numpy(), confidence.numpy()


def check_same(found, expected):
    (labels, confidence), (expected_labels, expected_confidence) = found, expected
    assert labels.dtype == np.uint8 and confidence.dtype == np.float32
    assert labels.shape == confidence.shape == expected_labels.shape
    np.testing.assert_allclose(confidence, expected_confidence, atol=1e-4)
    assert (labels == expected_labels).mean() > 0.999


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with photo.jpg and runs/mine, a run with varied predictions that is exported in all formats."""
    folder = tmp_path_factory.mktemp("export")
    world, run = tiny.write_world(folder / "world"), folder / "runs/mine"
    with pytest.MonkeyPatch.context() as patch:
        flags = ["--method", "mean_teacher", "--unlabelled", "target", "--out", run, "--device", "cpu"]
        assert tiny.run_main(patch, "train", world.recipe, *flags) == 0
        state = checkpoint.load(run / "last.pt")
        network = make_lively(build_network(Recipe(**state["recipe"]), 3, "torchvision", IMAGENET))
        state["student"] = network.state_dict()
        teacher = {**state["student"], "head.classifier.weight": -state["student"]["head.classifier.weight"]}
        state["method"] |= {f"teacher.model.{name}": value for name, value in teacher.items()}
        checkpoint.save(run / "last.pt", state)
        assert tiny.run_main(patch, "eval", run) == 0
        assert tiny.run_main(patch, "eval", run, "--network", "teacher") == 0
        assert tiny.run_main(patch, "export", run, *ALL) == 0
    (image,) = export.picture(1, tiny.HEIGHT, tiny.WIDTH, seed=5).numpy()
    Image.fromarray(image.transpose(1, 2, 0)).save(folder / "photo.jpg", "PNG")  # at the training size, lossless
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    """The folder above as the working directory."""
    monkeypatch.chdir(made)
    return made


def test_output_contains_only_progress_and_results(folder, tmp_path, monkeypatch, capfd):
    assert tiny.run_main(monkeypatch, "export", "runs/mine", *ALL[:4], "--out", tmp_path / "out", "--json") == 0
    shown = capfd.readouterr()  # the output of Python and of native code
    assert shown.err.splitlines() == ["model.onnx: exporting", "model.torchscript: exporting"]
    files = json.loads(shown.out)["files"]
    assert [Path(entry["file"]).name for entry in files] == ["model.onnx", "model.torchscript"]
    for entry in files:
        assert entry["check"]["pictures"] == ["1x33x47", "2x65x129", "2x48x64"]
        assert entry["check"]["equal"] > 0.999 and entry["check"]["confidence"] < 1e-4
        assert entry["bytes"] == Path(entry["file"]).stat().st_size
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.torchscript"}


def test_files_do_not_contain_local_paths(folder):
    for path in Path("runs/mine/export").iterdir():
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                contents = [file.read(name) for name in file.namelist()]
        for place in (folder, sys.prefix, Path(package.__file__).parent):
            assert not any(str(place).encode() in content for content in contents), (path.name, place)


def test_onnx_runs_without_sda_and_torch(folder, tmp_path):
    pictures = [export.picture(*size, seed=number) for number, size in enumerate(ODD)]
    np.savez(tmp_path / "in.npz", *[images.numpy() for images in pictures])
    code = f"""
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("runs/mine/export/model.onnx", providers=["CPUExecutionProvider"])
images = np.load({str(tmp_path / "in.npz")!r})
np.savez({str(tmp_path / "out.npz")!r}, *[part for name in images for part in session.run(None, {{"image": images[name]}})])
"""
    subprocess.run([sys.executable, "-c", ALONE + code], check=True)
    with np.load(tmp_path / "out.npz") as stored:
        found = list(stored.values())
    network, several = package.load("runs/mine", device="cpu").network, 0
    for number, images in enumerate(pictures):
        check_same(found[2 * number : 2 * number + 2], predict(network, images))
        several = max(several, len(np.unique(found[2 * number])))
    assert several == 3, "a test with one predicted class proves little"


def test_onnx_has_metadata(folder):
    import onnx

    model = onnx.load("runs/mine/export/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_param or side.dim_value for side in image.type.tensor_type.shape.dim] == ["batch", 3, "height", "width"]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["size"]) == [48, 64] and json.loads(facts["step"]) == 3
    assert json.loads(facts["classes"]) == {"ground": [1, 1, 1], "building": [2, 2, 2], "human": [3, 3, 3]}
    assert json.loads(facts["check"])["equal"] > 0.999 and facts["sda"] == package.__version__
    recipe = json.loads(facts["recipe"])
    assert recipe["method"] == "mean_teacher" and recipe["target"] == "./field.toml"


@pytest.mark.parametrize("name", ["model.torchscript", "model.pt2"])
def test_torchscript_and_torch_export_equal_the_network(folder, name):
    extra, file = {"sda.json": ""}, f"runs/mine/export/{name}"
    with warnings.catch_warnings(action="ignore"):
        if name.endswith(".pt2"):
            module = torch.export.load(file, extra_files=extra).module()
        else:
            module = torch.jit.load(file, _extra_files=extra)
        run = package.load("runs/mine", device="cpu")
        for number, size in enumerate(ODD):
            images = export.picture(*size, seed=number)
            check_same([part.numpy() for part in module(images)], predict(run.network, images))
    facts = json.loads(extra["sda.json"])
    assert facts["size"] == [48, 64] and facts["check"]["pictures"][0] == "1x33x47"


@pytest.mark.parametrize("path", ["runs/mine/export", "runs/mine/export/model.safetensors"])
def test_exported_weights_load_as_a_run(folder, path, tmp_path):
    shutil.copytree("runs/mine/export", tmp_path / "runs/mine/export")  # separate from its run
    there, here = package.load(tmp_path / path, device="cpu"), package.load("runs/mine", device="cpu")
    one, other = there.predict("photo.jpg"), here.predict("photo.jpg")
    assert np.array_equal(one.labels, other.labels) and np.array_equal(one.confidence, other.confidence)
    assert one.table == other.table and (there.which, there.network_name, there.step) == ("last", "student", 3)
    assert there.splits == here.splits and len(there.splits["labelled"]) == 3


def test_exported_weights_have_the_format_of_runs(folder):
    old, new = Path("runs/mine/student.safetensors"), Path("runs/mine/export/model.safetensors")
    before, after = checkpoint.load(old), checkpoint.load(new)
    assert after.keys() - before.keys() == {"sda", "checkpoint", "network"} and not before.keys() - after.keys()
    assert before["student"].keys() == after["student"].keys() == safetensors.torch.load_file(new).keys()
    assert package.load(old, device="cpu").step == 3


def test_model_card_describes_the_run(folder):
    text = Path("runs/mine/export/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    front = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}
    assert front["library_name"] == "sda" and front["license"] == "unknown"
    result = json.loads(Path("runs/mine/result.json").read_text())
    (student,) = Path("runs/mine/evaluations").glob("field-val-whole-48x64-native.json")
    scores = [result["miou"], json.loads(student.read_text())["miou"]]
    (model,) = front["model-index"]
    shown = [entry["metrics"][0]["value"] for entry in model["results"]]
    assert shown == [round(score, 1) for score in scores], "the teacher's score is not the student's"
    for words in (
        "| source | Toy town: 4 labelled images |",
        "| target | Field: 3 labelled images, 5 unlabelled |",
        "Licence: unknown (the descriptor names none)",
        "| 1 | building | #020202 |",
        f"whole-48x64-native | {scores[0]:.1f} |",
        "resize images so that their shorter side is 48",
        "Do not use it where errors can harm people.",
        model_card.ONNX_EXAMPLE,
    ):
        assert words in body, words


def test_model_card_names_the_licences_of_datasets(folder):
    run = package.load("runs/mine", device="cpu")
    recipe = run.recipe.model_copy(update={"source": "gta5", "target": "cityscapes", "weights": "imagenet"})
    known = Run(**{**vars(run), "recipe": recipe, "folder": Path("nowhere")})
    text = model_card.card(known, export.metadata(known), {})
    assert (
        "**GTA5 (Playing for Data)** (source, https://download.visinf.tu-darmstadt.de/data/from_games/). Licence: research"
        in text
    )
    assert "timm's default for small" in text and "was not evaluated" in text and "model-index" not in text


def test_examples_of_the_documentation_run(folder, tmp_path):
    api, plain = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert len(api.splitlines()) <= 10 and plain == model_card.ONNX_EXAMPLE
    space = {}
    exec(api, space)
    Path("labels.png").unlink()
    for file in ("photo.jpg", "runs/mine/export/model.onnx"):
        shutil.copy(file, tmp_path)
    subprocess.run([sys.executable, "-c", ALONE + plain], cwd=tmp_path, check=True)
    picture = Image.open(tmp_path / "labels.png")
    assert picture.mode == "P" and picture.getpalette()[:9] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (np.asarray(picture) == space["prediction"].labels).mean() > 0.999
    with Image.open("photo.jpg") as photo:
        photo.resize((200, 150)).save(tmp_path / "photo.jpg")
    subprocess.run([sys.executable, "-c", ALONE + plain], cwd=tmp_path, check=True)
    labels = package.load("runs/mine").predict(tmp_path / "photo.jpg").labels
    assert (np.asarray(Image.open(tmp_path / "labels.png")) == labels).mean() > 0.95  # edges may differ


def test_existing_files_are_only_overwritten_on_request(folder, tmp_path, sda):
    out = tmp_path / "out"
    assert sda("export", "runs/mine", "--as", "safetensors", "--out", out)[0] == 0
    (out / "README.md").write_text("mine")
    before = tiny.files(out)
    status, shown = sda("export", "runs/mine", "--as", "safetensors", "--out", out)
    assert status == 2 and "already contains model.safetensors and README.md; replace them with --overwrite" in shown.err
    assert tiny.files(out) == before
    status, shown = sda("export", "runs/mine", "--as", "safetensors", "--out", out, "--overwrite", "--network", "teacher")
    assert status == 0 and (out / "README.md").read_text() != "mine"
    teacher = package.load(out, device="cpu")
    assert teacher.network_name == "teacher" and sorted(tiny.files(out)) == ["README.md", "model.safetensors"]
    student = package.load("runs/mine", device="cpu").network.head.classifier.weight
    assert torch.equal(teacher.network.head.classifier.weight, -student)
    with pytest.raises(package.errors.SdaError, match="the file only has the teacher of last.pt"):
        package.load(out, checkpoint="best")


@pytest.mark.parametrize(
    "fault", ["other preprocessing", "other resizing", "one size", "one image", "not a number", "other classes", "another type"]
)
def test_a_faulty_export_is_not_written(folder, tmp_path, sda, monkeypatch, fault):
    """Each fault has occurred in an exporter or could come from a wrong wrapper."""

    def resize(deployed, enlarge):
        deployed.network = copy.copy(deployed.network)  # the original, which it is compared with, does not change
        deployed.network.grid = types.SimpleNamespace(enlarge=enlarge)

    def faulty(deployed, size):
        if fault == "other preprocessing":
            normalise = deployed.network.normalise
            normalise.preprocessing = dataclasses.replace(normalise.preprocessing, maximum=255 / 256)
            normalise.mean = normalise.mean.flip(0)
        if fault == "other resizing":
            resize(deployed, lambda logits, size: F.interpolate(logits, size, mode="nearest"))
        if fault == "one size":
            resize(deployed, lambda logits, size: F.interpolate(logits, (72, 104), mode="bilinear"))
        if fault == "one image":
            return lambda image: [part[:1] for part in deployed(image)]
        if fault == "not a number":
            holes = {(33, 47): 1.0, (65, 129): torch.nan, (48, 64): 1.0}  # in the second of three pictures
            return lambda image: (lambda labels, sure: (labels, sure * holes[image.shape[2:]]))(*deployed(image))
        if fault == "other classes":
            return lambda image: (lambda labels, sure: (labels + 9, sure))(*deployed(image))
        if fault == "another type":
            return lambda image: (lambda labels, sure: (labels.long(), sure))(*deployed(image))
        return deployed

    flawed = formats.Format("model.torchscript", faulty, lambda made, facts: made, lambda made: made)
    monkeypatch.setitem(export.FORMATS, "torchscript", flawed)
    status, shown = sda("export", "runs/mine", "--as", "torchscript", "--as", "safetensors", "--out", tmp_path / "out")
    assert status == 2 and shown.err.count("--as torchscript: the exported model ") == 1 and "nothing was written" in shown.err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_files(folder, tmp_path, sda, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    status, shown = sda("export", "runs/mine", "--as", "safetensors", "--out", tmp_path / "out")
    assert status == 2 and "cannot write the export (No space left on device)" in shown.err
    assert not tiny.files(tmp_path / "out")


def test_missing_packages_are_reported_first(folder, tmp_path, sda, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name != "onnx" else True)
    status, shown = sda("export", "runs/mine", "--out", tmp_path / "out")
    assert status == 2 and "--as onnx needs packages that are not installed: pip install onnxruntime onnxscript" in shown.err
    status, _ = sda("export", "runs/mine", "--out", tmp_path / "out", "--as", "safetensors")
    assert status == 0


def test_a_network_of_lower_precision_is_exported_in_float32(folder, tmp_path, sda):
    state = checkpoint.load(Path("runs/mine/last.pt"))
    state["recipe"]["precision"] = "bfloat16"
    (tmp_path / "run").mkdir()
    checkpoint.save(tmp_path / "run/last.pt", state)
    status, shown = sda("export", tmp_path / "run", "--as", "torchscript", "--as", "safetensors", "--json")
    assert status == 0 and re.search(r"float32 compared with bfloat16, on synthetic images: \d+\.\d+ % of the labels", shown.err)
    written = json.loads(shown.out)
    assert 0.8 < written["float32"]["equal"] < 1 and 1e-4 < written["float32"]["confidence"] < 0.2
    with warnings.catch_warnings(action="ignore"):
        module = torch.jit.load(tmp_path / "run/export/model.torchscript")
        images = export.picture(1, 40, 60, seed=3)
        exact = package.load("runs/mine", device="cpu").network
        check_same([part.numpy() for part in module(images)], predict(exact, images))
    assert package.load(tmp_path / "run/export", device="cpu").recipe.precision == "bfloat16"


@pytest.mark.parametrize("damage", ["cut short", "of another's", "without a network"])
def test_damaged_weights_are_refused(folder, tmp_path, sda, damage):
    content = Path("runs/mine/export/model.safetensors").read_bytes()
    if damage == "of another's":
        content = safetensors.torch.save({"weight": torch.zeros(3)})
    if damage == "without a network":
        content = checkpoint.to_safetensors({}, {"step": 1})
    (tmp_path / "model.safetensors").write_bytes(content[: -1000 if damage == "cut short" else None])
    status, shown = sda("export", tmp_path, "--as", "safetensors")
    assert status == 2 and str(tmp_path / "model.safetensors") in shown.err and shown.err.count("\n") == 1


def test_padded_pooling_equals_pooling_that_rounds_up():
    """The pooling of Caffe's ResNet equals its replacement for odd and even sizes."""
    network = build_network(caffe_recipe("deeplabv3plus"), 19, "caffe", PREPROCESSING["caffe"])
    rounding = network.backbone.maxpool
    padding = exportable(network).backbone.maxpool
    assert rounding.ceil_mode and padding is not rounding
    for height, width in [(16, 17), (17, 16), (18, 33), (35, 19), (8, 9)]:
        x = torch.randn(1, 2, height, width).relu()
        assert torch.equal(rounding(x), padding(x))


def caffe_recipe(network, backbone="resnet50"):
    return Recipe(target="streets-camera", labels=3, size=[40, 56], network=network, backbone=backbone, steps=1)


@pytest.mark.slow
def test_a_real_network_with_the_installed_command(tmp_path):
    world = tiny.write_world(tmp_path)
    sda = [sys.executable, "-W", "error", "-m", "sda"]
    subprocess.run([*sda, "train", world.real, "--out", "run", "--device", "cpu"], cwd=tmp_path, check=True)
    shown = subprocess.run([*sda, "export", "run", *ALL], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    names = ["model.onnx", "model.torchscript", "model.pt2"]
    assert shown.stderr.splitlines() == [f"{name}: exporting" for name in names]
    assert {path.name for path in (tmp_path / "run/export").iterdir()} == {*names, "model.safetensors", "README.md"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "backbone", "form"),
    [
        ("deeplabv2", "resnet50", "caffe"),
        ("deeplabv3plus", "resnet50", "caffe"),
        ("deeplabv3plus", "resnet101", "torchvision"),
        ("deeplabv2", "mobilenet_v2", "torchvision"),
        ("deeplabv3plus", "mobilenet_v3_large", "torchvision"),
    ],
)
def test_every_network_and_backbone_can_be_exported(tmp_path, network, backbone, form):
    recipe, table = caffe_recipe(network, backbone), class_table("cityscapes19")
    lively = make_lively(build_network(recipe, 19, form, PREPROCESSING[form]))
    run = Run(Path("run"), "last", "student", recipe, table, "cityscapes19", lively, form, 1, {})
    with Bars(quiet=True) as bars:
        written = export.export(run, ("onnx", "torchscript", "torch-export"), tmp_path, bars)
    assert all(entry["check"]["equal"] > 0.999 for entry in written["files"]) and len(written["files"]) == 3
