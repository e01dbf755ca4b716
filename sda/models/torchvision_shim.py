"""Import torchvision's models even if its compiled operators cannot be loaded.

PyPI's Linux wheel of torchvision links CUDA. With a CPU-only PyTorch its shared library cannot be loaded, and
``import torchvision`` fails with "operator torchvision::nms does not exist", because it registers shape functions for two
undeclared operators. Declaring them is enough for everything that is written in Python: models, weights and transforms.
(Calling ``nms`` still fails; this package never calls it.)

Import ``models`` from this module, never from torchvision, and timm by `import_timm`.
"""

import warnings
from typing import Any

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

try:
    from torchvision import models
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    # The declarations exist only as long as the library object, so keep it in a module global.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name, _schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(_schema)
    from torchvision import models


def import_timm() -> Any:
    """Return the package timm, which imports torchvision."""
    with warnings.catch_warnings(action="ignore"):
        import timm
        import timm.models

        return timm


__all__ = ["import_timm", "models"]
