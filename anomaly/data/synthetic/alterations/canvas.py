"""Checks, smoothing and resizing of the images that are altered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.errors import ConfigError

__all__ = ["Array", "Mask", "at_224", "checked", "finished", "resized", "smoothed", "working_copy"]

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

SMALLEST_SIDE = 32


def checked(pixels: Array) -> Array:
    """Return the pixels if they can be altered.

    Raises
    ------
    ConfigError
        They are not (H, W) float32, at least 32 pixels per side, finite and in [0, 1].
    """
    if pixels.ndim != 2 or min(pixels.shape) < SMALLEST_SIDE:
        raise ConfigError(
            f"pixels have shape {pixels.shape}: expected (H, W), at least {SMALLEST_SIDE} a side"
        )
    if pixels.dtype != np.float32:
        raise ConfigError(f"pixels are {pixels.dtype}: expected float32")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # this form also rejects NaN
        raise ConfigError(f"pixels span [{low}, {high}]: expected finite values in [0, 1]")
    return pixels


def smoothed(pixels: Array, sigma: float) -> Array:
    """Blur with a Gaussian of `sigma` pixels; the border is repeated."""
    return np.asarray(ndimage.gaussian_filter(pixels, sigma, mode="nearest"), dtype=np.float32)


def resized(pixels: Array, shape: tuple[int, int], *, sharp: bool = False) -> Array:
    """Resample to `shape`, antialiased; bilinear, or Lanczos if `sharp` (may overshoot)."""
    kernel = Image.Resampling.LANCZOS if sharp else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), kernel), dtype=np.float32)


def working_copy(pixels: Array, side: int) -> Array:
    """Reduce an image to a longer side of `side` pixels; return a smaller image unchanged."""
    factor = side / max(pixels.shape)
    if factor >= 1:
        return pixels
    height, width = (max(1, round(factor * length)) for length in pixels.shape)
    return resized(pixels, (height, width))


def finished(pixels: NDArray[np.floating]) -> Array:
    """Clip an image to [0, 1], float32."""
    return np.asarray(np.clip(pixels, 0, 1), dtype=np.float32)


def at_224(length: float, pixels: Array) -> float:
    """Convert a length at a longer side of 224 to pixels of this image."""
    height, width = pixels.shape
    return float(length * max(height, width) / 224)
