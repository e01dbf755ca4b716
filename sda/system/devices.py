"""Where to compute."""

import torch

from sda.errors import SdaError


def pick_device(name: str) -> torch.device:
    """`auto` is cuda, else mps, else cpu. SdaError when the device asked for is not there."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in have.items() if there)
    if not have[name]:
        raise SdaError(
            f"--device {name}: PyTorch sees no such device here (there is: "
            f"{', '.join(device for device, there in have.items() if there)})"
        )
    return torch.device(name)
