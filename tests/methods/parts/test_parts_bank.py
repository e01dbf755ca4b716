"""The memory bank against one Python deque per class, and the selection of pixels by class."""

import itertools
from collections import Counter, deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sda.methods.parts.bank import ClassBank, pixels_by_class

many = settings(max_examples=200, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**31)
CHANNELS = 3


def candidates(draw, classes, n, share):
    """Return features, scores, validity, domains, confidences of n candidates per class. Invalid ones have the highest scores."""
    features = torch.randn(classes, n, CHANNELS, generator=draw)
    scores = torch.stack([torch.randperm(n, generator=draw) for _ in range(classes)]).float()
    valid = torch.rand(classes, n, generator=draw) < share
    scores = torch.where(valid, scores, scores + 100) - n / 2  # scores are logits and may be negative
    return features, scores, valid, torch.randint(2, (classes, n), generator=draw), torch.rand(classes, n, generator=draw)


def admit_slowly(queues, features, scores, valid, domain, confidence, step, count):
    """Newest on the left; within one admission, the highest score is leftmost. Entries are dropped at the right end."""
    for c, queue in enumerate(queues):
        best = sorted((k for k in range(scores.shape[1]) if valid[c, k]), key=lambda k: -scores[c, k].item())[:count]
        for k in reversed(best):
            queue.appendleft((features[c, k].tolist(), domain[c, k].item(), confidence[c, k].item(), step))


def contents(bank):
    """Return the filled entries of each class in order."""
    return [
        [(f.tolist(), d.item(), sure.item(), step.item()) for f, d, sure, step, filled in zip(*rows, strict=True) if filled]
        for rows in zip(bank.features, bank.domain, bank.confidence, bank.step, bank.valid, strict=True)
    ]


admissions = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=8)


@many
@given(seeds, st.integers(1, 4), st.integers(1, 6), admissions)
def test_bank_equals_a_deque_per_class(seed, classes, size, sequence):
    draw = torch.Generator().manual_seed(seed)
    bank, queues = ClassBank(classes, size, CHANNELS), [deque() for _ in range(classes)]
    for step, (n, count, share) in enumerate(sequence):
        new = candidates(draw, classes, n, share)
        bank.admit(*new, step, count)
        admit_slowly(queues, *new, step, count)
        for queue in queues:
            while len(queue) > size:
                queue.pop()
        assert contents(bank) == [list(queue) for queue in queues]
        assert torch.equal(bank.valid.sum(dim=1), torch.tensor([len(queue) for queue in queues]))
        front = bank.valid.long()
        assert torch.equal(front.sort(dim=1, descending=True).values, front), "filled entries lie in front"


def scalar_admit(bank, values, scores, valid, count):
    domain, confidence = torch.zeros(1, len(values), dtype=torch.int64), torch.ones(1, len(values))
    bank.admit(torch.tensor(values)[None, :, None], torch.tensor([scores]), torch.tensor([valid]), domain, confidence, 0, count)


def test_bank_by_hand():
    bank = ClassBank(1, 3, 1)
    scalar_admit(bank, [1.0, 2.0, 3.0], [0.1, 0.9, 0.5], [True, True, True], 2)
    assert bank.features.flatten().tolist() == [2, 3, 0]
    assert bank.valid.tolist() == [[True, True, False]]
    scalar_admit(bank, [7.0, 8.0], [0.2, 0.1], [False, True], 2)  # only one of them; 8 is newest
    assert bank.features.flatten().tolist() == [8, 2, 3]
    scalar_admit(bank, [9.0], [-5.0], [True], 2)  # low scores are admitted too; 3 is oldest
    assert bank.features.flatten().tolist() == [9, 8, 2]
    scalar_admit(bank, [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0], [True] * 5, 5)  # more than fit
    assert bank.features.flatten().tolist() == [5, 4, 3]


@many
@given(seeds, st.integers(1, 4), st.integers(1, 6), st.sampled_from([0.0, 0.3, 1.0]))
def test_moments_equal_the_loop(seed, classes, size, share):
    draw = torch.Generator().manual_seed(seed)
    bank = ClassBank(classes, size, CHANNELS).double()
    bank.features.copy_(5 * torch.randn(bank.features.shape, generator=draw))
    bank.valid.copy_(torch.rand(bank.valid.shape, generator=draw) < share)
    mean, variance, filled = bank.moments()
    for c in range(classes):
        units = [row / row.norm() for row in bank.features[c][bank.valid[c]]]
        assert filled[c] == bool(units)
        for k in range(CHANNELS):
            values = [unit[k].item() for unit in units]
            middle = sum(values) / max(len(values), 1)
            torch.testing.assert_close(mean[c, k].item(), middle)
            torch.testing.assert_close(variance[c, k].item(), sum((v - middle) ** 2 for v in values) / max(len(values), 1))


def test_bank_starts_empty_and_without_gradient():
    bank = ClassBank(2, 3, CHANNELS)
    assert bank.valid.sum(dim=1).tolist() == [0, 0]
    features = torch.randn(2, 4, CHANNELS, requires_grad=True)
    domain = torch.zeros(2, 4, dtype=torch.int64)
    bank.admit(features, torch.rand(2, 4), torch.ones(2, 4, dtype=torch.bool), domain, torch.rand(2, 4), 0, 4)
    assert not bank.features.requires_grad
    assert bank.valid.all()


def test_bank_round_trips_through_its_state_dict():
    draw = torch.Generator().manual_seed(0)
    bank = ClassBank(3, 4, CHANNELS)
    bank.admit(*candidates(draw, 3, 5, 0.5), 0, 2)
    copy = ClassBank(3, 4, CHANNELS)
    copy.load_state_dict(bank.state_dict())
    assert sum(map(len, contents(bank))) > 0
    assert contents(copy) == contents(bank)
    new = candidates(draw, 3, 5, 0.5)
    bank.admit(*new, 1, 2)
    copy.admit(*new, 1, 2)
    assert contents(copy) == contents(bank)


@many
@given(seeds, st.integers(1, 40), st.integers(1, 5), st.integers(1, 50), st.floats(0, 1))
def test_pixels_by_class_are_valid_and_distinct(seed, n, classes, most, ignored):
    torch.manual_seed(seed)
    valid = torch.rand(n) >= ignored
    labels = torch.where(valid, torch.randint(classes, (n,)), 255)
    valid &= torch.rand(n) < 0.9  # labelled pixels may be invalid too
    indices, chosen = pixels_by_class(labels, valid, classes, most)
    assert indices.shape == chosen.shape == (classes, min(most, n))
    assert ((indices >= 0) & (indices < n)).all(), "padding too must be an index"
    for c in range(classes):
        mine = indices[c][chosen[c]].tolist()
        possible = [k for k in range(n) if valid[k] and labels[k] == c]
        assert len(mine) == len(set(mine)) == min(most, len(possible))
        assert set(mine) <= set(possible)


@many
@given(seeds, st.integers(1, 40), st.integers(1, 5), st.integers(1, 50))
def test_pixels_by_class_with_the_highest_scores(seed, n, classes, most):
    torch.manual_seed(seed)
    valid, labels, scores = torch.rand(n) < 0.8, torch.randint(classes, (n,)), torch.randn(n)
    indices, chosen = pixels_by_class(labels, valid, classes, most, scores)
    for c in range(classes):
        possible = [k for k in range(n) if valid[k] and labels[k] == c]
        assert indices[c][chosen[c]].tolist() == sorted(possible, key=lambda k: -scores[k])[:most]


def test_pixels_by_class_are_chosen_uniformly():
    """All ten pairs of the five pixels of a class are equally likely, wherever they are in the image."""
    torch.manual_seed(0)
    labels = torch.tensor([1, 0, 0, 255, 1, 0, 0, 1, 0, 2])
    draws = 3000
    pairs = Counter()
    for _ in range(draws):
        indices, chosen = pixels_by_class(labels, labels != 255, 3, 2)
        assert chosen[0].all()
        pairs[tuple(sorted(indices[0].tolist()))] += 1
    assert set(pairs) == set(itertools.combinations([1, 2, 5, 6, 8], 2))
    five_sigma = 5 * (draws * 0.1 * 0.9) ** 0.5
    assert all(abs(count - draws / 10) < five_sigma for count in pairs.values())


def test_pixels_by_class_without_valid_pixels():
    labels = torch.tensor([0, 1, 255])
    indices, chosen = pixels_by_class(labels, torch.zeros(3, dtype=torch.bool), 2, 5)
    assert indices.shape == (2, 3)
    assert not chosen.any()
