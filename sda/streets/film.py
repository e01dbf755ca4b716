"""Lens and film: turn a finished canvas into a photograph."""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from sda.streets.canvas import Canvas
from sda.streets.labels import BUILDING, VEGETATION, WALL
from sda.streets.street import Street


def develop(canvas: Canvas, street: Street) -> tuple[np.ndarray, np.ndarray]:
    """Return the image, with blur, exposure, vignette and noise, and the labels at final size: uint8 (H, W, 3), (H, W)."""
    rng, light = canvas.rng, canvas.light
    label = np.asarray(canvas.label)[::2, ::2].copy()
    picture: np.ndarray = np.asarray(canvas.image.reduce(2), np.float32)
    if light.texture:
        picture = add_texture(picture, label, canvas, street)
    if light.blur:
        picture = gaussian_filter(picture, (light.blur, light.blur, 0))
    height, width = label.shape
    y, x = np.linspace(-1, 1, height)[:, None, None], np.linspace(-1, 1, width)[None, :, None]
    picture = picture / 255 * np.array(light.gain, np.float32) * (1 - light.vignette * (x * x + y * y) / 2).astype(np.float32)
    picture = 255 * np.clip(picture, 0, 1) ** np.float32(light.gamma)
    if light.noise:
        picture += light.noise * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), label


def add_texture(picture: np.ndarray, label: np.ndarray, canvas: Canvas, street: Street) -> np.ndarray:
    """Add texture to asphalt, grass, masonry and leaves. `picture` is float32 (H, W, 3), `label` uint8 (H, W)."""
    ground, masonry, foliage = texture_tiles()
    height, width = label.shape
    u = np.arange(width, dtype=np.float32)[None] * 2 - canvas.centre
    v = np.arange(height, dtype=np.float32)[:, None] * 2 - canvas.horizon

    def sample(tile: np.ndarray, down: np.ndarray, right: np.ndarray, depth: np.ndarray) -> np.ndarray:
        fade = np.minimum(1, 14 / depth)  # far away the grain is finer than a pixel
        return fade * tile[(16 * down).astype(np.int32) % 256, (16 * right).astype(np.int32) % 256]

    depth = canvas.focal * canvas.eye / np.maximum(v, 2)
    rough = np.array([0.08, 0.08, 0, 0, 0.05, 0, 0, 0, 0, 0.2] + [0] * 9, np.float32)
    amount = rough[np.minimum(label, 18)] * sample(ground, depth, u * depth / canvas.focal, depth)
    wall = np.where(u > 0, street.walk[1], -street.walk[-1]).astype(np.float32)
    depth = canvas.focal * wall / np.maximum(np.abs(u), 4)
    upright = np.isin(label, (BUILDING, WALL))
    amount += 0.09 * upright * sample(masonry, canvas.eye - v * depth / canvas.focal, depth, depth)
    shift = canvas.rng.integers(256, size=2)
    leaves = foliage[(np.arange(height)[:, None] + shift[0]) % 256, (np.arange(width) + shift[1]) % 256]
    amount += 0.12 * (label == VEGETATION) * leaves
    return picture * (1 + canvas.light.texture * amount[..., None])


@lru_cache(maxsize=1)
def texture_tiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return periodic noise of unit standard deviation for ground, masonry and leaves, (256, 256) each, 16 texels per metre."""
    rng = np.random.default_rng(0)

    def noise(*sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=(256, 256)), sigma, mode="wrap")
        return (field / field.std()).astype(np.float32)

    ground = 0.6 * noise(0.5, 0.5) + 0.5 * noise(3, 3) + 0.8 * noise(14, 14)
    rows, columns = np.mgrid[:256, :256]
    joints = (rows % 8 < 1) | ((columns + 8 * (rows // 8 % 2)) % 16 < 1)
    masonry = 0.5 * noise(0.7, 1.5) + 0.6 * noise(12, 8) - 1.2 * joints
    return ground, masonry, 0.6 * noise(0.8, 0.8) + 0.6 * noise(2.5, 2.5)
