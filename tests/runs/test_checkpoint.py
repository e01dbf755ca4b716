"""Checkpoints: round trips; corrupt, foreign and hostile files raise an error of one line."""

import errno
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch

from sda.errors import SdaError
from sda.models import stored
from sda.runs import checkpoint

STATE = {
    "step": 3,
    "recipe": {"labels": "all", "size": [48, 64], "crop": None, "rate": 0.1},
    "table": "field",
    "classes": {"road": [1, 2, 3], "sky": [4, 5, 6]},
    "splits": {"val": ["a.png"]},
    "weights_format": "torchvision",
    "preprocessing": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "order": "RGB", "maximum": 1.0},
    "student": {"w": torch.arange(6.0), "n": torch.tensor(3)},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.pt"


def rejected(path):
    with pytest.raises(SdaError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_checkpoints_round_trip(path):
    checkpoint.save(path, STATE)
    state = checkpoint.load(path)
    assert tiny.same(state, {"format": checkpoint.FORMAT, **STATE})
    assert os.listdir(path.parent) == ["last.pt"]


def test_torch_loads_it_with_weights_only(path):
    checkpoint.save(path, STATE)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_saving_replaces_the_old_file(path):
    checkpoint.save(path, STATE)
    checkpoint.save(path, {**STATE, "step": 4})
    assert checkpoint.load(path)["step"] == 4


def test_an_interrupted_write_keeps_the_old_file(path, monkeypatch):
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def half(state, file):
        file.write(b"PK half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(
        SdaError, match=r"cannot write the checkpoint \(No space left on device\); the previous checkpoint is unchanged"
    ):
        checkpoint.save(path, {**STATE, "step": 4})
    assert path.read_bytes() == before
    monkeypatch.undo()
    checkpoint.save(path, {**STATE, "step": 5})
    assert checkpoint.load(path)["step"] == 5
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_missing_checkpoint_is_named(path):
    assert "no such checkpoint" in rejected(path)
    path.mkdir()
    assert "no such checkpoint" in rejected(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_checkpoint_is_refused(path, share):
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not a readable checkpoint" in rejected(path)


class Hostile:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
def test_a_hostile_pickle_does_not_run(path, tmp_path, how):
    trap = tmp_path / "ran"
    content = {"format": 1, "student": Hostile(trap)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    rejected(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"format": 2}, {"format": "1"}, [1, 2], torch.zeros(2), 3])
def test_files_of_other_programs_are_refused(path, content):
    torch.save(content, path)
    assert "not a checkpoint of this version of sda" in rejected(path)


@pytest.mark.parametrize("content", [b"hello\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02"])
def test_files_of_other_kinds_are_refused(path, content):
    path.write_bytes(content)
    rejected(path)


def test_archives_of_other_kinds_are_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    rejected(path)
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    rejected(path)


# Damage


def test_every_flipped_bit_of_the_headers_is_noticed(path):
    """The checksums of a zip archive do not cover its headers, which say where PyTorch finds the tensors."""
    checkpoint.save(path, STATE)
    whole, before = path.read_bytes(), checkpoint.load(path)
    start = whole.index(b"PK\x01\x02")  # the directory of the archive
    for place in range(start, len(whole)):
        for bit in {place % 8, 4}:  # 4: in the attributes of an entry, the mark of a folder, which PyTorch reads as random memory
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                assert tiny.same(checkpoint.load(path), before), (place - start, bit)
            except SdaError as error:
                assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["last.pt", "model.safetensors"])
def test_damage_is_noticed(tmp_path, name):
    path = tmp_path / name
    write(path)
    tiny.check_damage(path, checkpoint.load, 400)


@pytest.mark.parametrize("name", ["last.pt", "model.safetensors"])
def test_files_without_checksums_of_ours_load(tmp_path, name):
    """As older versions wrote them."""
    path = tmp_path / name
    if name == "last.pt":
        torch.save({"format": 1, **STATE}, path)
    else:
        about = {key: value for key, value in STATE.items() if key != "student"}
        safetensors.torch.save_file(STATE["student"], path, {"sda": json.dumps(about)})
    assert checkpoint.load(path)["step"] == 3


def write(path, state=STATE):
    if path.suffix == ".pt":
        checkpoint.save(path, state)
    else:
        about = {key: value for key, value in state.items() if key != "student"}
        path.write_bytes(checkpoint.to_safetensors(state["student"], about))


def test_other_weights_under_the_same_checksums_are_refused(tmp_path):
    """Exchange two files that are intact each: only the hash of the whole shows it."""
    path = tmp_path / "last.pt"
    write(path, {**STATE, "student": {"w": torch.zeros(6), "n": torch.tensor(3)}})
    other = torch.load(path, weights_only=True)
    torch.save({**other, "student": STATE["student"]}, path)
    assert "not a readable checkpoint (damaged: its SHA-256 is wrong)" in rejected(path)


# Crafted content


@pytest.mark.parametrize("name", ["last.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": "3"}, "step = '3': input should be a valid integer"),
        ({"step": -1}, "step = -1: input should be greater than"),
        ({"step": True}, "step = True: input should be a valid integer"),
        ({"recipe": [1]}, "recipe = [1]: input should be a valid dictionary"),
        ({"classes": ["road", "sky"]}, "classes = ['road', 'sky']: input should be a valid dictionary"),
        ({"classes": {"road": [1, 2, 999]}}, "classes.road.2 = 999: input should be less than or equal to 255"),
        ({"splits": 7}, "splits = 7: input should be a valid dictionary"),
        ({"splits": {"val": "a.png"}}, "splits.val = 'a.png': input should be a valid list"),
        ({"weights_format": "../other"}, "weights_format = '../other': input should be 'torchvision', 'caffe' or 'timm'"),
        ({"table": None}, "table = None: input should be an instance of str"),
        ({"preprocessing": 1.5}, "preprocessing = 1.5: input should be a valid dictionary"),
        ({"student": {"w": torch.tensor([1.0, float("nan")])}}, "student: w has values that are NaN or infinite"),
        ({"student": {"w": torch.tensor([1.0, float("-inf")])}}, "student: w has values that are NaN or infinite"),
        ({"checkpoint": "../../other"}, "checkpoint = '../../other': string should match pattern"),
        ({"network": "both"}, "network = 'both': input should be 'student' or 'teacher'"),
    ],
)
def test_fields_of_other_types_are_refused(tmp_path, name, change, says):
    path = tmp_path / name
    write(path, {**STATE, **change})
    assert says in rejected(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"student": {"w": [1.0, 2.0]}}, "student.w = [1.0, 2.0]: input should be an instance of Tensor"),
        ({"student": {3: torch.zeros(1)}}, "input should be a valid string"),
        ({"student": {"w": torch.zeros(1).expand(10**6, 10**6)}}, "student: w is not a plain tensor"),
        ({"student": {"w": torch.zeros(2, 2).to_sparse()}}, "student: w is not a plain tensor"),
        ({"method": torch.zeros(2)}, "method = tensor([0., 0.]): input should be a valid dictionary"),
        ({"optimizer": None}, "optimizer = None: input should be a valid dictionary"),
        ({"best": {"by": "miou"}}, "key 'best.step' is missing"),
        ({"seconds": "long"}, "seconds = 'long': input should be a valid number"),
        ({"evaluated": 1}, "evaluated = 1: input should be a valid boolean"),
        ({"faults": {"source": 3}}, "faults.source = 3: input should be a valid list"),
    ],
)
def test_fields_that_only_checkpoints_have_are_checked(path, change, says):
    torch.save({"format": 1, **STATE, **change}, path)
    assert says in rejected(path)


@pytest.mark.parametrize("missing", ["step", "recipe", "table", "classes", "weights_format", "preprocessing", "student"])
def test_missing_fields_are_named(path, missing):
    torch.save({"format": 1, **{key: value for key, value in STATE.items() if key != missing}}, path)
    assert f"key '{missing}' is missing" in rejected(path)


def test_compressed_archives_are_refused(path):
    """PyTorch reads them, but the size of what they hold has no bound."""
    checkpoint.save(path, STATE)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert "is not stored as PyTorch stores it" in rejected(path)


@pytest.mark.parametrize("about", ["[1]", "3", '"text"', "null", "{", "[" * 100_000, '{"step": 1e999}'])
def test_metadata_that_is_no_object_is_refused(tmp_path, about):
    path = tmp_path / "model.safetensors"
    path.write_bytes(stored.write_safetensors({"w": torch.zeros(2)}, about))
    rejected(path)


def test_file_names_that_are_not_unicode_are_kept(path):
    names = {"val": ["caf\udce9.png"]}
    checkpoint.save(path, {**STATE, "splits": names})
    assert checkpoint.load(path)["splits"] == names


def test_the_other_intact_checkpoints_are_named(tmp_path):
    last, previous, best = (tmp_path / name for name in ("last.pt", "previous.pt", "best.pt"))
    for path in (last, previous, best):
        checkpoint.save(path, {**STATE, "step": 2 if path == previous else 1})
    assert checkpoint.others(last) == f"; intact: {previous} (step 2) and {best} (step 1); give one of these instead"
    best.write_bytes(best.read_bytes()[:100])
    assert checkpoint.others(last) == f"; intact: {previous} (step 2); give this file instead"
    previous.unlink()
    assert checkpoint.others(last) == ""


def test_a_plain_pickle_of_another_protocol_is_refused(path):
    path.write_bytes(pickle.dumps({"format": 1}, protocol=4))
    rejected(path)
