"""Scores under protocols, criteria that select a checkpoint, sda eval and sda compare."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sda.data.evaluation import evaluation_set
from sda.errors import SdaError
from sda.protocol import Protocol
from sda.runs import compare, trained
from sda.scoring.evaluate import evaluate
from sda.scoring.metrics import confusion_matrix, score

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(world, do, tmp_path_factory):
    """A run of class_bank, evaluated at every step, with two held-out images."""
    out = tmp_path_factory.mktemp("runs") / "a"
    flags = [
        "--eval-every",
        1,
        "--labels",
        5,
        "--hold-out",
        2,
        "--best-by",
        "entropy",
        "--learning-rate",
        0.02,
        "--crop",
        "[32, 48]",
    ]
    do("train", world.recipe, *tiny.BANK, *flags, "--out", out, "--device", "cpu")
    return out


@pytest.fixture
def mine(run, tmp_path):
    """A copy of the run that a test may write to."""
    return shutil.copytree(run, tmp_path / "mine")


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "protocol",
    [Protocol((48, 64)), Protocol((32, 40), (24, 32)), Protocol(None, (30, 30)), Protocol((48, 64), window=(32, 32), flip=True)],
    ids=lambda protocol: protocol.name,
)
def test_scores_equal_a_plain_loop(world, run, protocol):
    """Resize images and labels with Pillow, one at a time, and count the confusion matrix pixel by pixel."""
    network = trained.load(run, "last", device=CPU)
    data = evaluation_set(network.table_name, network.table, protocol.input, str(world.field), str(world.root / "field"), "val")
    found = evaluate(network.network, data.val, network.table.names, CPU, protocol)
    matrix = torch.zeros(3, 3, dtype=torch.int64)
    each = {}
    for item in data.val.items:
        with Image.open(item.image) as image, Image.open(item.label) as label:
            size = protocol.score or label.size[::-1]
            image = image.resize((protocol.input or image.size[::-1])[::-1], Image.Resampling.BILINEAR)
            label = np.asarray(label.resize(size[::-1], Image.Resampling.NEAREST))
            predicted = network.segment(image.convert("RGB"), Protocol(None, window=protocol.window, flip=protocol.flip))
        logits = torch.from_numpy(predicted.labels)
        if logits.shape != size:  # resize the logits to the scored size, not the prediction
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            large = torch.nn.functional.interpolate(network.network(pixels)[0], size, mode="bilinear")
            logits = large[0].argmax(dim=0)
        one = confusion_matrix(logits.long(), torch.from_numpy(label.copy()), 3)
        each[item.key] = score(one, network.table.names)["miou"]
        matrix += one
    assert found["confusion"] == matrix.tolist() and found["image_miou"] == each
    assert found["miou"] == score(matrix, network.table.names)["miou"]
    assert found["protocol"]["name"] == protocol.name
    assert found["interval"][0] <= found["miou"] + 1e-9 and found["interval"][1] >= min(each.values()) - 1e-9


def test_criteria_by_hand(world, run):
    """Entropy, information maximisation and agreement from the probabilities of all pixels."""
    student, teacher = trained.load(run, "last", device=CPU), trained.load(run, "last", "teacher", CPU)
    data = evaluation_set(student.table_name, student.table, (48, 64), str(world.field), str(world.root / "field"), "val")
    found = evaluate(student.network, data.val, student.table.names, CPU, Protocol((48, 64)), teacher=teacher.network)
    both = []
    for network in (student, teacher):
        images = torch.stack([data.val[index].image for index in range(3)])
        logits = network.network(images)[0]
        both.append(torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear").softmax(dim=1).double())
    p = both[0]
    entropy = -(p * p.log()).sum(dim=1).mean() / np.log(3)
    mean = p.mean(dim=(0, 2, 3))
    assert found["entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert found["infomax"] == pytest.approx((-(mean * mean.log()).sum() / np.log(3) - entropy).item(), abs=1e-5)
    assert found["agreement"] == pytest.approx((p.argmax(1) == both[1].argmax(1)).double().mean().item())


def test_training_records_the_choice_of_each_criterion(world, run):
    result = read(run / "result.json")
    assert result["selection"].keys() == {"last", "oracle", "entropy", "infomax", "agreement", "held_out"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = {record["step"]: record["val"] for record in records if "val" in record}
    assert evaluations.keys() == {1, 2, 3}
    chosen = min(evaluations, key=lambda step: evaluations[step]["entropy"])
    assert result["selection"]["entropy"]["step"] == chosen
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["step"] == chosen and best["best"]["by"] == "entropy"
    for choice in result["selection"].values():
        assert choice["behind"] == result["selection"]["oracle"]["miou"] - choice["miou"] >= 0


def test_training_prints_the_choice_of_each_criterion(sda, world, tmp_path):
    flags = ["--eval-every", 1, "--learning-rate", 0.02, "--out", tmp_path / "run", "--device", "cpu"]
    status, shown = sda("train", world.recipe, *tiny.BANK, *flags)
    assert status == 0 and "selected by" in shown.out and "below the oracle" in shown.out
    assert all(name in shown.out for name in ("last", "oracle", "entropy", "infomax", "agreement"))


def test_held_out_images_are_not_used_in_training(world, run):
    lists = {path.stem: set(path.read_text().split()) for path in (run / "splits").iterdir()}
    assert len(lists["labelled"]) == 3 and len(lists["held_out"]) == 2
    assert not lists["held_out"] & (lists["labelled"] | lists["unlabelled"] | lists["val"])
    assert len(lists["unlabelled"]) == 3
    data = evaluation_set(
        "field", trained.load(run, "last", device=CPU).table, (48, 64), str(world.field), str(world.root / "field"), "train"
    )
    few = trained.load(run, "last", device=CPU)
    data.val.items = [item for item in data.val.items if item.key in lists["held_out"]]
    found = evaluate(few.network, data.val, few.table.names, CPU, Protocol((48, 64)))
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["val"]["held_out"] == found["miou"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hold-out", 3], "hold_out = 3 leaves none of the 3 labelled images to train on"),
        (["--best-by", "held_out"], "best_by = held_out needs held-out images: set hold_out > 0"),
        (["--best-by", "agreement"], "it needs unlabelled images and eval_every > 0"),
    ],
)
def test_criteria_without_their_data_are_refused(sda, world, tmp_path, flags, words):
    status, shown = sda("train", world.recipe, *flags, "--out", tmp_path / "run")
    assert status == 2 and words in shown.err


def test_eval_with_a_protocol_is_saved_in_the_run(sda, mine):
    flags = ["--protocol", "slide", "--scales", "0.5,1", "--flip", "--network", "teacher"]
    status, shown = sda("eval", mine, *flags, "--json", "--device", "cpu")
    assert status == 0, shown.err
    [found] = json.loads(shown.out)
    name = "slide32x48-48x64-native-scales0.5,1-flip"
    assert found["protocol"]["name"] == name and found["network"] == "teacher"
    assert f"{name}: 4 passes per image, 2.5 times the pixels of one pass at scale 1" in shown.err
    [kept] = (mine / "evaluations").iterdir()
    assert kept.name == f"field-val-{name}-teacher.json" and read(kept) == found


def test_the_teacher_is_scored_separately(sda, mine):
    scores = {}
    for network in ("student", "teacher"):
        status, shown = sda("eval", mine, "--network", network, "--json", "--device", "cpu")
        assert status == 0
        scores[network] = json.loads(shown.out)[0]["entropy"]
    assert scores["student"] == read(mine / "result.json")["entropy"] != scores["teacher"]
    status, shown = sda("eval", mine, "--network", "teacher", "--checkpoint", "best", "--device", "cpu")
    assert status == 2 and "the checkpoint has no teacher: best.pt only has the student" in shown.err


def test_eval_prints_a_row_for_each_domain(sda, world, mine):
    status, shown = sda(
        "eval", mine, "--dataset", world.field, "--root", world.root / "field", "--dataset", world.toy, "--root",
        world.root / "toy", "--device", "cpu",
    )  # fmt: skip
    assert status == 0, shown.err
    table = shown.out[shown.out.index("95 % interval") :]
    assert table.count("mine on") == 2 and "Boundary IoU" in table and "ECE" in table
    assert {path.name for path in (mine / "evaluations").iterdir()} == {
        "field-val-whole-48x64-native.json", "toy-val-whole-48x64-native.json",
    }  # fmt: skip


def test_scores_that_cannot_be_saved_are_still_shown(sda, mine):
    (mine / "evaluations").write_text("in the way")
    status, shown = sda("eval", mine, "--device", "cpu")
    assert status == 0 and "mIoU" in shown.out and "cannot save the scores" in shown.err


def test_compare_refuses_different_protocols(sda, mine, tmp_path):
    assert sda("eval", mine, "--flip", "--device", "cpu")[0] == 0
    [flipped] = (mine / "evaluations").iterdir()
    status, shown = sda("compare", mine, flipped)
    assert status == 2
    assert "under different protocols, whole-48x64-native and whole-48x64-native-flip (flip: False and True)" in shown.err
    other = shutil.copytree(mine, tmp_path / "other")
    changed = read(other / "result.json")
    (other / "result.json").write_text(json.dumps({**changed, "dataset": "elsewhere"}))
    status, shown = sda("compare", mine, other)
    assert status == 2 and "is scored on" in shown.err and "elsewhere" in shown.err
    status, shown = sda("compare", mine, tmp_path / "nowhere")
    assert status == 2 and "nowhere: no such run or score" in shown.err
    (other / "result.json").unlink()
    status, shown = sda("compare", other)
    assert status == 2 and "this run is not finished" in shown.err
    (other / "result.json").write_text("[]")
    status, shown = sda("compare", other)
    assert status == 2 and "expected a JSON object, found list" in shown.err
    status, shown = sda("compare", mine, other)
    assert status == 0 and "skipped: " in shown.err and "found list" in shown.err and "mine" in shown.out


@pytest.fixture
def three(mine, tmp_path):
    """Three runs: two differ only in their seeds, and one has another learning rate."""
    folders = [mine]
    for number, (field, value, better) in enumerate([("seed", 1, 3.0), ("learning_rate", 0.5, 10.0)]):
        folder = shutil.copytree(mine, tmp_path / f"other & {number}")
        lines = (folder / "recipe.toml").read_text().splitlines()
        (folder / "recipe.toml").write_text(
            "\n".join(f"{field} = {value}" if line.startswith(f"{field} =") else line for line in lines)
        )
        result = read(folder / "result.json")
        result["miou"] += better
        (folder / "result.json").write_text(json.dumps(result))
        folders.append(folder)
    return folders


def test_compare_with_seeds_merged(three):
    scores = [compare.read(folder) for folder in three]
    rows = compare.rows(scores, merge=True)
    base = read(three[0] / "result.json")["miou"]
    assert [(row.title, row.count) for row in rows] == [("mine, 2 seeds", 2), ("other & 1", 1)]
    assert rows[0].miou == pytest.approx(base + 1.5) and rows[0].spread == pytest.approx(3 / np.sqrt(2))
    assert rows[0].interval is None and rows[1].interval == tuple(read(three[2] / "result.json")["interval"])
    assert len(compare.rows(scores, merge=False)) == 3


def test_runs_with_equal_seeds_are_not_merged(three, tmp_path):
    copy = shutil.copytree(three[0], tmp_path / "copy")
    scores = [compare.read(folder) for folder in (*three, copy)]
    with pytest.raises(SdaError, match="mine and copy have the same recipe and seed 0; leave one of them out"):
        compare.rows(scores, merge=True)
    assert len(compare.rows(scores, merge=False)) == 4


def test_compare_in_every_format(sda, three):
    base = read(three[0] / "result.json")
    status, shown = sda("compare", *three, "--seeds")
    assert status == 0 and "mine, 2 seeds" in shown.out and f"{base['miou'] + 1.5:.1f} ± 2.1" in shown.out
    latex = sda("compare", *three, "--format", "latex")[1].out
    assert r"other \& 0" in latex and latex.count(r"\\") == 4 and r"\rotatebox{90}{mIoU, all classes}" in latex
    markdown = sda("compare", *three, "--format", "markdown")[1].out.splitlines()
    assert len({line.count("|") for line in markdown[:5]}) == 1 and markdown[2].startswith("| mine |")
    rows = list(csv.DictReader(io.StringIO(sda("compare", *three, "--format", "csv")[1].out)))
    assert [float(row["miou"]) for row in rows] == [base["miou"], base["miou"] + 3, base["miou"] + 10]
    assert json.loads(sda("compare", *three, "--format", "json")[1].out)[0]["iou"] == base["iou"]
