"""The record says which network made an output from which file; --resume compares it."""

import json
from pathlib import Path

import pytest

from sda.errors import SdaError
from sda.prediction.content import Content
from sda.prediction.plan import Input
from sda.prediction.record import Record, identity

BY = {
    "run": "/runs/a",
    "network": "student of last, step 2",
    "sha256": "abc",
    "size": "fit",
    "scales": [1.0],
    "flip": False,
    "ids": {"ids": [7, 8]},
    "device": "cpu",
}


@pytest.fixture
def task(tmp_path):
    """A photo with two outputs that exist and are in the record."""
    (tmp_path / "out/ids").mkdir(parents=True)
    (tmp_path / "a.jpg").write_bytes(b"a photo")
    outputs = {"overlay": tmp_path / "out/overlay.jpg", "ids": tmp_path / "out/ids/a.png"}
    Record(tmp_path / "out", BY).add(identity(tmp_path / "a.jpg"), outputs.values())
    for file in outputs.values():
        file.write_text("")
    return Input(tmp_path / "a.jpg", Content("image"), outputs)


def check(task, **changes):
    return Record(task.outputs["overlay"].parent, BY | changes).check([task])


def test_the_same_network_options_and_source(task):
    assert check(task) == check(task, run="/elsewhere/a", network="student of best, step 2") == ""
    task.source.touch()
    assert check(task) == ""  # another time, the same content
    assert "made on cpu, new ones on cuda" in check(task, device="cuda")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sha256": "def", "run": "/runs/b"}, "another network: /runs/a (student of last, step 2), not /runs/b (student of last"),
        ({"size": [32, 64]}, "another --size: fit, not 32x64"),
        ({"scales": [0.5, 1.0]}, "another --scales"),
        ({"flip": True}, "another --flip"),
        ({"ids": {"ids": [7, 9]}}, "a.png was made with other ids of the classes"),
    ],
)
def test_differences_are_refused(task, changes, says):
    with pytest.raises(SdaError, match="--resume: .*; add --overwrite") as caught:
        check(task, **changes)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [b"another", b"longer content"])
def test_another_source_is_refused(task, content):
    task.source.write_bytes(content)
    with pytest.raises(SdaError, match=r"a\.jpg has changed since .*overlay\.jpg was made"):
        check(task)


def test_an_output_that_is_not_in_the_record_is_refused(task):
    task.outputs["color"] = task.outputs["ids"].with_name("other.png")
    assert check(task) == ""
    task.outputs["color"].write_text("")
    with pytest.raises(SdaError, match=r"predictions\.jsonl does not say which network made .*other\.png"):
        check(task)


def test_later_calls_replace_what_earlier_ones_said(task):
    later = Record(task.outputs["overlay"].parent, BY | {"flip": True})
    later.add(identity(task.source), [task.outputs["ids"]])
    with pytest.raises(SdaError, match=r"a\.png was made with another --flip: True, not False"):
        check(task)
    del task.outputs["ids"]
    assert check(task) == ""


def test_a_cut_line_costs_only_itself(task):
    record = Path(task.outputs["overlay"].parent / "predictions.jsonl")
    whole = record.read_bytes()
    record.write_bytes(whole[:-20])  # a kill or a full disk
    with pytest.raises(SdaError, match="does not say which network"):
        check(task)
    Record(record.parent, BY).add(identity(task.source), task.outputs.values())
    assert check(task) == "" and record.read_bytes().startswith(whole[:-20] + b"\n{")


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"null", b"[]", b'{"made_by": 3}', b'{"source": 1, "outputs": 2}', b"[" * 9999]
)
def test_damaged_lines_make_no_outputs_known(task, damage):
    record = Path(task.outputs["overlay"].parent / "predictions.jsonl")
    made_by, line = record.read_bytes().splitlines()
    record.write_bytes(damage + b"\n" + line + b"\n")
    with pytest.raises(SdaError, match="does not say which network"):
        check(task)
    record.write_bytes(made_by + b"\n" + (damage or b"{") + b"\n" + line + b"\n")  # the line may have begun another call
    with pytest.raises(SdaError, match="does not say which network"):
        check(task)
    assert json.loads(line)["outputs"] == ["overlay.jpg", "ids/a.png"]
