"""Training in every setting through the command line on two tiny datasets."""

import csv
import json
import os
import shutil

import pytest
import tiny
import torch
from PIL import Image

from sda import recipe as recipes
from sda.data.assemble import assemble
from sda.methods.base import Task
from sda.methods.supervised import Supervised
from sda.models.build import build_network
from sda.models.preprocessing import IMAGENET
from sda.training.loop import train
from sda.training.optimizer import make_optimizer
from sda.training.state import prepare

CPU = torch.device("cpu")
DIFFERS = {"seconds"}  # fields in which two equal runs may differ


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.write_world(tmp_path_factory.mktemp("wörld [1] x"))


@pytest.fixture
def sda(monkeypatch, capsys):
    """`sda(arguments)`: run a command that must succeed, and return its standard output."""

    def sda(*arguments):
        status = tiny.run_main(monkeypatch, *arguments)
        output = capsys.readouterr()
        assert status == 0, output.err
        return output.out

    return sda


@pytest.fixture
def fails(monkeypatch, capsys):
    """`fails(arguments)`: run a command that must fail, and return its error message."""

    def fails(*arguments):
        assert tiny.run_main(monkeypatch, *arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return fails


def result(run):
    return json.loads((run / "result.json").read_text())


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_result(first, second):
    return {k: v for k, v in result(first).items() if k not in DIFFERS} == {
        k: v for k, v in result(second).items() if k not in DIFFERS
    }


def lines(run, stream):
    return (run / "splits" / f"{stream}.txt").read_text(encoding="utf-8").splitlines()


def student(run):
    return torch.load(run / "last.pt", weights_only=True)["student"]


def same_weights(first, second):
    a, b = student(first), student(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Every setting


@pytest.mark.parametrize("setting", tiny.SETTINGS)
def test_every_setting_trains(world, sda, tmp_path, setting):
    run, before = tmp_path / "run", tiny.files(world.root)
    printed = sda("train", world.recipe, *tiny.SETTINGS[setting], "--out", run, "--device", "cpu")
    assert "human" in printed and str(run) in printed and "whole-48x64-native" in printed
    assert tiny.files(world.root) == before  # the datasets are not modified

    wanted = [
        "best.pt",
        "datasets",
        "environment.json",
        "iou.csv",
        "last.pt",
        "metrics.jsonl",
        "recipe.toml",
        "result.json",
        "splits",
    ]
    wanted.append("student.safetensors")
    assert sorted(path.name for path in run.iterdir()) == wanted
    environment = json.loads((run / "environment.json").read_text())
    assert environment["setting"] == setting and environment["packages"]["torch"] and environment["device"] == "cpu"

    labelled = setting not in ("source-only", "UDA")
    source = setting in ("source-only", "joint", "UDA", "semi-supervised DA")
    unlabelled = setting in ("SSL", "UDA", "semi-supervised DA")
    streams = {"val", *["source"] * source, *["labelled"] * labelled, *["unlabelled"] * unlabelled}
    assert {path.stem for path in (run / "splits").iterdir()} == streams == set(environment["splits"])
    counts = {"source": 4, "labelled": 8 if setting == "oracle" else 3, "unlabelled": 5 if labelled else 8, "val": 3}
    assert {stream: len(lines(run, stream)) for stream in streams} == {stream: counts[stream] for stream in streams}
    if labelled and unlabelled:
        assert not set(lines(run, "labelled")) & set(lines(run, "unlabelled"))

    records = log(run)
    assert [record["step"] for record in records] == [0, 2, 3] and "val" in records[-1]
    losses = {"sup", "pseudo", "entropy", "contrast_l", "contrast_u"} if unlabelled else {"sup"}
    assert losses <= records[1].keys()
    if unlabelled:
        assert records[1]["bank_fill"] > 0

    score = result(run)
    assert list(score["iou"]) == ["ground", "building", "human"]
    assert score["images"] == 3 and score["steps"] == 3 and score["skipped"] == []
    with (run / "iou.csv").open() as file:
        rows = dict(csv.reader(file))
    assert float(rows["ground"]) == pytest.approx(score["iou"]["ground"] or 0, abs=1e-4)
    assert float(rows["mean over all classes"]) == pytest.approx(score["miou_all"], abs=1e-4)
    for name in ("last", "best"):
        state = torch.load(run / f"{name}.pt", weights_only=True)
        assert state["step"] == 3 and list(state["classes"]) == ["ground", "building", "human"]


def test_images_of_different_sizes(sda, tmp_path):
    """Without resizing, training uses crops, and evaluation uses each image at its own size."""
    world = tiny.write_world(tmp_path / "world")
    for place, (width, height) in (("train/north/00", (40, 90)), ("val/west/08", (77, 50))):
        for path in (f"pictures/{place}.jpg", f"labels/{place}.png"):
            with Image.open(world.root / "field" / path) as image:
                image.resize((width, height), Image.Resampling.NEAREST).save(world.root / "field" / path)
    run = tmp_path / "run"
    options = ["--size", "native", "--crop", "[48, 64]", "--labels", "all", "--device", "cpu"]
    sda("train", world.recipe, *options, "--out", run)
    score = result(run)
    assert score["protocol"]["name"] == "whole-native-native" and score["images"] == 3
    assert sum(map(sum, score["confusion"])) == 2 * 48 * 64 + 77 * 50
    assert json.loads(sda("eval", run, "--device", "cpu", "--json"))[0]["iou"] == score["iou"]


def test_class_statistics_initialise_balance_and_sampling(sda, tmp_path, monkeypatch):
    """All labelled images are counted once in the classes of the training. Balancing and sampling use the counts."""
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    world = tiny.write_world(tmp_path / "world")
    recipe = settings_of(world, rare_class_sampling=0.01, class_statistics=True, balance_classes=True).with_absolute_paths()
    data = assemble(recipe)
    for stream in ("source", "labelled"):
        labels = torch.stack([getattr(data, stream)[n].label for n in range(len(getattr(data, stream)))])
        expected = [[(label == index).sum().item() for index in range(3)] for label in labels]
        assert data.pixels[stream].tolist() == expected
    options = ["--rare-class-sampling", "0.01", "--class-statistics", "true", "--balance-classes", "true"]
    sda("train", world.recipe, *options, "--out", tmp_path / "run", "--device", "cpu")
    share = sum(pixels.sum(0) for pixels in data.pixels.values())
    kept = torch.load(tmp_path / "run/last.pt", weights_only=True)["method"]["balance.frequency"]
    torch.testing.assert_close(kept, torch.from_numpy(share / share.sum()).float(), atol=0.01, rtol=0)
    assert assemble(settings_of(world).with_absolute_paths()).pixels == {}


def settings_of(world, **changes):
    return recipes.load(str(world.recipe), changes)


def test_learning_rates_by_layer(world):
    """Each stage of the backbone has `layer_decay` times the rate of the next; other layers have `head_rate_factor`."""
    recipe = settings_of(world, backbone="mobilenet_v3_small", learning_rate=1.0, layer_decay=0.5, head_rate_factor=4.0)
    method = torch.nn.Module()
    method.student, method.other = build_network(recipe, 3, "torchvision", IMAGENET), torch.nn.Linear(2, 2)
    groups = make_optimizer(method, recipe).param_groups
    assert [group["base"] for group in groups] == [0.0625, 0.125, 0.25, 0.5, 1.0, 4.0]
    rate = {id(parameter): group["base"] for group in groups for parameter in group["params"]}
    assert len(rate) == len(list(method.parameters()))
    assert rate[id(method.student.backbone.features[0][0].weight)] == 0.0625
    assert rate[id(method.student.backbone.features[12][0].weight)] == 1.0
    assert rate[id(method.student.head.classifier.weight)] == rate[id(method.other.weight)] == 4.0


def test_source_and_target_alternate(world, tmp_path):
    """Source in even steps, labelled target images in odd ones; each stream continues at its own position."""

    def batches(out, **changes):
        seen = []

        class Recording(Supervised):
            def step(self, batch, step):
                seen.append((batch.source, batch.labelled))
                return super().step(batch, step)

        recipe = settings_of(world, **changes).with_absolute_paths()
        training = prepare(recipe, assemble(recipe), CPU)
        training.method = Recording(training.method.student, recipe.method_settings, Task(3))
        training.optimizer = make_optimizer(training.method, recipe)
        out.mkdir()
        train(training, out)
        return seen

    turns, both = batches(tmp_path / "turns", alternate=True, steps=4), batches(tmp_path / "both", steps=2)
    assert len(turns) == 4 and len(both) == 2
    assert [(source is None, labelled is None) for source, labelled in turns] == [(False, True), (True, False)] * 2
    for pair in range(2):
        assert torch.equal(turns[2 * pair][0].images, both[pair][0].images)
        assert torch.equal(turns[2 * pair + 1][1].images, both[pair][1].images)


@pytest.mark.parametrize("freeze", ["none", "affine", "all"])
def test_freeze_norm_fixes_the_norms_of_the_backbone(world, tmp_path, freeze):
    recipe = settings_of(world, freeze_norm=freeze, optimizer="adamw").with_absolute_paths()
    tmp_path.joinpath("run").mkdir()
    train(prepare(recipe, assemble(recipe), CPU), tmp_path / "run")
    trained = student(tmp_path / "run")
    torch.manual_seed(recipe.seed)
    fresh = build_network(recipe, 3, "torchvision", IMAGENET).state_dict()
    names = {"affine": "backbone.low.1.weight", "all": "backbone.low.1.running_mean"}
    assert torch.equal(trained[names["affine"]], fresh[names["affine"]]) == (freeze != "none")
    assert torch.equal(trained[names["all"]], fresh[names["all"]]) == (freeze == "all")
    head = "head.aspp.branches.0.1.weight"  # not pretrained
    for name in ("backbone.low.0.weight", head, head.replace("weight", "running_mean")):
        assert not torch.equal(trained[name], fresh[name])


# Reproduction


def test_the_saved_recipe_reproduces_the_run(world, sda, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sda("train", world.recipe, *tiny.BANK, "--out", "first", "--seed", "5", "--labels", "2", "--device", "cpu")
    opening = (tmp_path / "first/recipe.toml").read_text().splitlines()[0]
    assert opening == "# sda train first/recipe.toml"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sda("train", tmp_path / "first/recipe.toml", "--out", "again", "--device", "cpu")
    first, again = tmp_path / "first", tmp_path / "elsewhere/again"
    assert same_result(first, again) and same_weights(first, again)
    assert (first / "recipe.toml").read_text().splitlines()[1:] == (again / "recipe.toml").read_text().splitlines()[1:]
    assert tiny.files(first / "splits") == tiny.files(again / "splits")


def test_a_run_depends_on_its_seed(world, sda, tmp_path):
    for name, *flags in (("a",), ("b", "--in-memory", "true"), ("c", "--workers", "2"), ("d", "--seed", "1")):
        sda("train", world.recipe, "--steps", "2", "--out", tmp_path / name, "--device", "cpu", *flags)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert same_weights(a, b) and same_weights(a, c) and not same_weights(a, d)
    assert same_result(a, b) and same_result(a, c)
    assert lines(a, "labelled") == lines(d, "labelled")  # the split has its own seed


def test_split_seed_and_split_list_select_the_images(world, sda, tmp_path):
    chosen = "pictures/train/north/04.jpg\npictures/train/south/03.jpg\n"
    (tmp_path / "list.txt").write_text(chosen)
    sda("train", world.recipe, "--steps", "1", "--split", tmp_path / "list.txt", "--out", tmp_path / "a", "--device", "cpu")
    assert lines(tmp_path / "a", "labelled") == chosen.splitlines()
    sda("train", world.recipe, "--steps", "1", "--split-seed", "3", "--out", tmp_path / "b", "--device", "cpu")
    sda("train", world.recipe, "--steps", "1", "--out", tmp_path / "c", "--device", "cpu")
    assert set(lines(tmp_path / "b", "labelled")) != set(lines(tmp_path / "c", "labelled"))


def test_best_is_selected_by_its_criterion(world, sda, tmp_path):
    run = tmp_path / "run"
    flags = ["--eval-every", "1", "--best-by", "infomax", "--steps", "4", "--learning-rate", "0.05"]
    sda("train", world.recipe, *flags, "--out", run, "--device", "cpu")
    scores = [record["val"]["infomax"] for record in log(run) if "val" in record]
    best = torch.load(run / "best.pt", weights_only=True)
    assert len(scores) == 4 and best["best"]["by"] == "infomax"
    assert best["best"]["value"] == max(scores) and best["step"] == scores.index(max(scores)) + 1
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 4


def test_default_run_folders_are_distinct(world, sda, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        sda("train", world.recipe, "--steps", "1", "--device", "cpu")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]


# sda eval


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A trained run, shared by all tests."""
    run = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        flags = ["--learning-rate", "0.05", "--steps", "3"]
        assert tiny.run_main(monkeypatch, "train", world.recipe, "--out", run, "--device", "cpu", *flags) == 0
    return run


def test_eval_repeats_the_score_of_training(trained, sda):
    [score] = json.loads(sda("eval", trained, "--json", "--device", "cpu"))
    trained_score = result(trained)
    shared = ("protocol", "images", "skipped", "miou", "miou_all", "accuracy", "iou", "infomax", "confusion")
    assert {key: score[key] for key in shared} == {key: trained_score[key] for key in shared}
    assert (score["split"], score["checkpoint"], score["step"]) == ("val", "last", 3)


def test_eval_on_another_dataset(world, trained, sda):
    toy, own = json.loads(
        sda("eval", trained, "--dataset", world.toy, "--root", world.root / "toy", "--dataset", world.field, "--root",
            world.root / "field", "--json", "--device", "cpu")
    )  # fmt: skip
    assert list(toy["iou"]) == list(own["iou"]) == ["ground", "building", "human"]
    assert toy["images"] == 2 and own["miou"] == result(trained)["miou"]
    # by hand: the source's ids 7, 8, 9 are ground, building, human; all others are ignored
    labels = [Image.open(path) for path in sorted((world.root / "toy/val_masks").iterdir())]
    pixels = [sum(label.histogram()[value] for label in labels) for value in (7, 8, 9)]
    for label in labels:
        label.close()
    assert [sum(row) for row in toy["confusion"]] == pixels


def test_eval_of_best_prints_a_table(trained, sda):
    printed = sda("eval", trained, "--checkpoint", "best", "--device", "cpu")
    assert "mIoU, classes present" in printed and "whole-48x64-native" in printed


def test_eval_of_two_runs_prints_both(world, trained, sda, tmp_path):
    shutil.copytree(trained, tmp_path / "other")
    scores = json.loads(sda("eval", trained, tmp_path / "other", "--json", "--device", "cpu"))
    assert [score["run"] for score in scores] == [str(trained), str(tmp_path / "other")]


def test_eval_of_two_runs_with_the_same_name(trained, sda, tmp_path):
    shutil.copytree(trained, tmp_path / trained.name)
    assert len(json.loads(sda("eval", trained, tmp_path / trained.name, "--json", "--device", "cpu"))) == 2


def test_eval_uses_the_classes_of_the_checkpoint(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    sda("train", world.recipe, "--steps", "1", "--out", tmp_path / "run", "--device", "cpu")
    swapped = tiny.FIELD.replace("ground = [1, 1, 1], building = [2, 2, 2]", "building = [2, 2, 2], ground = [1, 1, 1]")
    world.field.write_text(swapped.replace("[[layout]]", 'ids = {0 = "ground", 1 = "building", 2 = "human"}\n[[layout]]'))
    [score] = json.loads(sda("eval", tmp_path / "run", "--json", "--device", "cpu"))
    assert score["iou"] == result(tmp_path / "run")["iou"]


# Streams of the real loop


def test_unlabelled_folder_without_masks(world, sda, tmp_path):
    folder = tmp_path / "photos/deep er"
    for index in range(3):
        tiny.save(tiny.draw(900 + index, [0, 0, 0], [(9, 9, 9), (90, 90, 9), (9, 90, 90)])[0], folder / f"{index} [x].png")
    copied = next((world.root / "field/pictures/val").rglob("*.jpg"))
    shutil.copy(copied, folder / "copy.jpg")  # skipped, because it is a validation image
    flags = [*tiny.BANK, "--unlabelled", tmp_path / "photos"]
    sda("train", world.recipe, *flags, "--out", tmp_path / "run", "--device", "cpu")
    assert lines(tmp_path / "run", "unlabelled") == [f"deep er/{index} [x].png" for index in range(3)]
    notes = json.loads((tmp_path / "run/environment.json").read_text())["notes"]
    assert any("1 unlabelled images are copies" in note and "copy.jpg" in note for note in notes)


@pytest.mark.parametrize("where", ["field/pictures/train/north/99.jpg", "toy/train/99.png"])
def test_validation_image_in_training_is_refused(fails, tmp_path, where):
    world = tiny.write_world(tmp_path / "world")
    copied = sorted((world.root / "field/pictures/val").rglob("*.jpg"))[0]
    shutil.copy(copied, world.root / where)
    label = "field/labels/train/north/99.png" if "field" in where else "toy/train_masks/99_mask.png"
    tiny.save(tiny.draw(0, [0, 0, 0], [(0, 0, 0)] * 3)[1], world.root / label)
    (tmp_path / "mine.txt").write_text("north/99" if "field" in where else "north/02")
    message = fails("train", world.recipe, "--split", tmp_path / "mine.txt", "--out", tmp_path / "run")
    assert "is the same image as" in message and where in message and copied.name in message
    assert not (tmp_path / "run").exists()


def with_bank(world, steps):
    """A recipe whose bank is filled from the first step, and its data with the source in memory."""
    bank = {"bank_start": 0, "unlabelled_start": 0, "bank_confidence": 0.0, "bank_size": 64, "contrast_pixels": 8}
    changes = {"method": "class_bank", "unlabelled": "target", "steps": steps, **bank}
    recipe = recipes.load(str(world.recipe), changes).with_absolute_paths()
    data = assemble(recipe)
    data.source.preload()
    return recipe, data


def test_source_pixels_reach_the_loss(world, tmp_path):
    losses = []
    for name in ("as it is", "painted"):
        recipe, data = with_bank(world, steps=2)
        if name == "painted":  # only the pixels of the source differ
            for sample in data.source._memory:
                sample.image.copy_(255 - sample.image)
        (tmp_path / name).mkdir()
        train(prepare(recipe, data, CPU), tmp_path / name)
        [first, *_] = log(tmp_path / name)
        losses.append(first)
    assert losses[0]["sup"] != losses[1]["sup"]
    assert losses[0]["bank_source"] > 0


def test_bank_with_ignored_source_has_only_target_entries(world, tmp_path):
    recipe, data = with_bank(world, steps=3)
    for sample in data.source._memory:
        sample.label.fill_(255)
    train(prepare(recipe, data, CPU), tmp_path)
    assert all(line.get("bank_source", 0) == 0 for line in log(tmp_path))


# Edges


def test_ignored_validation_labels_raise_no_traceback(monkeypatch, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    for path in (world.root / "field/labels/val").rglob("*.png"):
        Image.new("L", (tiny.WIDTH, tiny.HEIGHT), 255).save(path)
    flags = ["--steps", "1", "--out", tmp_path / "run", "--device", "cpu"]
    assert tiny.run_main(monkeypatch, "train", world.recipe, *flags) in (0, 2)


def test_run_folder_with_brackets(world, sda, tmp_path):
    (tmp_path / "a[").mkdir()
    sda("train", world.recipe, "--steps", "1", "--out", f"{tmp_path}/a[/b]", "--device", "cpu")


def test_image_name_that_is_not_utf8(monkeypatch, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    folder = world.root / "field/pictures/train/north"
    with open(os.fsencode(folder) + b"/stra\xdfe.jpg", "wb") as file:
        file.write((folder / "00.jpg").read_bytes())
    flags = ["--steps", "1", "--out", tmp_path / "run", "--device", "cpu"]
    assert tiny.run_main(monkeypatch, "train", world.recipe, *tiny.BANK, *flags) in (0, 2)


def test_checkpoint_contains_its_splits(trained):
    assert "splits" in torch.load(trained / "last.pt", weights_only=True)


def test_class_table_of_a_user_is_named_by_its_file(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    table = world.folder / "sets/tab.toml"
    table.write_text("[colors]\nground = [1, 1, 1]\nbuilding = [2, 2, 2]\nhuman = [3, 3, 3]\n")
    first, classes, rest = tiny.FIELD.partition("classes = {ground = [1, 1, 1], building = [2, 2, 2], human = [3, 3, 3]}")
    world.field.write_text(first + f'classes = "{table}"' + rest)
    world.toy.write_text(tiny.TOY.replace("[maps.field]", "[maps.tab]"))
    assert classes
    sda("train", world.recipe, "--steps", "1", "--out", tmp_path / "run", "--device", "cpu")


def test_momentum_is_passed_to_sgd():
    recipe = recipes.Recipe(target="idd_lite", labels=3, size=[64, 64], backbone="resnet50", steps=1, optimizer="adamw")
    assert recipe.ignored_fields(["momentum", "weight_decay"]) == ["momentum"]
    assert recipe.model_copy(update={"optimizer": "sgd"}).ignored_fields(["momentum"]) == []
