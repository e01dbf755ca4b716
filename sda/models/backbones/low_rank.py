"""Low-rank adapters (LoRA) in the attention layers of a vision transformer.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1.
"""

import math

from torch import Tensor, nn

from sda.errors import SdaError

ADAPTERS = (".down", ".up")  # ends of the names of their parameters


class AdaptedLinear(nn.Linear):
    """x → W x + b + B A x, with trainable A (rank × inputs) and B (outputs × rank); W and b are frozen. B starts at 0."""

    down: nn.Parameter
    up: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.functional.linear(nn.functional.linear(x, self.down), self.up)


def add_adapters(encoder: nn.Module, rank: int, name: str) -> None:
    """Add adapters to all linear layers in the attention of an encoder, and freeze its other parameters. In place.

    Raises:
        SdaError: the encoder has no attention layers that can be adapted.
    """
    encoder.requires_grad_(False)
    layers = [
        layer
        for path, layer in encoder.named_modules()
        if type(layer) is nn.Linear and "attn" in path.split(".")[-2:] and not _bypassed(encoder, path)
    ]
    if not layers:
        raise SdaError(f"lora = {rank}: {name} has no attention layers that can be adapted: set lora = 0")
    for layer in layers:
        layer.__class__ = AdaptedLinear
        assert isinstance(layer, AdaptedLinear)
        layer.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        layer.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(layer.down, a=math.sqrt(5))


def _bypassed(encoder: nn.Module, path: str) -> bool:
    """Return whether the attention reads the weights of a layer without calling it, as timm's EVA does with its own biases."""
    attention = encoder.get_submodule(path.rpartition(".")[0])
    return (
        path.endswith(".qkv")
        and getattr(attention, "q_bias", None) is not None
        and not getattr(attention, "qkv_bias_separate", False)
    )


def merge_adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an encoder without adapters that computes the same: W + B A. Others are returned as they are."""
    merged = {key: value for key, value in state.items() if not key.endswith(ADAPTERS)}
    for key, value in state.items():
        path = key.removesuffix(".down")
        if path != key and f"{path}.up" in state and f"{path}.weight" in merged:
            merged[f"{path}.weight"] = merged[f"{path}.weight"] + state[f"{path}.up"] @ value
    return merged
