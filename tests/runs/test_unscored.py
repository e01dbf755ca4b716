"""Training on a target without any labels: no scores, and a checkpoint chosen without labels."""

import json
import shutil

import pytest
import torch

from sda.data.assemble import assemble
from sda.errors import SdaError
from sda.recipe import load
from sda.runs import trained
from sda.scoring.evaluate import evaluate
from sda.scoring.gallery import truth_and_predictions

CHANGES = ("--labels", 0, "--unlabelled", "target", "--method", "mean_teacher", "--batch-unlabelled", 2, "--steps", 3)


@pytest.fixture
def unlabelled(own_world):
    """Field with 8 training images, no validation split and no labels."""
    shutil.rmtree(own_world.root / "field/pictures/val")
    shutil.move(own_world.root / "field/labels", own_world.folder / "masks")
    return own_world


def train(sda, world, *more):
    return sda("train", world.recipe, *CHANGES, "--device", "cpu", "--out", world.folder / "run", *more)


def test_a_run_without_labels_has_no_score_and_is_chosen_by_infomax(unlabelled, sda):
    run = unlabelled.folder / "run"
    status, shown = train(sda, unlabelled, "--eval-every", 1)
    assert status == 0
    assert "no labels to score on: this run has no mIoU, and best.pt is chosen by infomax, on 2 images" in shown.err.replace(
        "\n", " "
    )
    assert "infomax 0." in shown.out and "without labels" in shown.out
    result = json.loads((run / "result.json").read_text())
    assert not {"miou", "iou", "confusion", "ece"} & result.keys() and result["images"] == 2 and not (run / "iou.csv").exists()
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    infomax = {record["step"]: record["val"]["infomax"] for record in log if "val" in record}
    assert len(infomax) == 3 and all("agreement" in record["val"] for record in log if "val" in record)
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["best"] == {"by": "infomax", "step": max(infomax, key=infomax.get), "value": max(infomax.values()), "miou": None}
    assert trained.load(run, "best", device="cpu").best_by == "infomax"

    held_out, unlabelled_keys = ((run / f"splits/{name}.txt").read_text().split() for name in ("val", "unlabelled"))
    assert len(held_out) == 2 and len(unlabelled_keys) == 6 and not {*held_out} & {*unlabelled_keys}


def test_what_needs_scores_says_that_there_are_none(unlabelled, sda, tmp_path):
    run = unlabelled.folder / "run"
    assert train(sda, unlabelled)[0] == 0
    listed = sda("runs", unlabelled.folder, "--json")[1].out
    assert json.loads(listed)[0]["state"] == "finished" and json.loads(listed)[0]["miou"] is None
    assert sda("runs", unlabelled.folder)[0] == 0
    assert "this run is finished" in train(sda, unlabelled, "--resume")[1].err
    for command in (("report", run), ("compare", run, run)):
        status, shown = sda(*command)
        assert (status, "trained without labels to score on" in shown.err.replace("\n", " ")) == (2, True), shown.err
    status, shown = sda("eval", run, "--device", "cpu")
    assert status == 2 and "has a label file" in shown.err.replace("\n", " ")
    shutil.copytree(unlabelled.folder / "masks", unlabelled.root / "field/labels")
    status, shown = sda("eval", run, "--split", "train", "--device", "cpu", "--json")
    assert status == 0 and json.loads(shown.out)[0]["images"] == 8
    shutil.rmtree(unlabelled.root / "field/labels")
    assert sda("predict", run, unlabelled.root / "field/pictures", "--device", "cpu", "--out", tmp_path / "seen")[0] == 0
    ablation = ("ablate", unlabelled.recipe, "--seeds", "0", "--jobs", "1", "--out", tmp_path / "rows")
    pairs = [
        part
        for key, value in zip(CHANGES[::2], CHANGES[1::2], strict=True)
        for part in ("--set", f"{key[2:].replace('-', '_')}={value}")
    ]
    for _ in range(2):  # the second time, the run is finished
        status, shown = sda(*ablation, *pairs)
        assert status == 2 and "it has no mIoU, because its target has no labels to score on" in shown.err.replace("\n", " ")


def test_a_run_without_labels_resumes_bit_equal(unlabelled, sda):
    whole, parts = unlabelled.folder / "whole", unlabelled.folder / "parts"
    more = ("--eval-every", 1, "--best-by", "entropy")
    assert sda("train", unlabelled.recipe, *CHANGES, *more, "--device", "cpu", "--out", whole)[0] == 0
    for stop in (("--stop-at", 2), ("--resume", "auto")):
        assert sda("train", unlabelled.recipe, *CHANGES, *more, "--device", "cpu", "--out", parts, *stop)[0] == 0
    one, other = (torch.load(run / "last.pt", weights_only=True) for run in (whole, parts))
    assert one["best"] == other["best"] and one["best"]["by"] == "entropy"
    assert all(torch.equal(one["student"][key], other["student"][key]) for key in one["student"])


def test_evaluation_without_labels_measures_the_same_criteria(world):
    data = assemble(load(str(world.recipe)).with_absolute_paths())
    from sda.models.build import build_network
    from sda.models.preprocessing import IMAGENET

    recipe = load(str(world.recipe))
    network, names = build_network(recipe, 3, "torchvision", IMAGENET).eval(), data.table.names
    scored = evaluate(network, data.val, names, torch.device("cpu"), recipe.scoring, teacher=network)
    data.val.codec = None
    unscored = evaluate(network, data.val, names, torch.device("cpu"), recipe.scoring, teacher=network)
    assert unscored.keys() == {"protocol", "images", "skipped", "entropy", "infomax", "agreement"}
    assert unscored["agreement"] == 1
    for key in ("entropy", "infomax"):
        assert unscored[key] == pytest.approx(scored[key], abs=1e-3)  # predictions at the size of images, not of labels
    assert truth_and_predictions(data.val, [0], {"student": network}, data.table, torch.device("cpu")).size[0] > 0


def test_labels_that_do_not_exist_are_still_an_error(unlabelled):
    for changes in ({"labels": 2}, {"labels": "all"}):
        with pytest.raises(SdaError, match="label some, give a validation split, or train without scores: labels = 0"):
            assemble(load(str(unlabelled.recipe), changes).with_absolute_paths())
