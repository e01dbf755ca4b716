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


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes convolutions faster in bfloat16 than in float32.

    A CPU without instructions for it takes up to eight times as long (PyTorch 2.13, AVX2).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
