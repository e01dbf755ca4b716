"""The losses against slow loops in float64 that follow the equations, and against values computed by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sda.methods.parts.losses import (
    class_weights,
    contrast,
    contrast_distribution,
    contrast_infonce,
    cross_entropy,
    entropy,
    mean_one,
    ramp,
)

IGNORE = 255
many = settings(max_examples=200, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**31)


def random_maps(seed, batch=2, classes=4, height=3, width=5, ignored=0.3):
    """Return logits, labels (some ignored), pixel weights and class weights."""
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, height, width, dtype=torch.float64, generator=draw)
    labels = torch.randint(classes, (batch, height, width), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < ignored] = IGNORE
    weights = torch.rand(labels.shape, dtype=torch.float64, generator=draw)
    return logits.requires_grad_(), labels, weights, 0.5 + torch.rand(classes, dtype=torch.float64, generator=draw)


def pixels(labels):
    return [(b, i, j) for b in range(labels.shape[0]) for i in range(labels.shape[1]) for j in range(labels.shape[2])]


def slow_cross_entropy(logits, labels, alpha, weights):
    """(1/V) Σ over the V valid pixels of α_y w (log Σ_c exp(x_c) - x_y)."""
    valid = [at for at in pixels(labels) if labels[at] != IGNORE]
    total = 0.0
    for b, i, j in valid:
        x, y = logits[b, :, i, j], labels[b, i, j]
        total = total + alpha[y] * weights[b, i, j] * (x.exp().sum().log() - x[y])
    return total / len(valid)


maps = st.fixed_dictionaries(
    {
        "seed": seeds, "batch": st.integers(1, 3), "classes": st.integers(2, 6), "height": st.integers(1, 3),
        "width": st.integers(1, 4), "ignored": st.floats(0, 0.9),
    }
)  # fmt: skip


@many
@given(maps, st.booleans())
def test_cross_entropy_equals_the_loop(case, weighted):
    """Compare value and gradient."""
    logits, labels, weights, alpha = random_maps(**case)
    labels[0, 0, 0] = 0  # the case without valid pixels has its own test
    expected = slow_cross_entropy(logits, labels, alpha, weights if weighted else torch.ones_like(weights))
    actual = cross_entropy(logits, labels, alpha, weights if weighted else None)
    torch.testing.assert_close(actual, expected)
    (expected_grad,), (grad,) = torch.autograd.grad(expected, logits), torch.autograd.grad(actual, logits)
    torch.testing.assert_close(grad, expected_grad)


def test_cross_entropy_by_hand():
    """Two valid pixels with probability 1/2 (log 2 each), α = (1, 3), pixel weights 1/2 and 1; one ignored pixel."""
    logits = torch.zeros(1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, IGNORE]]])
    loss = cross_entropy(logits, labels, torch.tensor([1.0, 3.0]), torch.tensor([[[0.5, 1.0, 9.0]]]))
    assert loss.item() == pytest.approx((0.5 * 1 + 1 * 3) * math.log(2) / 2)


def test_cross_entropy_ignored_pixels_get_exactly_no_gradient():
    logits, labels, weights, alpha = random_maps(1)
    cross_entropy(logits, labels, alpha, weights).backward()
    zero = (logits.grad == 0).all(dim=1)
    assert torch.equal(zero, labels == IGNORE)


def test_cross_entropy_without_valid_pixels_is_zero():
    logits, labels, weights, alpha = random_maps(2)
    loss = cross_entropy(logits, torch.full_like(labels, IGNORE), alpha, weights)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_cross_entropy_of_extreme_logits():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss = cross_entropy(logits, torch.ones(1, 1, 1, dtype=torch.int64), torch.ones(2))
    loss.backward()
    assert loss.item() == 2e4
    assert logits.grad.flatten().tolist() == [1, -1]


def slow_entropy(logits, valid):
    """(1/V) Σ over the V valid pixels of -Σ_c p_c log2 p_c / log2 C."""
    total, classes = 0.0, logits.shape[1]
    for b, i, j in pixels(valid):
        if valid[b, i, j]:
            odds = logits[b, :, i, j].exp()
            p = odds / odds.sum()
            total = total - (p * p.log2()).sum() / math.log2(classes)
    return total / valid.sum()


@many
@given(maps)
def test_entropy_equals_the_loop(case):
    """Compare value and gradient; ignored pixels have no gradient."""
    logits, labels, _, _ = random_maps(**case)
    labels[0, 0, 0] = 0
    valid = labels != IGNORE
    expected, actual = slow_entropy(logits, valid), entropy(logits, valid)
    torch.testing.assert_close(actual, expected)
    (expected_grad,), (grad,) = torch.autograd.grad(expected, logits), torch.autograd.grad(actual, logits)
    torch.testing.assert_close(grad, expected_grad, atol=1e-9, rtol=1e-6)
    assert (grad.abs().sum(dim=1)[~valid] == 0).all()


@pytest.mark.parametrize("classes", [2, 19])
@pytest.mark.parametrize("batch", [1, 4])
def test_entropy_range(classes, batch):
    """1 for uniform predictions, 0 for certain ones, and 1/2 for half of each, for any C and batch size."""
    logits = torch.zeros(batch, classes, 2, 2)
    valid = torch.ones(batch, 2, 2, dtype=torch.bool)
    assert entropy(logits, valid).item() == pytest.approx(1)
    logits[:, 0, 0] = 1e4
    assert entropy(logits, valid).item() == pytest.approx(0.5)
    logits[:, 1, 1] = 1e4
    assert entropy(logits, valid).item() == 0
    assert entropy(logits, ~valid).item() == 0


@many
@given(seeds, st.integers(2, 20), st.floats(0.01, 100))
def test_entropy_stays_in_range(seed, classes, scale):
    logits = scale * torch.randn(2, classes, 2, 2, generator=torch.Generator().manual_seed(seed))
    assert 0 <= entropy(logits, torch.ones(2, 2, 2, dtype=torch.bool)).item() <= 1 + 1e-6


def pairwise_contrast(p, s_p, valid_p, z, s_z, valid_z):
    """(1/C) Σ_c mean over pairs of w_p w_z (1 - cos(p, z)), w = N s / Σ s. Classes without pairs contribute 0."""
    total = torch.zeros((), dtype=p.dtype)
    for c in range(len(p)):
        ps, zs = p[c][valid_p[c]], z[c][valid_z[c]]
        if len(ps) == 0 or len(zs) == 0:
            continue
        w_p = len(ps) * s_p[c][valid_p[c]] / s_p[c][valid_p[c]].sum()
        w_z = len(zs) * s_z[c][valid_z[c]] / s_z[c][valid_z[c]].sum()
        pairs = [
            w_p[i] * w_z[j] * (1 - ps[i].dot(zs[j]) / (ps[i].norm() * zs[j].norm()))
            for i in range(len(ps))
            for j in range(len(zs))
        ]
        total = total + sum(pairs) / len(pairs)
    return total / len(p)


def random_rows(draw, counts, width, channels):
    """Return features, scores in (0, 1) and validity, by class. `counts` rows per class are valid; padding is large."""
    valid = torch.zeros(len(counts), width, dtype=torch.bool)
    for c, count in enumerate(counts):
        valid[c, torch.randperm(width, generator=draw)[: min(count, width)]] = True
    features = torch.randn(len(counts), width, channels, dtype=torch.float64, generator=draw)
    features[~valid] *= 1e3
    scores = torch.randn(len(counts), width, dtype=torch.float64, generator=draw).sigmoid()
    return features.requires_grad_(), scores.requires_grad_(), valid


counts_lists = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4)


@many
@given(seeds, counts_lists, st.integers(2, 5))
def test_contrast_equals_the_pairwise_definition(seed, counts, channels):
    """Compare value and gradient with respect to p, z and both scores, for any counts per class."""
    draw = torch.Generator().manual_seed(seed)
    p, s_p, valid_p = random_rows(draw, [n for n, _ in counts], 6, channels)
    z, s_z, valid_z = random_rows(draw, [m for _, m in counts], 7, channels)
    expected = pairwise_contrast(p, s_p, valid_p, z, s_z, valid_z)
    actual = contrast(p, mean_one(s_p, valid_p), z, mean_one(s_z, valid_z))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    inputs = (p, z, s_p, s_z)
    if not expected.requires_grad:  # no class has pairs
        assert all((g == 0).all() for g in torch.autograd.grad(actual, inputs))
        return
    for grad, reference in zip(torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(grad, reference, rtol=1e-8, atol=1e-12)


def test_contrast_gradcheck():
    draw = torch.Generator().manual_seed(0)
    p, s_p, valid_p = random_rows(draw, [3, 1, 0], 4, 3)
    z, s_z, valid_z = random_rows(draw, [2, 5, 2], 5, 3)

    def function(p, s_p, z, s_z):
        return contrast(p, mean_one(s_p, valid_p), z, mean_one(s_z, valid_z))

    assert torch.autograd.gradcheck(function, (p, s_p, z, s_z))


def test_contrast_by_hand():
    """Class 0: p along x (weight 3/2) and along y (1/2), z along x: (3/2·0 + 1/2·1)/2 = 1/4. Class 1 has no bank: 0."""
    p = torch.tensor([[[5.0, 0.0], [0.0, 0.1]], [[1.0, 0.0], [1.0, 0.0]]])
    z = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
    loss = contrast(p, torch.tensor([[1.5, 0.5], [1.0, 1.0]]), z, torch.tensor([[1.0], [0.0]]))
    assert loss.item() == pytest.approx(0.25 / 2)


def test_contrast_range():
    """0 for equal directions, 2 for opposite ones, 1 for right angles; lengths have no effect."""
    x, y, one = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 1)
    assert contrast(3 * x, one, 0.2 * x, one).item() == pytest.approx(0)
    assert contrast(3 * x, one, -x, one).item() == pytest.approx(2)
    assert contrast(x, one, 7 * y, one).item() == pytest.approx(1)


def slow_moments(z, valid):
    """Mean and variance (divided by n) of the unit-length valid rows of each class; None for empty classes."""
    found = []
    for rows, here in zip(z, valid, strict=True):
        units = [row / row.norm() for row in rows[here]]
        mean = sum(units) / len(units) if units else None
        found.append((mean, sum((unit - mean) ** 2 for unit in units) / len(units)) if units else None)
    return found


def distribution_loop(p, s_p, valid_p, moments, tau):
    """The mean over pixels of w_p (CE(a, y) + ½ f²·Σ_y/τ²), a_k = (f·μ_k + ½ f²·Σ_k/τ)/τ, pixel by pixel and term by term."""
    total, count = torch.zeros((), dtype=p.dtype), 0
    for c in range(len(p)):
        if moments[c] is None:
            continue
        mine, scores = p[c][valid_p[c]], s_p[c][valid_p[c]]
        for row, score in zip(mine, scores, strict=True):
            f = row / row.norm()
            a = {k: f.dot(m) / tau + 0.5 * (f * f * v).sum() / tau**2 for k, (m, v) in enumerate_filled(moments)}
            cross = -(a[c].exp() / sum(x.exp() for x in a.values())).log()
            w = len(mine) * score / scores.sum()
            total = total + w * (cross + 0.5 * (f * f * moments[c][1]).sum() / tau**2)
            count += 1
    return total / max(count, 1)


def enumerate_filled(moments):
    return [(k, pair) for k, pair in enumerate(moments) if pair is not None]


def stacked(moments, channels):
    """The moments as the tensors that the loss takes; empty classes are filled with numbers that it must not use."""
    nothing = torch.full((channels,), 7.0, dtype=torch.float64)
    means, variances = (torch.stack([nothing if m is None else m[part] for m in moments]) for part in (0, 1))
    return means, variances, torch.tensor([m is not None for m in moments])


def equal_gradients(actual, expected, inputs):
    """Compare values and gradients; without any pair, the loss and its gradients are exactly 0."""
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(actual, inputs)
    if not expected.requires_grad:
        assert actual == 0 and all((g == 0).all() for g in grads)
        return
    references = torch.autograd.grad(expected, inputs, allow_unused=True)
    for grad, reference in zip(grads, references, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if reference is None else reference, rtol=1e-8, atol=1e-12)


temperatures = st.sampled_from([0.07, 0.2, 1.0, 100.0])


@many
@given(seeds, counts_lists, st.integers(2, 5), temperatures)
def test_contrast_distribution_equals_the_loop(seed, counts, channels, tau):
    """Compare value and gradient with respect to p and its scores, for any counts per class."""
    draw = torch.Generator().manual_seed(seed)
    p, s_p, valid_p = random_rows(draw, [n for n, _ in counts], 6, channels)
    z, _, valid_z = random_rows(draw, [m for _, m in counts], 7, channels)
    moments = slow_moments(z.detach(), valid_z)
    expected = distribution_loop(p, s_p, valid_p, moments, tau)
    actual = contrast_distribution(p, mean_one(s_p, valid_p), *stacked(moments, channels), tau)
    equal_gradients(actual, expected, (p, s_p))


@pytest.mark.parametrize("tau", [0.2, 100.0])
def test_contrast_distribution_gradcheck(tau):
    draw = torch.Generator().manual_seed(0)
    p, s_p, valid_p = random_rows(draw, [3, 1, 0, 2], 4, 3)
    z, _, valid_z = random_rows(draw, [2, 5, 2, 0], 5, 3)
    moments = stacked(slow_moments(z.detach(), valid_z), 3)
    assert torch.autograd.gradcheck(lambda p, s_p: contrast_distribution(p, mean_one(s_p, valid_p), *moments, tau), (p, s_p))


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_contrast_distribution_is_the_limit_of_many_pairs(tau):
    """Draw 400,000 positives and negatives per class: the mean over positives of -log(exp(s_z) / Σ_k mean of exp(s_k))."""
    draw = torch.Generator().manual_seed(3)
    mean = 0.5 * torch.randn(3, 4, dtype=torch.float64, generator=draw)
    variance = 0.3 * torch.rand(3, 4, dtype=torch.float64, generator=draw)
    p = torch.randn(3, 5, 4, dtype=torch.float64, generator=draw)
    z = mean[:, None] + variance[:, None].sqrt() * torch.randn(3, 400_000, 4, dtype=torch.float64, generator=draw)
    losses, variances = [], []
    for c in range(3):
        for row in p[c]:
            s = z @ (row / row.norm()) / tau  # (class, pair)
            each = s.exp().mean(dim=1)
            losses.append(each.sum().log() - s[c].mean())
            noise = s.exp().var(dim=1).sum() / each.sum() ** 2 + s[c].var()  # of the two terms, if they were independent
            variances.append(noise / s.shape[1])
    actual = contrast_distribution(p, torch.ones(3, 5, dtype=torch.float64), mean, variance, torch.ones(3, dtype=torch.bool), tau)
    for c in range(3):
        for k in range(5):
            here = torch.zeros(3, 5, dtype=torch.float64)
            here[c, k] = 1
            one = contrast_distribution(p, here, mean, variance, torch.ones(3, dtype=torch.bool), tau)
            assert abs(one - losses[5 * c + k]) < 5 * variances[5 * c + k].sqrt()
    assert abs(actual - sum(losses) / 15) < 5 * max(variances).sqrt()


def test_contrast_distribution_by_hand():
    """Means x and y without variance, a pixel along x of class 0, τ = 1: log(e + 1) - 1. A third class is empty."""
    p = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]])
    mean, zero = torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]), torch.zeros(3, 2)
    filled = torch.tensor([True, True, False])
    loss = contrast_distribution(p, torch.tensor([[1.0], [0.0], [1.0]]), mean, zero, filled, 1.0)
    assert loss.item() == pytest.approx(math.log(math.e + 1) - 1)
    # a variance of 2 of the other class adds ½·1·2 to its logit
    variance = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    loss = contrast_distribution(p, torch.tensor([[1.0], [0.0], [1.0]]), mean, variance, filled, 1.0)
    assert loss.item() == pytest.approx(math.log(math.e + math.e) - 1)


def infonce_loop(p, s_p, valid_p, z, s_z, valid_z, tau):
    """The mean over pixels of w_p times the mean over positives of w_z (-log(e^s / (e^s + Σ over negatives of w_n e^s_n)))."""

    def weights(scores, valid):
        return [len(s[v]) * s[v] / s[v].sum() for s, v in zip(scores, valid, strict=True)]

    w_p, w_z = weights(s_p, valid_p), weights(s_z, valid_z)
    bank = [[row / row.norm() for row in rows[valid]] for rows, valid in zip(z, valid_z, strict=True)]
    total, count = torch.zeros((), dtype=p.dtype), 0
    for c in range(len(p)):
        if not bank[c]:
            continue
        for row, w in zip(p[c][valid_p[c]], w_p[c], strict=True):
            unit = row / row.norm()
            others = [(w_n, n) for k in range(len(p)) if k != c for w_n, n in zip(w_z[k], bank[k], strict=True)]
            negatives = sum((w_n * (unit.dot(n) / tau).exp() for w_n, n in others), torch.zeros((), dtype=p.dtype))
            pairs = []
            for w_z_c, entry in zip(w_z[c], bank[c], strict=True):
                s = (unit.dot(entry) / tau).exp()
                pairs.append(-w_z_c * (s / (s + negatives)).log())
            total = total + w * sum(pairs) / len(pairs)
            count += 1
    return total / max(count, 1)


@many
@given(seeds, counts_lists, st.integers(2, 5), temperatures)
def test_contrast_infonce_equals_the_loop(seed, counts, channels, tau):
    """Compare value and gradient with respect to p, z and both scores, for any counts per class."""
    draw = torch.Generator().manual_seed(seed)
    p, s_p, valid_p = random_rows(draw, [n for n, _ in counts], 6, channels)
    z, s_z, valid_z = random_rows(draw, [m for _, m in counts], 7, channels)
    expected = infonce_loop(p, s_p, valid_p, z, s_z, valid_z, tau)
    actual = contrast_infonce(p, mean_one(s_p, valid_p), z, mean_one(s_z, valid_z), tau)
    equal_gradients(actual, expected, (p, z, s_p, s_z))


def test_contrast_infonce_gradcheck():
    draw = torch.Generator().manual_seed(0)
    p, s_p, valid_p = random_rows(draw, [3, 1, 0, 2], 4, 3)
    z, s_z, valid_z = random_rows(draw, [2, 5, 2, 0], 5, 3)

    def function(p, s_p, z, s_z):
        return contrast_infonce(p, mean_one(s_p, valid_p), z, mean_one(s_z, valid_z), 0.5)

    assert torch.autograd.gradcheck(function, (p, s_p, z, s_z))


def test_contrast_infonce_by_hand():
    """A pixel along x; its class has one entry along x, another class two along y (weights 1), τ = 1: log(1 + 2/e)."""
    p = torch.tensor([[[5.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    z = torch.tensor([[[2.0, 0.0], [7.0, 7.0]], [[0.0, 1.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    w_z = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    loss = contrast_infonce(p, torch.tensor([[1.0], [0.0], [1.0]]), z, w_z, 1.0)
    assert loss.item() == pytest.approx(math.log(1 + 2 / math.e))
    loss = contrast_infonce(p, torch.tensor([[1.0], [0.0], [0.0]]), z, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), 1.0)
    assert loss.item() == 0, "no negatives"


@pytest.mark.parametrize("empty", ["bank", "pixels"])
def test_contrasts_of_nothing_are_zero_in_float32(empty):
    p = torch.randn(3, 4, 5, requires_grad=True)
    w_p, w_z, filled = torch.ones(3, 4), torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)
    if empty == "pixels":
        w_p, w_z, filled = torch.zeros(3, 4), torch.ones(3, 2), torch.ones(3, dtype=torch.bool)
    w_p.requires_grad_()
    for loss in (
        contrast_distribution(p, w_p, torch.zeros(3, 5), torch.zeros(3, 5), filled, 100.0),
        contrast_infonce(p, w_p, torch.zeros(3, 2, 5), w_z, 0.2),
    ):
        grad, _ = torch.autograd.grad(loss, (p, w_p), materialize_grads=True)
        assert loss == 0 and torch.equal(grad, torch.zeros_like(grad))


def test_contrasts_with_negatives_do_not_saturate():
    """Two orthogonal classes, and a pixel turned from its class's entry by an angle of 3° away from the other class.

    The gradient of 1 - cos is sin 3° = 0.05 of its maximum. That of the distribution contrast is the part of (μ_2 - μ_1)/(2τ)
    at right angles to the pixel, as large as everywhere near.
    """
    turn = math.radians(3)
    z, one = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    only = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    p = torch.tensor([[[math.cos(turn), -math.sin(turn)]], [[0.0, 1.0]]], dtype=torch.float64, requires_grad=True)

    def strength(loss):
        return torch.autograd.grad(loss, p)[0][0, 0].norm().item()

    filled = torch.ones(2, dtype=torch.bool)
    assert 2 * strength(contrast(p, only, z, one)) == pytest.approx(math.sin(turn))  # a mean over two classes
    distribution = contrast_distribution(p, only, z[:, 0], torch.zeros_like(z[:, 0]), filled, 100.0)
    expected = (math.cos(turn) - math.sin(turn)) / 2
    assert 100 * strength(distribution) == pytest.approx(expected, rel=0.02)
    # InfoNCE: the probability of the negative, over τ
    cold, warm = (strength(contrast_infonce(p, only, z, one, tau)) * tau for tau in (0.07, 0.2))
    assert cold < 1e-5 and warm > 4e-3


def test_contrasts_do_not_depend_on_values():
    """On the meta device, which has no values, everything that would wait for a device raises an error."""
    with torch.device("meta"):
        p, z, w_p, w_z = torch.rand(3, 4, 5, requires_grad=True), torch.rand(3, 2, 5), torch.rand(3, 4), torch.rand(3, 2)
        mean, filled = torch.rand(3, 5), torch.ones(3, dtype=torch.bool)
        for loss in (contrast_distribution(p, w_p, mean, mean, filled, 100.0), contrast_infonce(p, w_p, z, w_z, 0.2)):
            loss.backward()


def test_mean_one_by_hand():
    """Scores .2 and .6 of two valid entries: 2·.2/.8 and 2·.6/.8; a single entry has weight 1, padding and empty rows 0."""
    scores = torch.tensor([[0.2, 0.9, 0.6], [0.3, 0.1, 0.1], [0.5, 0.5, 0.5]])
    valid = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    torch.testing.assert_close(mean_one(scores, valid), torch.tensor([[0.5, 0, 1.5], [0, 1, 0], [0, 0, 0]]))


def test_mean_one_gradient_by_hand():
    """w_1 = 2 s_1/(s_1 + s_2) has dw_1/ds_1 = 2 s_2/(s_1 + s_2)² and dw_1/ds_2 = -2 s_1/(s_1 + s_2)²."""
    scores = torch.tensor([[0.2, 0.6, 0.9]], requires_grad=True)
    weights = mean_one(scores, torch.tensor([[True, True, False]]))
    (grad,) = torch.autograd.grad(weights[0, 0], scores)
    torch.testing.assert_close(grad, torch.tensor([[2 * 0.6 / 0.64, -2 * 0.2 / 0.64, 0]]))


@many
@given(seeds, st.integers(1, 300), st.floats(-8, 8))
def test_mean_one_has_mean_one(seed, count, shift):
    draw = torch.Generator().manual_seed(seed)
    scores = (torch.randn(3, count, generator=draw) + shift).sigmoid()
    valid = torch.rand(3, count, generator=draw) < 0.5
    weights = mean_one(scores, valid)
    assert (weights >= 0).all()
    assert (weights[~valid] == 0).all()
    torch.testing.assert_close(weights.sum(dim=1), valid.sum(dim=1).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", [1e-7, 1e-12, 1e-30])
def test_mean_one_of_tiny_scores(score):
    valid = torch.tensor([[True, True, False]])
    torch.testing.assert_close(mean_one(torch.full((1, 3), score), valid), torch.tensor([[1.0, 1.0, 0.0]]))


def test_class_weights_by_hand():
    """Odd: the median of 1, 4, 16 is 4. Even: that of 1, 3, 5, 27 is 4. An absent class is excluded and has weight 1."""
    close = torch.testing.assert_close
    close(class_weights(torch.tensor([4.0, 1.0, 16.0])), torch.tensor([1, 2, 0.5]))
    close(class_weights(torch.tensor([4.0, 0.0, 1.0, 0.0, 16.0, 0.0, 0.0])), torch.tensor([1, 1, 2, 1, 0.5, 1, 1]))
    expected = [2, (4 / 3) ** 0.5, (4 / 5) ** 0.5, (4 / 27) ** 0.5]
    close(class_weights(torch.tensor([1.0, 3.0, 5.0, 27.0])), torch.tensor(expected))
    close(class_weights(torch.tensor([1.0, 3.0, 0.0, 5.0, 27.0])), torch.tensor([*expected[:2], 1, *expected[2:]]))
    close(class_weights(torch.zeros(3)), torch.ones(3))
    close(class_weights(torch.tensor([0.0, 7.0])), torch.ones(2))


def test_class_weights_of_shares_and_counts_agree():
    counts = torch.tensor([3e6, 12.0, 0.0, 4e3, 1.0])
    torch.testing.assert_close(class_weights(counts), class_weights(counts / counts.sum()))


def test_ramp_by_hand():
    assert ramp(0, 2000) == pytest.approx(math.exp(-5))
    assert ramp(500, 2000) == pytest.approx(math.exp(-5 * 0.5625))
    assert ramp(1000, 2000) == pytest.approx(math.exp(-1.25))
    assert ramp(2000, 2000) == ramp(150_000, 2000) == 1
    assert ramp(0, 0) == 1  # no ramp
