"""The strength of a loss at the features, on pixels that the student classifies correctly and on those that it does not."""

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from sda.system import distributed


def gradient_norms(loss: Tensor, features: Tensor, right: Tensor, wrong: Tensor) -> dict[str, Tensor]:
    """Compute the mean norm of a loss's gradient at the features, over two sets of cells.

    Cells without gradient, which the loss does not use, are left out. The graph is kept for the backward pass. A loss that
    saturates has a small gradient at `right` cells; one that teaches has a larger one at `wrong` cells.

    Args:
        loss: a scalar. features: (B, F, h, w). right, wrong: (B, h, w) bool.

    Returns:
        "right" and "wrong" → scalars, over the cells of all processes, NaN if there are none; empty if the features are not
        trained, or are not on the loss's path, as in a network under torch.compile.
    """
    gradient = _gradient(loss, features) if features.requires_grad and loss.requires_grad else None
    if gradient is None:
        return {}
    norms = gradient.float().norm(dim=1) / distributed.world_size()  # the loss of all processes has been summed in each
    found = {}
    for name, cells in (("right", right), ("wrong", wrong)):
        cells = cells & (norms > 0)
        total = distributed.all_reduce_sum(torch.where(cells, norms, 0.0).sum())
        found[name] = total / distributed.all_reduce_sum(cells.sum())
    return found


def _gradient(loss: Tensor, features: Tensor) -> Tensor | None:
    """Return ∂loss/∂features, without changing the gradients of parameters; None if the loss does not depend on them."""
    (gradient,) = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    cast = features.grad_fn
    if gradient is None and cast is not None and cast.name().startswith("ToCopy"):
        # in bfloat16 the network returns float32 copies of its features; the logits come from the originals
        original = GradientEdge(*cast.next_functions[0])
        (gradient,) = torch.autograd.grad(loss, original, retain_graph=True, allow_unused=True)
    return gradient
