"""Patterns of layouts, compared with the regular expressions that they replace."""

import os
import random
import re
import time
import unicodedata

import pytest

from sda.data.layouts.pattern import Pattern, Tree, entries_of

KNOWN = {"split": "train"}


def nfd(text):
    return unicodedata.normalize("NFD", text)


def slow_match(pattern, path):
    """Match by a regular expression with backtracking; a word that occurs again is a back reference."""
    expression, seen = "", set()
    for text in re.split(r"({\w+})", pattern):
        word = text[1:-1] if text.startswith("{") else None
        if word is None or word in KNOWN:
            expression += re.escape(text if word is None else KNOWN[word])
        else:
            expression += f"(?P={word})" if word in seen else f"(?P<{word}>[^/]+)"
            seen.add(word)
    match = re.fullmatch(expression, path)
    return match and match.groupdict()


def test_words_are_those_of_a_regular_expression():
    draw = random.Random(0)
    matched = 0
    for _ in range(4000):
        words = iter("uvwxyz")
        parts = []
        for _ in range(draw.randint(1, 3)):
            texts = [
                draw.choice(["a", "_", "b_", ".", "{split}", "{" + next(words, "t") + "}"]) for _ in range(draw.randint(1, 4))
            ]
            parts.append("".join(texts))
        pattern = "/".join(parts)
        if any(pattern.count(f"{{{word}}}") > 1 for word in "tuvwxyz"):
            continue
        path = "/".join("".join(draw.choice("a_b.") for _ in range(draw.randint(1, 8))) for _ in parts)
        assert Pattern(pattern, KNOWN).match(path) == slow_match(pattern, path), (pattern, path)
        matched += Pattern(pattern, KNOWN).match(path) is not None
    assert matched > 50


@pytest.mark.parametrize(
    ("pattern", "path", "words"),
    [
        ("{split}/{city}/{city}_{n}.png", "train/ulm/ulm_1.png", {"city": "ulm", "n": "1"}),
        ("{split}/{city}/{city}_{n}.png", "train/ulm/bonn_1.png", None),
        ("{split}/{city}/{city}_{n}.png", "val/ulm/ulm_1.png", None),
        ("{scene}_{n}.png", "a_b_1.png", {"scene": "a_b", "n": "1"}),  # earlier words are as long as possible
        ("{a}{b}.png", "xyz.png", {"a": "xy", "b": "z"}),
        ("{n}.{ext}", "a.b.JPG", {"n": "a.b"}),
        ("{n}.{ext}", "a.txt", None),
        ("{n}_x.{ext}", "a_x.tiff", {"n": "a"}),
        ("{n}.png", ".png", None),
        ("größe/{n}.png", nfd("größe/ä.png"), {"n": "ä"}),
        ("[{n}].png", "[1].png", {"n": "1"}),
    ],
)
def test_matches(pattern, path, words):
    assert Pattern(pattern, KNOWN).match(path) == words


def test_a_split_may_have_any_name():
    assert Pattern("{split}/{n}.png", {"split": "{x} (old)/night"}).match("{x} (old)/night/1.png") == {"n": "1"}


@pytest.mark.parametrize("name", ["a_" * 5000 + ".jpg", "_" * 10000 + ".png", "a" * 10000 + ".png"])
def test_matching_takes_linear_time(name):
    """A regular expression needs more than 30 seconds for names of 180 characters."""
    begin = time.perf_counter()
    Pattern("{a}_{b}_{c}_{d}_{e}_{f}_{g}.png", {}).match(name)
    Pattern("{a}{b}{c}{d}{e}{f}{g}_.png", {}).match(name)
    assert time.perf_counter() - begin < 0.5


def test_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "image.png").touch()
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder.png").mkdir()
    assert entries_of(tmp_path) == (["folder.png"], ["broken.png", "image.png", "loop.png"])
    found = [path.name for path, _ in Pattern("{n}.png", {}).find(Tree(tmp_path))]
    assert found == ["broken.png", "image.png", "loop.png", "folder.png"]


def test_hidden_files_and_folders_match_only_if_the_pattern_names_them(tmp_path):
    for name in ("a/1.png", ".thumbs/1.png", "a/._1.png", ".data/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path, _ in Pattern("{f}/{n}.png", {}).find(Tree(tmp_path))] == ["a/1.png"]
    assert [path.name for path, _ in Pattern(".data/{n}.png", {}).find(Tree(tmp_path))] == ["2.png"]


def test_filling_finds_every_suffix_and_spelling(tmp_path):
    for name in ("m/1_x.PNG", "m/1_x.bmp", "m/1_x.txt", f"m/{nfd('ä')}.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = Pattern("m/{n}_x.{ext}", {}).fill(Tree(tmp_path), {"n": "1"})
    assert {path.name for path in found} == {"1_x.PNG", "1_x.bmp"}
    assert Pattern("m/{n}.png", {}).fill(Tree(tmp_path), {"n": "ä"}) == [tmp_path / f"m/{nfd('ä')}.png"]
    assert Pattern("m/{n}.png", {}).fill(Tree(tmp_path), {"n": "Ä"}) == []
