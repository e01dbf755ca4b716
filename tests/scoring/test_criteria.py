"""The checkpoint that each criterion selects, and its difference to the best one."""

import pytest

from sda.scoring.criteria import is_better, selection


def log(evaluations):
    lines = [{"step": 5, "loss": 1.0}]
    for step, values in evaluations.items():
        lines.append({"step": step, "val": values})
    return lines


def test_each_criterion_by_hand():
    found = selection(
        log(
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


def test_a_criterion_that_was_not_always_measured_is_skipped():
    found = selection(log({1: {"miou": 1.0, "entropy": 0.5}, 2: {"miou": 2.0, "entropy": None}}))
    assert found.keys() == {"last", "oracle"}
    assert selection(log({})) == {}


def test_a_resumed_run_counts_a_step_once():
    records = log({1: {"miou": 1.0}, 2: {"miou": 2.0}})
    records.append({"step": 2, "val": {"miou": 0.5}})
    assert selection(records)["oracle"]["step"] == 1


def test_damaged_evaluations_are_skipped():
    records = [{"step": 3, "val": val} for val in (None, 3, "x", [], {}, {"miou": None}, {"miou": "1"}, {"miou": 10**400})]
    assert selection(records) == {}
    records += log({1: {"miou": 1.0, "entropy": "low"}, 2: {"miou": 2.0, "entropy": 0.5}})
    assert selection(records).keys() == {"last", "oracle"}


def test_lower_entropy_is_better():
    assert is_better("entropy", 0.1, 0.2) and not is_better("entropy", 0.2, 0.1)
    assert is_better("miou", 2, 1) and is_better("agreement", 2, 1)
