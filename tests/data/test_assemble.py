"""Several sources of a run: each has its own ids, classes, folder or pack, and share of the drawn images."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sda.data.assemble import assemble
from sda.data.dataset import Joint
from sda.data.streams import next_batch, open_streams
from sda.errors import SdaError
from sda.recipe import load
from sda.system import distributed


@pytest.fixture
def world(own_world):
    return own_world


def opened(world, farm, **changes):
    recipe = load(str(world.recipe), {"source": [str(world.toy), str(farm)], **changes}).with_absolute_paths()
    return recipe, assemble(recipe)


def test_each_source_has_its_own_labels_and_images(world, farm):
    recipe, data = opened(world, farm)
    assert isinstance(data.source, Joint) and len(data.source) == 4 + 6
    assert {name: len(items) for name, items in data.lists.items()} == {
        "source-toy": 4, "source-farm": 6, "val": 3, "labelled": 3,
    }  # fmt: skip
    toy, farms = data.source.datasets
    for index, sample in enumerate(map(toy.__getitem__, range(4))):
        _, ids = tiny.draw(index, [255, 1, 0], [(0, 0, 0)] * 3)  # clouds are void
        assert np.array_equal(sample.label, ids)
    for index, sample in enumerate(map(farms.__getitem__, range(6))):
        _, ids = tiny.draw(200 + index, [255, 1, 0], [(0, 0, 0)] * 3)  # cows have no counterpart
        assert np.array_equal(sample.label, ids)
    assert "Farm: classes without a counterpart in field are ignored: cow" in data.notes
    assert recipe.setting == "joint"


def test_source_size_holds_for_all_sources(world, farm):
    _, data = opened(world, farm, source_size=[64, 96])
    assert {dataset[0].image.shape for dataset in data.source.datasets} == {(3, 64, 96)}


def test_a_class_of_one_source_is_not_missing(world, farm):
    """Farm has no humans. Toy town has; without its humans, the labelled target has; without that, nobody has."""
    _, data = opened(world, farm, labels=0)
    assert not [note for note in data.notes if "warning" in note] and data.missing == {"source": [], "target": []}
    world.toy.write_text(tiny.TOY.replace('man = "human"\n', ""))
    _, data = opened(world, farm)
    assert not [note for note in data.notes if "warning" in note] and data.missing == {"source": ["human"], "target": []}
    _, data = opened(world, farm, labels=0)
    assert [note for note in data.notes if "warning" in note] == [
        "warning: Toy town + Farm have 2 of the 3 classes of field, and no labels of human"
    ]


def test_drawn_images_follow_the_weights(world, farm):
    """Farm's images are the greenish ones (drawn in `tiny.write_farm`)."""
    recipe, data = opened(world, farm, source_weights=[1, 3], batch_source=20, steps=100)
    stream = open_streams(recipe, data)["source"]
    first = [next(stream).images for _ in range(10)]
    known = {bytes(sample.image.numpy()) for sample in map(data.source.datasets[1].__getitem__, range(6))}
    assert sum(bytes(image.numpy()) in known for image in torch.cat(first)) == 150
    later = open_streams(recipe, data, 7)["source"]
    assert all(torch.equal(images, next(later).images) for images in first[7:])


def test_two_processes_draw_no_position_twice(world, farm, monkeypatch):
    recipe, data = opened(world, farm, source_weights=[1, 2], batch_source=3)
    whole = open_streams(recipe.model_copy(update={"batch_source": 6}), data, 2)["source"]
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        halves.append(open_streams(recipe, data, 2)["source"])
    monkeypatch.undo()
    for _ in range(20):
        assert torch.equal(torch.cat([next(half).images for half in halves]), next(whole).images)


def test_alternating_steps_draw_the_same_images(world, farm):
    recipe, data = opened(world, farm, alternate=True, steps=8)
    drawn = {}
    for start in (0, 3):
        streams = open_streams(recipe, data, start)
        drawn[start] = [next_batch(streams, step, recipe, torch.device("cpu")).source for step in range(start, 8)]
    for early, late in zip(drawn[0][3:], drawn[3], strict=True):
        assert (early is None and late is None) or torch.equal(early.images, late.images)
    assert sum(part is not None for part in drawn[0]) == 4


@pytest.mark.parametrize("alternate", [False, True])
def test_the_last_steps_are_without_source_images(world, farm, alternate):
    recipe, data = opened(world, farm, alternate=alternate, steps=9, target_steps=4)
    drawn = {}
    for start in (0, 3, 7):
        streams = open_streams(recipe, data, start)
        drawn[start] = [next_batch(streams, step, recipe, torch.device("cpu")) for step in range(start, 9)]
    letters = ["s" * (batch.source is not None) + "l" * (batch.labelled is not None) for batch in drawn[0]]
    assert letters == (["s", "l", "s", "l", "s"] if alternate else ["sl"] * 5) + ["l"] * 4
    for start in (3, 7):
        for early, late in zip(drawn[0][start:], drawn[start], strict=True):
            for one, other in ((early.source, late.source), (early.labelled, late.labelled)):
                assert (one is None and other is None) or torch.equal(one.images, other.images)


def test_pixels_and_memory_of_all_sources(world, farm):
    _, data = opened(world, farm, rare_class_sampling=0.1, class_statistics=True, balance_classes=True, in_memory=True)
    labels = [sample.label for dataset in data.source.datasets for sample in map(dataset.__getitem__, range(len(dataset)))]
    assert np.array_equal(data.pixels["source"], [[int((label == c).sum()) for c in range(3)] for label in labels])
    shutil.rmtree(world.root / "farm")
    shutil.rmtree(world.root / "toy")
    assert data.source.datasets[1][5].image.shape == (3, 48, 64)


def test_a_pack_and_a_folder_give_the_same_images(world, farm, sda):
    _, plain = opened(world, farm)
    assert sda("pack", farm, "--root", world.root / "farm", "--size", "48x64", "--out", world.folder / "farm.h5")[0] == 0
    roots = [str(world.root / "toy"), str(world.folder / "farm.h5")]
    _, packed = opened(world, farm, source_root=roots)
    for one, other in zip(plain.source.datasets, packed.source.datasets, strict=True):
        for index in range(len(one)):
            assert torch.equal(one[index].image, other[index].image) and torch.equal(one[index].label, other[index].label)


def test_bad_pairs_of_each_source_are_skipped(world, farm, sda):
    (world.root / "farm/photos/train/03.png").write_bytes(b"")
    assert sda("doctor", farm, "--root", world.root / "farm", "--split", "train", "--out", world.folder / "doctor")[0] == 1
    _, data = opened(world, farm)
    assert [len(dataset) for dataset in data.source.datasets] == [4, 5]
    assert any(note.startswith("Farm: 1 pairs that sda doctor found bad are skipped") for note in data.notes)


def test_sources_must_not_share_images(world, farm):
    """The same dataset under two names, and a validation image in the second source."""
    again = farm.with_name("again.toml")
    again.write_text(tiny.FARM)
    roots = [str(world.root / "farm")] * 2
    with pytest.raises(
        SdaError, match=r"source: \S*/farm.toml and \S*/again.toml share 6 images, such as .*: name one of the two"
    ):
        opened(world, farm, source=[str(farm), str(again)], source_root=roots)
    shutil.copy(world.root / "field/pictures/val/west/09.jpg", world.root / "farm/photos/train/00.png")
    with pytest.raises(SdaError, match=r"00.png \(source\) is the same image as .*09.jpg \(validation\)"):
        opened(world, farm, doctor=False)


def test_a_missing_root_says_what_to_type(world, farm):
    with pytest.raises(SdaError, match="Farm: no folder is given; set it with --source-root DIR/toy,DIR/farm"):
        opened(world, farm, root="", source_root=[str(world.root / "toy"), ""], target_root=str(world.root / "field"))
    with pytest.raises(SdaError, match="source has toy twice"):
        opened(world, farm, source=[str(world.toy), str(world.toy)])


def test_the_recipe_maps_classes_of_any_source(world, farm):
    """The farm's cows are an animal that nothing is called like; without a map they are ignored, and a note suggests a line."""
    _, data = opened(world, farm, labels=0, source_map={"cow": "human"})
    counted = [sample.label for sample in map(data.source.datasets[1].__getitem__, range(6))]
    _, plain = opened(world, farm, labels=0)
    before = [sample.label for sample in map(plain.source.datasets[1].__getitem__, range(6))]
    cows = sum(int((one != other).sum()) for one, other in zip(counted, before, strict=True))
    assert cows > 0 and not any((one == 2).any() for one in before)
    assert cows == sum(int((one == 2).sum()) for one in counted)
    with pytest.raises(SdaError, match="source_map: 'cows' = 'human': no source has a class 'cows' .did you mean 'cow'"):
        opened(world, farm, source_map={"cows": "human"})


def test_the_target_maps_classes_of_a_source(world, farm):
    world.field.write_text(world.field.read_text() + '\n[source_maps.farm]\ncow = "human"\n')
    _, data = opened(world, farm, labels=0)
    assert any((sample.label == 2).any() for sample in map(data.source.datasets[1].__getitem__, range(6)))


def test_scores_on_a_source_use_its_map(world, farm, sda):
    run = world.folder / "run"
    more = ["--source-map", '{cow = "human"}', "--source-root", f"{world.root / 'toy'},{world.root / 'farm'}"]
    command = ["train", world.recipe, "--source", f"{world.toy},{farm}", "--steps", 2, "--device", "cpu", "--out", run]
    assert sda(*command, *more)[0] == 0
    status, shown = sda(
        "eval", run, "--dataset", farm, "--root", world.root / "farm", "--split", "train", "--device", "cpu", "--json"
    )
    assert status == 0 and "human" not in json.loads(shown.out)[0]["missing_classes"]


def test_the_classes_of_each_stream_are_counted_before_training(world, farm):
    """Shares of the labelled pixels, against a count of the labels as they are drawn."""
    _, data = opened(world, farm)
    toy, farms, field = data.coverage
    assert [(each.name, each.read, each.labels) for each in data.coverage] == [("toy", 4, 4), ("farm", 6, 6), ("field", 3, 3)]
    pixels = np.concatenate(
        [np.asarray(Image.open(file)).reshape(-1, 3) for file in (world.root / "farm/colours/train").iterdir()]
    )
    cow, void = (pixels == [9, 9, 99]).all(axis=1).sum(), (pixels == 0).all(axis=1).sum()
    assert farms.dropped == {"cow": pytest.approx(cow / (len(pixels) - void))}
    assert farms.shares["ground"] + farms.shares["building"] + farms.dropped["cow"] == pytest.approx(1)
    assert farms.shares["human"] == 0 and toy.dropped == {"cloud": 0} and field.dropped == {}


def test_a_source_that_would_lose_most_of_its_pixels_is_refused(world, farm):
    farm.write_text(tiny.FARM.replace('barn = "building"\n', ""))
    with pytest.raises(
        SdaError, match=r"farm: \d\d% of its labelled pixels are of classes .*source_map = .*--allow-missing-classes true"
    ):
        opened(world, farm)
    _, data = opened(world, farm, allow_missing_classes=True)
    assert sum(data.coverage[1].dropped.values()) > 0.5
    _, data = opened(world, farm, source_map={"barn": "building", "cow": ""})
    assert data.coverage[1].dropped == {}


def test_a_target_that_cannot_score_most_classes_is_refused(world, farm):
    world.field.write_text(tiny.FIELD + '[maps.cityscapes19]\nground = "road"\nhuman = "person"\n')
    source_map = {"street": "road", "man": "person", "house": "building", "path": "road", "barn": "building"}
    with pytest.raises(SdaError, match="have only 3 of the 19 classes of cityscapes19, so most cannot be scored"):
        opened(world, farm, classes="cityscapes19", source_map=source_map)
    assert opened(world, farm, classes="cityscapes19", source_map=source_map, allow_missing_classes=True)


def test_the_table_of_classes_is_shown(world, sda):
    status, shown = sda("train", world.recipe, "--steps", 1, "--device", "cpu", "--out", world.folder / "run")
    table = re.search(r"% of labelled pixels +toy +field\n((?:.+\n){3})", shown.err)
    assert status == 0 and [line.split()[0] for line in table[1].splitlines()] == ["ground", "building", "human"]
    assert "(counted: 4 of 4 labels of toy, 3 of 3 labels of field)" in shown.err


# A target without a validation split


@pytest.fixture
def no_val(world):
    """Field with 8 labelled training images and nothing to validate on."""
    shutil.rmtree(world.root / "field/pictures/val")
    shutil.rmtree(world.root / "field/labels/val")
    return world


def without_val(world, **changes):
    return assemble(load(str(world.recipe), changes).with_absolute_paths())


@pytest.mark.parametrize(("labels", "val", "trained"), [(3, 2, 3), (7, 1, 7), ("all", 2, 6), (0, 2, 0)])
def test_images_are_held_out_of_a_target_without_val(no_val, labels, val, trained):
    """A fifth of the 8 labelled images, the last by rank; fewer if more are to be trained on. They are in no other stream."""
    more = {"unlabelled": "target", "method": "mean_teacher", "batch_unlabelled": 2} if labels == 3 else {}
    data = without_val(no_val, labels=labels, **more)
    keys = {name: {item.key for item in items} for name, items in data.lists.items() if name != "source"}
    assert len(keys["val"]) == val and len(keys.get("labelled", ())) == trained
    assert not keys["val"] & set().union(*(part for name, part in keys.items() if name != "val"))
    assert {item.key for item in without_val(no_val, labels=1, split_seed=5).val.items} >= keys["val"]
    assert any(f"{val} of its 8 labelled images are held out for validation" in note for note in data.notes)
    assert data.val.native_labels


def test_labels_that_leave_nothing_to_validate_on_are_refused(no_val, tmp_path):
    with pytest.raises(SdaError, match='labels = 8 leaves none of its 8 labelled images to validate on: .*"all" or a smaller'):
        without_val(no_val, labels=8)
    keys = sorted(item.key for stream in ("labelled", "val") for item in without_val(no_val, labels="all").lists[stream])
    (tmp_path / "all.txt").write_text("\n".join(keys))
    with pytest.raises(SdaError, match="the list .*all.txt leaves none of its 8 labelled images .*: take some out of the list"):
        without_val(no_val, split=str(tmp_path / "all.txt"))
    (tmp_path / "some.txt").write_text("\n".join(keys[:5]))
    data = without_val(no_val, split=str(tmp_path / "some.txt"))
    assert {item.key for item in data.val.items} <= set(keys[5:]) and len(data.val) == 2
    with pytest.raises(SdaError, match="or hold out training images: sda split"):
        without_val(no_val, val_share=0.0)


def test_later_scores_are_of_the_images_that_the_run_held_out(no_val, sda):
    run = no_val.folder / "run"
    assert sda("train", no_val.recipe, "--steps", 2, "--device", "cpu", "--out", run)[0] == 0
    first = json.loads((run / "result.json").read_text())
    for index in range(8):  # another rank would follow from fewer images
        if f"{index:02d}.jpg" not in (run / "splits/val.txt").read_text():
            lone = next((no_val.root / "field/labels").rglob(f"{index:02d}.png"), None)
            if lone:
                lone.unlink()
                break
    status, shown = sda("eval", run, "--device", "cpu", "--json")
    again = json.loads(shown.out)[0]
    assert status == 0 and again["image_miou"].keys() == first["image_miou"].keys() and again["miou"] == first["miou"]


def test_too_few_labels_because_others_are_not_read_are_told(own_world):
    """Masks with the names of images, in a folder that the layout does not read."""
    for file in sorted((own_world.root / "field/labels/train").rglob("*.png"))[:2]:
        (own_world.root / "field/more_masks").mkdir(exist_ok=True)
        file.rename(own_world.root / "field/more_masks" / file.name)
    with pytest.raises(SdaError, match="labels = 8, but only 6 of the 8 .*; .*2 mask files, such as more_masks/.*not read"):
        assemble(load(str(own_world.recipe), {"labels": 8}).with_absolute_paths())


def test_classes_without_names_are_told(own_world):
    own_world.field.write_text(tiny.FIELD.replace("ground", "class_0").replace("building", "colour_020202"))
    recipe = load(str(own_world.recipe), {"allow_missing_classes": True, "source": ""}).with_absolute_paths()
    notes = assemble(recipe).notes
    assert any(f"2 classes have no names of their own, such as class_0: name them in {own_world.field}" in note for note in notes)
