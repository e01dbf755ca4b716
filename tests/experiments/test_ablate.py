"""Ablations: rows, the numbers in the table, and runs that are neither repeated nor overwritten."""

import json
import math
import re

import pytest
import tiny
import torch

from sda import recipe
from sda.errors import SdaError
from sda.experiments import ablate, pool
from sda.protocol import Protocol
from sda.recipe import parse_values
from sda.runs.folder import toml_text
from sda.system.progress import Bars


@pytest.fixture
def world(tmp_path):
    return tiny.write_world(tmp_path / "world")


# The other fields of a result, as a stored one must have them.
WHOLE = {
    "images": 1, "miou_all": 1.0, "interval": [0.0, 1.0], "image_miou": {"a.png": 1.0}, "confusion": [[1]],
    "boundary_iou": {"a": 1.0}, "reliability": [], "protocol": Protocol().to_dict(),
}  # fmt: skip


def result(miou, **iou):
    return {"miou": miou, "iou": iou or {"a": miou}, "seconds": 1.0, "steps": 5, "protocol": {"name": "whole"}}


# Rows


def test_rows_are_all_combinations_and_then_the_extra_rows():
    rows = ablate.make_rows(["r"], {"views": [1, 2], "bank_streams": ["source", "both"]}, [{"released": True}])
    assert [row.changes for row in rows] == [
        {"views": 1, "bank_streams": "source"},
        {"views": 1, "bank_streams": "both"},
        {"views": 2, "bank_streams": "source"},
        {"views": 2, "bank_streams": "both"},
        {"released": True},
    ]
    assert rows[1].name == "views=1 bank_streams=both" and rows[4].name == "released=true"


def test_without_axes_the_first_row_is_the_recipe():
    rows = ablate.make_rows(["a", "b.toml"], {}, [{"source": ""}])
    assert [row.name for row in rows] == ["a", "a source=none", "b", "b source=none"]
    assert [row.recipe for row in rows] == ["a", "a", "b.toml", "b.toml"]


def test_duplicate_rows_are_refused():
    with pytest.raises(SdaError, match="'views=1' is given twice"):
        ablate.make_rows(["r"], {"views": [1]}, [{"views": 1}])


@pytest.mark.parametrize(
    "pair, expected",
    [
        ("views=1,2", [1, 2]),
        ("size=[96, 192],[32, 64]", [[96, 192], [32, 64]]),
        ('split="a,b.txt",c.txt', ["a,b.txt", "c.txt"]),
        ("source=", [""]),
        ("weight_entropy=0.0,.5", [0.0, 0.5]),
    ],
)
def test_values_of_an_axis_are_parsed(pair, expected):
    assert parse_values(pair, "--over") == (pair.partition("=")[0], expected)


# The table


def test_differences_are_paired_by_seed():
    """Differences 1, 2 and 3 have mean 2 and standard error 1/√3; t(0.975, 2) = 4.302653."""
    results = {("a", 0): result(10.0), ("a", 1): result(20.0), ("a", 2): result(30.0)}
    results |= {("b", 0): result(11.0), ("b", 1): result(22.0), ("b", 2): result(33.0)}
    first, second = ablate.summarise(["a", "b"], [0, 1, 2], results)["rows"]
    assert first["mean"] == 20 and first["spread"] == pytest.approx(10) and first["difference"] == 0
    assert second["mean"] == 22 and second["difference"] == pytest.approx(2)
    half = 4.302653 / math.sqrt(3)
    assert second["interval"] == pytest.approx([2 - half, 2 + half], abs=1e-5)


def test_table_with_missing_runs_and_absent_classes():
    results = {("a", 0): result(10.0, car=10.0, bus=None), ("b", 0): result(11.0, car=None, bus=None), ("b", 1): result(13.0)}
    results["b", 1]["iou"] = {"car": 4.0, "bus": None}
    a, b, c = ablate.summarise(["a", "b", "c"], [0, 1], results)["rows"]
    assert a["spread"] is None and a["interval"] is None and a["iou"] == {"car": 10.0, "bus": None}
    assert b["mean"] == 12 and b["difference"] == 1 and b["interval"] is None and b["iou"] == {"car": 4.0, "bus": None}
    assert c["mean"] is None
    table = {**ablate.summarise(["a", "b", "c"], [0, 1], results), "vary_split": True, "failed": {}}
    assert ablate.cells(table) == [
        ["a", "10.00", "10.00", "", "5"],
        ["b", "12.00 ± 1.41", "11.00, 13.00", "+1.00", "5"],
        ["c", "failed", "", "", ""],
    ]
    assert "seeds 0, 1, each with its own labels" in ablate.markdown(table)


# The command


@pytest.fixture
def no_training(monkeypatch):
    """Replace training by a function of the recipe, and record the jobs."""
    trained = []

    def train_all(jobs, at_once, device, bars):
        for job in jobs:
            trained.append(job)
            job.folder.mkdir(parents=True, exist_ok=True)
            if job.recipe.views == 7:
                yield job, SdaError("no room")
                continue
            made = result(float(job.recipe.views + job.recipe.seed))
            (job.folder / "result.json").write_text(json.dumps({**made, **WHOLE}))
            (job.folder / "recipe.toml").write_text(toml_text(job.recipe.model_dump()))
            yield job, made

    monkeypatch.setattr(pool, "train_all", train_all)
    return trained


def test_finished_runs_are_not_repeated(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--set", "method=class_bank", "--set", "unlabelled=target"]
    arguments += ["--seeds", "0,1", "--json", "--out", tmp_path / "out", "--over"]
    assert tiny.run_main(monkeypatch, *arguments, "views=1,2") == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["scores"] for row in table["rows"]] == [{"0": 1.0, "1": 2.0}, {"0": 2.0, "1": 3.0}]
    assert len(no_training) == 4 and {job.recipe.split_seed for job in no_training} == {0}
    (tmp_path / "out/views=2/seed1/result.json").unlink()  # as if interrupted
    assert tiny.run_main(monkeypatch, *arguments, "views=1,2,3") == 0
    assert [job.name for job in no_training[4:]] == ["views=2, seed 1", "views=3, seed 0", "views=3, seed 1"]
    assert "| views=3 | 3.50 ± 0.71 | 3.00, 4.00 | +2.00 [+2.00, +2.00] | 5 |" in (tmp_path / "out/ablation.md").read_text()


def test_an_interrupted_run_is_resumed(world, monkeypatch, capsys, tmp_path):
    """One run resumes for its last step. Another stopped before its first checkpoint, so its folder is renamed."""
    flags = ["--set", "steps=4", "--device", "cpu"]
    run = ["train", world.recipe, *flags, "--stop-at", 3, "--out", tmp_path / "out/tiny/seed0"]
    assert tiny.run_main(monkeypatch, *run) == 0
    (tmp_path / "out/tiny/seed1").mkdir()
    (tmp_path / "out/tiny/seed1/recipe.toml").write_text("cut off")
    capsys.readouterr()
    assert (
        tiny.run_main(monkeypatch, "ablate", world.recipe, *flags, "--seeds", "0,1", "--jobs", 1, "--out", tmp_path / "out") == 0
    )
    assert "seed0/last.pt, step 3 of 4" in capsys.readouterr().err.replace("\n", "")
    assert (tmp_path / "out/tiny/seed1-interrupted/recipe.toml").read_text() == "cut off"


def test_changes_without_effect_are_reported(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--set", "method=class_bank", "--set", "unlabelled=target", "--seeds", "0"]
    rows = ["--row", "method=mean_teacher bank_size=9"]
    assert tiny.run_main(monkeypatch, *arguments, "--over", "bank_size=8,9", *rows, "--out", tmp_path / "out") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    assert told == ["method=mean_teacher bank_size=9: bank_size: no effect with its method and other settings"]


def test_other_settings_in_the_folder_are_refused(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--seeds", "0", "--out", tmp_path / "out"]
    assert tiny.run_main(monkeypatch, *arguments) == 0
    assert tiny.run_main(monkeypatch, *arguments, "--set", "steps=4") == 2
    assert re.search(r"seed0: this run is finished, with steps = 3, not 4; choose another --out", capsys.readouterr().err)


def test_runs_with_another_recipe_are_refused(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--seeds", "0", "--out", tmp_path / "out"]
    assert tiny.run_main(monkeypatch, *arguments) == 0
    file = tmp_path / "out/tiny/seed0/recipe.toml"
    without = re.sub("strong_statistics.*\n", "", file.read_text())
    file.write_text(without)  # as an older version wrote it, which did not have this field: the default counts
    assert tiny.run_main(monkeypatch, *arguments) == 0
    file.write_text(without + "strong_statistics = false\n")
    assert tiny.run_main(monkeypatch, *arguments) == 2
    assert "this run is finished, with strong_statistics = false, not true; choose another --out" in capsys.readouterr().err


def test_a_failed_run_does_not_stop_the_others(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["--set", "method=class_bank", "--set", "unlabelled=target", "--seeds", "0", "--out", tmp_path / "out"]
    assert tiny.run_main(monkeypatch, "ablate", world.recipe, *arguments, "--over", "views=7,1") == 2
    captured = capsys.readouterr()
    assert "views=1" in captured.out and "failed" in captured.out
    assert captured.err.rstrip().endswith("error: 1 runs failed: views=7, seed 0: no room")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--over", "seed=1,2"], "seed cannot be changed in a row"),
        (["--row", "seed=1"], "seed cannot be changed in a row"),
        (["--set", "seed=1"], "set seeds with --seeds, not --set"),
        (["--over", "split_seed=1,2", "--vary-split"], "with --vary-split, do not set split_seed either"),
        (["--over", "views=1", "--over", "views=2"], "a field is given twice"),
    ],
)
def test_conflicting_seeds_and_axes_are_refused(world, monkeypatch, capsys, options, says):
    assert tiny.run_main(monkeypatch, "ablate", world.recipe, *options) == 2
    assert says in capsys.readouterr().err


def test_fields_without_effect_do_not_repeat_a_run(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--seeds", "0", "--out", tmp_path / "out"]
    assert tiny.run_main(monkeypatch, *arguments) == 0
    assert tiny.run_main(monkeypatch, *arguments, "--set", "expected=29 mIoU", "--set", "workers=5") == 0
    assert len(no_training) == 1


def test_a_run_with_a_truncated_result_is_repeated(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--seeds", "0", "--out", tmp_path / "out"]
    assert tiny.run_main(monkeypatch, *arguments) == 0
    [file] = (tmp_path / "out").rglob("result.json")
    file.write_text(file.read_text()[:10])
    assert tiny.run_main(monkeypatch, *arguments) == 0
    assert len(no_training) == 2


def test_a_failing_run_does_not_affect_the_next(world, monkeypatch, tmp_path):
    """An unexpected error is reported, and the next run is trained."""
    outcomes = iter([ValueError("no room\nat all"), result(3.0)])

    def run(*_, **options):
        if isinstance(outcome := next(outcomes), Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(pool.experiment, "run", run)
    loaded = recipe.load(str(world.recipe))
    jobs = [pool.Job(name, loaded, tmp_path / name) for name in "ab"]
    (_, first), (_, second) = pool.train_all(jobs, 1, torch.device("cpu"), Bars())
    assert str(first) == "ValueError: no room" and second["miou"] == 3.0


def test_seeds_must_be_numbers(world, monkeypatch, capsys):
    assert tiny.run_main(monkeypatch, "ablate", world.recipe, "--seeds", "0;1") == 2
    assert "--seeds 0;1: expected whole numbers" in capsys.readouterr().err


def test_vary_split_changes_the_labels_with_the_seed(world, no_training, monkeypatch, capsys, tmp_path):
    arguments = ["ablate", world.recipe, "--vary-split", "--seeds", "0,5", "--out", tmp_path / "out"]
    assert tiny.run_main(monkeypatch, *arguments) == 0
    assert [(job.recipe.seed, job.recipe.split_seed) for job in no_training] == [(0, 0), (5, 5)]


@pytest.mark.slow
def test_parallel_runs_equal_sequential_runs(world, monkeypatch, capsys, tmp_path):
    scores = []
    for jobs in "1", "2":
        arguments = ["--seeds", "0,1", "--jobs", jobs, "--out", tmp_path / jobs, "--json", "--device", "cpu"]
        assert tiny.run_main(monkeypatch, "ablate", world.real, *arguments) == 0
        scores.append([row["scores"] for row in json.loads(capsys.readouterr().out)["rows"]])
    assert scores[0] == scores[1]


def test_rows_of_an_ablation_may_have_other_sources(own_world, farm, sda, monkeypatch):
    monkeypatch.chdir(farm.parent)
    rows = ["--over", 'source=toy.toml,["toy.toml","farm.toml"]']
    out = own_world.folder / "ablate"
    status, shown = sda("ablate", own_world.recipe, *rows, "--seeds", 0, "--jobs", 1, "--device", "cpu", "--out", out, "--json")
    assert status == 0, shown.err
    assert [row["name"] for row in json.loads(shown.out)["rows"]] == ["source=toy.toml", "source=toy.toml,farm.toml"]
    lists = [
        sorted(path.stem for path in folder.glob("seed0/splits/source*")) for folder in sorted(out.iterdir()) if folder.is_dir()
    ]
    assert lists == [["source"], ["source-farm", "source-toy"]]
