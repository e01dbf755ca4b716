"""Positions of output cells: by hand, against PyTorch, and by the receptive fields of real networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sda.models.build import build
from sda.models.grid import Grid


@pytest.mark.parametrize(("cells", "side"), [(1, 1), (1, 7), (4, 8), (3, 8), (13, 97), (24, 96), (97, 97), (64, 512)])
def test_shrunk_labels_equal_nearest_exact_of_pytorch(cells, side):
    labels = torch.randint(256, (2, side, side + 3))
    expected = F.interpolate(labels[:, None].double(), (cells, cells + 1), mode="nearest-exact")[:, 0].long()
    assert torch.equal(Grid().shrink(labels, (cells, cells + 1)), expected)


def test_cells_with_aligned_corners_by_hand():
    grid = Grid(corners=True)
    assert grid.pixels(5, 33).tolist() == [0, 8, 16, 24, 32]
    assert grid.pixels(3, 6).tolist() == [0, 3, 5]  # 2.5 rounds up
    assert grid.pixels(1, 9).tolist() == [0] and grid.pixels(4, 4).tolist() == [0, 1, 2, 3]
    assert grid.enlarge(torch.tensor([[[[0.0, 8.0]]]]), (1, 5)).flatten().tolist() == [0, 2, 4, 6, 8]


def test_caffe_cells_are_centred_on_the_pixels_of_the_grid():
    """The centre of each cell's receptive field, measured by its gradient, away from the borders."""
    model = build("deeplabv2", "resnet50", 2, caffe=True).eval()
    model.backbone.maxpool = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)
    for part in model.modules():  # make all weights symmetric, so that the gradient is symmetric too
        if isinstance(part, nn.Conv2d):
            nn.init.constant_(part.weight, 1 / part.weight[0].numel())
    side = 1025
    image = torch.ones(1, 3, 32, side, requires_grad=True)
    high = model.backbone(image)[-1]
    cells = high.shape[3]
    assert cells == 129
    for cell in (30, cells // 2, cells - 30):
        (gradient,) = torch.autograd.grad(high[0, :, 2, cell].sum(), image, retain_graph=True)
        weight = gradient.abs().sum(dim=(0, 1, 2))
        centre = (weight * torch.arange(side)).sum() / weight.sum()
        assert abs(centre - model.grid.pixels(cells, side)[cell]) < 0.1
        assert cell == cells // 2 or abs(centre - Grid().pixels(cells, side)[cell]) > 1.2
