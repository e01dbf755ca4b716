"""The lists that `sda split` writes, for every kind of request."""

import pickle

import pytest
import tiny

from sda.data.descriptor import load
from sda.data.inspect.doctor import examine
from sda.data.listing import list_items
from sda.data.splits.make import SplitRequest, make_split
from sda.data.splits.rules import rank
from sda.errors import SdaError


@pytest.fixture
def world(tmp_path):
    return tiny.write_world(tmp_path / "world")


@pytest.fixture
def choose(world):
    """`choose(fields of the request)` → keys."""

    def choose(**request):
        chosen = make_split(load(str(world.field)), world.root / "field", SplitRequest(**request), lambda done, total: None)
        return [item.key for item in chosen.items]

    return choose


@pytest.fixture
def keys(world):
    return [item.key for item in list_items(load(str(world.field)), world.root / "field", "train").items]


def test_random_lists_follow_the_rank(choose, keys):
    assert choose(labels=3) == choose(labels=3, by="random", seed=0) == rank(keys, 0)[:3]
    assert choose(labels=3, seed=5) == rank(keys, 5)[:3]


def test_held_out_groups_include_their_unlabelled_images(world, choose, keys):
    unlabelled = next(key for key in keys if "/south/" in key)
    (world.root / "field" / unlabelled.replace("pictures", "labels").replace(".jpg", ".png")).unlink()
    for seed in range(4):
        held = choose(hold_out=0.5, by="place", seed=seed)
        place = held[0].split("/")[2]
        assert held == [key for key in keys if key.split("/")[2] == place], "every image of the place, with or without a label"
    assert unlabelled not in choose(hold_out=0.9), "without groups, an image without a label is not held out"


def test_order_maps_indices_to_images(choose, keys, tmp_path):
    (tmp_path / "split.pkl").write_bytes(pickle.dumps([3, 0, 5]))
    given = str(tmp_path / "split.pkl")
    assert choose(given=given) == [keys[3], keys[0], keys[5]]
    shuffled = rank(keys, 9)
    (tmp_path / "all.txt").write_text("".join(f"{key.split('/')[-1][:-4]}\n" for key in shuffled))
    assert choose(given=given, order=str(tmp_path / "all.txt")) == [shuffled[3], shuffled[0], shuffled[5]]
    assert choose(given=given, order="walk", labels=2) == choose(given=given, order="walk")[:2]


def test_bad_pairs_are_skipped_by_rules_but_not_by_lists(world, choose, keys, tmp_path):
    bad = rank(keys, 0)[1]
    label = world.root / "field" / bad.replace("pictures", "labels").replace(".jpg", ".png")
    label.write_bytes(label.read_bytes()[:50])
    examine("field", load(str(world.field)), world.root / "field", processes=1)
    assert choose(labels=3) == [key for key in rank(keys, 0) if key != bad][:3]
    (tmp_path / "mine.txt").write_text(f"{bad}\n")
    assert choose(given=str(tmp_path / "mine.txt")) == [bad]


def test_excluded_images_and_their_copies_are_not_listed(world, choose, keys, tmp_path):
    """So that a list to label and a list to validate on can be drawn one after the other, in either order."""
    held = choose(hold_out=0.4)
    (tmp_path / "val.txt").write_text("".join(f"{key}\n" for key in held))
    free = [key for key in keys if key not in held]
    copy, other = free[:2]
    (world.root / "field" / copy).write_bytes((world.root / "field" / held[0]).read_bytes())
    exclude = (str(tmp_path / "val.txt"),)
    assert choose(labels=4, exclude=exclude) == [key for key in rank(keys, 0) if key in free and key != copy][:4]
    assert set(choose(labels=3, by="place", exclude=exclude)) <= {*free} - {copy}
    (tmp_path / "mine.txt").write_text(f"{held[1]}\n{other}\n{copy}\n")
    assert choose(given=str(tmp_path / "mine.txt"), exclude=exclude) == [other]
    (tmp_path / "labelled.txt").write_text(f"{other}\n")
    assert other not in choose(hold_out=0.9, exclude=(str(tmp_path / "labelled.txt"),))
    with pytest.raises(SdaError, match="--labels 5: Field has labels for 4 training images"):
        choose(labels=5, exclude=exclude)


def test_a_group_with_an_excluded_image_is_not_held_out(choose, keys, tmp_path):
    (tmp_path / "labelled.txt").write_text(f"{keys[0]}\n")
    for seed in range(4):
        with pytest.raises(SdaError, match="all 4 images are in one group"):  # there are two groups, and one is excluded
            choose(hold_out=0.5, by="place", seed=seed, exclude=(str(tmp_path / "labelled.txt"),))


@pytest.mark.parametrize(
    ("request_fields", "says"),
    [
        ({}, "choose what to list"),
        ({"labels": 3, "hold_out": 0.5}, "choose what to list"),
        ({"labels": 9}, "--labels 9: Field has labels for 8 training images"),
        ({"labels": 9, "by": "place"}, "has labels for 8"),
        ({"given": "two.txt", "labels": 3}, "--labels 3: .*two.txt names 2 training images"),
        ({"given": "two.txt", "by": "place"}, "two.txt has an order of its own: omit --by and --seed"),
        ({"given": "two.txt", "seed": 0}, "has an order of its own"),
        ({"given": "two.txt", "order": "walk"}, "--order and --entry need pickled indices"),
        ({"labels": 2, "entry": "a"}, "--order and --entry need pickled indices"),
        ({"hold_out": 0.5, "by": "balanced"}, "--hold-out does not support --by balanced"),
        ({"labels": 2, "by": "town"}, "has no word {town} to group by"),
        ({"given": "split.pkl", "order": "walks"}, "walks: the split list cannot be read"),
    ],
)
def test_invalid_requests_are_refused(choose, keys, tmp_path, monkeypatch, request_fields, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.txt").write_text("\n".join(keys[:2]))
    (tmp_path / "split.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(SdaError, match=says):
        choose(**request_fields)


def test_a_dataset_without_labels_is_refused(world, choose):
    for path in (world.root / "field/labels").rglob("*.png"):
        path.unlink()
    with pytest.raises(SdaError, match="no training image in .* has a label file"):
        choose(labels=1)
