"""Streams: samples depend only on seed, stream and position; errors name unusable files."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from sda.data.assemble import Data
from sda.data.dataset import Dataset, Joint
from sda.data.descriptor import Classes, Descriptor, map_classes
from sda.data.files import FileError, LabelCodec
from sda.data.item import Item
from sda.data.streams import BLOCK, RareClassSampling, Stream, _draw_samples, apportion, open_streams
from sda.errors import SdaError
from sda.recipe import Recipe

SIZE = (24, 40)
TABLE = Descriptor(title="Rows", classes={f"c{n}": [n, n, n] for n in range(200)}, layout=[{"images": "a"}])


@pytest.fixture
def items(tmp_path):
    """Seven images: red is the column, green the row, blue the number of the image; the label is row + column."""
    rows, columns = np.indices(SIZE)
    made = []
    for n in range(7):
        image, label = tmp_path / f"{n}.png", tmp_path / f"{n}_label.png"
        Image.fromarray(np.stack([columns, rows, np.full(SIZE, n)], axis=2).astype(np.uint8)).save(image)
        Image.fromarray((rows + columns).astype(np.uint8)).save(label)
        made.append(Item(image.name, image, label))
    return made


def labelled(items):
    return Dataset(items, LabelCodec(TABLE, "ids", map_classes(TABLE, Classes("rows", TABLE.table()))[0]), SIZE)


def unlabelled(items):
    return Dataset([Item(item.key, item.image, None) for item in items], None, SIZE)


def take(count, dataset, name="source", **options):
    stream = Stream(name, dataset, **{"batch": 3, "crop": (8, 16), "seed": 1, **options})
    return [next(stream) for _ in range(count)]


def images(batches):
    return torch.cat([batch if isinstance(batch, torch.Tensor) else batch.images for batch in batches])


def numbers(batches):
    """Return the number of the image that each sample was cropped from."""
    return images(batches)[:, 2, 0, 0].tolist()


def same(first, second):
    return torch.equal(images(first), images(second)) and all(
        isinstance(a, torch.Tensor) or torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True)
    )


def test_shapes_and_types(items):
    [batch] = take(1, labelled(items))
    assert batch.images.shape == (3, 3, 8, 16) and batch.images.dtype == torch.uint8
    assert batch.labels.shape == (3, 8, 16) and batch.labels.dtype == torch.uint8
    [batch] = take(1, unlabelled(items), "unlabelled")
    assert batch.shape == (3, 3, 8, 16) and batch.dtype == torch.uint8


def test_a_stream_depends_on_its_seed(items):
    assert same(take(6, labelled(items)), take(6, labelled(items)))
    assert not same(take(6, labelled(items)), take(6, labelled(items), seed=2))
    assert not same(take(6, labelled(items)), take(6, labelled(items), name="labelled"))


def test_a_stream_ignores_the_seeds_of_torch_and_numpy(items):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = take(3, labelled(items))
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert same(first, take(3, labelled(items)))


def test_workers_do_not_change_a_stream(items):
    assert same(take(6, labelled(items)), take(6, labelled(items), workers=2))


def test_in_memory_does_not_change_a_stream(items):
    kept = labelled(items)
    kept.preload()
    for item in items:
        item.image.unlink()
    with pytest.raises(SdaError):
        take(1, labelled(items))
    assert numbers(take(5, kept)) and images(take(5, kept)).shape[0] == 15


@pytest.mark.parametrize("start", [1, 4])
def test_start_skips_batches(items, start):
    assert same(take(7, labelled(items))[start:], take(7 - start, labelled(items), start=start))


def test_every_image_is_drawn_once_per_epoch(items):
    drawn = numbers(take(7, unlabelled(items)))  # three epochs of seven
    epochs = [drawn[:7], drawn[7:14], drawn[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_may_exceed_the_number_of_images(items):
    assert Counter(numbers(take(2, unlabelled(items[:2])))) == {0: 3, 1: 3}


def test_crops_are_inside_and_labels_match_their_images(items):
    batches = take(30, labelled(items))
    for batch in batches:
        columns, rows = batch.images[:, 0].int(), batch.images[:, 1].int()
        assert torch.equal(batch.labels.int(), rows + columns)
        assert (columns[:, :, 1:] - columns[:, :, :-1] == 1).all() and (rows[:, 1:] - rows[:, :-1] == 1).all()
    corners = images(batches)[:, :2, 0, 0]
    assert set(corners[:, 1].tolist()) == set(range(24 - 8 + 1))  # all rows, including the last
    assert corners[:, 0].min() == 0 and corners[:, 0].max() == 40 - 16


def test_crop_as_large_as_the_image(items):
    [batch] = take(1, labelled(items), crop=SIZE)
    assert torch.equal(batch.images[0, 0, 0], torch.arange(40, dtype=torch.uint8))


def test_images_at_their_own_size_are_padded_to_the_crop(items):
    """Padding reflects the image at the bottom and right with ignored labels. Images that are large enough are not padded."""
    codec = LabelCodec(TABLE, "ids", map_classes(TABLE, Classes("rows", TABLE.table()))[0])
    [batch] = take(1, Dataset(items, codec, None), crop=(30, 50))
    assert batch.images.shape == (3, 3, 30, 50)
    rows, columns = np.indices(SIZE)
    assert torch.equal(batch.images[0, 0, :24, :40], torch.from_numpy(columns.astype(np.uint8)))
    assert torch.equal(batch.images[:, :, 24:], batch.images[:, :, 18:24].flip(2))
    assert torch.equal(batch.images[:, :, :, 40:], batch.images[:, :, :, 30:40].flip(3))
    assert (batch.labels[:, 24:] == 255).all() and (batch.labels[:, :, 40:] == 255).all()
    assert torch.equal(batch.labels[0, :24, :40], torch.from_numpy((rows + columns).astype(np.uint8)))
    [batch] = take(1, Dataset([Item(item.key, item.image, None) for item in items], None, None), crop=(30, 16))
    assert batch.shape == (3, 3, 30, 16)


def test_labels_are_resized_by_nearest_neighbour(items):
    dataset = labelled(items)
    dataset.size = (12, 20)
    sample = dataset[0]
    assert sample.image.shape == (3, 12, 20) and sample.label.shape == (12, 20)
    assert set(sample.label.flatten().tolist()) <= set(range(63))
    native = Dataset(items, dataset.codec, (12, 20), native_labels=True)[0]
    assert native.image.shape == (3, 12, 20) and native.label.shape == SIZE


def test_rare_class_sampling_follows_its_formula(items):
    """Shares .9, .1 and 0 at T = .5: odds exp(.2) to exp(1.8); class 1 is only in images 2 and 5."""
    pixels = np.zeros((7, 3), np.int64)
    pixels[:, 0] = 90
    pixels[[2, 5], 1] = 35
    sampling = RareClassSampling(pixels, 0.5)
    drawn = [sampling.draw(np.random.default_rng([1, n])) for n in range(4000)]
    draws = Counter(image for image, _ in drawn)
    rare = math.exp(1.8) / (math.exp(1.8) + math.exp(0.2))
    expected = {n: (1 - rare) / 7 + (rare / 2 if n in (2, 5) else 0) for n in range(7)}
    assert {n: draws[n] / 4000 for n in range(7)} == pytest.approx(expected, abs=0.025)
    assert sum(wanted == 1 for _, wanted in drawn) / 4000 == pytest.approx(rare, abs=0.025)
    assert all(pixels[image, wanted] for image, wanted in drawn)
    one = RareClassSampling(pixels, 1e-6)  # no overflow
    assert {one.draw(np.random.default_rng(n)) for n in range(50)} == {(2, 1), (5, 1)}


def test_rare_class_sampling_depends_only_on_the_position(items):
    pixels = np.eye(7, dtype=np.int64)
    dataset, options = labelled(items), {"sampling": RareClassSampling(pixels, 0.1)}
    whole = take(6, dataset, **options)
    assert same(whole[4:], take(2, dataset, start=4, **options))
    assert same(whole, take(6, dataset, workers=2, **options))
    assert len(set(numbers(whole))) > 3


def test_crops_contain_the_class_for_which_the_image_was_drawn(items):
    dataset = labelled(items)
    rows = [dataset[n].label for n in range(len(dataset))]
    rare = 5  # six pixels near a corner, which one crop in thirteen contains
    pixels = np.zeros((len(rows), 256), np.int64)
    for n, label in enumerate(rows):
        pixels[n, rare] = int((label == rare).sum())
    height, width = (side // 2 for side in rows[0].shape)

    def found(least):
        sampling = RareClassSampling(pixels, 0.1, least)
        samples = _draw_samples("source", dataset, (height, width), 0, False, sampling)
        return [int((samples[n][0].label == rare).sum()) for n in range(60)]

    plain, with_rare = found(0), found(1)
    assert (
        sum(count > 0 for count in plain) < 40 and sum(count > 0 for count in with_rare) > sum(count > 0 for count in plain) + 15
    )
    most = found(10**6)  # which no crop has: the best of ten is taken
    assert all(one >= other for one, other in zip(most, plain, strict=True)) and sum(most) >= sum(with_rare)
    assert found(1) == with_rare


def test_absent_streams_are_none(items):
    recipe = Recipe(target="x", labels=2, size=[32, 40], crop=[32, 32], backbone="mobilenet_v2", steps=1, workers=0)
    data = Data(TABLE.table(), "rows", labelled=labelled(items))
    streams = open_streams(recipe, data)
    assert streams.keys() == {"labelled"} and isinstance(streams["labelled"], Stream)


# Several datasets in one stream


def joint(items, *weights):
    """Two datasets, of the first three and the other four images."""
    return Joint(
        [labelled(items[:3]), labelled(items[3:])], [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    )


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.1, 0.9), (1, 1000)])
def test_shares_follow_the_weights(items, weights):
    """In every part of the stream, and each dataset's images once per epoch of its own."""
    drawn, share = _draw_samples("source", joint(items, *weights), (8, 16), 1, False, None), weights[0] / sum(weights)
    found = [drawn.find(n) for n in range(20 * BLOCK)]
    for dataset in range(2):
        assert [earlier for number, earlier in found if number == dataset] == list(range(sum(n == dataset for n, _ in found)))
    for start in range(0, len(found), BLOCK):
        assert abs(sum(number == 0 for number, _ in found[start : start + BLOCK]) - BLOCK * share) <= 1
    drawn = numbers(take(40, joint(items, *weights)))
    for own in ({0, 1, 2}, {3, 4, 5, 6}):
        mine = [number for number in drawn if number in own]
        epochs = [mine[start : start + len(own)] for start in range(0, len(mine) - len(own) + 1, len(own))]
        assert all(set(epoch) == own for epoch in epochs)


def test_the_order_of_the_datasets_is_random(items):
    """With one process per dataset and one image per batch, a fixed order would show each process one dataset only."""
    drawn = _draw_samples("source", joint(items, 1, 1), (8, 16), 1, False, None)
    assert {drawn.find(n)[0] for n in range(0, 20, 2)} == {drawn.find(n)[0] for n in range(1, 20, 2)} == {0, 1}
    other = _draw_samples("source", joint(items, 1, 1), (8, 16), 2, False, None)
    assert [drawn.find(n) for n in range(BLOCK)] != [other.find(n) for n in range(BLOCK)]


def test_apportioned_parts_never_fall():
    shares = [Fraction(weight) / sum(map(Fraction, (0.3, 2, 7, 1e-6))) for weight in (0.3, 2, 7, 1e-6)]
    before = [0, 0, 0, 0]
    for count in range(2000):
        parts = apportion(count, shares)
        assert sum(parts) == count and all(part >= earlier for part, earlier in zip(parts, before, strict=True))
        assert all(abs(part - count * share) < 3 for part, share in zip(parts, shares, strict=True))
        before = parts
    assert apportion(10**9, shares)[2] == pytest.approx(10**9 * float(shares[2]), abs=2)


def test_several_datasets_depend_only_on_seed_and_position(items):
    data, start = joint(items, 2, 1), 2 * BLOCK // 3 + 5
    whole = take(start + 3, data)
    assert same(whole[start:], take(3, data, start=start)) and same(whole[:6], take(6, data, workers=2))
    assert not same(whole[:6], take(6, data, seed=2))
    in_memory = joint(items, 2, 1)
    in_memory.preload()
    assert same(whole, take(start + 3, in_memory))


def test_rare_class_sampling_keeps_the_shares(items):
    """Class 1 is only in image 1, and class 2 only in image 5: at a low temperature each dataset draws one image."""
    pixels = np.zeros((7, 3), np.int64)
    pixels[:, 0], pixels[1, 1], pixels[5, 2] = 90, 5, 5
    drawn = Counter(numbers(take(BLOCK, joint(items, 3, 1), sampling=RareClassSampling(pixels, 1e-3))))
    assert drawn == {1: 9 * BLOCK // 4, 5: 3 * BLOCK // 4}


def test_a_skipped_file_is_replaced_from_its_dataset(items):
    spoil(items, 1, 4)
    drawn = Counter(numbers(take(2 * BLOCK, joint(items, 1, 1), skip=True)))
    assert not {1, 4} & drawn.keys() and sum(drawn[number] for number in range(3)) == 3 * BLOCK


# Unusable files


def spoil(items, *places):
    for place in places:
        items[place].image.write_bytes(items[place].image.read_bytes()[:60])


def exhaust(dataset, batches=3, **options):
    stream = Stream("labelled", dataset, **{"batch": 3, "crop": (8, 16), "seed": 1, **options})
    return stream, [next(stream) for _ in range(batches)]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_file_is_named(items, workers):
    spoil(items, 4)
    stream, message = Stream("labelled", labelled(items), 3, (8, 16), 1, workers=workers), ""
    try:  # pytest.raises would keep the loader alive in the traceback, which takes seconds to stop
        while True:
            next(stream)
    except SdaError as error:
        message = str(error)
    assert message.startswith(f"{items[4].image}: ") and "\n" not in message and "Traceback" not in message


def test_bad_label_is_named(items):
    Image.fromarray(np.full(SIZE, 222, np.uint8)).save(items[2].label)
    with pytest.raises(SdaError, match="2_label.png: label values 222 are not"):
        exhaust(labelled(items))


def test_label_of_another_size_is_named(items):
    Image.fromarray(np.zeros((24, 39), np.uint8)).save(items[2].label)
    with pytest.raises(SdaError, match=r"2_label.png: the label is 39x24, its image .*2.png is 40x24"):
        exhaust(labelled(items))


def test_bad_file_in_memory_is_named(items):
    spoil(items, 4)
    dataset = labelled(items)
    dataset.preload()
    with pytest.raises(FileError, match=r"4\.png"):
        dataset[4]
    with pytest.raises(SdaError, match=r"4\.png"):
        exhaust(dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_files_are_listed(items, workers):
    spoil(items, 1, 4)
    stream, batches = exhaust(labelled(items), batches=14, workers=workers, skip=True)
    assert not {1, 4} & set(numbers(batches)) and len(numbers(batches)) == 42
    assert {fault.partition(":")[0] for fault in stream.faults} == {str(items[1].image), str(items[4].image)}


def test_skipping_is_deterministic(items):
    spoil(items, 1, 4)
    first, second = (exhaust(labelled(items), batches=5, skip=True)[1] for _ in range(2))
    assert same(first, second)


def test_a_stream_without_usable_files_is_refused(items):
    spoil(items, *range(7))
    with pytest.raises(SdaError, match=r"20 unusable files in a row; last error: .*\.png"):
        exhaust(labelled(items), skip=True)
