"""torchvision's models, also where its compiled operators do not load.

PyPI's Linux wheel of torchvision links CUDA. Beside a CPU-only PyTorch its shared library does not load, and
``import torchvision`` stops at "operator torchvision::nms does not exist", because it registers shape functions for two
operators that nobody declared. Declaring the two is enough for everything that is written in Python: models, weights and
transforms. (Calling ``nms`` itself then fails, as it should; nothing here calls it.)

Import ``models`` from this module, never from torchvision.
"""

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
    # The library object owns the declarations: they vanish when it is collected, so it stays a module global.
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name, _schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(_schema)
    from torchvision import models

__all__ = ["models"]
