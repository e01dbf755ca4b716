"""Masked batch norm and grouped MLPs against the layers of PyTorch, applied to the valid rows of one group at a time."""

import pytest
import torch
from torch import nn

from sda.methods.parts.mlp import GroupedMLP, MaskedBatchNorm, attention, projection

GROUPS, ROWS, CHANNELS = 4, 9, 5
COUNTS = (9, 2, 5, 3)


def padded(seed, counts=COUNTS, channels=CHANNELS):
    """Return rows (G, N, D) and their validity: `counts` of each group, at random places."""
    draw = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(len(counts), ROWS, channels, generator=draw) + 1
    valid = torch.zeros(len(counts), ROWS, dtype=torch.bool)
    for group, count in enumerate(counts):
        valid[group, torch.randperm(ROWS, generator=draw)[:count]] = True
    return x, valid


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def masked_norm(groups=GROUPS):
    torch.manual_seed(0)
    norm = MaskedBatchNorm(groups, CHANNELS)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def own_norm(norm, group):
    """Return PyTorch's batch norm with the parameters of one group."""
    reference = nn.BatchNorm1d(norm.weight.shape[2])
    reference.load_state_dict(
        {
            "weight": norm.weight[group, 0],
            "bias": norm.bias[group, 0],
            "running_mean": norm.running_mean[group, 0],
            "running_var": norm.running_var[group, 0],
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return reference


def test_norm_equals_batch_norm_of_each_group():
    norm = masked_norm()
    references = [own_norm(norm, group) for group in range(GROUPS)]
    for seed in range(3):  # several batches, so that running statistics change
        x, valid = padded(seed)
        x.requires_grad_()
        y = norm(x, valid)
        target = torch.randn(y.shape, dtype=y.dtype)
        expected = torch.cat([reference(x[g][valid[g]]) for g, reference in enumerate(references)])
        close(y[valid], expected)
        inputs = (x, norm.weight, norm.bias)
        grad, grad_weight, grad_bias = torch.autograd.grad((y * target)[valid].sum(), inputs)
        (expected * target[valid]).sum().backward()
        close(grad, x.grad)
        close(grad_weight[:, 0], torch.stack([r.weight.grad for r in references]))
        close(grad_bias[:, 0], torch.stack([r.bias.grad for r in references]))
        for reference in references:
            reference.zero_grad()
    close(norm.running_mean[:, 0], torch.stack([r.running_mean for r in references]))
    close(norm.running_var[:, 0], torch.stack([r.running_var for r in references]))

    norm.eval()
    x, valid = padded(9)
    expected = torch.stack([reference.eval()(x[g]) for g, reference in enumerate(references)])
    before = norm.running_mean.clone()
    close(norm(x, valid), expected)
    assert torch.equal(norm.running_mean, before)


def test_norm_ignores_padding():
    x, valid = padded(0)
    x.requires_grad_()
    one, other = masked_norm(), masked_norm()
    y = one(x, valid)
    changed = torch.where(valid.unsqueeze(2), x, 1e6)
    assert torch.equal(y[valid], other(changed, valid)[valid])
    assert torch.equal(one.running_mean, other.running_mean)
    assert torch.equal(one.running_var, other.running_var)
    (grad,) = torch.autograd.grad(y[valid].square().sum(), x)
    assert (grad[~valid] == 0).all()
    assert (grad[valid] != 0).any()


def test_norm_of_one_or_no_row():
    """A single row is its own mean, so the output is the bias; without rows it is finite. Running statistics do not change."""
    norm = masked_norm(3)
    x, valid = padded(0, counts=(1, 0, 2))
    x.requires_grad_()
    y = norm(x, valid)
    close(y[0][valid[0]], norm.bias[0])
    assert torch.equal(norm.running_mean[:2], torch.zeros(2, 1, CHANNELS))
    assert torch.equal(norm.running_var[:2], torch.ones(2, 1, CHANNELS))
    assert (norm.running_var[2] != 1).any()
    grads = torch.autograd.grad(y.sum(), (x, norm.weight, norm.bias))
    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


def sequential(mlp, group):
    """Return Linear-BN-LeakyReLU-Linear with the weights of one group."""
    inputs, hidden = mlp.weight1.shape[1:]
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, mlp.weight2.shape[2])
    with torch.no_grad():
        first.weight.copy_(mlp.weight1[group].T)
        first.bias.copy_(mlp.bias1[group, 0])
        second.weight.copy_(mlp.weight2[group].T)
        second.bias.copy_(mlp.bias2[group, 0])
    relu = nn.LeakyReLU(mlp.slope) if mlp.slope else nn.ReLU()
    return nn.Sequential(first, own_norm(mlp.norm, group), relu, second)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_grouped_mlp_equals_a_loop_of_sequentials(slope):
    torch.manual_seed(1)
    mlp = GroupedMLP(GROUPS, CHANNELS, 7, 2, slope)
    nn.init.normal_(mlp.norm.weight)
    nn.init.normal_(mlp.norm.bias)
    references = [sequential(mlp, group) for group in range(GROUPS)]
    x, valid = padded(3)
    x.requires_grad_()
    y = mlp(x, valid)
    expected = torch.cat([reference(x[g][valid[g]]) for g, reference in enumerate(references)])
    close(y[valid], expected)
    grads = torch.autograd.grad(y[valid].pow(3).sum(), (x, mlp.weight1, mlp.norm.weight, mlp.weight2, mlp.bias2))
    expected.pow(3).sum().backward()
    close(grads[0], x.grad)
    for g, (first, norm, _, second) in enumerate(references):
        close(grads[1][g].T, first.weight.grad)
        close(grads[2][g, 0], norm.weight.grad)
        close(grads[3][g].T, second.weight.grad)
        close(grads[4][g, 0], second.bias.grad)

    mlp.eval()
    expected = torch.stack([reference.eval()(x[g]) for g, reference in enumerate(references)])
    close(mlp(x, valid), expected)


@pytest.mark.parametrize("counts", [(500, 0, 128, 3), (1, 2, 129, 0), (0, 0, 0, 0)])
def test_of_rows_applies_the_mlp_of_each_group(counts):
    """It equals PyTorch's layers on the rows of each group, for any number of rows, and leaves the statistics unchanged."""
    torch.manual_seed(2)
    mlp = GroupedMLP(GROUPS, CHANNELS, 7, 2, 0.2)
    nn.init.normal_(mlp.norm.weight)
    nn.init.normal_(mlp.norm.bias)
    group = torch.cat([torch.full((count,), g) for g, count in enumerate((*counts, 5))])
    group = group[torch.randperm(len(group))]
    x, before = torch.randn(len(group), CHANNELS), mlp.norm.running_mean.clone()
    found = mlp.of_rows(x, group)
    assert found.shape == (len(group), 2) and found.isfinite().all() and not found.requires_grad
    for g in range(GROUPS):
        if counts[g] > 1:  # PyTorch raises an error for a single row
            close(found[group == g], sequential(mlp, g)(x[group == g]))
    assert torch.equal(mlp.norm.running_mean, before)


def test_heads_have_the_sizes_of_the_paper():
    g, s = projection(48, 256), attention(19, 256)
    rows = torch.ones(1, 3, dtype=torch.bool)
    assert g(torch.randn(1, 3, 48), rows).shape == (1, 3, 256)
    assert (g.weight1.shape, g.weight2.shape, g.slope) == ((1, 48, 256), (1, 256, 256), 0)
    assert s(torch.randn(19, 3, 256), rows.expand(19, 3)).shape == (19, 3, 1)
    assert (s.weight1.shape, s.weight2.shape, s.slope) == ((19, 256, 256), (19, 256, 1), 0.2)
    assert not torch.equal(s.weight1[0], s.weight1[1]), "classes start apart"


def test_initial_weights_equal_those_of_linear():
    """U(-1/√n, 1/√n) with n inputs of the layer; here the bounds are 1/4 and 1/8."""
    torch.manual_seed(0)
    mlp = GroupedMLP(2, 16, 64, 64)
    for weights, bound in ((mlp.weight1, 1 / 4), (mlp.bias1, 1 / 4), (mlp.weight2, 1 / 8), (mlp.bias2, 1 / 8)):
        assert 0.95 * bound < weights.abs().max().item() <= bound
        assert weights.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_norm_in_float64():
    x, valid = padded(0)
    assert masked_norm().double()(x.double(), valid).dtype == torch.float64
