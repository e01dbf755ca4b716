"""A run that is moved, and whose data, descriptors and lists have moved too, still predicts, scores and resumes."""

import json
import shutil

import pytest
import torch

from sda import shelf
from sda.data import descriptor as descriptors
from sda.runs import trained


@pytest.fixture
def moved(own_world, sda, tmp_path):
    """A finished run and an interrupted one, both on images held out by a list, moved with the world that they used."""
    shutil.rmtree(own_world.root / "field/pictures/val")
    shutil.rmtree(own_world.root / "field/labels/val")
    field = own_world.field
    table = field.parent / "tables/mine.toml"
    table.parent.mkdir()
    table.write_text("colors = {ground = [1, 1, 1], building = [2, 2, 2], human = [3, 3, 3]}\n")
    layout = field.read_text().partition("[[layout]]")[2]
    field.write_text(f'title = "Field"\nclasses = "tables/mine.toml"\n[[layout]]{layout}')
    toy = own_world.toy
    toy.write_text(toy.read_text().replace("[maps.field]", "[maps.mine]"))
    lists = own_world.folder / "val.txt"
    images = sorted((own_world.root / "field").rglob("*.jpg"))[:2]
    lists.write_text("".join(f"{image.relative_to(own_world.root / 'field')}\n" for image in images))
    command = ("train", own_world.recipe, "--val-list", lists, "--device", "cpu")
    for name, more in (("whole", ()), ("part", ("--stop-at", 2))):
        assert sda(*command, "--out", tmp_path / f"runs/{name}", *more)[0] == 0
    far = tmp_path / "far"
    shutil.move(own_world.folder, far)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    recipe = far / "tiny.toml"
    recipe.write_text(recipe.read_text().replace(str(own_world.folder), str(far)))
    return tmp_path / "elsewhere", far


def test_a_moved_run_predicts_and_scores_the_same_images(moved, sda, tmp_path):
    runs, far = moved
    before = json.loads((runs / "whole/result.json").read_text())
    assert len(before["image_miou"]) == 2
    assert sda("predict", runs / "whole", far / "data/field/pictures", "--device", "cpu", "--out", tmp_path / "seen")[0] == 0
    for dataset in ((), ("--dataset", far / "sets/field.toml")):
        status, shown = sda("eval", runs / "whole", *dataset, "--root", far / "data/field", "--device", "cpu", "--json")
        assert status == 0, shown.err
        score = json.loads(shown.out)[0]
        assert score["miou"] == before["miou"] and score["image_miou"] == before["image_miou"]
    status, shown = sda("eval", runs / "whole", "--device", "cpu")
    assert status == 2 and "field" in shown.err and "--root" in shown.err
    assert sda("report", runs / "whole", "--root", far / "data/field", "--device", "cpu", "--out", tmp_path / "page")[0] == 0


def test_a_moved_run_resumes_and_is_extended(moved, sda):
    runs, far = moved
    command = ("train", far / "tiny.toml", "--val-list", far / "val.txt", "--device", "cpu")
    status, shown = sda(*command, "--out", runs / "part", "--resume", "auto")
    assert status == 0, shown.err
    one, other = (torch.load(runs / name / "last.pt", weights_only=True)["student"] for name in ("whole", "part"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    status, shown = sda(*command, "--out", runs / "longer", "--resume", runs / "whole/last.pt", "--steps", 5)
    assert status == 0 and "extends a run of 3 steps to 5" in shown.err.replace("\n", " ")


def test_descriptors_that_moved_and_changed_are_refused(moved, sda):
    runs, far = moved
    command = (
        "train",
        far / "tiny.toml",
        "--val-list",
        far / "val.txt",
        "--device",
        "cpu",
        "--out",
        runs / "part",
        "--resume",
        "auto",
    )
    table = far / "sets/tables/mine.toml"
    table.write_text(table.read_text().replace("[2, 2, 2]", "[2, 2, 9]"))
    assert "the descriptor of field has changed" in sda(*command)[1].err.replace("\n", " ")
    table.write_text(table.read_text().replace("[2, 2, 9]", "[2, 2, 2]"))
    (far / "val.txt").write_text((far / "val.txt").read_text().splitlines()[0] + "\n")
    assert "was trained on different" in sda(*command)[1].err.replace("\n", " ")
    toy = far / "sets/toy.toml"
    (far / "sets/other.toml").write_text(toy.read_text())
    status, shown = sda(*command, "--source", far / "sets/other.toml", "--source-root", far / "data/toy")
    assert status == 2 and "was trained with source" in shown.err.replace("\n", " ")


def test_a_run_keeps_its_descriptors_as_they_were(own_world, farm, sda):
    """Copies are complete: they have every value of the file, and decode labels alike."""
    text = farm.read_text()
    farm.write_text(text.replace("[[layout]]", "other_colors = {barn = [[1, 2, 3], [4, 5, 6]]}\ncolor_tolerance = 2\n[[layout]]"))
    run = own_world.folder / "run"
    assert sda("train", own_world.recipe, "--source", farm, "--steps", 1, "--device", "cpu", "--out", run)[0] == 0
    for file in (farm, own_world.field):
        copy = descriptors.load(str(run / "datasets" / file.name))
        assert copy == descriptors.load(str(file)) and copy.name == file.stem
    before = trained.load(run, device="cpu").recipe
    assert before.source == str(farm) and before.target == str(own_world.field)  # the files themselves, as long as they exist
    farm.rename(farm.with_name("away.toml"))
    after = trained.load(run, device="cpu").recipe
    assert after.source == str(run / "datasets/farm.toml") and after.target == before.target
    assert shelf.toml_value([{"a": [1, "b"]}, {}]) == '[{"a" = [1, "b"]}, {}]'


def test_descriptors_of_one_name_have_no_copies(own_world, sda):
    """A copy of one would be taken for the other."""
    toy = own_world.folder / "source/field.toml"
    toy.parent.mkdir()
    shutil.copy(own_world.toy, toy)
    run = own_world.folder / "run"
    options = ("--source-root", own_world.root / "toy", "--steps", 1, "--device", "cpu", "--out", run)
    assert sda("train", own_world.recipe, "--source", toy, *options)[0] == 0
    assert not (run / "datasets").exists()
