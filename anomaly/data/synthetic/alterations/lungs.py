"""Estimate of the lung fields of a frontal radiograph.

It is accurate enough to place a lesion, but is not a segmentation for measurements.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.synthetic.alterations.canvas import Array, Mask, checked, smoothed, working_copy

__all__ = ["lung_centre", "lung_fields"]

LUNG_SIDE = 96
"""Longer side, in pixels, of the copy in which lungs are searched; it shows no ribs or vessels."""
CHEST_BOX = (0.12, 0.75, 0.12, 0.88)
"""Top, bottom, left, right of the box around the lungs in a frontal view, as shares of a side."""
PRIOR_LUNGS = ((0.46, 0.32), (0.46, 0.68))
PRIOR_RADII = (0.22, 0.1)
"""Centres and radii (row, column) of typical lungs, as shares of the sides."""
SHALLOW = 0.02
"""Depth below which a basin counts as noise, in [0, 1]."""
LEAST_LUNG = 0.02
"""Share of the image below which the dark region of one half counts as a failed estimate."""


def lung_fields(pixels: Array) -> Mask:
    """Estimate the lung fields of a frontal chest radiograph.

    A lung is a dark basin enclosed by brighter tissue, unlike the air around the body, which
    drains to the border. The basins are flooded; pixels deeper than three quarters of Otsu's
    threshold of the central box are air, and the largest component of air in each half is kept. If
    it covers less than 2 % of the image, an ellipse at the typical place is used instead.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        0 displays black; at least 32 pixels per side.

    Returns
    -------
    ndarray (H, W) bool
        Never empty in either half.
    """
    small = working_copy(checked(pixels), LUNG_SIDE)
    # Narrow enough to keep the chest wall; the closing below repairs cuts by ribs.
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
    """Mask of the central box, (H, W)."""
    top, bottom, left, right = CHEST_BOX
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    inside: Mask = ((rows > top) & (rows < bottom))[:, None] & (
        (columns > left) & (columns < right)
    )
    return inside


def _otsu(values: Array) -> float:
    """Threshold that maximises the variance between the two classes (Otsu 1979)."""
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
    """Largest connected component with its holes filled; empty if `mask` is empty."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    piece = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    filled: Mask = ndimage.binary_fill_holes(piece)
    return filled


def _ellipse(
    shape: tuple[int, ...], centre: tuple[float, float], radii: tuple[float, float]
) -> Mask:
    """Mask of an ellipse; centre and radii (row, column) as shares of the sides."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    distance = ((rows - centre[0]) / radii[0])[:, None] ** 2 + (
        (columns - centre[1]) / radii[1]
    ) ** 2
    inside: Mask = distance <= 1
    return inside


def lung_centre(fields: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a random pixel, uniform over the lung fields, at a small distance from their edge.

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
