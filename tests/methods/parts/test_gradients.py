"""The gradient norms at the features, against gradients of a small network computed one cell at a time."""

import math

import pytest
import torch
from torch import nn

from sda.methods.parts.gradients import gradient_norms


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_norms_are_means_over_the_cells(precision):
    """In bfloat16 the features are a float32 copy that is not on the path to the logits."""
    torch.manual_seed(0)
    backbone, classify = nn.Conv2d(3, 4, 1).to(precision), nn.Conv2d(4, 2, 1).to(precision)
    original = backbone(torch.randn(2, 3, 3, 5).to(precision))
    logits, features = classify(original).float(), original.float()
    weights = torch.rand(2, 3, 5)
    weights[0, 0, 0] = 0  # the loss does not use this cell
    right = torch.rand(2, 3, 5) < 0.5
    right[0, 0, :2] = True
    loss = (weights * logits.log_softmax(1)[:, 0]).sum()
    found = gradient_norms(loss, features, right, ~right)
    # d/df of w log p_0 is w W^T (1_0 - p)
    residual = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1) - logits.softmax(1)
    gradient = torch.einsum("ck,bcij->bkij", classify.weight[:, :, 0, 0].float(), weights[:, None] * residual)
    norms = gradient.norm(dim=1)
    for name, cells in (("right", right), ("wrong", ~right)):
        torch.testing.assert_close(
            found[name], norms[cells & (weights > 0)].mean(), rtol=1e-4 if precision == torch.float32 else 2e-2, atol=0
        )
    assert all(parameter.grad is None for parameter in [*backbone.parameters(), *classify.parameters()])
    loss.backward()  # the graph is still there


def test_norms_of_no_cells_are_nan():
    features = torch.randn(1, 2, 2, 2, requires_grad=True)
    none = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert all(math.isnan(norm.item()) for norm in gradient_norms(features.square().sum(), features, none, none).values())


def test_features_that_are_not_trained_or_not_on_the_path_have_no_norms():
    everywhere, parameter = torch.ones(1, 2, 2, dtype=torch.bool), torch.ones((), requires_grad=True)
    frozen, aside = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 2, 2, requires_grad=True)
    assert gradient_norms(parameter * frozen.sum(), frozen, everywhere, everywhere) == {}
    assert gradient_norms(parameter * 2, aside, everywhere, everywhere) == {}
    assert gradient_norms(torch.zeros(()), aside, everywhere, everywhere) == {}
