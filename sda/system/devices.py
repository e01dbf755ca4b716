"""Selection of the device to compute on."""

import torch

from sda.errors import SdaError


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` means cuda if available, else mps, else cpu.

    Raises:
        SdaError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available[name]:
        usable = ", ".join(device for device, usable in available.items() if usable)
        raise SdaError(f"--device {name}: PyTorch finds no such device on this machine (available: {usable})")
    return torch.device(name)
