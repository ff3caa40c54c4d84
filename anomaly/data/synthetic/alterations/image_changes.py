"""Changes of the whole image with a given strength, from mild to severe."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.synthetic.alterations.alteration import Rng
from anomaly.data.synthetic.alterations.canvas import Array, at_224, resized, smoothed

__all__ = ["blur", "contrast", "gamma", "jpeg", "moved", "noise", "resample", "sharpen"]


def gamma(pixels: Array, _: Rng, *, exponent: float) -> Array:
    """Raise the grey values to a power."""
    return np.asarray(pixels ** np.float32(exponent), dtype=np.float32)


def contrast(pixels: Array, _: Rng, *, factor: float) -> Array:
    """Scale the grey values about their mean."""
    mean = np.float32(pixels.mean(dtype=np.float64))
    return np.asarray(mean + np.float32(factor) * (pixels - mean), dtype=np.float32)


def blur(pixels: Array, _: Rng, *, sigma: float) -> Array:
    """Blur with a Gaussian; sigma in pixels at 224."""
    return smoothed(pixels, at_224(sigma, pixels))


def sharpen(pixels: Array, rng: Rng, *, amount: float) -> Array:
    """Apply an unsharp mask of radius 0.5 px at 224."""
    detail = pixels - blur(pixels, rng, sigma=0.5)
    return np.asarray(pixels + np.float32(amount) * detail, dtype=np.float32)


def jpeg(pixels: Array, _: Rng, *, quality: int) -> Array:
    """Encode as 8-bit JPEG and decode again."""
    stored = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(stored, "JPEG", quality=quality)
    with Image.open(stored) as read:
        return np.asarray(np.asarray(read) / 255, dtype=np.float32)


def resample(pixels: Array, _: Rng, *, side: int) -> Array:
    """Reduce to a longer side of `side` pixels and enlarge again; keep smaller images unchanged."""
    factor = side / max(pixels.shape)
    if factor >= 1:
        return pixels
    height, width = pixels.shape
    small = resized(
        pixels, (max(1, round(factor * height)), max(1, round(factor * width))), sharp=True
    )
    return resized(small, (height, width), sharp=True)


def moved(
    pixels: Array,
    zoom: tuple[float, float] = (1, 1),
    shift: tuple[float, float] = (0, 0),
    degrees: float = 0,
) -> Array:
    """Magnify about the centre, rotate counter-clockwise, then shift; bilinear, border repeated.

    `zoom` and `shift` are (rows, columns), the shift in pixels.
    """
    centre = (np.array(pixels.shape) - 1) / 2
    turn = np.deg2rad(degrees)
    back = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    inverse = back / np.array(zoom)[:, None]
    offset = centre - inverse @ (centre + np.array(shift))
    moved = ndimage.affine_transform(
        pixels, inverse, offset, order=1, mode="nearest", output=np.float32
    )
    return np.asarray(moved)


def noise(pixels: Array, rng: Rng, *, std: float) -> Array:
    """Add white noise."""
    return pixels + np.float32(std) * rng.standard_normal(pixels.shape, dtype=np.float32)
