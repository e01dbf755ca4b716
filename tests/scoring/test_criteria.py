"""The checkpoint that each criterion selects, and its difference to the best one."""

import json

import pytest

from sda.scoring.criteria import is_better, selection


def log(path, evaluations, **more):
    lines = [{"step": 5, "loss": 1.0}]
    for step, values in evaluations.items():
        lines.append({"step": step, "val": values})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_criterion_by_hand(tmp_path):
    found = selection(
        log(
            tmp_path / "metrics.jsonl",
            {
                10: {"miou": 30.0, "entropy": 0.5, "infomax": 0.1, "agreement": 0.7, "held_out": 20.0},
                20: {"miou": 42.0, "entropy": 0.4, "infomax": 0.3, "agreement": 0.6, "held_out": 50.0},
                30: {"miou": 40.0, "entropy": 0.2, "infomax": 0.2, "agreement": 0.9, "held_out": 10.0},
            },
        )
    )
    assert {name: choice["step"] for name, choice in found.items()} == {
        "last": 30, "oracle": 20, "entropy": 30, "infomax": 20, "agreement": 30, "held_out": 20,
    }  # fmt: skip
    assert found["oracle"] == {"step": 20, "miou": 42.0, "behind": 0.0}
    assert found["entropy"]["behind"] == pytest.approx(2.0) and found["infomax"]["behind"] == 0.0


def test_a_criterion_that_was_not_always_measured_is_skipped(tmp_path):
    found = selection(log(tmp_path / "m", {1: {"miou": 1.0, "entropy": 0.5}, 2: {"miou": 2.0, "entropy": None}}))
    assert found.keys() == {"last", "oracle"}
    assert selection(log(tmp_path / "n", {})) == {}


def test_a_resumed_run_counts_a_step_once(tmp_path):
    path = log(tmp_path / "m", {1: {"miou": 1.0}, 2: {"miou": 2.0}})
    with path.open("a") as file:
        file.write(json.dumps({"step": 2, "val": {"miou": 0.5}}) + "\n")
    assert selection(path)["oracle"]["step"] == 1


def test_lower_entropy_is_better():
    assert is_better("entropy", 0.1, 0.2) and not is_better("entropy", 0.2, 0.1)
    assert is_better("miou", 2, 1) and is_better("agreement", 2, 1)
