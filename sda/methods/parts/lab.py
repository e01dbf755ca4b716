"""sRGB ↔ CIELAB. kornia's conversions copy their constants from the host in each call, and so wait for the device."""

import functools

import torch
from torch import Tensor

TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))  # IEC 61966-2-1
WHITE = (0.95047, 1.0, 1.08883)  # D65
TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))  # of f(XYZ / white), then L - 16
BEND = 6 / 29  # f is linear below BEND³


@functools.cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the matrices of RGB → XYZ / WHITE (linear) and of f(XYZ) → CIELAB, and the inverses of the second and the first."""
    to_xyz = torch.tensor(TO_XYZ, dtype=torch.float64) / torch.tensor(WHITE, dtype=torch.float64)[:, None]
    to_lab = torch.tensor(TO_LAB, dtype=torch.float64)
    from_lab, from_xyz = to_lab.inverse(), to_xyz.inverse()
    return to_xyz.float().to(device), to_lab.float().to(device), from_lab.float().to(device), from_xyz.float().to(device)


def _times(matrix: Tensor, images: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert float32 sRGB images (B, 3, H, W) in 0..1 to CIELAB: L in 0..100, a and b in about -128..127."""
    to_xyz, to_lab, _, _ = _matrices(images.device)
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055).clamp(min=0) ** 2.4, images / 12.92)
    xyz = _times(to_xyz, linear)
    f = torch.where(xyz > BEND**3, xyz.clamp(min=BEND**3) ** (1 / 3), xyz / (3 * BEND**2) + 4 / 29)
    lab = _times(to_lab, f)
    return torch.cat([lab[:, :1] - 16, lab[:, 1:]], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert float32 CIELAB images (B, 3, H, W) to sRGB, which may leave 0..1: not every CIELAB colour is a colour of sRGB."""
    _, _, from_lab, from_xyz = _matrices(lab.device)
    f = _times(from_lab, torch.cat([lab[:, :1] + 16, lab[:, 1:]], dim=1))
    xyz = torch.where(f > BEND, f**3, 3 * BEND**2 * (f - 4 / 29))
    linear = _times(from_xyz, xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
