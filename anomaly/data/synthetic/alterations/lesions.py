"""Lesions: synthetic abnormalities drawn into the lungs, with their masks.

Nodules and consolidations are opacities (`anomaly.data.synthetic.alterations.opacities`). A
consolidation also hides texture: before brightening, the image is blended towards a smoothed copy
with the same profile. A device covers the anatomy behind it. Bullae and pneumothoraces are dark
(`anomaly.data.synthetic.alterations.air`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from anomaly.data.synthetic.alterations.air import aerated, bulla_profile, collapsed_lung
from anomaly.data.synthetic.alterations.alteration import Alteration, Altered, Rng, Size
from anomaly.data.synthetic.alterations.canvas import (
    Array,
    Mask,
    at_224,
    checked,
    finished,
    resized,
    smoothed,
    working_copy,
)
from anomaly.data.synthetic.alterations.lungs import lung_centre, lung_fields
from anomaly.data.synthetic.alterations.opacities import confined_cloud, nodule_profile, opacified

__all__ = ["LESIONS"]

NODULES: tuple[tuple[Size, float], ...] = (("small", 0.05), ("medium", 0.09), ("large", 0.14))
"""Diameters, as shares of the longer side."""
CONSOLIDATIONS: tuple[tuple[Size, float], ...] = (
    ("small", 0.12),
    ("medium", 0.22),
    ("large", 0.35),
)
"""Extents, as shares of the longer side."""
BULLA, WALL = 0.16, 0.25
"""Diameter of a bulla, as a share of the longer side, and brightness of its wall."""
CANVAS_SIDE = 224
"""Longest side, in pixels, of the canvas on which smooth clouds are drawn."""


def _add_nodule(pixels: Array, rng: Rng, *, diameter: float) -> Altered:
    """Add a nodule; diameter as a share of the longer side."""
    strength = rng.uniform(0.45, 0.8)
    centre = lung_centre(lung_fields(pixels), rng)
    profile = nodule_profile(pixels.shape, centre, diameter * max(pixels.shape), rng)
    return Altered(finished(opacified(pixels, profile, strength)), profile > 0.1)


def _add_consolidation(pixels: Array, rng: Rng, *, extent: float) -> Altered:
    """Add a consolidation; extent as a share of the longer side."""
    strength = rng.uniform(0.35, 0.75)
    fields = lung_fields(working_copy(pixels, CANVAS_SIDE))
    profile = np.clip(resized(confined_cloud(fields, extent, rng), pixels.shape), 0, 1)
    veiled = pixels + profile * (smoothed(pixels, at_224(2.5, pixels)) - pixels)
    return Altered(finished(opacified(veiled, profile, strength)), profile > 0.2)


def _add_bulla(pixels: Array, rng: Rng) -> Altered:
    """Add a round pocket of air with a thin wall."""
    strength = rng.uniform(0.5, 0.9)
    fields = lung_fields(pixels)
    centre = lung_centre(fields, rng)
    diameter = BULLA * max(pixels.shape)
    profile = bulla_profile(pixels.shape, centre, diameter)
    wall = bulla_profile(pixels.shape, centre, diameter + at_224(3, pixels)) - profile
    image = opacified(aerated(pixels, fields, profile, strength), np.clip(wall, 0, 1), WALL)
    return Altered(finished(image), profile + wall > 0.1)


def _add_pneumothorax(pixels: Array, rng: Rng) -> Altered:
    """Collapse one lung towards its hilum; the space it leaves shows no vessels."""
    strength = rng.uniform(0.4, 0.8)
    fields = lung_fields(pixels)
    left = np.broadcast_to(np.arange(fields.shape[1]) < fields.shape[1] / 2, fields.shape)
    lung = fields & (left if rng.random() < 0.5 else ~left)
    rest = collapsed_lung(lung, rng.uniform(0.7, 0.85))
    space = smoothed((lung & ~rest).astype(np.float32), at_224(1.5, pixels))
    inside = smoothed(rest.astype(np.float32), at_224(1, pixels))
    line = 4 * inside * (1 - inside) * smoothed(lung.astype(np.float32), at_224(1, pixels))
    image = opacified(aerated(pixels, fields, space, strength), np.clip(line, 0, 1), WALL)
    return Altered(finished(image), space > 0.5)


def _add_device(pixels: Array, rng: Rng) -> Altered:
    mask = _device_mask(lung_fields(pixels), rng)
    return Altered(np.where(mask, np.float32(1), pixels), mask)


def _device_mask(fields: Mask, rng: np.random.Generator) -> Mask:
    """Draw a pacemaker: a rounded box in the upper half of one lung and a thin lead to the heart.

    Parameters
    ----------
    fields : ndarray (H, W) bool
        Lung fields, not empty.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) bool
        Pixels covered by metal.
    """
    height, width = fields.shape
    longer = max(fields.shape)
    upper = fields & (np.arange(height) < np.median(np.nonzero(fields)[0]))[:, None]
    row, column = lung_centre(upper if upper.any() else fields, rng)
    turn = rng.uniform(-0.5, 0.5)
    half_long, half_short = rng.uniform(0.05, 0.065) * longer, rng.uniform(0.038, 0.048) * longer
    rows, columns = np.arange(height)[:, None] - row, np.arange(width) - column
    along = np.cos(turn) * columns + np.sin(turn) * rows
    across = np.cos(turn) * rows - np.sin(turn) * columns
    box = (along / half_long) ** 4 + (across / half_short) ** 4 <= 1
    heart = (rng.uniform(0.55, 0.65) * height, rng.uniform(0.48, 0.58) * width)
    bend = (row - rng.uniform(0.05, 0.12) * longer, width / 2 + rng.uniform(-0.04, 0.04) * longer)
    t = np.linspace(0, 1, 60)[:, None]
    path = (1 - t) ** 2 * np.array((row, column)) + 2 * t * (1 - t) * np.array(bend)
    path = path + t**2 * np.array(heart)
    canvas = Image.new("L", (width, height))
    points = [(float(x), float(y)) for y, x in path]
    ImageDraw.Draw(canvas).line(points, fill=1, width=max(1, round(0.009 * longer)), joint="curve")
    return np.asarray(box | (np.asarray(canvas) > 0), dtype=np.bool_)


def _drawn(draw: Callable[[Array, Rng], Altered], pixels: Array, rng: Rng) -> Altered:
    return draw(checked(pixels), rng)


def _lesion(
    name: str, draw: Callable[[Array, Rng], Altered], size: Size | None = None
) -> Alteration:
    return Alteration(name, "lesion", partial(_drawn, draw), size)


LESIONS: tuple[Alteration, ...] = (
    _lesion("metal_device", _add_device),
    *(_lesion(f"nodule_{s}", partial(_add_nodule, diameter=d), s) for s, d in NODULES),
    *(
        _lesion(f"consolidation_{s}", partial(_add_consolidation, extent=e), s)
        for s, e in CONSOLIDATIONS
    ),
    _lesion("bulla", _add_bulla),
    _lesion("pneumothorax", _add_pneumothorax),
)
"""Synthetic abnormalities drawn into the lungs, with their masks."""
