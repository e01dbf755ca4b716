"""Estimate the device memory that training needs, and suggest how to reduce it."""

from dataclasses import dataclass

import torch
from torch import nn

from sda.models.backbones.by_name import patch_of
from sda.models.network import SegmentationNetwork, recompute_activations
from sda.recipe import Recipe
from sda.sizes import size_text


@dataclass(frozen=True)
class Estimate:
    """Memory of one step, in bytes.

    Attributes:
        states: weights, gradients, the optimizer's moments, and the teacher.
        activations: tensors saved for the backward pass, including those of the losses at the size of the images.
    """

    states: int
    activations: int

    @property
    def total(self) -> int:
        return self.states + self.activations

    def __str__(self) -> str:
        gib = 2**30
        parts = f"{self.states / gib:.1f} for weights and optimizer, {self.activations / gib:.1f} for activations"
        return f"about {self.total / gib:.1f} GiB of memory: {parts}"


def estimate(recipe: Recipe, network: SegmentationNetwork, classes: int) -> Estimate:
    """Estimate the memory of one step by running the network without data.

    Convolution workspaces and fragmentation are not included; they add some tens of percent.

    Args:
        network: the recipe's network on the "meta" device; it is modified.
    """
    height, width = recipe.crop_size
    streams, settings = recipe.streams, recipe.method_settings
    source = recipe.batch_source if streams.source else 0
    labelled = recipe.batch_labelled if streams.labelled else 0
    unlabelled = settings.views_per_image * recipe.batch_unlabelled if streams.unlabelled else 0
    counts = [max(source, labelled) if recipe.alternate else source + labelled, unlabelled]
    network.precision = torch.float32  # autocast does not support the meta device: activations are halved below
    if recipe.recompute:
        recompute_activations(network)
    activations = sum(_kept(network.train(), count // recipe.accumulate, height, width) for count in counts if count)
    if recipe.precision != "float32":
        activations //= 2
    losses = sum(3 * 4 * (count // recipe.accumulate) * classes * height * width for count in counts)
    trained = sum(each.numel() * each.element_size() for each in network.parameters() if each.requires_grad)
    moments = 2 if recipe.optimizer == "adamw" else 1
    return Estimate((1 + settings.has_teacher) * _bytes(network) + (1 + moments) * trained, activations + losses)


def _kept(network: nn.Module, count: int, height: int, width: int) -> int:
    """Return the number of bytes that a forward pass of `count` images saves for the backward pass."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    sizes: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = (storage.nbytes(), storage)  # keep the storage, so that its id is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.empty(count, 3, height, width, device="meta"))
    return sum(size for size, _ in sizes.values())


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def advice(recipe: Recipe) -> str:
    """Return options that reduce memory use, the least harmful first."""
    steps = []
    if recipe.precision == "float32":
        steps.append("--precision bfloat16")
    if not recipe.recompute:
        steps.append("--recompute true (about a third slower)")
    steps.append(f"--accumulate {2 * recipe.accumulate} (same effective batch, but batch norms see one part at a time)")
    unit = patch_of(recipe.backbone) or 32
    steps.append(f"--crop {size_text([max(1, side * 3 // 4 // unit) * unit for side in recipe.crop_size])}")
    return ", ".join(steps)
