"""Interrupted and resumed runs: bit-identical to uninterrupted ones, and never behind their last checkpoint."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sda.reading import read_log
from sda.runs import checkpoint
from sda.training import loop

SSDA = tiny.SETTINGS["semi-supervised DA"]
STEPS = ["--steps", 8, "--eval-every", 3, "--checkpoint-every", 2, "--device", "cpu"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def equal(a, b):
    """Return whether two checkpoints are bit-identical except for their training time."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def same_run(first, second):
    """Check that two run folders have the same state, log and score."""
    for name in ("last.pt", "best.pt"):
        assert equal(checkpoint.load(first / name), checkpoint.load(second / name)), name
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    results = [json.loads((run / "result.json").read_text()) for run in (first, second)]
    assert all(equal(results[0][key], results[1][key]) for key in results[0] if key != "seconds")


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """`whole(flags)`: an uninterrupted run with these flags."""
    made = {}

    def whole(*flags):
        if flags not in made:
            made[flags] = tmp_path_factory.mktemp("whole") / "run"
            with pytest.MonkeyPatch.context() as patch:
                assert tiny.run_main(patch, "train", world.recipe, *STEPS, *flags, "--out", made[flags]) == 0
        return made[flags]

    return whole


VARIANTS = {
    "SSL": tiny.SETTINGS["SSL"],
    "semi-supervised DA": SSDA,
    "AdamW, balanced, alternating, by class": [
        *SSDA, "--optimizer", "adamw", "--balance-classes", "true", "--alternate", "true", "--class-statistics", "true",
        "--rare-class-sampling", 0.1, "--target-steps", 3,
    ],
    "released, DACS": ["--method", "dacs", "--unlabelled", "target", "--released", "true"],
    "supervised": [],
}  # fmt: skip


@pytest.mark.parametrize("cuts", [slow([1]), [4], slow([6]), [2, 3, 7]])
@pytest.mark.parametrize("setting", ["SSL", "semi-supervised DA"])
def test_interrupted_runs_resume_bit_identically(world, whole, sda, tmp_path, setting, cuts):
    flags = VARIANTS[setting]
    command = ["train", world.recipe, *STEPS, *flags, "--out", tmp_path / "run", "--resume", "auto"]
    for cut in cuts:
        status, shown = sda(*command, "--stop-at", cut)
        assert status == 0 and f"Stopped at step {cut} of 8" in shown.out and not (tmp_path / "run/result.json").exists()
        assert checkpoint.load(tmp_path / "run/last.pt")["step"] == cut
    assert sda(*command)[0] == 0
    same_run(whole(*flags), tmp_path / "run")
    facts = json.loads((tmp_path / "run/environment.json").read_text())
    assert [resumption["step"] for resumption in facts["resumed"]] == cuts


@pytest.mark.parametrize("setting", ["AdamW, balanced, alternating, by class", "released, DACS", "supervised"])
def test_other_settings_resume_bit_identically(world, whole, sda, tmp_path, setting):
    flags = VARIANTS[setting]
    command = ["train", world.recipe, *STEPS, *flags, "--out", tmp_path / "run", "--resume", "auto"]
    assert sda(*command, "--stop-at", 5)[0] == 0 and sda(*command)[0] == 0
    same_run(whole(*flags), tmp_path / "run")


SOURCES = ["--source-weights", "3,1", "--class-statistics", "true", "--balance-classes", "true", "--rare-class-sampling", 0.1]


@pytest.mark.parametrize("flags", [[], SOURCES, [*SOURCES, "--alternate", "true"]], ids=["equal", "weighted", "alternating"])
def test_several_sources_resume_bit_identically(own_world, farm, sda, tmp_path, flags):
    """Also with a pack instead of a folder, in memory, and with other workers."""
    command = ["train", own_world.recipe, *STEPS, *SSDA, *flags, "--source", f"{own_world.toy},{farm}"]
    assert sda(*command, "--out", tmp_path / "whole")[0] == 0
    command += ["--out", tmp_path / "run", "--resume", "auto"]
    assert sda(*command, "--stop-at", 5)[0] == 0
    assert sda("pack", farm, "--root", own_world.root / "farm", "--size", "48x64", "--out", tmp_path / "farm.h5")[0] == 0
    roots = f"{own_world.root / 'toy'},{tmp_path / 'farm.h5'}"
    status, shown = sda(*command, "--source-root", roots, "--in-memory", "true", "--workers", 1)
    assert status == 0 and "source-farm images: one time from files, one time from a pack" in shown.err
    first, second = (checkpoint.load(run / "last.pt") for run in (tmp_path / "whole", tmp_path / "run"))
    assert equal(first["method"], second["method"]) and equal(first["optimizer"], second["optimizer"])
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "run/metrics.jsonl").read_text()


def test_other_sources_are_noticed(own_world, farm, sda, tmp_path):
    both = f"{own_world.toy},{farm}"
    command = ["train", own_world.recipe, *STEPS, "--out", tmp_path / "run", "--resume", "auto"]
    assert sda(*command, "--source", both, "--stop-at", 2)[0] == 0
    for flags, words in (
        (["--source", own_world.toy], "was trained with source = ["),
        (["--source", f"{farm},{own_world.toy}"], "was trained with source = ["),
        (["--source", both, "--source-weights", "1,2"], "was trained with source_weights = [], not [1.0, 2.0]"),
    ):
        status, shown = sda(*command, *flags)
        assert status == 2 and words in shown.err
    (own_world.root / "farm/photos/train/02.png").unlink()
    status, shown = sda(*command, "--source", both)
    assert status == 2 and "was trained on different source-farm images (6 then, 5 now; photos/train/02.png)" in shown.err


def test_a_run_from_before_there_were_weights_resumes(world, whole, sda, tmp_path):
    """Its checkpoint and its recipe.toml lack the field."""
    command = ["train", world.recipe, *STEPS, "--out", tmp_path / "run", "--resume", "auto"]
    assert sda(*command, "--stop-at", 5)[0] == 0
    state = checkpoint.load(tmp_path / "run/last.pt")
    del state["recipe"]["source_weights"]
    checkpoint.save(tmp_path / "run/last.pt", state)
    file = tmp_path / "run/recipe.toml"
    file.write_text(file.read_text().replace("source_weights = []\n", ""))
    assert sda(*command)[0] == 0
    same_run(whole(), tmp_path / "run")


def test_workers_and_roots_may_change(world, whole, sda, tmp_path):
    command = ["train", world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run", "--resume", "auto"]
    assert sda(*command, "--stop-at", 3)[0] == 0
    shutil.copytree(world.root, tmp_path / "moved")
    status, shown = sda(*command, "--root", tmp_path / "moved", "--workers", 1, "--checkpoint-every", 0)
    assert status == 0, shown.err
    first, second = (checkpoint.load(run / "last.pt") for run in (whole(*SSDA), tmp_path / "run"))
    assert equal(first["method"], second["method"]) and equal(first["optimizer"], second["optimizer"])


def test_resume_from_a_file_into_another_folder(world, whole, sda, tmp_path):
    command = ["train", world.recipe, *STEPS, *SSDA]
    assert sda(*command, "--out", tmp_path / "run", "--stop-at", 5)[0] == 0
    before = tiny.files(tmp_path / "run")
    assert sda(*command, "--resume", tmp_path / "run/last.pt", "--out", tmp_path / "other")[0] == 0
    same_run(whole(*SSDA), tmp_path / "other")
    assert tiny.files(tmp_path / "run") == before
    status, shown = sda(*command, "--resume", tmp_path / "run/last.pt", "--out", tmp_path / "other")
    assert status == 2 and "this run is finished" in shown.err
    shutil.copytree(tmp_path / "run", tmp_path / "third")
    status, shown = sda(*command, "--resume", tmp_path / "run/last.pt", "--out", tmp_path / "third")
    assert status == 2 and "exists and is not empty" in shown.err


def test_resume_with_the_recipe_in_the_run_folder(world, whole, sda, tmp_path, monkeypatch):
    assert sda("train", world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run", "--stop-at", 4)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert sda("train", "run/recipe.toml", "--resume", "auto", "--device", "cpu")[0] == 0
    same_run(whole(*SSDA), tmp_path / "run")


def test_without_a_checkpoint_resume_starts_a_run(world, whole, sda, tmp_path, monkeypatch):
    """Even in the folder of a run that stopped before its first checkpoint, so a requeued job can use the same command."""
    command = ["train", world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run", "--resume", "auto"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.toml").write_text("cut off")
    status, shown = sda(*command)
    assert status == 0 and "run-interrupted: files of an interrupted run without a checkpoint" in shown.err
    assert (tmp_path / "run-interrupted/recipe.toml").read_text() == "cut off"
    same_run(whole(*SSDA), tmp_path / "run")
    before = tiny.files(tmp_path / "run")
    status, shown = sda(*command)
    assert status == 0 and "this run is finished" in shown.err and tiny.files(tmp_path / "run") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    assert "exists and is not empty" in sda(*command[:-4], "--out", tmp_path / "mine", "--resume", "auto")[1].err


# Checkpoints that cannot be resumed


@pytest.fixture(scope="module")
def stopped_once(world, do, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped") / "run"
    do("train", world.recipe, *STEPS, *SSDA, "--out", run, "--stop-at", 4)
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that stopped after 4 of 8 steps, which the test may change."""
    return Path(shutil.copytree(stopped_once, tmp_path / "run"))


def resume(sda, world, run, *flags):
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", run, "--resume", "auto", *flags)
    assert status == 2
    return shown.err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", 9], "was trained with steps = 8, not 9"),
        (["--learning-rate", 0.1], "learning_rate = 0.0002, not 0.1"),
        (["--labels", 2], "labels = 3, not 2"),
        (["--method", "mean_teacher"], 'method = "class_bank", not "mean_teacher"'),
    ],
)
def test_resuming_with_another_recipe_is_refused(world, sda, stopped, flags, says):
    before = tiny.files(stopped)
    assert says in resume(sda, world, stopped, *flags)
    assert tiny.files(stopped) == before


def test_a_finished_run_is_extended_in_a_new_folder(world, whole, sda, tmp_path):
    """It goes on with the state of the shorter run, at the learning rate of the longer one."""
    short, out = whole(*SSDA), tmp_path / "longer"
    before = tiny.files(short)
    command = ["train", world.recipe, *STEPS, *SSDA, "--steps", 12, "--resume"]
    says = f"this run is finished, with steps = 8, not 12; choose another --out, or train on in a new folder: --resume {short}"
    assert says in sda(*command, "auto", "--out", short)[1].err
    status, shown = sda(*command, short / "last.pt", "--out", out)
    assert status == 0 and tiny.files(short) == before
    assert "extends a run of 8 steps to 12: at step 8 the learning rate changes from 0 to" in shown.err
    longer = checkpoint.load(out / "last.pt")
    assert longer["step"] == 12 and json.loads((out / "environment.json").read_text())["resumed"][0]["extends"] == 8
    log, earlier = (read_log(run / "metrics.jsonl") for run in (out, short))
    assert log[: len(earlier)] == earlier and [record["step"] for record in log if "val" in record] == [3, 6, 8, 9, 12]


def test_a_stopped_run_is_extended_in_another_folder_only(world, sda, stopped, tmp_path):
    message = resume(sda, world, stopped, "--steps", 9)
    assert "was trained with steps = 8, not 9; restore the value, or train on in another folder, with --resume" in message
    command = ["train", world.recipe, *STEPS, *SSDA, "--steps", 9, "--resume", stopped / "last.pt", "--out", tmp_path / "new"]
    status, shown = sda(*command)
    assert status == 0 and "extends a run of 8 steps to 9: at step 4 the learning rate changes from" in shown.err


def test_a_share_of_the_steps_resumes_as_their_number(world, sda, tmp_path):
    command = ["train", world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run", "--resume", "auto", "--ramp-steps"]
    assert sda(*command, 4, "--stop-at", 3)[0] == 0
    assert "was trained with ramp_steps = 4, not 0.6" in sda(*command, 0.6)[1].err
    assert sda(*command, 0.5)[0] == 0


def test_resuming_with_other_images_is_refused(world, sda, stopped, tmp_path):
    shutil.copytree(world.root, tmp_path / "moved")
    (tmp_path / "moved/toy/train/02.png").unlink()
    message = resume(sda, world, stopped, "--root", tmp_path / "moved")
    assert "trained on different source images (4 then, 3 now; train/02.png)" in message


@pytest.fixture
def stopped_here(own_world, sda, tmp_path):
    """A stopped run in a world that the test may change."""
    assert sda("train", own_world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run", "--stop-at", 4)[0] == 0
    return own_world, tmp_path / "run"


def inverted(path):
    """Change the pixels of an image, but not its name."""
    with Image.open(path) as image:
        changed = Image.fromarray(255 - np.asarray(image))
    changed.save(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda world: inverted(world.root / "toy/train/00.png"), "the source images have changed since it was written"),
        slow(lambda world: inverted(world.root / "toy/train_masks/03_mask.png"), "the source images have changed"),
        slow(lambda world: inverted(world.root / "field/labels/val/west/09.png"), "the val images have changed"),
        (lambda world: world.field.write_text(tiny.FIELD.replace("[2, 2, 2]", "[9, 9, 9]")), "descriptor of .* has changed"),
        (
            lambda world: world.field.write_text(
                tiny.FIELD.replace("ground = [1, 1, 1], building = [2, 2, 2]", "building = [2, 2, 2], ground = [1, 1, 1]")
            ),
            "descriptor of .* has changed",
        ),
        (lambda world: world.toy.write_text(tiny.TOY.replace('8 = "house", 9 = "man"', '9 = "house", 8 = "man"')), "has changed"),
    ],
)
def test_changed_data_under_the_same_names_is_refused(stopped_here, sda, change, says):
    world, run = stopped_here
    change(world)
    before = tiny.files(run)
    message = resume(sda, world, run, "--doctor", "true")
    assert re.search(f"last.pt: the .*{says}", message) or re.search(says, message), message
    assert tiny.files(run) == before


@pytest.mark.slow
def test_labels_of_unlabelled_images_may_change(stopped_here, sda):
    world, run = stopped_here
    keys = (run / "splits/unlabelled.txt").read_text().split()
    for key in keys:
        inverted(world.root / "field" / key.replace("pictures", "labels").replace(".jpg", ".png"))
    assert sda("train", world.recipe, *STEPS, *SSDA, "--out", run, "--resume", "auto")[0] == 0


@pytest.mark.slow
def test_the_title_of_a_dataset_may_change(stopped_here, sda):
    world, run = stopped_here
    world.field.write_text(tiny.FIELD.replace('"Field"', '"Meadow"'))
    assert sda("train", world.recipe, *STEPS, *SSDA, "--out", run, "--resume", "auto")[0] == 0


@pytest.mark.parametrize("finished", [False, True])
def test_a_lost_or_damaged_recipe_is_written_again(world, whole, sda, stopped, tmp_path, finished):
    run = Path(shutil.copytree(whole(*SSDA), tmp_path / "whole")) if finished else stopped
    before = (run / "recipe.toml").read_text().splitlines()[1:]
    shutil.rmtree(run / "splits")
    (run / "recipe.toml").write_text("[[[")
    assert sda("train", world.recipe, *STEPS, *SSDA, "--out", run, "--resume", "auto")[0] == 0
    assert (run / "recipe.toml").read_text().splitlines()[1:] == before and (run / "recipe-damaged.toml").read_text() == "[[["
    assert (run / "splits/source.txt").exists()
    same_run(whole(*SSDA), run)


def test_another_number_of_threads_is_told(world, sda, stopped):
    state = checkpoint.load(stopped / "last.pt")
    state["machine"]["threads"] = "64"
    torch.save(state, stopped / "last.pt")
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", "auto")
    assert status == 0 and "trained so far with threads 64, now 1: the result may differ slightly" in shown.err


def test_checkpoints_of_older_versions_resume_with_a_note(world, sda, stopped):
    state = checkpoint.load(stopped / "last.pt")
    del state["inputs"], state["machine"]
    torch.save(state, stopped / "last.pt")
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", "auto")
    assert status == 0 and "this checkpoint has no fingerprints of its images; only their names were compared" in shown.err


def test_a_finished_run_is_not_resumed_with_another_recipe(world, whole, sda, tmp_path):
    shutil.copytree(whole(*SSDA), tmp_path / "run")
    command = ["train", world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run", "--resume", "auto"]
    before = tiny.files(tmp_path / "run")
    for flags, says in ((["--steps", 9], "steps = 8, not 9"), (["--learning-rate", 0.9], "learning_rate = 0.0002, not 0.9")):
        status, shown = sda(*command, *flags)
        assert status == 2 and f"run: this run is finished, with {says}; choose another --out" in shown.err
    assert sda(*command, "--checkpoint-every", 7)[0] == 0 and tiny.files(tmp_path / "run") == before


def test_a_run_that_fails_before_its_first_step_leaves_nothing(own_world, sda, tmp_path):
    out = tmp_path / "runs/a"
    command = ["train", own_world.recipe, *STEPS, *SSDA, "--doctor", "false"]
    images = sorted((own_world.root / "toy/train").iterdir())
    whole = {path: path.read_bytes() for path in images}
    for path in images:
        path.write_bytes(b"not an image")
    status, shown = sda(*command, "--out", out)
    assert status == 2 and "00.png" in shown.err and not out.exists()
    status, shown = sda(*command)
    assert status == 2 and not list(Path("runs").iterdir())
    for path, content in whole.items():
        path.write_bytes(content)
    assert sda(*command, "--out", out)[0] == 0


def test_a_run_that_fails_later_says_why_and_resumes(world, whole, sda, tmp_path, monkeypatch):
    command = ["train", world.recipe, *STEPS, *SSDA, "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_numbers", lambda *_: 1 / 0)
        patch.setattr(loop, "LOG_EVERY", 5)
        patch.setattr(loop, "_check_finite", lambda *_: None)
        with pytest.raises(ZeroDivisionError):
            sda(*command)
    assert (tmp_path / "run/failure.txt").read_text() == "division by zero\n"
    status, shown = sda(*command)
    assert status == 2 and "exists and is not empty; choose another folder, or resume this run with --resume auto" in shown.err
    assert sda(*command, "--resume", "auto")[0] == 0 and not (tmp_path / "run/failure.txt").exists()
    same_run(whole(*SSDA), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("place", range(6))
def test_a_kill_while_the_folder_is_made_blocks_nothing(world, whole, sda, tmp_path, monkeypatch, place):
    """The process dies after its first, second, … write into the new folder."""
    command = ["train", world.real, *STEPS, *SSDA, "--out", tmp_path / "run", "--resume", "auto"]
    code = f"""
import os, sys
from sda.system import atomic
import pathlib
left = [{place}]
def counted(write):
    def run(*arguments, **options):
        if "run" in str(arguments[0]) and (left.append(left.pop() - 1) or left[0] < 0):
            os._exit(9)
        return write(*arguments, **options)
    return run
for owner, name in ((pathlib.Path, "mkdir"), (pathlib.Path, "write_text"), (pathlib.Path, "replace"), (os, "truncate")):
    setattr(owner, name, counted(getattr(owner, name)))
from sda.cli.main import main
main()
"""
    assert subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True).returncode == 9
    assert sda(*command)[0] == 0
    same_run(whole(*SSDA, "--backbone", tiny.REAL), tmp_path / "run")


@pytest.mark.parametrize("damage", [slow("cut short"), "flipped bit", slow("not finite")])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(world, whole, sda, stopped, damage):
    last = stopped / "last.pt"
    content = bytearray(last.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    last.write_bytes(content)
    if damage == "not finite":
        state = checkpoint.load(stopped / "previous.pt")
        state["student"]["backbone.low.0.weight"][0, 0, 0, 0] = float("inf")
        checkpoint.save(last, state)
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", last)
    assert status == 2 and f"{last}: " in shown.err and f"; intact: {stopped / 'previous.pt'} (step 3)" in shown.err
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", "auto")
    assert status == 0 and "resuming from " in shown.err and "previous.pt, step 3 of 8" in shown.err
    says = "student: backbone.low.0.weight has values that are NaN" if damage == "not finite" else "not a readable checkpoint"
    assert f"{last}: {says}" in shown.err and "the checkpoint before it is used instead" in shown.err
    same_run(whole(*SSDA), stopped)


def test_a_checkpoint_that_does_not_fit_the_method_is_refused(world, sda, stopped):
    state = checkpoint.load(stopped / "last.pt")
    del state["method"]["bank.step"]
    torch.save(state, stopped / "last.pt")
    message = resume(sda, world, stopped)
    assert "last.pt: its state does not fit method class_bank" in message and "bank.step" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": 99}, "step 99 of a training of 8 steps"),
        ({"optimizer": {}}, "its state does not fit optimizer sgd"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "its state does not fit optimizer sgd"),
        ({"method": {}}, "its state does not fit method class_bank: missing "),
        ({"scaler": 3}, "scaler = 3: input should be a valid dictionary"),
    ],
)
def test_a_crafted_checkpoint_is_refused(world, sda, stopped, change, says):
    (stopped / "previous.pt").unlink()
    checkpoint.save(stopped / "last.pt", {**checkpoint.load(stopped / "last.pt"), **change})
    assert says in resume(sda, world, stopped)


def test_optimizer_state_of_another_shape_or_setting_is_refused(world, sda, stopped):
    state = checkpoint.load(stopped / "last.pt")
    (stopped / "previous.pt").unlink()
    before = state["optimizer"]["state"][0]["momentum_buffer"]
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    checkpoint.save(stopped / "last.pt", state)
    assert "momentum_buffer of parameter 0 has shape (3,), expected (8, 3, 7, 7)" in resume(sda, world, stopped)
    state["optimizer"]["state"][0]["momentum_buffer"] = before
    state["optimizer"]["param_groups"][0]["momentum"] = 0.1
    checkpoint.save(stopped / "last.pt", state)
    assert "its state does not fit optimizer sgd (it has another momentum)" in resume(sda, world, stopped)


def test_fields_that_a_checkpoint_lacks_have_their_defaults(world, sda, stopped):
    """Older versions did not have all fields."""
    state = checkpoint.load(stopped / "last.pt")
    del state["recipe"]["strong_statistics"]
    torch.save(state, stopped / "last.pt")
    says = "last.pt: was trained with strong_statistics = true, not false"
    assert says in resume(sda, world, stopped, "--strong-statistics", "false")
    del state["recipe"]["backbone"]
    torch.save(state, stopped / "last.pt")
    assert "last.pt: recipe: key 'backbone' is missing" in resume(sda, world, stopped)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


def test_foreign_and_hostile_checkpoints_are_refused(world, sda, stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (stopped / "previous.pt").unlink()
    for what in (Hostile(), {"format": 1, "student": {}}, "text", {"format": 1, **dict.fromkeys(("step", "recipe"), Hostile())}):
        torch.save(what, stopped / "last.pt")
        message = resume(sda, world, stopped)
        assert "no usable checkpoint to resume from" in message and "last.pt" in message
    assert not Path("hostile").exists()


# Damaged side files beside a good checkpoint


@pytest.mark.parametrize("content", ["", slow("{"), slow("[]"), slow("null"), '{"miou": 3}'])
def test_a_run_with_a_damaged_result_is_finished_again(world, whole, sda, tmp_path, content):
    run = shutil.copytree(whole(*SSDA), tmp_path / "run")
    (run / "result.json").write_text(content)
    (run / "iou.csv").unlink()
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", run, "--resume", "auto")
    assert status == 0 and "step 8 of 8" in shown.err
    same_run(whole(*SSDA), run)
    assert (run / "iou.csv").read_text() == (whole(*SSDA) / "iou.csv").read_text()


@pytest.mark.parametrize("damage", ["cut", slow("no newline"), slow("null bytes"), slow("not UTF-8"), "other types"])
def test_a_damaged_log_does_not_block_a_checkpoint(world, whole, sda, stopped, damage):
    """Whole records are kept, and what is written next begins on a line of its own."""
    log = stopped / "metrics.jsonl"
    more = {
        "cut": b'{"step": 4, "lo',
        "no newline": b"",
        "null bytes": bytes(100),
        "not UTF-8": b"\xff\xfe{",
        "other types": b'3\n{"step": "4"}',
    }
    log.write_bytes(log.read_bytes() + more[damage] if more[damage] else log.read_bytes().rstrip(b"\n"))
    assert sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", "auto")[0] == 0
    same_run(whole(*SSDA), stopped)


@pytest.mark.parametrize("content", [None, slow(""), "{", slow("[]"), slow('{"resumed": 3}'), slow('{"splits": []}')])
def test_a_damaged_environment_does_not_block_a_checkpoint(world, whole, sda, stopped, content):
    environment = stopped / "environment.json"
    environment.unlink() if content is None else environment.write_text(content)
    assert sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", "auto")[0] == 0
    same_run(whole(*SSDA), stopped)
    assert [each["step"] for each in json.loads(environment.read_text())["resumed"]] == [4]
    kept = stopped / "environment-damaged.json"
    assert kept.read_text() == content if content is not None else not kept.exists()


SIDE_FILES = ["metrics.jsonl", "environment.json", "result.json", "failure.txt", "recipe.toml", "splits", "iou.csv", "best.pt"]


@pytest.mark.parametrize("kind", ["fifo", "folder", slow("dangling"), slow("device")])
def test_nothing_beside_a_checkpoint_blocks_it(world, whole, sda, stopped, kind):
    """A pipe would block a program that opens it; a folder cannot be replaced by a file."""
    make = {
        "fifo": os.mkfifo,
        "folder": lambda path: (path / "mine").mkdir(parents=True),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "device": lambda path: path.symlink_to("/dev/zero"),
    }
    names = [name for name in SIDE_FILES if (name, kind) != ("splits", "folder")]
    for name in names:
        shutil.rmtree(stopped / name) if name == "splits" else (stopped / name).unlink(missing_ok=True)
        make[kind](stopped / name)
    assert sda("runs", stopped.parent)[0] == 0
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", stopped, "--resume", "auto")
    assert status == 0 and f"{stopped / 'metrics.jsonl'}: damaged, or not a regular file" in shown.err
    assert equal(checkpoint.load(stopped / "last.pt"), checkpoint.load(whole(*SSDA) / "last.pt"))
    for name in names:
        kept = (stopped / name).with_stem(f"{Path(name).stem}-damaged")
        assert os.path.lexists(kept) and ((kept / "mine").exists() or kind != "folder")
        assert os.path.lexists(stopped / name) or name == "failure.txt"


def test_the_log_beside_a_checkpoint_of_another_folder_does_not_block_it(world, sda, stopped, tmp_path):
    log = stopped / "metrics.jsonl"
    log.unlink()
    os.mkfifo(log)
    out = tmp_path / "other"
    status, shown = sda("train", world.recipe, *STEPS, *SSDA, "--out", out, "--resume", stopped / "last.pt")
    assert status == 0 and f"{log}: cannot be read" in shown.err and "the log starts at step 4" in shown.err
    assert log.is_fifo() and (out / "metrics.jsonl").is_file()


# Signals, kills and full disks, in separate processes


def start(world, out, *flags, steps=200):
    """Start `sda train --resume auto` as a process, in the semi-supervised DA setting, with many checkpoints."""
    code = "import sys; from sda.cli.main import main; main()"
    flags = ["--steps", steps, "--checkpoint-every", 1, *SSDA, "--device", "cpu", *flags]
    command = [sys.executable, "-c", code, "train", world.real, "--out", out, "--resume", "auto", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_a_signal_saves_a_checkpoint(world, tmp_path, number):
    """The checkpoint is that of the interrupted step, although checkpoints are rare. Loader processes get the signal too, as
    with Ctrl-C."""
    process = start(world, tmp_path / "run", "--checkpoint-every", 100_000, "--steps", 100_000, "--workers", 1)
    wait_for(tmp_path / "run/metrics.jsonl", process)
    while not (tmp_path / "run/metrics.jsonl").read_text():
        time.sleep(0.05)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), number)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    last = errors.strip().splitlines()[-1]
    assert number.name in last and "Traceback" not in errors
    assert last.endswith(f"To resume, repeat the command with --resume auto --out {tmp_path / 'run'}.")
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] >= 1


def kill_again_and_again(world, run, times, seed):
    random_delay, steps = random.Random(seed), []
    for _ in range(times):
        process = start(world, run)
        wait_for(run / "last.pt", process)
        time.sleep(random_delay.random() * 1.5)
        process.kill()
        process.communicate()
        steps.append(checkpoint.load(run / "last.pt")["step"])
    assert steps == sorted(steps) and steps[0] >= 1


def test_a_kill_never_damages_the_last_checkpoint(world, tmp_path):
    kill_again_and_again(world, tmp_path / "run", 2, 0)


@pytest.mark.slow
def test_a_run_killed_many_times_is_bit_identical(world, tmp_path):
    """Kill the run twenty times at random moments, then finish it, and compare with an uninterrupted run."""
    for run in ("whole", "killed"):
        if run == "killed":
            kill_again_and_again(world, tmp_path / run, 20, 1)
        process = start(world, tmp_path / run)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_full_disk_stops_the_run_without_damage(world, sda, tmp_path):
    """A file-size limit simulates the full disk: the write fails in the same place."""
    run = tmp_path / "run"
    flags = ["--steps", 6, "--checkpoint-every", 2]
    command = ["train", world.recipe, "--out", run, "--resume", "auto", *SSDA, "--device", "cpu", *flags]
    assert sda(*command, "--stop-at", 2)[0] == 0
    before = (run / "last.pt").read_bytes()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, usual[1]))
    try:
        status, shown = sda(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert status == 2 and "cannot write the checkpoint (File too large); the previous checkpoint is unchanged" in shown.err
    assert "Traceback" not in shown.err and (run / "last.pt").read_bytes() == before
    assert not list(run.glob("*.partial"))
    status, shown = sda(*command)
    assert status == 0, shown.err
