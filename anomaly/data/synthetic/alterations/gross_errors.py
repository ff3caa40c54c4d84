"""Gross errors: images that are not valid input for a detector of chest radiographs."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from anomaly.data.synthetic.alterations.alteration import Alteration, Change, Rng, whole_image
from anomaly.data.synthetic.alterations.canvas import Array, resized, smoothed
from anomaly.data.synthetic.alterations.image_changes import blur, moved, noise

__all__ = ["GROSS"]


def _invert(pixels: Array, _: Rng) -> Array:
    return 1 - pixels


def _rotate(pixels: Array, _: Rng, *, quarters: int) -> Array:
    turned = np.rot90(pixels, quarters)
    return turned if turned.shape == pixels.shape else resized(turned, pixels.shape)


def _crop(pixels: Array, rng: Rng, *, zoom: float) -> Array:
    """Magnify a random part, ``1 / zoom`` of each side, to the whole image."""
    height, width = ((zoom - 1) * (side - 1) / 2 for side in pixels.shape)
    shift = (rng.uniform(-height, height), rng.uniform(-width, width))
    return moved(pixels, (zoom, zoom), shift)


def _ct_slice(pixels: Array, rng: Rng) -> Array:
    return _draw_ct_slice(pixels.shape, rng)


def _photograph(pixels: Array, rng: Rng) -> Array:
    return _draw_photograph(pixels.shape, rng)


def _draw_ct_slice(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw an axial CT slice of a thorax on black.

    Parameters
    ----------
    shape : (int, int)
        The slice spans the shorter side.
    rng : numpy.random.Generator
        Draws the proportions, the vessels and the noise.

    Returns
    -------
    ndarray (H, W) float32 in [0, 1]
    """
    side = min(shape) / 2
    rows = ((np.arange(shape[0]) - (shape[0] - 1) / 2) / side)[:, None]
    columns = (np.arange(shape[1]) - (shape[1] - 1) / 2) / side
    wide, deep = rng.uniform(0.82, 0.92), rng.uniform(0.58, 0.7)
    image = np.zeros(shape, dtype=np.float32)

    def fill(y: float, x: float, radius_y: float, radius_x: float, grey: float) -> None:
        """Fill an ellipse; all lengths are in units of the body's semi-axes."""
        distance = ((rows / deep - y) / radius_y) ** 2 + ((columns / wide - x) / radius_x) ** 2
        image[distance <= 1] = grey

    fill(0, 0, 1, 1, 0.38)  # fat
    fill(0, 0, 0.92, 0.93, 0.55)  # muscle
    for lung in (-1, 1):
        fill(-0.02, 0.45 * lung, rng.uniform(0.62, 0.72), rng.uniform(0.33, 0.38), 0.07)
        for _ in range(14):
            spot = (rng.uniform(-0.4, 0.4), lung * rng.uniform(0.22, 0.68))
            size = rng.uniform(0.008, 0.03)
            fill(*spot, size * wide / deep, size, 0.45)
    fill(-0.2, 0.08, rng.uniform(0.32, 0.42), rng.uniform(0.24, 0.32), 0.58)  # heart
    fill(0.32, 0.12, 0.1, 0.07, 0.62)  # aorta
    fill(0.55, 0, 0.19, 0.13, 0.95)  # vertebra
    fill(0.72, 0, 0.05, 0.04, 0.35)  # spinal canal
    fill(-0.82, 0, 0.05, 0.12, 0.9)  # sternum
    for angle in np.linspace(0, 2 * np.pi, int(rng.integers(12, 18)), endpoint=False):
        fill(0.82 * np.sin(angle), 0.86 * np.cos(angle), 0.045, 0.035, 0.92)  # ribs
    noise = 0.025 * rng.standard_normal(shape)
    return np.asarray(np.clip(smoothed(image, 0.006 * side) + noise, 0, 1), dtype=np.float32)


def _draw_photograph(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw a dead-leaves scene of occluding shapes, with the statistics of a photograph.

    Radii follow ``p(r) ~ r^-3`` between 1 % and 40 % of the longer side, which gives the spectrum
    of natural images (Lee, Mumford & Huang 2001).

    Parameters
    ----------
    shape : (int, int)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) float32 in [0, 1]
    """
    height, width = shape
    canvas = Image.new("L", (width, height), int(rng.integers(256)))
    pen = ImageDraw.Draw(canvas)
    smallest, largest = 0.01, 0.4
    for _ in range(3000):
        share = (smallest**-2 - rng.uniform() * (smallest**-2 - largest**-2)) ** -0.5
        radius, grey = share * max(shape), int(rng.integers(256))
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        if rng.uniform() < 0.5:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)
        else:
            flat = radius * rng.uniform(0.3, 1)
            pen.rectangle((x - radius, y - flat, x + radius, y + flat), fill=grey)
    drawn = np.asarray(canvas).astype(np.float32) / np.float32(255)
    return smoothed(drawn, 0.5 * max(shape) / 224)


def _gross(name: str, change: Change) -> Alteration:
    return Alteration(name, "gross", whole_image(change))


GROSS: tuple[Alteration, ...] = (
    _gross("blur_strong", partial(blur, sigma=3.0)),
    _gross("noise_strong", partial(noise, std=0.1)),
    _gross("inversion", _invert),
    _gross("rotation_90", partial(_rotate, quarters=1)),
    _gross("rotation_180", partial(_rotate, quarters=2)),
    _gross("crop_1.5", partial(_crop, zoom=1.5)),
    _gross("ct_slice", _ct_slice),
    _gross("photograph", _photograph),
)
"""Images that are not valid input for a detector of chest radiographs."""
