"""`sda train --folds K`: cross-validation over few labels."""

import json
import shutil

import numpy as np
import pytest

from sda.experiments import pool


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Train in this process, which knows the small backbone of the tests."""
    monkeypatch.setattr(pool, "default_size", lambda device: 1)


def folds(sda, world, *more):
    return sda("train", world.recipe, "--folds", 3, "--device", "cpu", "--out", world.folder / "cv", *more)


def test_each_labelled_image_is_scored_once_by_a_network_that_has_not_seen_it(own_world, sda, one_at_a_time):
    more = ("--labels", 7, "--unlabelled", "target", "--method", "mean_teacher", "--batch-unlabelled", 2)
    status, shown = folds(sda, own_world, *more, "--json")
    assert shown.out, shown.err
    table = json.loads(shown.out)
    assert status == 0 and table["failed"] == {} and [fold["scored"] for fold in table["folds"]] == [3, 2, 2]
    scored, together = [], np.zeros((3, 3), int)
    for number in (1, 2, 3):
        run = own_world.folder / f"cv/fold{number}"
        keys = {name: set((run / f"splits/{name}.txt").read_text().split()) for name in ("val", "labelled", "unlabelled")}
        assert not keys["val"] & (keys["labelled"] | keys["unlabelled"]) and len(keys["val"] | keys["labelled"]) == 7
        scored += sorted(keys["val"])
        result = json.loads((run / "result.json").read_text())
        assert table["folds"][number - 1]["miou"] == result["miou"]
        together += np.array(result["confusion"])
    assert len(scored) == len(set(scored)) == 7 == table["images"]
    hit = np.diag(together)
    iou = 100 * hit / (together.sum(0) + together.sum(1) - hit)
    assert list(table["iou"].values()) == pytest.approx(iou) and table["miou"] == pytest.approx(np.nanmean(iou))
    mious = [fold["miou"] for fold in table["folds"]]
    assert table["mean"] == pytest.approx(np.mean(mious)) and table["spread"] == pytest.approx(np.std(mious, ddof=1))
    assert "all images together" in (own_world.folder / "cv/folds.md").read_text()

    before = (own_world.folder / "cv/fold1/last.pt").stat().st_mtime_ns
    status, shown = folds(sda, own_world, *more)
    assert status == 0 and "3 runs: 3 finished, 0 to train" in shown.err and "mean of the folds" in shown.out
    assert (own_world.folder / "cv/fold1/last.pt").stat().st_mtime_ns == before
    status, shown = folds(sda, own_world, *more[2:], "--labels", 6)
    assert (
        status == 2
        and "these folds were made of other images, or their number was another; choose another --out"
        in shown.err.replace("\n", " ")
    )


def test_images_that_training_holds_out_are_in_a_fold_too(own_world, sda, one_at_a_time):
    """Without a validation split, 2 of the 8 labelled images are held out; with folds all 8 are scored."""
    shutil.rmtree(own_world.root / "field/pictures/val")
    shutil.rmtree(own_world.root / "field/labels/val")
    status, shown = folds(sda, own_world, "--labels", "all", "--steps", 1, "--json")
    assert status == 0 and json.loads(shown.out)["images"] == 8


def test_a_fold_that_fails_is_named_and_the_others_are_scored(own_world, sda, one_at_a_time, monkeypatch):
    calls = []
    original = pool.experiment.run

    def run(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("no luck")
        return original(*given, **options)

    monkeypatch.setattr(pool.experiment, "run", run)
    status, shown = folds(sda, own_world, "--labels", 6, "--steps", 1)
    assert status == 2 and "1 runs failed: fold 2: RuntimeError: no luck" in shown.err and "failed" in shown.out
    assert json.loads((own_world.folder / "cv/folds.json").read_text())["images"] == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", 2), "--folds 3: there are 2 labelled images"),
        (("--labels", 3, "--resume", "auto"), "--folds: without --resume and --stop-at"),
    ],
)
def test_folds_that_cannot_be_made(own_world, sda, more, message):
    status, shown = folds(sda, own_world, *more)
    assert status == 2 and message in shown.err.replace("\n", " ")


def test_copies_of_an_image_are_in_one_fold_only(own_world, sda, one_at_a_time):
    """Else a network would be scored on what it was trained on."""
    for folder, suffix in (("pictures", "jpg"), ("labels", "png")):
        shutil.copy(
            own_world.root / f"field/{folder}/train/north/00.{suffix}", own_world.root / f"field/{folder}/train/north/99.{suffix}"
        )
    status, shown = folds(sda, own_world, "--labels", "all", "--steps", 1)
    assert (
        status == 0 and "1 of the labelled images are copies of others and in no fold, such as pictures/train/north/" in shown.err
    )
    assert json.loads((own_world.folder / "cv/folds.json").read_text())["images"] == 8
