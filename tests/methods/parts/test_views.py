"""The strong views: where ClassMix takes its classes from."""

import pytest
import torch

from sda.data.batch import Batch, Labelled
from sda.methods.parts.augment import Augment, Strength, mask_patches
from sda.methods.parts.views import Views, donors, strong_views

NOTHING = Augment(Strength(flip=0, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0))
SIDE = 8
CLASSES = 8


def stripes(count, classes):
    """Return label maps (count, SIDE, SIDE) with the classes side by side."""
    return torch.tensor(classes).repeat_interleave(SIDE // len(classes)).expand(count, SIDE, SIDE).clone()


@pytest.fixture
def batch(paint):
    """Source images of classes 0 to 3, a labelled target image of 0 and 1, and unlabelled images."""
    source, labelled = stripes(3, [0, 1, 2, 3]), stripes(1, [3, 2])
    return Batch(
        Labelled(paint(source), source.byte()), Labelled(paint(labelled) // 2, labelled.byte()), paint(stripes(2, [1, 3]))
    )


@pytest.fixture
def unlabelled():
    """Two unlabelled images that are black, of the pseudo-class 7, with weight 0.5."""
    return Views(torch.zeros(2, 3, SIDE, SIDE), torch.full((2, SIDE, SIDE), 7), torch.full((2, SIDE, SIDE), 0.5))


@pytest.mark.parametrize(("mix_from", "brightness"), [("source", 1.0), ("labelled", 0.5)])
def test_classes_with_their_true_labels_are_pasted_from_the_stream(batch, unlabelled, paint, mix_from, brightness):
    torch.manual_seed(0)
    for _ in range(10):
        x, y, w = strong_views(unlabelled, NOTHING, 3, CLASSES, 1.0, donors(batch, unlabelled, mix_from))
        assert x.shape == (6, 3, SIDE, SIDE)
        pasted = y != 7
        assert torch.equal(w, torch.where(pasted, 1.0, 0.5))
        assert pasted.float().mean(dim=(1, 2)).eq(0.5).all(), "half of the classes, which cover half of the image"
        expected = torch.where(pasted.unsqueeze(1), brightness * paint(y) / 255, 0.0)
        torch.testing.assert_close(x, expected, atol=0.01, rtol=0)
        assert all(len(map[mask].unique()) == (2 if mix_from == "source" else 1) for map, mask in zip(y, pasted, strict=True))


def test_all_streams_give_classes(batch, unlabelled):
    torch.manual_seed(0)
    other = Views(torch.ones(2, 3, SIDE, SIDE), stripes(2, [5, 6]), torch.full((2, SIDE, SIDE), 0.25))
    pool = donors(batch, other, "all")
    assert len(pool.x) == 2 + 3 + 1 and pool.w[2:].eq(1).all() and pool.w[:2].eq(0.25).all()
    _, y, w = strong_views(unlabelled, NOTHING, 100, CLASSES, 1.0, pool)
    shares = [(y == value).any(dim=2).any(dim=1).float().mean() for value in (0, 5)]
    assert 0.15 < shares[0] < 0.35 and 0.1 < shares[1] < 0.25  # 0: half of the views from 3 of 6 images; 5: from 2 of 6
    assert set(w[y == 5].unique().tolist()) == {0.25}


def test_no_image_is_pasted_onto_itself(batch, unlabelled):
    torch.manual_seed(0)
    own = unlabelled._replace(x=torch.rand(2, 3, SIDE, SIDE), y=torch.stack([stripes(1, [4, 5])[0], stripes(1, [6, 7])[0]]))
    flipped = Augment(Strength(flip=1, jitter=0, brightness=0, contrast=0, saturation=0, hue=0, blur=0, scale=0))
    y = strong_views(own, flipped, 50, CLASSES, 1.0, donors(batch, own, "all"), skip_own=True).y
    pasted = [set(map.unique().tolist()) - ({6, 7} if n % 2 else {4, 5}) for n, map in enumerate(y)]
    assert all(pasted), "each view has a class that its own image lacks"


def test_probability_and_ignored_pixels(batch, unlabelled):
    torch.manual_seed(0)
    batch.source.labels[:, :, :4] = 255
    views = strong_views(unlabelled, NOTHING, 200, CLASSES, 0.25, donors(batch, unlabelled, "source"))
    changed = (views.y != 7).any(dim=2).any(dim=1)
    assert 0.18 < changed.float().mean() < 0.32
    assert not ((views.y == 0) | (views.y == 1) | (views.y == 255)).any()


def test_without_donors_the_views_are_mixed_with_each_other(batch, unlabelled):
    assert donors(batch, unlabelled, "unlabelled") is None
    assert len(donors(Batch(labelled=batch.labelled), unlabelled, "all").x) == 3
    torch.manual_seed(0)
    mixed = strong_views(unlabelled._replace(y=stripes(2, [5, 6])), NOTHING, 1, CLASSES, 1.0)
    assert set(mixed.y.unique().tolist()) == {5, 6}


def test_patches_are_hidden_whole_and_at_the_ratio():
    torch.manual_seed(0)
    images = 0.5 + 0.5 * torch.rand(50, 3, 20, 33)
    color = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    masked = mask_patches(images, 8, 0.7, color)
    hidden = (masked == color).all(dim=1)
    assert torch.equal(masked, torch.where(hidden.unsqueeze(1), color, images))
    assert 0.66 < hidden.float().mean() < 0.74
    for top in range(0, 20, 8):
        for left in range(0, 33, 8):
            patch = hidden[:, top : top + 8, left : left + 8].flatten(1).float().mean(dim=1)
            assert patch.eq(0).logical_or(patch.eq(1)).all()
    assert torch.equal(mask_patches(images, 8, 0.0, color), images)
