"""The whole demo with few images and two steps."""

import json

import pytest
import tiny
from PIL import Image

from sda import streets
from sda.experiments import demo


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    write, load = streets.write, demo.recipes.load
    counts = {"game": 4, "camera_train": 10, "camera_val": 6, "processes": 1}
    monkeypatch.setattr(streets, "write", lambda root, progress: write(root, progress=progress, **counts))
    tiny_run = {"steps": 2, "backbone": "small", "weights": "none", "batch_source": 2, "batch_labelled": 2}
    monkeypatch.setattr(demo.recipes, "load", lambda name, changes: load(name, {**changes, **tiny_run}))
    return tmp_path


def test_demo_trains_and_compares_four_runs(small, monkeypatch, capsys):
    assert tiny.run_main(monkeypatch, "demo", "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert "traffic light" in shown and "mIoU" in shown and "whole-96x192-native" in shown
    summary = json.loads((small / "runs/demo/summary.json").read_text())
    assert set(summary["runs"]) == set(demo.RECIPES)
    for name, run in summary["runs"].items():
        assert len(run["iou"]) == 19 and run["steps"] == 2 and run["seed"] == 0 and run["seconds"] > 0
        present = [value for value in run["iou"].values() if value is not None]
        assert run["miou"] == pytest.approx(sum(present) / len(present))
        assert (small / f"runs/demo/{name}-seed0/result.json").exists()
    assert summary["protocol"]["name"] == "whole-96x192-native"
    with Image.open(small / "runs/demo/demo.png") as picture:
        assert picture.width > 5 * 300 and picture.height > 6 * 150


def test_without_pretrained_weights_the_demo_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr(demo, "where_weights", lambda name: "download")
    assert tiny.run_main(monkeypatch, "demo", "--device", "cpu") == 0
    assert "no pretrained encoder: the networks start from random weights" in capsys.readouterr().err
    written = [file.read_text() for file in small.glob("runs/demo/*/recipe.toml")]
    assert len(written) == 4 and all('encoder = ""' in text for text in written)


def test_a_demo_resumes_and_never_overwrites_a_finished_one(tmp_path):
    names = [f"{name}-seed0" for name in demo.RECIPES]
    for finished in range(4):
        assert [folder.name for folder in demo._unfinished(tmp_path, 0).values()] == names
        (tmp_path / names[finished]).mkdir()
        (tmp_path / names[finished] / "result.json").touch()
    assert [folder.name for folder in demo._unfinished(tmp_path, 0).values()] == [f"{name}-2" for name in names]
    assert [folder.name for folder in demo._unfinished(tmp_path, 1).values()] == [
        name.replace("seed0", "seed1") for name in names
    ]


@pytest.mark.parametrize("encoder", ["", demo.PRETRAINED])
def test_demo_recipes_are_compared_fairly(encoder):
    """All have the same number of steps, network, labels and images, with and without the pretrained encoder."""
    loaded = [demo.recipes.load(name, {"encoder": encoder}) for name in demo.RECIPES]
    shared = ("steps", "network", "backbone", "size", "learning_rate", "optimizer", "batch_source", "batch_labelled", "target")
    assert len({tuple(str(getattr(recipe, key)) for key in shared) for recipe in loaded}) == 1
    target_only, source_only, joint, ssda = loaded
    assert target_only.labels == joint.labels == ssda.labels and source_only.source == joint.source == ssda.source
    assert [recipe.setting for recipe in loaded] == ["target-only", "source-only", "joint", "semi-supervised DA"]


@pytest.mark.slow
def test_parallel_demo_equals_sequential_demo(monkeypatch, tmp_path):
    """Two processes with one thread each give the same results as one process."""
    monkeypatch.chdir(tmp_path)
    load = demo.recipes.load
    monkeypatch.setattr(demo.recipes, "load", lambda name, changes: load(name, {**changes, "steps": 3}))
    scores = []
    for cores in (2, 1):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert tiny.run_main(monkeypatch, "demo", "--device", "cpu", "--out", f"demo{cores}") == 0
        summary = json.loads((tmp_path / f"demo{cores}/summary.json").read_text())
        scores.append({name: run["iou"] for name, run in summary["runs"].items()})
    assert scores[0] == scores[1]
