"""`sda runs` with run folders in every state, and student.safetensors."""

import json
import os
import shutil

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sda.cli.terminal import ago

pytestmark = pytest.mark.usefixtures("here")


def test_runs_lists_folders_in_every_state(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    flags = ["--device", "cpu", "--steps", 4, "--eval-every", 2]
    assert sda("train", world.recipe, *flags, "--seed", 7, "--out", "runs/done")[0] == 0
    assert sda("train", world.recipe, *flags, "--out", "runs/deep/cut", "--stop-at", 3)[0] == 0
    shutil.copytree("runs/deep/cut", "runs/old")
    for name in ("recipe.toml", "metrics.jsonl"):
        os.utime(f"runs/old/{name}", (1, 1))
    with open("runs/old/metrics.jsonl", "a") as log:
        log.write('{"step": 3, "su')
    os.utime("runs/old/metrics.jsonl", (1, 1))
    shutil.copytree("runs/old", "runs/bad")
    (tmp_path / "runs/bad/recipe.toml").write_text("cut o")
    status, shown = sda("runs", "--json")
    runs = {run["name"]: run for run in json.loads(shown.out)}
    assert status == 0 and {name: run["state"] for name, run in runs.items()} == {
        "done": "finished", "deep/cut": "training", "old": "interrupted", "bad": "damaged"
    }  # fmt: skip
    done = json.loads((tmp_path / "runs/done/result.json").read_text())
    assert runs["done"]["miou"] == done["miou"] and runs["done"]["seed"] == 7 and runs["done"]["step"] == 4
    assert runs["old"]["step"] == 2 and runs["old"]["miou"] > 0 and runs["old"]["setting"] == "joint"
    assert json.loads(shown.out)[-1]["name"] == "old", "the least recently active run must be last"
    status, shown = sda("runs")
    assert "2 of 4" in shown.out and "days ago" in shown.out
    assert sda("runs", "nowhere")[0] == 2


def test_age_in_words():
    assert [ago(seconds) for seconds in (3, 60, 7300, 200_000)] == ["3 s ago", "1 min ago", "2 h ago", "2 days ago"]


def test_weights_are_saved_as_safetensors(sda, tmp_path):
    world = tiny.write_world(tmp_path / "world")
    assert sda("train", world.recipe, "--device", "cpu", "--out", "run")[0] == 0
    student, alone = torch.load("run/last.pt", weights_only=True)["student"], load_file("run/student.safetensors")
    assert student.keys() == alone.keys() and all(torch.equal(student[name], alone[name]) for name in student)
    with safe_open("run/student.safetensors", "pt") as file:
        about = json.loads(file.metadata()["sda"])
    assert about["classes"].keys() == {"ground", "building", "human"} and about["recipe"]["backbone"] == "mobilenet_v3_small"
    assert about["preprocessing"]["order"] == "RGB"
