"""Weak and strong augmentation and ClassMix: consistency of images, labels and weights; ignored pixels; random draws."""

import colorsys
import dataclasses

import pytest
import torch

from sda.methods.parts.augment import STRONG, WEAK, Augment, Strength, classmix

IGNORE = 255
NOTHING = Strength(flip=0, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0)
COLOURS = torch.rand(256, 3, generator=torch.Generator().manual_seed(5))
MOVING = dataclasses.replace(NOTHING, flip=0.5, scale=0.8)


def but(**changes):
    return dataclasses.replace(NOTHING, **changes)


def blocks(batch, side=8, classes=19, cells=4, ignored=0.2, seed=0):
    """Label maps of square blocks, some ignored."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batch, cells, cells), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < ignored] = IGNORE
    return labels.repeat_interleave(side, 1).repeat_interleave(side, 2)


def coloured(labels):
    """Return images in which every label has its own colour."""
    return COLOURS[labels].permute(0, 3, 1, 2).contiguous()


def noise(batch=4, height=10, width=13, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(20, (batch, height, width), generator=draw)
    labels[labels == 19] = IGNORE
    return torch.rand(batch, 3, height, width, generator=draw), labels, torch.rand(batch, height, width, generator=draw)


def test_strengths_are_the_papers():
    assert Strength(0.5, 0.2, 0.125, 0.125, 0.0625, 0.042, 0.0, 0.5, scale_range=(0.75, 1.75)) == WEAK
    assert Strength(0.5, 0.8, 0.25, 0.25, 0.125, 0.083, 0.2, 0.8, 23, (0.1, 1.5), (0.75, 1.75)) == STRONG


def test_zero_strength_changes_nothing():
    images, labels, weights = noise()
    new_images, new_labels, new_weights = Augment(NOTHING)(images, labels, weights)
    torch.testing.assert_close(new_images, images, atol=1e-5, rtol=0)
    assert torch.equal(new_labels, labels)
    assert torch.equal(new_weights, weights)
    assert Augment(NOTHING)(images, labels)[2] is None


def test_flip_is_exact():
    images, labels, weights = noise()
    new_images, new_labels, new_weights = Augment(but(flip=1))(images, labels, weights)
    torch.testing.assert_close(new_images, images.flip(3), atol=1e-5, rtol=0)
    assert torch.equal(new_labels, labels.flip(2))
    assert torch.equal(new_weights, weights.flip(2))


def ramp_images(batch, size):
    """Images whose channels are column and row in 0..1, so that a warp can be measured."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    return torch.stack([columns, rows, torch.ones(size, size)]).expand(batch, 3, size, size).contiguous()


def reflected(x):
    """Fold any number into 0..1 by reflection at both ends."""
    return 1 - (1 - x % 2).abs()


def test_scaling_down_pads_with_ignored():
    """Half size: the whole image as 16×16 somewhere in 32×32; around it label 255, weight 0 and the reflected image."""
    torch.manual_seed(0)
    labels, weights = torch.zeros(8, 32, 32, dtype=torch.int64), torch.full((8, 32, 32), 0.7)
    images, labels, weights = Augment(but(scale=1, scale_range=(0.5, 0.5)))(ramp_images(8, 32), labels, weights)
    places = set()
    for image, label, weight in zip(images, labels, weights, strict=True):
        inside = label == 0
        rows, columns = inside.any(1).nonzero().flatten().tolist(), inside.any(0).nonzero().flatten().tolist()
        places.add((rows[0], columns[0]))
        assert 15 <= len(rows) <= 17
        assert 15 <= len(columns) <= 17
        assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "one rectangle"
        assert inside.sum() == len(rows) * len(columns)
        assert (label[~inside] == IGNORE).all()
        assert (weight[~inside] == 0).all()
        assert (weight[inside] == weight.max()).all()
        assert weight.max().item() == pytest.approx(0.7)
        slope, y, x = 2 / 31, rows[8], columns[8]
        across = reflected(image[0, y, x] + slope * (torch.arange(32) - x))
        down = reflected(image[1, y, x] + slope * (torch.arange(32) - y))
        torch.testing.assert_close(image[0], across.expand(32, 32), atol=0.04, rtol=0)  # interpolation smooths the peaks
        torch.testing.assert_close(image[1], down[:, None].expand(32, 32), atol=0.04, rtol=0)
    assert len(places) > 4


def test_scaling_up_needs_no_padding():
    torch.manual_seed(0)
    images, _, weights = noise(16)
    labels = torch.full_like(weights, 3, dtype=torch.int64)
    new_images, new_labels, new_weights = Augment(but(scale=1, scale_range=(1.2, 1.75)))(images + 0.1, labels, weights + 0.1)
    assert (new_labels == 3).all()
    assert (new_weights >= 0.1).all()
    assert (new_images >= 0.1 - 1e-5).all()


def test_labels_and_images_stay_together():
    """Away from label borders, the image has exactly the label's colour, and the weight is the label's weight."""
    torch.manual_seed(0)
    labels = blocks(32)
    weights = COLOURS[labels, 0]
    new_images, new_labels, new_weights = Augment(MOVING)(coloured(labels), labels, weights)
    neighbours = torch.nn.functional.unfold(new_labels[:, None].float(), 3).view(32, 9, 30, 30)
    uniform = (neighbours == neighbours[:, :1]).all(dim=1)
    inner_labels, inner_images = new_labels[:, 1:-1, 1:-1], new_images[:, :, 1:-1, 1:-1]
    seen = uniform & (inner_labels != IGNORE)
    assert seen.float().mean() > 0.2
    difference = (inner_images - coloured(inner_labels)).abs().amax(dim=1)
    assert difference[seen].max() < 1e-3
    kept = new_labels != IGNORE
    assert torch.equal(new_weights[kept], COLOURS[new_labels[kept], 0])
    assert (new_labels != labels).any()


def test_labels_are_never_interpolated():
    """Neighbouring ids 0 and 18 produce no third id, 255 stays 255, and every image keeps its own labels."""
    torch.manual_seed(0)
    labels = torch.where(torch.rand(24, 17, 19) < 0.5, 0, 18)
    labels[:, ::3] = IGNORE
    labels[:12][labels[:12] == 0] = 7
    images = torch.zeros(24, 3, 17, 19)
    _, new, _ = Augment(MOVING)(images, labels)
    assert new.dtype == torch.int64
    assert set(new[:12].unique().tolist()) == {7, 18, IGNORE}
    assert set(new[12:].unique().tolist()) == {0, 18, IGNORE}


def test_ignored_in_ignored_out():
    torch.manual_seed(0)
    images, labels, _ = noise(16)
    _, new, _ = Augment(MOVING)(images, torch.full_like(labels, IGNORE))
    assert (new == IGNORE).all()


@pytest.mark.parametrize("strength", [WEAK, STRONG])
def test_seed_decides(strength):
    images, labels, weights = noise(6, 24, 24)
    before = [x.clone() for x in (images, labels, weights)]
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(Augment(strength)(images, labels, weights))
    for same, again, other in zip(*results, strict=True):
        assert torch.equal(same, again)
        assert not torch.equal(same, other)
    assert all(torch.equal(x, y) for x, y in zip(before, (images, labels, weights), strict=True)), "inputs are left alone"


def test_each_image_has_its_own_parameters():
    """Measured by slopes: about half are flipped, and a share `scale` is rescaled by 0.75 to 1.75, equally on both axes."""
    torch.manual_seed(0)
    count, size = 400, 64
    images, labels, _ = Augment(dataclasses.replace(WEAK, jitter=0))(
        ramp_images(count, size), torch.zeros(count, size, size, dtype=torch.int64)
    )
    # without padding and the outermost pixels, which are partly reflected
    outside = torch.nn.functional.pad((labels == IGNORE).float(), (1, 1, 1, 1), value=1.0)
    inside = torch.nn.functional.max_pool2d(outside, 3, 1) == 0
    both = inside[:, :, 1:] & inside[:, :, :-1]
    across = ((images[:, 0, :, 1:] - images[:, 0, :, :-1]) * both).sum((1, 2)) / both.sum((1, 2)) * (size - 1)
    both = inside[:, 1:] & inside[:, :-1]
    down = ((images[:, 1, 1:] - images[:, 1, :-1]) * both).sum((1, 2)) / both.sum((1, 2)) * (size - 1)
    torch.testing.assert_close(across.abs(), down, rtol=1e-3, atol=1e-3)
    assert 0.4 < (across < 0).float().mean() < 0.6
    factor = 1 / down
    scaled = (factor - 1).abs() > 1e-3
    assert 0.4 < scaled.float().mean() < 0.6
    assert len(factor[scaled].round(decimals=3).unique()) > 100
    assert 0.75 - 1e-3 < factor.min() < 0.78
    assert 1.70 < factor.max() < 1.75 + 1e-3
    assert factor[scaled].mean().item() == pytest.approx(1.25, abs=0.06)
    flipped = across < 0
    assert 0.35 < scaled[flipped].float().mean() < 0.65, "flip and scale are drawn apart"


def test_colour_jitter_is_per_image_and_does_not_touch_labels():
    torch.manual_seed(0)
    images, labels, weights = (
        torch.full((400, 3, 2, 2), 0.5),
        torch.ones(400, 2, 2, dtype=torch.int64),
        torch.full((400, 2, 2), 0.3),
    )
    new, new_labels, new_weights = Augment(but(jitter=0.8, brightness=0.25))(images, labels, weights)
    level = new[:, 0, 0, 0]
    changed = (level - 0.5).abs() > 1e-6
    assert 0.72 < changed.float().mean() < 0.88
    assert len(level[changed].round(decimals=4).unique()) > 150
    assert 0.375 - 1e-4 <= level.min() < 0.385
    assert 0.615 < level.max() <= 0.625 + 1e-4
    assert torch.equal(new_labels, labels)
    assert torch.equal(new_weights, weights)


def test_hue_is_a_share_of_a_turn():
    torch.manual_seed(0)
    images = torch.tensor([0.8, 0.2, 0.2])[None, :, None, None].expand(200, 3, 2, 2).contiguous()
    new, _, _ = Augment(but(jitter=1, hue=0.083))(images, torch.zeros(200, 2, 2, dtype=torch.int64))
    turns = torch.tensor([colorsys.rgb_to_hsv(*pixel.tolist())[0] for pixel in new[:, :, 0, 0]])
    turns = torch.where(turns > 0.5, turns - 1, turns)
    assert -0.084 < turns.min() < -0.07
    assert 0.07 < turns.max() < 0.084


def test_blur_is_per_image_and_does_not_touch_labels():
    torch.manual_seed(0)
    images = torch.zeros(100, 3, 25, 25)
    images[:, :, 12, 12] = 1
    labels = torch.randint(19, (100, 25, 25))
    new, new_labels, _ = Augment(but(blur=0.2))(images, labels)
    peak = new[:, 0, 12, 12]
    blurred = peak < 0.999
    assert 0.05 < blurred.float().mean() < 0.4
    assert len(peak[blurred].round(decimals=3).unique()) > 3
    torch.testing.assert_close(new.sum((2, 3)), torch.ones(100, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(new, new.transpose(2, 3), atol=1e-5, rtol=0, msg="the same σ along both axes")
    assert torch.equal(new_labels, labels)


def distinct(*counts, ignored=False):
    """Return one label map per count, with that many classes of its own in rows; optionally the last row is ignored."""
    maps, first = [], 0
    for count in counts:
        rows = [first + k % count for k in range(12)]
        first += count
        if ignored:
            rows[-1] = IGNORE
        maps.append(torch.tensor(rows)[:, None].expand(12, 4))
    return torch.stack(maps), first


def with_origin(labels):
    """Return images and weights that encode the origin of each pixel: image number in the channels, position in the weight."""
    batch, height, width = labels.shape
    images = torch.arange(batch).float()[:, None, None, None].expand(batch, 3, height, width).contiguous()
    places = torch.arange(height * width).float().view(1, height, width)
    return images, places + 1000 * torch.arange(batch)[:, None, None]


@pytest.mark.parametrize(("n", "pasted"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3)])
@pytest.mark.parametrize("ignored", [False, True])
def test_classmix_pastes_half_the_classes_rounded_down(n, pasted, ignored):
    """Two images without a common class: the other's pixels in an image are pasted, and are floor(n/2) whole classes."""
    labels, classes = distinct(n, n, ignored=ignored)
    own = [set(one.unique().tolist()) - {IGNORE} for one in labels]
    for seed in range(10):
        torch.manual_seed(seed)
        _, new, _ = classmix(*with_origin(labels)[:1], labels, None, classes, 1.0)
        for k in range(2):
            foreign = set(new[k].unique().tolist()) & own[1 - k]
            assert len(foreign) == pasted
            expected = labels[k].clone()
            for c in foreign:
                expected[labels[1 - k] == c] = c
            assert torch.equal(new[k], expected)
            assert not torch.equal(new[k], labels[1 - k]), "never all of it"


def test_classmix_counts_classes_image_by_image():
    """Images of 2, 5 and 8 classes give 1, 2 and 4."""
    labels, classes = distinct(2, 5, 8)
    gives = {0: 1, 1: 2, 2: 4}
    for seed in range(20):
        torch.manual_seed(seed)
        images, new, _ = classmix(with_origin(labels)[0], labels, None, classes, 1.0)
        for k in range(3):
            givers = set(images[k].unique().long().tolist()) - {k}
            assert len(givers) == 1, "one other image, never itself"
            (giver,) = givers
            foreign = set(new[k].unique().tolist()) & set(labels[giver].unique().tolist())
            assert len(foreign) == gives[giver]


def test_classmix_chooses_all_classes_equally():
    """Three of six: each class is in half of the draws, and so is each of the two source images."""
    labels, classes = distinct(6, 6, 6)
    chosen, givers = torch.zeros(classes), torch.zeros(3)
    torch.manual_seed(0)
    draws = 600
    for _ in range(draws):
        images, new, _ = classmix(with_origin(labels)[0], labels, None, classes, 1.0)
        chosen[new[0].unique()] += 1
        givers[images[0].unique().long()] += 1
    assert (chosen[6:] / draws - 0.25).abs().max() < 0.09
    assert (givers[1:] / draws - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("weighted", [False, True])
def test_classmix_moves_image_label_and_weight_together(weighted):
    torch.manual_seed(0)
    labels = torch.randint(5, (4, 9, 7))
    labels[torch.rand(labels.shape) < 0.2] = IGNORE
    before, places = with_origin(labels)
    images, new, weights = classmix(before, labels, places if weighted else None, 5, 1.0)
    origin = images[:, 0].long()
    assert (images == images[:, :1]).all()
    assert (origin != torch.arange(4)[:, None, None]).any(), "something was pasted"
    expected = labels.gather(0, origin)
    assert torch.equal(new, expected)
    if weighted:
        assert torch.equal(weights, places.gather(0, origin))
    else:
        assert weights is None
    pasted = origin != torch.arange(4)[:, None, None]
    assert (new[pasted] != IGNORE).all(), "ignored pixels are never pasted"
    assert (labels[pasted] == IGNORE).any(), "but may be covered"


def test_classmix_of_ignored_images():
    labels = torch.full((2, 6, 6), IGNORE)
    labels[1, 0] = 0
    labels[1, 1] = 1
    images, new, _ = classmix(with_origin(labels)[0], labels, None, 3, 1.0)
    assert torch.equal(new[1], labels[1])
    assert (images[1] == 1).all()
    assert (new[0] != IGNORE).sum() == 6, "one class of the two is pasted onto the ignored image"


def test_classmix_probability():
    labels, classes = distinct(4, 4, 4, 4)
    images, weights = with_origin(labels)
    torch.manual_seed(0)
    same = classmix(images, labels, weights, classes, 0.0)
    assert all(torch.equal(x, y) for x, y in zip(same, (images, labels, weights), strict=True))
    mixed = [(classmix(images, labels, None, classes, 0.25)[1] != labels).flatten(1).any(1) for _ in range(300)]
    mixed = torch.stack(mixed).float()
    assert (mixed.mean(0) - 0.25).abs().max() < 0.12
    assert mixed.mean().item() == pytest.approx(0.25, abs=0.06)
    assert 0 < (mixed.sum(1) == 1).float().mean() < 1, "drawn per image"
    always = torch.stack([(classmix(images, labels, None, classes, 1.0)[1] != labels).flatten(1).any(1) for _ in range(20)])
    assert always.all()


def test_classmix_of_one_image():
    labels, classes = distinct(4)
    images, weights = with_origin(labels)
    alone = classmix(images, labels, weights, classes, 1.0)
    assert all(torch.equal(x, y) for x, y in zip(alone, (images, labels, weights), strict=True))


def test_classmix_does_not_modify_its_inputs_and_depends_on_the_seed():
    labels, classes = distinct(6, 6, 6)
    images, weights = with_origin(labels)
    before = [x.clone() for x in (images, labels, weights)]
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(classmix(images, labels, weights, classes, 1.0))
    assert all(torch.equal(x, y) for x, y in zip(before, (images, labels, weights), strict=True))
    for same, again, other in zip(*results, strict=True):
        assert torch.equal(same, again)
        assert not torch.equal(same, other)
