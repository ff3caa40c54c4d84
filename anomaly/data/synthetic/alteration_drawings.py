"""What is drawn into or instead of a radiograph: lung fields, opacities, a device, wrong images.

An opacity fills air up to the density of water::

    image' = image + strength * profile * max(bright - image, 0)        profile (H, W) in [0, 1]

`bright` is the grey of the mediastinum. What is as bright already, bone or metal, stays as it is.
A consolidation also hides texture: before it brightens, the image is blended by the same profile
towards a smoothed copy of itself.

The lung fields are an estimate, good enough to place a lesion and no segmentation to measure by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.errors import ConfigError

__all__ = [
    "Array",
    "Mask",
    "bright_level",
    "checked",
    "confined_cloud",
    "device_mask",
    "draw_ct_slice",
    "draw_photograph",
    "lung_centre",
    "lung_fields",
    "nodule_profile",
    "opacified",
    "resized",
    "smoothed",
    "working_copy",
]

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

SMALLEST_SIDE = 32
LUNG_SIDE = 96
"""Longer side, in pixels, of the copy in which lungs are looked for: ribs and vessels are gone."""
CANVAS_SIDE = 224
"""Longest side, in pixels, of the canvas on which smooth clouds are drawn."""
CHEST_BOX = (0.12, 0.75, 0.12, 0.88)
"""Top, bottom, left, right of the part of a frontal view that holds the lungs, share of a side."""
PRIOR_LUNGS = ((0.46, 0.32), (0.46, 0.68))
PRIOR_RADII = (0.22, 0.1)
"""Centres and radii (row, column) of the usual places, shares of the sides."""
SHALLOW = 0.02
"""Depth below which a basin is noise, in [0, 1]."""
LEAST_LUNG = 0.02
"""Share of the image below which one side's dark region is taken for a failure."""


def checked(pixels: Array) -> Array:
    """Return the pixels if they are an image this module can alter.

    Raises
    ------
    ConfigError
        If they are not (H, W) float32, at least 32 pixels a side, finite and in [0, 1].
    """
    if pixels.ndim != 2 or min(pixels.shape) < SMALLEST_SIDE:
        raise ConfigError(
            f"pixels have shape {pixels.shape}: expected (H, W), at least {SMALLEST_SIDE} a side"
        )
    if pixels.dtype != np.float32:
        raise ConfigError(f"pixels are {pixels.dtype}: expected float32")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ConfigError(f"pixels span [{low}, {high}]: expected finite values in [0, 1]")
    return pixels


def smoothed(pixels: Array, sigma: float) -> Array:
    """Blur by a Gaussian of `sigma` pixels, the border repeated."""
    return np.asarray(ndimage.gaussian_filter(pixels, sigma, mode="nearest"), dtype=np.float32)


def resized(pixels: Array, shape: tuple[int, int], *, sharp: bool = False) -> Array:
    """Resample to `shape`, antialiased; bilinear, or Lanczos where `sharp` (may overshoot)."""
    kernel = Image.Resampling.LANCZOS if sharp else Image.Resampling.BILINEAR
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), kernel), dtype=np.float32)


def working_copy(pixels: Array, side: int) -> Array:
    """Reduce the image until its longer side is `side` pixels; a smaller one is returned as is."""
    factor = side / max(pixels.shape)
    if factor >= 1:
        return pixels
    height, width = (max(1, round(factor * length)) for length in pixels.shape)
    return resized(pixels, (height, width))


# --- the lungs --------------------------------------------------------------------------------


def lung_fields(pixels: Array) -> Mask:
    """Estimate the lung fields of a frontal chest radiograph.

    A lung is a dark basin walled in by brighter tissue, unlike the air around the body, which
    drains to the border. The image is flooded from within; what is deeper than three quarters of
    Otsu's threshold of the central box is air, and of that the largest piece of either half is
    kept. A half with less than 2 % of the image gets an ellipse at the usual place instead.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        0 displays black; at least 32 pixels a side.

    Returns
    -------
    ndarray (H, W) bool
        Never empty in either half.
    """
    small = working_copy(checked(pixels), LUNG_SIDE)
    # Narrow enough to keep the chest wall; the closing below mends what ribs still cut.
    small = smoothed(small, 1.5 * max(small.shape) / LUNG_SIDE)
    width = small.shape[1]
    box = _chest_box(small.shape)
    depth = _flooded(small) - small
    deep = (depth > 0.75 * _otsu(depth[box])) & (depth > SHALLOW)
    air = ndimage.binary_closing(deep, iterations=max(1, max(small.shape) // 24)) & box
    left = np.broadcast_to(np.arange(width) < width / 2, small.shape)
    lungs = np.zeros(small.shape, dtype=np.bool_)
    for half, prior in ((left, PRIOR_LUNGS[0]), (~left, PRIOR_LUNGS[1])):
        lung = _largest(air & half)
        if lung.sum() < LEAST_LUNG * lung.size:
            lung = _ellipse(small.shape, prior, PRIOR_RADII)
        lungs |= lung
    rows, columns = (
        (2 * np.arange(n) + 1) * m // (2 * n)
        for n, m in zip(pixels.shape, small.shape, strict=True)
    )
    return lungs[np.ix_(rows, columns)]


def _chest_box(shape: tuple[int, ...]) -> Mask:
    """Return the central box as a mask (H, W)."""
    top, bottom, left, right = CHEST_BOX
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    inside: Mask = ((rows > top) & (rows < bottom))[:, None] & (
        (columns > left) & (columns < right)
    )
    return inside


def _otsu(values: Array) -> float:
    """Return the threshold that maximises the variance between the two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    above = below[-1] - below
    weight = (below * above)[:-1]
    gap = total[:-1] / np.maximum(below[:-1], 1) - (total[-1] - total[:-1]) / np.maximum(
        above[:-1], 1
    )
    return float(edges[1 + int(np.argmax(weight * gap**2))])


def _flooded(pixels: Array) -> Array:
    """Fill every dark basin up to the lowest pass to the border (reconstruction by erosion)."""
    level = np.full_like(pixels, pixels.max())
    level[[0, -1]], level[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]
    while True:
        lower = np.maximum(ndimage.minimum_filter(level, 3), pixels)
        if np.array_equal(lower, level):
            return level
        level = lower


def _largest(mask: Mask) -> Mask:
    """Return the largest connected piece, its holes filled; empty where `mask` is empty."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    piece = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    filled: Mask = ndimage.binary_fill_holes(piece)
    return filled


def _ellipse(
    shape: tuple[int, ...], centre: tuple[float, float], radii: tuple[float, float]
) -> Mask:
    """Return an ellipse; centre and radii (row, column) as shares of the sides."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    distance = ((rows - centre[0]) / radii[0])[:, None] ** 2 + (
        (columns - centre[1]) / radii[1]
    ) ** 2
    inside: Mask = distance <= 1
    return inside


def lung_centre(fields: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a pixel uniformly over the lung fields, a little away from their edge.

    Parameters
    ----------
    fields : ndarray (H, W) bool, not empty
    rng : numpy.random.Generator

    Returns
    -------
    (int, int)
        Row and column.
    """
    inner = ndimage.distance_transform_edt(fields) > 0.02 * max(fields.shape)
    candidates = np.argwhere(inner if inner.any() else fields)
    row, column = candidates[rng.integers(len(candidates))]
    return int(row), int(column)


# --- opacities --------------------------------------------------------------------------------


def bright_level(pixels: Array) -> float:
    """Return the grey of the mediastinum: 85th percentile of the body, air around it left out."""
    body = pixels[pixels > 0.05]
    return float(np.percentile(body if body.size else pixels, 85))


def opacified(pixels: Array, profile: Array, strength: float) -> Array:
    """Fill air up to `bright_level` by ``strength * profile``, both in [0, 1]."""
    lack = np.maximum(bright_level(pixels) - pixels, 0)
    return np.asarray(pixels + strength * profile * lack, dtype=np.float32)


def nodule_profile(
    shape: tuple[int, ...],
    centre: tuple[int, int],
    diameter: float,
    rng: np.random.Generator,
) -> Array:
    """Draw a ball's dome ``sqrt(1 - r^2)`` with a slightly lobed edge.

    Parameters
    ----------
    shape : (int, int)
    centre : (int, int)
        Row and column, pixels; the profile is 1 there.
    diameter : float
        Pixels.
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
    """Draw an irregular cloud about a random place of the lungs, kept within that lung.

    Parameters
    ----------
    fields : ndarray (h, w) bool, not empty
    extent : float
        About how far the cloud reaches across, share of the longer side.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (h, w) float32 in [0, 1]
        Largest value 1.
    """
    row, column = lung_centre(fields, rng)
    height, width = fields.shape
    across = extent * max(fields.shape)
    rows, columns = np.arange(height)[:, None] - row, np.arange(width) - column
    # The stretch keeps the area, so the extent stays what is asked for.
    tall = rng.uniform(0.85, 1.2)
    distance = (rows / tall) ** 2 + (columns * tall) ** 2
    lumps = smoothed(rng.standard_normal(fields.shape).astype(np.float32), across / 9)
    lumps = np.clip(lumps / max(float(lumps.std()), 1e-6), -1.5, 1.5)
    cloud = np.clip((1 - distance / (across / 2) ** 2 + 0.5 * lumps) / 0.5, 0, 1)
    # Lumps far from the centre would be clouds of their own.
    cloud[distance > (0.75 * across) ** 2] = 0
    side = fields & np.broadcast_to(
        (np.arange(width) < width / 2) == (column < width / 2), fields.shape
    )
    cloud = smoothed(cloud.astype(np.float32), across / 16)
    cloud *= smoothed(side.astype(np.float32), 0.01 * max(fields.shape))
    return np.asarray(cloud / cloud.max(), dtype=np.float32)


# --- a device ---------------------------------------------------------------------------------


def device_mask(fields: Mask, rng: np.random.Generator) -> Mask:
    """Draw a pacemaker: a rounded box in the upper half of one lung, a thin lead to the heart.

    Parameters
    ----------
    fields : ndarray (H, W) bool
        Lung fields, not empty.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) bool
        The pixels that metal covers.
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


# --- images that are no radiograph ------------------------------------------------------------


def draw_ct_slice(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
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
        """Fill an ellipse; all lengths in units of the body's half axes."""
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
    fill(0.72, 0, 0.05, 0.04, 0.35)  # its canal
    fill(-0.82, 0, 0.05, 0.12, 0.9)  # sternum
    for angle in np.linspace(0, 2 * np.pi, int(rng.integers(12, 18)), endpoint=False):
        fill(0.82 * np.sin(angle), 0.86 * np.cos(angle), 0.045, 0.035, 0.92)  # ribs
    noise = 0.025 * rng.standard_normal(shape)
    return np.asarray(np.clip(smoothed(image, 0.006 * side) + noise, 0, 1), dtype=np.float32)


def draw_photograph(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw a scene with a photograph's statistics: dead leaves, occluding shapes of any size.

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
