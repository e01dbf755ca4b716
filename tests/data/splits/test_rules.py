"""Orders of images by rule, groups, hold-out and the summary of classes."""

import hashlib
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda.data.descriptor import Descriptor, load
from sda.data.item import Item
from sda.data.splits.rules import ClassCount, balanced, by_group, count_classes, groups_by_word, hold_out, rank
from sda.errors import SdaError


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def item(key, root):
    return Item(key, root / key, root / key)


CITIES = {f"{city}/{city}_{n}.png": city for city, count in (("ulm", 5), ("bonn", 2), ("köln", 3)) for n in range(count)}


# Rank

KEYS = [f"leftImg8bit/train/ulm/ulm_{n:06d}.png" for n in range(40)]


def test_rank_by_hand():
    # printf '0:a.png' | sha256sum, and so on
    digests = {key: hashlib.sha256(f"0:{key}".encode()).hexdigest() for key in ("a.png", "b.png", "c.png")}
    assert {key: digest[:8] for key, digest in digests.items()} == {"a.png": "a2d18bd9", "b.png": "354a63dd", "c.png": "1b74a34b"}
    assert rank(["a.png", "b.png", "c.png"], 0) == ["c.png", "b.png", "a.png"]


def test_rank_sorts_by_sha256():
    expected = sorted((hashlib.sha256(b"7:" + key.encode()).hexdigest(), key) for key in KEYS)
    assert rank(KEYS, 7) == [key for _, key in expected]


def test_rank_does_not_depend_on_the_listing_order():
    shuffled = KEYS[:]
    random.Random(1).shuffle(shuffled)
    assert rank(shuffled, 3) == rank(KEYS, 3) != rank(KEYS, 4)


def test_rank_of_names_beyond_ascii():
    assert sorted(rank(["größe.png", "日本.png"], 0)) == ["größe.png", "日本.png"]


# Class-balanced


def plain_balanced(keys, seed, counts):
    """Compute `balanced` step by step in plain Python."""
    todo = sorted(keys, key=lambda key: sha(f"{seed}:{key}"))
    classes = range(len(counts[todo[0]]))
    pixels = [sum(counts[key][c] for key in keys) for c in classes]
    coverage = [0.0 for _ in classes]
    share = {key: [math.sqrt(n / max(1, sum(counts[key]))) for n in counts[key]] for key in keys}
    order = []
    while todo:
        open_classes = [c for c in classes if any(counts[key][c] for key in todo)]
        if not open_classes:
            return order + todo
        worst = min(open_classes, key=lambda c: (coverage[c], pixels[c], c))
        best = max(todo, key=lambda key: share[key][worst])  # the first of several maxima, which is the first by rank
        todo.remove(best)
        order.append(best)
        coverage = [sum(pair) for pair in zip(coverage, share[best], strict=True)]
    return order


def test_balanced_by_hand():
    counts = {
        "road.png": [100, 0, 0, 0],
        "car.png": [75, 25, 0, 0],
        "train.png": [84, 0, 16, 0],
        "void.png": [0, 0, 0, 0],
    }
    # All classes start at 0, and train is the rarest (16 pixels). Then the coverage is √.84 for road, √.16 for train and 0 for
    # car, so car.png is next. After that, only road has an image left. An image without labels comes last.
    assert balanced(list(counts), 0, counts) == ["train.png", "car.png", "road.png", "void.png"]


def test_balanced_prefers_the_rarer_of_equally_covered_classes():
    counts = {"full.png": [0, 100], "little.png": [96, 4], "less.png": [99, 1], "none.png": [100, 0]}
    # Class 1 is rarer, so full.png is first. Then class 0 is at 0, so none.png follows. Then both are at 1, and class 1 is
    # rarer, so little.png is next. The last image shows both.
    assert balanced(list(counts), 0, counts) == ["full.png", "none.png", "little.png", "less.png"]


@given(
    st.lists(st.lists(st.sampled_from([0, 0, 0, 1, 2, 5, 30]), min_size=3, max_size=3), min_size=1, max_size=12),
    st.integers(0, 3),
)
@settings(derandomize=True, deadline=None, database=None, max_examples=150)
def test_balanced_equals_the_plain_rule(table, seed):
    counts = {f"{n}.png": row for n, row in enumerate(table)}
    assert balanced(list(counts), seed, counts) == plain_balanced(list(counts), seed, counts)


def test_balanced_on_larger_random_sets():
    random = np.random.default_rng(0)
    table = random.integers(0, 10_000, (60, 7)) * (random.random((60, 7)) < [1, 0.8, 0.5, 0.2, 0.1, 0.03, 0])
    counts = {f"{n}.png": row.tolist() for n, row in enumerate(table)}
    order = balanced(list(counts), 5, counts)
    assert order == plain_balanced(list(counts), 5, counts)
    assert order == balanced(list(counts)[::-1], 5, counts), "the order of the listing does not matter"
    assert sorted(order) == sorted(counts)


def test_balanced_covers_rare_classes_that_rank_misses():
    random = np.random.default_rng(1)
    table = random.integers(1, 1000, (400, 5)) * (random.random((400, 5)) < [1, 1, 0.5, 0.02, 0.01])
    counts = {f"{n}.png": row for n, row in enumerate(table)}

    def with_rarest(keys):
        return sum(counts[key][4] > 0 for key in keys[:20])

    assert with_rarest(balanced(list(counts), 0, counts)) == min(20, int((table[:, 4] > 0).sum()))
    assert with_rarest(rank(list(counts), 0)) <= 1


def test_balanced_is_fast():
    random = np.random.default_rng(2)
    table = random.integers(0, 1 << 21, (10_000, 19)) * (random.random((10_000, 19)) < np.linspace(0, 1, 19))
    counts = {f"{n}.png": row for n, row in enumerate(table)}
    start = time.process_time()
    assert len(balanced(list(counts), 0, counts)) == len(counts)
    assert time.process_time() - start < 5


def test_balanced_of_an_empty_list():
    assert balanced([], 0, {}) == []


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (None, "'b.png' has no class counts"),
        ([1], "counts of 'b.png' are not 2 whole numbers"),
        ([1, -1], "counts of 'b.png' are not 2 whole numbers"),
        ([0.5, 0.5], "counts of 'b.png' are not 2 whole numbers"),
    ],
)
def test_invalid_counts_are_refused(row, says):
    counts = {"a.png": [1, 2]} | ({} if row is None else {"b.png": row})
    with pytest.raises(SdaError, match=says):
        count_classes(["a.png", "b.png"], counts, ["road", "car"])


# Groups in turn


def test_groups_take_turns():
    groups = sorted(set(CITIES.values()), key=lambda group: sha(f"3:{group}"))
    images = {group: sorted((k for k in CITIES if CITIES[k] == group), key=lambda key: sha(f"3:{key}")) for group in groups}
    expected = []
    for turn in range(5):
        expected += [images[group][turn] for group in groups if turn < len(images[group])]
    assert by_group(list(CITIES), 3, CITIES) == expected
    assert by_group(list(CITIES)[::-1], 3, CITIES) == expected
    assert {CITIES[key] for key in expected[:3]} == {"ulm", "bonn", "köln"}


def test_groups_by_word(tmp_path):
    keys = ["leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png", "leftImg8bit/train/bonn/bonn_0_2_leftImg8bit.png"]
    items = [item(key, tmp_path) for key in keys]
    assert groups_by_word(load("cityscapes"), items, "city") == dict(zip(keys, ["ulm", "bonn"], strict=True))
    nested = [item(f"leftImg8bit_trainvaltest/{key}", tmp_path) for key in keys]
    assert list(groups_by_word(load("cityscapes"), nested, "city").values()) == ["ulm", "bonn"]
    val = [item("leftImg8bit/val/lindau/lindau_0_1_leftImg8bit.png", tmp_path)]
    assert list(groups_by_word(load("cityscapes"), val, "city", "val").values()) == ["lindau"]
    with pytest.raises(SdaError, match=r"Cityscapes: .* has no word \{sequence\} to group by; it has \{city\}, \{frame\}"):
        groups_by_word(load("cityscapes"), items, "sequence")
    with pytest.raises(SdaError, match=r"none of its layouts for 'train' matches images such as 'leftImg8bit/val/lindau"):
        groups_by_word(load("cityscapes"), val, "city")


def test_groups_use_the_layout_that_matches_all_items(tmp_path):
    """A pattern that matches only some items, with another meaning, is not used, although it comes first."""
    descriptor = Descriptor.model_validate(
        {
            "title": "Drives",
            "classes": {"road": [0, 0, 0]},
            "splits": {"train": "training"},
            "layout": [
                {"images": "{split}/{frame}.png"},
                {"images": "{drive}/{frame}.png", "split": "val"},
                {"images": "{split}/{drive}/{frame}.png"},
            ],
        }
    )
    items = [item(f"training/{drive}/1.png", tmp_path) for drive in "ab"]
    assert groups_by_word(descriptor, items, "drive") == {"training/a/1.png": "a", "training/b/1.png": "b"}


# Hold-out


def test_hold_out_follows_the_rank(tmp_path):
    items = [item(f"{n}.png", tmp_path) for n in range(10)]
    kept, held = hold_out(items, 3, 7)
    assert {i.key for i in held} == set(rank([i.key for i in items], 7)[:3])
    assert kept == [i for i in items if i not in held] and held == [i for i in items if i not in kept]
    assert hold_out(items, 0.3, 7) == (kept, held)
    assert len(hold_out(items, 0.01, 7)[1]) == 1


@pytest.mark.parametrize("size", [0, 10, 11, -1, 0.0, 1.0, 1.5, 0.99])
def test_holding_out_all_or_nothing_is_refused(tmp_path, size):
    items = [item(f"{n}.png", tmp_path) for n in range(10)]
    with pytest.raises(SdaError, match=f"cannot hold out {size} of 10 images: one side would be empty"):
        hold_out(items, size, 0)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=8),
    st.integers(0, 5),
    st.floats(0.02, 0.98),
)
@settings(derandomize=True, deadline=None, database=None, max_examples=200)
def test_groups_stay_whole(sizes, seed, share):
    groups = {f"{g}/{n}.png": str(g) for g, size in enumerate(sizes) for n in range(size)}
    items = [Item(key, None, None) for key in groups]
    wanted = min(max(1, round(share * len(items))), len(items) - 1)
    kept, held = hold_out(items, wanted, seed, groups)
    assert kept and held
    assert sorted(i.key for i in kept + held) == sorted(groups)
    assert not {groups[i.key] for i in kept} & {groups[i.key] for i in held}
    assert abs(len(held) - wanted) < max(sizes)


def test_groups_are_held_out_in_rank_order(tmp_path):
    items = [item(key, tmp_path) for key in CITIES]
    first = min(("ulm", "bonn", "köln"), key=lambda group: sha(f"1:{group}"))
    count = sum(group == first for group in CITIES.values())
    assert {CITIES[i.key] for i in hold_out(items, count, 1, CITIES)[1]} == {first}


def test_holding_out_from_one_group_is_refused(tmp_path):
    items = [item(f"{n}.png", tmp_path) for n in range(10)]
    with pytest.raises(SdaError, match="all 10 images are in one group, 'drive'"):
        hold_out(items, 2, 0, {i.key: "drive" for i in items})


# Summary


def test_count_classes_by_hand():
    counts = {"a.png": [6, 2, 0], "b.png": [0, 2, 0], "c.png": [100, 100, 100]}
    expected = [ClassCount("road", 1, 0.6), ClassCount("car", 2, 0.4), ClassCount("train", 0, 0.0)]
    assert count_classes(["a.png", "b.png"], counts, ["road", "car", "train"]) == expected
    assert count_classes([], counts, ["road"]) == [ClassCount("road", 0, 0.0)]
