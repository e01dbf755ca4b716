"""`sda split`, and recipes that use its lists."""

import json
import pickle
import shlex
from pathlib import Path

import pytest
import tiny


@pytest.fixture
def world(own_world):
    return own_world


@pytest.fixture
def split(world, monkeypatch, capsys):
    """`split(options)` → the lines written, or the error's text."""

    def split(*options, out="list.txt"):
        arguments = ["split", world.field, "--root", world.root / "field", "--out", out, *options]
        status = tiny.run_main(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return (world.folder.parent / out).read_text().splitlines() if status == 0 else captured.err.strip().splitlines()[-1]

    return split


def test_random_lists_are_nested_and_equal_those_of_recipes(split, world, monkeypatch, tmp_path):
    three, five = split("--labels", 3), split("--labels", 5, out="five.txt")
    assert len(three) == 3 and five[:3] == three and split("--labels", 3, "--seed", 1, out="other.txt") != three
    assert tiny.run_main(monkeypatch, "train", world.recipe, "--out", tmp_path / "run", "--device", "cpu") == 0
    assert sorted(three) == sorted((tmp_path / "run/splits/labelled.txt").read_text().splitlines())


def test_lists_by_word_and_balanced_lists(split):
    places = [key.split("/")[2] for key in split("--labels", 4, "--by", "place")]
    assert sorted(places) == ["north"] * 2 + ["south"] * 2
    assert len(split("--labels", 4, "--by", "balanced", out="balanced.txt")) == 4
    assert "has no word {town} to group by; it has" in split("--labels", 4, "--by", "town", out="none.txt")


def test_held_out_groups_become_the_validation_images(split, world, monkeypatch, capsys, tmp_path):
    """The target has no val split. Whole groups are excluded from all streams, and sda eval scores on them."""
    held = split("--hold-out", 0.5, "--by", "place")
    assert len(held) == 4 and len({key.split("/")[2] for key in held}) == 1
    for path in (world.root / "field/pictures/val").rglob("*.jpg"):
        path.unlink()
    options = [*tiny.BANK, "--labels", 2, "--val-list", "list.txt", "--out", tmp_path / "run", "--device", "cpu"]
    assert tiny.run_main(monkeypatch, "train", world.recipe, *options) == 0
    lists = {
        name: set((tmp_path / f"run/splits/{name}.txt").read_text().splitlines()) for name in ("val", "labelled", "unlabelled")
    }
    assert lists["val"] == set(held) and not lists["val"] & (lists["labelled"] | lists["unlabelled"])
    assert len(lists["labelled"] | lists["unlabelled"]) == 4
    capsys.readouterr()
    assert tiny.run_main(monkeypatch, "eval", tmp_path / "run", "--device", "cpu", "--json") == 0
    score = json.loads(capsys.readouterr().out)[0]
    assert score["images"] == 4 and score["iou"] == json.loads((tmp_path / "run/result.json").read_text())["iou"]


def test_lists_that_overlap_name_the_command_that_mends_them(split, world, monkeypatch, capsys, tmp_path):
    """A list to validate on and a list to label, drawn independently, share images."""
    held, drawn = split("--hold-out", 0.5, out="val.txt"), split("--labels", 6, out="labelled.txt")
    train = ["train", world.recipe, "--val-list", "val.txt", "--device", "cpu", "--out", "run", "--split"]
    assert tiny.run_main(monkeypatch, *train, "labelled.txt") == 2
    error = capsys.readouterr().err
    assert f"labelled.txt (labelled) and {tmp_path / 'val.txt'} (validation) share {len({*held} & {*drawn})} images" in error
    assert not (tmp_path / "run/recipe.toml").exists()
    command = error[error.index("sda split") :].replace("--out labelled.txt", "--out new.txt")
    assert tiny.run_main(monkeypatch, *shlex.split(command)[1:]) == 0
    assert not {*held} & {*Path("new.txt").read_text().splitlines()}
    assert tiny.run_main(monkeypatch, *train, "new.txt") == 0


def test_a_target_without_a_validation_split_names_the_command(world, monkeypatch, capsys, tmp_path):
    (tmp_path / "field.toml").write_text(tiny.FIELD.replace("{split}", "train"))
    train = ["train", world.recipe, "--target", tmp_path / "field.toml", "--target-root", world.root / "field", "--device", "cpu"]
    assert tiny.run_main(monkeypatch, *train, "--val-share", 0) == 2
    error = capsys.readouterr().err
    assert "no layout of its descriptor has a split 'val'" in error and "then train with --val-list val.txt" in error
    command = error[error.index("sda split") : error.index(", then train")]
    monkeypatch.chdir(tmp_path)
    assert tiny.run_main(monkeypatch, *shlex.split(command)[1:]) == 0
    assert tiny.run_main(monkeypatch, *train, "--val-list", "val.txt", "--out", "run") == 0


def test_lists_in_other_formats_are_converted(split, world, tmp_path):
    keys = split("--labels", 4)
    (tmp_path / "names.txt").write_text("".join(f"{key.split('/')[-1]}\n" for key in keys))
    assert split("--from", tmp_path / "names.txt", out="again.txt") == keys
    pairs = split("--from", "list.txt", "--unimatch", out="unimatch.txt")
    assert pairs[0] == f"{keys[0]} {keys[0].replace('pictures', 'labels').replace('.jpg', '.png')}"
    assert split("--from", "unimatch.txt", "--labels", 2, out="back.txt") == keys[:2]
    (tmp_path / "split.pkl").write_bytes(pickle.dumps([3, 0, 5]))
    everything = sorted(
        path.relative_to(world.root / "field").as_posix() for path in (world.root / "field/pictures/train").rglob("*.jpg")
    )
    assert split("--from", tmp_path / "split.pkl", "--labels", 2, out="paper.txt") == [everything[3], everything[0]]


def test_invalid_requests_are_refused(split):
    assert "choose what to list" in split()
    assert "choose what to list" in split("--labels", 3, "--hold-out", 0.5)
    assert "has labels for 8 training images" in split("--labels", 9)
    assert split("--labels", 3)
    assert "list.txt: it exists and is not overwritten" in split("--labels", 3)
