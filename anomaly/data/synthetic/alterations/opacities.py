"""Opacities: air filled to the density of water.

::

    image' = image + strength * profile * max(bright - image, 0)        profile (H, W) in [0, 1]

`bright` is the grey of the mediastinum. Pixels that are already as bright (bone, metal) do not
change.
"""

from __future__ import annotations

import numpy as np

from anomaly.data.synthetic.alterations.canvas import Array, Mask, smoothed
from anomaly.data.synthetic.alterations.lungs import lung_centre

__all__ = ["confined_cloud", "nodule_profile", "opacified"]


def _bright_level(pixels: Array) -> float:
    """Grey of the mediastinum: 85th percentile of the body without the surrounding air."""
    body = pixels[pixels > 0.05]
    return float(np.percentile(body if body.size else pixels, 85))


def opacified(pixels: Array, profile: Array, strength: float) -> Array:
    """Brighten air towards `_bright_level` by ``strength * profile``, both in [0, 1]."""
    lack = np.maximum(_bright_level(pixels) - pixels, 0)
    return np.asarray(pixels + strength * profile * lack, dtype=np.float32)


def nodule_profile(
    shape: tuple[int, ...],
    centre: tuple[int, int],
    diameter: float,
    rng: np.random.Generator,
) -> Array:
    """Draw the profile ``sqrt(1 - r^2)`` of a ball with a slightly lobed edge.

    Parameters
    ----------
    shape : (int, int)
    centre : (int, int)
        Row and column in pixels; the profile is 1 there.
    diameter : float
        In pixels.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) float32 in [0, 1]
    """
    rows, columns = np.arange(shape[0])[:, None] - centre[0], np.arange(shape[1]) - centre[1]
    angle = np.arctan2(rows, columns)
    radius = np.full(angle.shape, diameter / 2)
    for lobes in (2, 3, 5):
        amount, phase = rng.uniform(0, 0.06), rng.uniform(0, 2 * np.pi)
        radius *= 1 + amount * np.cos(lobes * angle + phase)
    square = (rows**2 + columns**2) / radius**2
    return np.asarray(np.sqrt(np.maximum(1 - square, 0)), dtype=np.float32)


def confined_cloud(fields: Mask, extent: float, rng: np.random.Generator) -> Array:
    """Draw an irregular cloud around a random point of one lung, confined to that lung.

    Parameters
    ----------
    fields : ndarray (h, w) bool, not empty
    extent : float
        Approximate diameter of the cloud, as a share of the longer side.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (h, w) float32 in [0, 1]
        Its maximum is 1.
    """
    row, column = lung_centre(fields, rng)
    height, width = fields.shape
    across = extent * max(fields.shape)
    rows, columns = np.arange(height)[:, None] - row, np.arange(width) - column
    # The stretch preserves the area, and so the requested extent.
    tall = rng.uniform(0.85, 1.2)
    distance = (rows / tall) ** 2 + (columns * tall) ** 2
    lumps = smoothed(rng.standard_normal(fields.shape).astype(np.float32), across / 9)
    lumps = np.clip(lumps / max(float(lumps.std()), 1e-6), -1.5, 1.5)
    cloud = np.clip((1 - distance / (across / 2) ** 2 + 0.5 * lumps) / 0.5, 0, 1)
    # Lumps far from the centre would form separate clouds.
    cloud[distance > (0.75 * across) ** 2] = 0
    side = fields & np.broadcast_to(
        (np.arange(width) < width / 2) == (column < width / 2), fields.shape
    )
    cloud = smoothed(cloud.astype(np.float32), across / 16)
    cloud *= smoothed(side.astype(np.float32), 0.01 * max(fields.shape))
    return np.asarray(cloud / cloud.max(), dtype=np.float32)
