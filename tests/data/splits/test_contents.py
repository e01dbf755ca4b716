"""Fingerprints of images and labels."""

import os

import pytest

from sda.data.item import Item
from sda.data.splits import contents
from sda.data.splits.contents import fingerprint


@pytest.fixture
def items(tmp_path):
    made = []
    for name in "abc":
        for kind in ("image", "label"):
            (tmp_path / f"{name}.{kind}").write_bytes(f"{name} {kind} ".encode() * 10)
        made.append(Item(name, tmp_path / f"{name}.image", tmp_path / f"{name}.label"))
    return made


def test_only_names_sizes_and_bytes_count(items, tmp_path):
    before = fingerprint(items)
    assert before.startswith("files:") and fingerprint(items) == before
    os.utime(items[0].image, (0, 0))
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (*(item.image for item in items), *(item.label for item in items)):
        (moved / path.name).write_bytes(path.read_bytes())
    there = [Item(item.key, moved / item.image.name, moved / item.label.name) for item in items]
    assert fingerprint(items) == fingerprint(there) == before


def test_every_change_is_noticed(items):
    seen = {fingerprint(items), fingerprint(items[::-1]), fingerprint(items[:2]), fingerprint(items, labels=False)}
    for path in (items[1].image, items[2].label):
        content = path.read_bytes()
        for changed in (content[:-1], content + b"x", content[:-1] + b"x", b"y" + content[1:], b""):
            path.write_bytes(changed)
            seen.add(fingerprint(items))
        path.unlink()
        seen.add(fingerprint(items))
        path.write_bytes(content)
    seen.add(fingerprint([Item("z", items[0].image, items[0].label), *items[1:]]))
    seen.add(fingerprint([Item("a", items[0].image, None), *items[1:]]))
    assert len(seen) == 4 + 12 + 2


def test_labels_do_not_count_on_request(items):
    before = fingerprint(items, labels=False)
    items[0].label.unlink()
    assert fingerprint(items, labels=False) == before


def test_of_large_lists_only_beginnings_and_sizes_are_read(items, monkeypatch):
    monkeypatch.setattr(contents, "READ", 6 * 10)
    before = fingerprint(items)
    content = items[0].image.read_bytes()
    items[0].image.write_bytes(content[:-1] + b"x")
    assert fingerprint(items) == before
    items[0].image.write_bytes(b"x" + content[1:])
    assert fingerprint(items) != before
    items[0].image.write_bytes(content + b"x")
    assert fingerprint(items) != before
