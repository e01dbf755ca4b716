"""Channel dropout: which channels of which images are dropped."""

import pytest
import torch

from sda.models.channel_dropout import drop_channels


@pytest.mark.parametrize("views", [1, 2, 3])
def test_half_of_the_channels_are_dropped_for_half_of_the_images(views):
    torch.manual_seed(0)
    images = 6
    maps = [torch.rand(views * images, channels, 4, 5) + 1 for channels in (64, 96)]
    spared = []
    for before, after in zip(maps, drop_channels(maps, views), strict=True):
        scale = (after / before).amax(dim=(2, 3))
        torch.testing.assert_close(after, before * scale[:, :, None, None])
        scale = scale.round().unflatten(0, (views, images))
        spared.append(scale.eq(1).all(dim=2))
        changed = scale[~spared[-1]]
        assert set(changed.unique().tolist()) == {0.0, 2.0} and 0.35 < (changed == 0).float().mean() < 0.65
        if views == 2:
            torch.testing.assert_close(scale[0] + scale[1], torch.full_like(scale[0], 2))
    assert torch.equal(*spared) and spared[0].sum(dim=1).eq(3).all() and torch.equal(spared[0][0], spared[0][-1])


def test_a_single_image_is_changed():
    torch.manual_seed(0)
    assert not torch.equal(drop_channels([torch.ones(1, 8, 2, 2)], 1)[0], torch.ones(1, 8, 2, 2))
