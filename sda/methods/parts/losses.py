"""Losses and weights as pure functions of tensors. Symbols and equations are those of Alonso et al., ICCV 2021.

C is the number of classes. Labels are int64 with 255 = ignored; means exclude ignored pixels. Nothing branches on tensor
values, so nothing waits for the device. With several processes, means are over the pixels of all processes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sda.labels import IGNORE
from sda.system.distributed import all_reduce_sum

ABSENT = -1e9  # logit of what takes no part in a softmax; -inf would give NaN gradients where nothing takes part


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
    """Compute the weighted cross-entropy, averaged over the pixels that are not ignored (eq. 2 and 3: L_sup, L_pseudo).

    The sum is divided by the number of valid pixels, not by the sum of their weights: a batch of uncertain pseudo-labels has
    a smaller loss than a batch of certain ones.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W) int64 train ids, 255 = ignored.
        class_weights: (C,) α_c.
        pixel_weights: (B, H, W) weights ≥ 0; None: all 1.
    """
    valid = labels != IGNORE
    loss = F.cross_entropy(logits, labels, weight=class_weights, ignore_index=IGNORE, reduction="none")
    if pixel_weights is not None:
        loss = loss * pixel_weights
    return all_reduce_sum(loss.sum()) / all_reduce_sum(valid.sum()).clamp(min=1)


def entropy(logits: Tensor, valid: Tensor) -> Tensor:
    """Compute the mean entropy of the softmax over valid pixels, divided by log C: 0 to 1 (eq. 4: L_ent).

    Args:
        logits: (B, C, H, W).
        valid: (B, H, W) bool.
    """
    log_p = F.log_softmax(logits, dim=1)
    h = -(log_p.exp() * log_p).sum(dim=1) / math.log(logits.shape[1])
    return all_reduce_sum(torch.where(valid, h, 0.0).sum()) / all_reduce_sum(valid.sum()).clamp(min=1)


def contrast(p: Tensor, w_p: Tensor, z: Tensor, w_z: Tensor) -> Tensor:
    """Compute the positive-only contrastive loss between pixels and bank in closed form (eq. 5 and 6: L_contr).

    The paper averages w_p w_z (1 - cos(p, z)) over all pairs of a class and then over classes. Weights have mean 1 within a
    class, so the mean over pairs equals 1 - ū_c·v̄_c with ū_c = mean w_p p̂ and v̄_c = mean w_z ẑ, which needs no N×M matrix.

    Args:
        p: (C, N, D) predicted features by class, padded to N rows.
        w_p: (C, N) weights, mean 1 over the class's rows, 0 on padding.
        z: (C, M, D) bank features by class, padded to M rows.
        w_z: (C, M) weights, as w_p.

    Returns:
        A scalar ≥ 0. Classes without pixels or without bank entries contribute 0 but count in the mean over classes.
    """
    count_p, count_z = all_reduce_sum(w_p.sum(dim=1, keepdim=True)), w_z.sum(dim=1, keepdim=True)  # the weights have mean 1
    u = all_reduce_sum(torch.einsum("cn,cnd->cd", w_p, F.normalize(p, dim=2))) / count_p.clamp(min=1e-6)
    v = torch.einsum("cn,cnd->cd", w_z, F.normalize(z, dim=2)) / count_z.clamp(min=1e-6)
    both = ((count_p > 0) & (count_z > 0)).squeeze(1)
    return torch.where(both, 1 - (u * v).sum(dim=1), 0.0).mean()


def contrast_distribution(p: Tensor, w_p: Tensor, mean: Tensor, variance: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """Compute the contrast between pixels and the distributions of the classes (Xie et al., SePiCo, TPAMI 2023).

    With a_k = (f·μ_k + ½ f²·Σ_k/τ)/τ for unit-length features f, squared elementwise, the loss of a pixel of class y is
    CE(a, y) + ½ f²·Σ_y/τ² = log Σ_k exp(a_k) - f·μ_y/τ. This is the expectation of InfoNCE with infinitely many positives and
    negatives, drawn from normal distributions with means μ and diagonal variances Σ. With the released τ = 100 the softmax is
    almost flat: the gradient at f is (mean of the μ_k - μ_y)/τ wherever f is, and does not vanish at the class's mean. It is also
    small; the released code has weight 1.

    Args:
        p: (C, N, D) predicted features by class, padded to N rows.
        w_p: (C, N) weights, mean 1 over the class's rows, 0 on padding.
        mean, variance: (C, D) μ and Σ. filled: (C,) bool, the classes that have them; see `ClassBank.moments`.
        temperature: τ > 0.

    Returns:
        A scalar, the weighted mean over the pixels of filled classes; 0 if there are none. Other classes take no part.
    """
    f = F.normalize(p, dim=2)
    a = (f @ mean.T + 0.5 * f.square() @ variance.T / temperature) / temperature
    a = torch.where(filled, a, ABSENT)
    loss = a.logsumexp(dim=2) - torch.einsum("cnd,cd->cn", f, mean) / temperature
    return _mean_of_rows(loss, w_p, filled)


def contrast_infonce(p: Tensor, w_p: Tensor, z: Tensor, w_z: Tensor, temperature: float) -> Tensor:
    """Compute InfoNCE between pixels and bank entries (van den Oord et al., 2018; Wang et al., ICCV 2021).

    The loss of a pixel p of class c is the mean over the entries z of its class, weighted by w_z, of
    -log(exp(s_z) / (exp(s_z) + Σ_n w_n exp(s_n))) with s = cos(p, ·)/τ, where n are the entries of all other classes: an entry
    of weight w counts as w entries. All cosines are one matrix product.

    Args:
        p, w_p, z, w_z: as in `contrast`. temperature: τ > 0.

    Returns:
        A scalar ≥ 0, the mean over pixels, weighted by w_p, of the classes with entries; 0 if there are none. Pixels have loss
        0 if no other class has entries.
    """
    classes, rows, _ = p.shape
    p, z = F.normalize(p, dim=2), F.normalize(z, dim=2)
    log_w = torch.where(w_z > 0, w_z.clamp(min=torch.finfo(w_z.dtype).tiny).log(), ABSENT)
    all_pairs = torch.addmm(log_w.flatten(), p.flatten(0, 1), z.flatten(0, 1).T / temperature)
    by_class = all_pairs.view(classes, rows, classes, -1).logsumexp(dim=3)
    own = torch.eye(classes, dtype=torch.bool, device=p.device).unsqueeze(1)
    negatives = by_class.masked_fill(own, ABSENT).logsumexp(dim=2, keepdim=True)
    positives = torch.einsum("cnd,cmd->cnm", p, z) / temperature
    count_z = w_z.sum(dim=1)
    loss = torch.einsum("cm,cnm->cn", w_z, -F.logsigmoid(positives - negatives)) / count_z.clamp(min=1e-6).unsqueeze(1)
    return _mean_of_rows(loss, w_p, count_z > 0)


def _mean_of_rows(values: Tensor, w_p: Tensor, filled: Tensor) -> Tensor:
    """Average values (C, N) with weights (C, N) over the rows of the filled classes (C,); 0 if there are none."""
    w_p = torch.where(filled.unsqueeze(1), w_p, 0.0)
    total = all_reduce_sum(torch.where(w_p > 0, w_p * values, 0.0).sum())
    return total / all_reduce_sum(w_p.sum()).clamp(min=1e-6)


def mean_one(scores: Tensor, valid: Tensor, shared: bool = False) -> Tensor:
    """Normalise attention scores to weights of mean 1: w = N·s / Σ s over the valid entries of each row, 0 elsewhere.

    Args:
        scores: (C, N) in (0, 1).
        valid: (C, N) bool.
        shared: all processes have the same entries; otherwise each process has its share of the entries.
    """
    scores = torch.where(valid, scores, 0.0)
    count, mass = valid.sum(dim=1, keepdim=True), scores.sum(dim=1, keepdim=True)
    if not shared:
        count, mass = all_reduce_sum(count), all_reduce_sum(mass)
    return scores * (count / mass.clamp(min=torch.finfo(scores.dtype).tiny))


def class_weights(frequency: Tensor) -> Tensor:
    """Compute the weights of curriculum class balancing, α_c = sqrt(median(f) / f_c).

    Args:
        frequency: (C,) pixel counts or shares f, ≥ 0.

    Returns:
        (C,) finite weights. The median is over the classes present; absent classes have weight 1.
    """
    present = frequency > 0
    median = torch.where(present, frequency, torch.nan).nanquantile(0.5)
    return torch.where(present, (median / frequency.clamp(min=1e-12)).sqrt(), 1.0)


def ramp(step: int, steps: float) -> float:
    """Return the ramp-up factor of the pseudo-label loss, exp(-5 (1 - t)²) with t = min(step / steps, 1)."""
    t = min(step / steps, 1.0) if steps else 1.0
    return math.exp(-5 * (1 - t) ** 2)
