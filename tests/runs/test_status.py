"""`sda runs` with run folders in every state, and student.safetensors."""

import json
import os
import shutil

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from sda.cli.terminal import ago
from sda.errors import SdaError
from sda.models.stored import write_safetensors
from sda.runs import compare, status, trained
from sda.system.owned import owned

pytestmark = pytest.mark.usefixtures("here")


def test_runs_lists_folders_in_every_state(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    flags = ["--device", "cpu", "--steps", 4, "--eval-every", 2]
    assert sda("train", world.recipe, *flags, "--seed", 7, "--out", "runs/done")[0] == 0
    assert sda("train", world.recipe, *flags, "--out", "runs/deep/cut", "--stop-at", 3)[0] == 0
    shutil.copytree("runs/deep/cut", "runs/old")
    with open("runs/old/metrics.jsonl", "a") as log:
        log.write('{"step": 3, "su')
    for name in ("recipe.toml", "metrics.jsonl"):
        os.utime(f"runs/old/{name}", (1, 1))
    for name in ("bad", "failed", "unsure"):
        shutil.copytree("runs/old", f"runs/{name}")
    (tmp_path / "runs/bad/recipe.toml").write_text("cut o")
    (tmp_path / "runs/failed/failure.txt").write_text("no space left on device\n")
    (tmp_path / "runs/unsure/result.json").write_text("")
    status, shown = sda("runs", "--json")
    runs = {run["name"]: run for run in json.loads(shown.out)}
    assert status == 0 and {name: run["state"] for name, run in runs.items()} == {
        "done": "finished", "deep/cut": "interrupted", "old": "interrupted", "bad": "damaged", "failed": "failed",
        "unsure": "interrupted",
    }  # fmt: skip
    done = json.loads((tmp_path / "runs/done/result.json").read_text())
    assert runs["done"]["miou"] == done["miou"] and runs["done"]["seed"] == 7 and runs["done"]["step"] == 4
    assert runs["old"]["step"] == 2 and runs["old"]["miou"] > 0 and runs["old"]["setting"] == "joint"
    assert json.loads(shown.out)[-1]["name"] != "done", "the least recently active run must be last"
    with owned(tmp_path / "runs/deep/cut"):
        assert {run["name"]: run["state"] for run in json.loads(sda("runs", "--json")[1].out)}["deep/cut"] == "training"
    status, shown = sda("runs")
    assert "2 of 4" in shown.out and "days ago" in shown.out
    assert sda("runs", "nowhere")[0] == 2


HOSTILE = {
    "result.json": ["", "{", "[]", "null", '{"miou": 3}', '{"miou": NaN}', "fifo", "folder", "loop", "device"],
    "metrics.jsonl": ["", '{"step": 3', '{"step": "3"}\n[]\n3\n', '{"step": 2, "val": {"miou": "x"}}', "fifo", "folder", "loop"],
    "recipe.toml": ["", "cut o", 'steps = "x"', "fifo", "folder", "loop", "device"],
    "environment.json": ["", "[]", '{"splits": 3}', "fifo"],
    ".lock": ["fifo", "folder", "loop", "device"],
    "failure.txt": ["fifo", "folder", "loop"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, contents in HOSTILE.items() for content in contents])
def test_no_folder_stops_the_list_of_runs(good, sda, tmp_path, name, content):
    runs = tmp_path / "runs"
    for run in ("good", "bad"):
        shutil.copytree(good, runs / run)
    path = runs / "bad" / name
    path.unlink(missing_ok=True)
    if content == "fifo":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content in ("loop", "device"):
        path.symlink_to(name if content == "loop" else "/dev/zero")
    else:
        path.write_text(content)
    (runs / "loop").symlink_to("loop")
    os.mkdir(os.fsencode(runs) + b"/\xff\x1b[31m")
    shutil.copy(good / "recipe.toml", os.fsencode(runs) + b"/\xff\x1b[31m/recipe.toml")
    code, shown = sda("runs", runs)
    assert code == 0 and "good" in shown.out and "bad" in shown.out and "\x1b" not in shown.out and "\\x1b[31m" in shown.out
    assert sda("runs", runs, "--json")[0] == 0
    code, shown = sda("compare", *runs.iterdir())
    assert code == 0 and "good" in shown.out and "Traceback" not in shown.err
    assert ("bad" in shown.out) == (name not in ("result.json", "recipe.toml"))
    assert "skipped: " in shown.err and "\x1b" not in shown.err


@pytest.fixture(scope="module")
def good(world, do, tmp_path_factory):
    out = tmp_path_factory.mktemp("good") / "run"
    do("train", world.recipe, "--device", "cpu", "--steps", 2, "--out", out)
    return out


def test_advice_fits_the_python_interface(good, tmp_path):
    """`--bad-files skip` is advice for a dataset, not for one image."""
    run = trained.load(good, device="cpu")
    with pytest.raises(SdaError, match="^nowhere.png: no such file$"):
        run.predict("nowhere.png")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(SdaError, match="a.png: this image cannot be read .*; fix or remove it$"):
        run.predict(tmp_path / "a.png")


def test_compare_skips_what_is_no_finished_run(good, sda, tmp_path):
    shutil.copytree(good, tmp_path / "runs/open")
    (tmp_path / "runs/open/result.json").unlink()
    shutil.copytree(good, tmp_path / "runs/good")
    (tmp_path / "runs/doctor-field").mkdir()
    (tmp_path / "runs/notes.txt").write_text("mine")
    code, shown = sda("compare", *sorted((tmp_path / "runs").iterdir()))
    assert code == 0 and "good" in shown.out
    says = [
        "doctor-field: not a run: there is no recipe.toml",
        "notes.txt: neither a run folder nor a score",
        "open: this run is not",
    ]
    assert all(f"skipped: {tmp_path / 'runs'}/{text}" in shown.err for text in says)
    assert sda("compare", tmp_path / "runs/good", tmp_path / "runs/typo")[0] == 2
    assert sda("compare", tmp_path / "runs/open", tmp_path / "runs/doctor-field")[0] == 2


def test_a_damaged_result_is_no_result(good, tmp_path):
    assert status.result_of(good)["miou"] == compare.read(good).values["miou"]
    values = json.loads((good / "result.json").read_text())
    shutil.copy(good / "recipe.toml", tmp_path)
    changes = [
        {"confusion": [[1]]}, {"confusion": "x"}, {"miou": None}, {"iou": {}}, {"interval": [1.0]}, {"image_miou": []},
        {"protocol": {**values["protocol"], "scales": []}}, {"protocol": {**values["protocol"], "input": [10**9, 10**9]}},
        {"protocol": 3}, {"boundary_iou": {}}, {"reliability": [{}]}, {"skipped": [3]}, {"confusion": [[0] * 3] * 3},
    ]  # fmt: skip
    for change in changes:
        (tmp_path / "result.json").write_text(json.dumps({**values, **change}))
        assert status.result_of(tmp_path) is None, change
    (tmp_path / "result.json").write_text(json.dumps({**values, "of a later version": 3}))
    assert status.result_of(tmp_path)


def test_age_in_words():
    assert [ago(seconds) for seconds in (3, 60, 7300, 200_000)] == ["3 s ago", "1 min ago", "2 h ago", "2 days ago"]


def test_weights_are_saved_as_safetensors(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    assert sda("train", world.recipe, "--device", "cpu", "--out", "run")[0] == 0
    student, alone = torch.load("run/last.pt", weights_only=True)["student"], load_file("run/student.safetensors")
    assert student.keys() == alone.keys() and all(torch.equal(student[name], alone[name]) for name in student)
    with safe_open("run/student.safetensors", "pt") as file:
        about = json.loads(file.metadata()["sda"])
    assert about["classes"].keys() == {"ground", "building", "human"} and about["recipe"]["backbone"] == "small"
    assert about["preprocessing"]["order"] == "RGB"


def test_equal_weights_are_equal_files():
    weights = {"b": torch.arange(3.0), "a": torch.zeros(2, 5, dtype=torch.int64), "c": torch.zeros((), dtype=torch.uint8)}
    files = {write_safetensors(weights, json.dumps({"classes": ["é", 'a"b']})) for _ in range(10)}
    assert len(files) == 1
    (header,) = {json.dumps(json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])) for file in files}
    assert load(files.pop()).keys() == weights.keys() and '"__metadata__": {"sda": ' in header
