"""Curriculum class balancing against shares counted by hand."""

import pytest
import torch

from sda.methods.parts.balance import ClassBalance

IGNORE = 255


def label_map(*counts, ignored=0):
    """Return a flat label map with the given numbers of pixels of classes 0, 1, …"""
    return torch.cat([torch.full((n,), c) for c, n in enumerate(counts)] + [torch.full((ignored,), IGNORE)])


def test_weights_by_hand():
    """The first batch counts fully: shares 1/21, 4/21, 16/21, median 4/21, without ignored pixels and an absent class."""
    weights = ClassBalance(4, active=True)(label_map(4, 1, 16, ignored=100))
    torch.testing.assert_close(weights, torch.tensor([1, 2, 0.5, 1]))


def test_counts_are_over_all_label_maps_together():
    """10 + 90 pixels of class 0 and 1 + 3 of class 1, for any shapes."""
    balance = ClassBalance(2, active=True)
    balance(label_map(10, 1, ignored=1).view(3, 2, 2), label_map(90, 3).view(1, 31, 3))
    torch.testing.assert_close(balance.frequency, torch.tensor([100 / 104, 4 / 104]))


def test_running_mean_is_a_plain_mean_and_then_a_moving_average():
    """Shares of class 0: 1, .5, 0, 0 with momentum 2/3: plain means 1, .75, .5, then 2/3·.5."""
    balance = ClassBalance(2, active=True, momentum=2 / 3)
    expected = [1.0, 0.75, 0.5, 1 / 3]
    for labels, share in zip([label_map(4), label_map(9, 9), label_map(0, 3), label_map(0, 7)], expected, strict=True):
        balance(labels)
        torch.testing.assert_close(balance.frequency, torch.tensor([share, 1 - share]), atol=1e-6, rtol=1e-6)


def test_weights_are_those_after_the_batch():
    balance = ClassBalance(2, active=True, momentum=0.5)
    torch.testing.assert_close(balance(label_map(5)), torch.ones(2))
    # shares (1, 0) and (0, 1) average to halves: equal weights
    torch.testing.assert_close(balance(label_map(0, 5)), torch.ones(2))
    # (1/4, 3/4), median 1/2
    torch.testing.assert_close(balance(label_map(0, 5)), torch.tensor([2**0.5, (2 / 3) ** 0.5]))


def test_everything_ignored():
    """Such batches do not change the proportions of the shares: 1 to 8, with median 4.5, before and after."""
    balance = ClassBalance(3, active=True)
    assert torch.equal(balance(label_map(ignored=9)), torch.ones(3))
    for labels in (label_map(1, 8), label_map(ignored=9)):
        torch.testing.assert_close(balance(labels), torch.tensor([4.5**0.5, (4.5 / 8) ** 0.5, 1]))


@pytest.mark.parametrize("labels", [label_map(4, 1), label_map(ignored=4)])
def test_inactive(labels):
    balance = ClassBalance(2, active=False)
    assert torch.equal(balance(labels), torch.ones(2))
    assert torch.equal(balance.frequency, torch.zeros(2))


def test_is_saved():
    balance = ClassBalance(3, active=True)
    for counts in ((1, 2, 3), (4, 0, 1)):
        balance(label_map(*counts))
    copy = ClassBalance(3, active=True)
    copy.load_state_dict(balance.state_dict())
    assert torch.equal(copy(label_map(2, 9, 1)), balance(label_map(2, 9, 1)))


def test_labels_are_not_modified():
    labels = label_map(2, 1, ignored=2)
    before = labels.clone()
    ClassBalance(2, active=True)(labels)
    assert torch.equal(labels, before)
