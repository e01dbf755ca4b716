"""The contract between a backbone (the encoder of a network) and the heads, the weights and the optimizer."""

from collections.abc import Iterator

from torch import Tensor, nn

from sda.models.grid import Grid


class Backbone(nn.Module):
    """Base class of the encoders: normalised images (B, 3, H, W) → a list of feature maps, fine to coarse.

    Attributes:
        channels: number of channels of each map.
        strides: stride of each map. Those of hierarchical encoders start at 4 and end at the output stride; all maps of a plain
            vision transformer have its patch size.
        grid: positions of a map's cells in the image.
        unused: prefixes of parameter names that a pretrained file may contain and this encoder does not use.
        light: small encoders: their heads have half the width and separable convolutions.
        patch: the patch size of a plain vision transformer, in pixels; 0 for hierarchical encoders.
    """

    channels: list[int]
    strides: list[int]
    grid = Grid()
    unused: tuple[str, ...] = ()
    light = False
    patch = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError

    @property
    def body(self) -> nn.Module:
        """The module whose parameters have the names of pretrained files."""
        return self

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters in layers, first to last, for which the learning rate may differ."""
        return [list(module.parameters()) for module in self.children()]

    def without_decay(self) -> set[str]:
        """Return the names of the parameters of `body` that have no weight decay, such as position embeddings."""
        return set()

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks whose activations can be recomputed in the backward pass; by default none."""
        return iter(())
