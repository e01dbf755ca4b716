"""Small text files: damaged, endless, or not files at all."""

import json
import os

import pytest

from sda.errors import SdaError
from sda.reading import read_log, read_object, read_text


@pytest.mark.parametrize("content", ["", "{", '{"a": 1', "null", "[]", "3", '"text"', "[" * 100_000, "1" + "0" * 5000, "\0\0"])
def test_damaged_json_is_refused(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(SdaError, match="result.json: "):
        read_object(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "."):
        for read in (read_text, read_object, read_log):
            with pytest.raises(SdaError, match="cannot be read"):
                read(tmp_path / name)
    for read in (read_text, read_object):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")
    assert read_log(tmp_path / "none") == []


def test_the_size_is_limited(tmp_path):
    (tmp_path / "a").write_text("12345")
    assert read_text(tmp_path / "a", most=5) == "12345"
    with pytest.raises(SdaError, match="larger than"):
        read_text(tmp_path / "a", most=4)


def test_damaged_lines_of_a_log_are_skipped(tmp_path):
    good = [{"step": 1, "loss": 0.5}, {"step": 2, "val": {"miou": 3.0}}]
    bad = [
        b"",
        b"{",
        b'{"step": "3"}',
        b'{"step": true}',
        b'{"step": 1.5}',
        b'{"loss": 1}',
        b"3",
        b"[]",
        b"null",
        b"\0\0",
        b"\xff",
    ]
    lines = [json.dumps(good[0]).encode(), *bad, json.dumps(good[1]).encode()]
    (tmp_path / "log").write_bytes(b"\n".join(lines))
    assert read_log(tmp_path / "log") == good
