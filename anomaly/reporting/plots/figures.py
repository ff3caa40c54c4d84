"""Drawings of a report as arrays, PNG bytes and SVG path data.

A run has one colour scale. For evidence ``e``, threshold ``a`` and ceiling ``b``, both set on
normal scans,

    u = clip((e - a) / (b - a), 0, 1)         position on the scale
    colour  = inferno(0.25 + 0.75 u)          the black end would darken the anatomy
    opacity = 0.35 + 0.65 u   where e >= a,   0 elsewhere

Pixels with normal evidence therefore stay grey, and the same colour means the same evidence on
every scan of the run. A contour along pixel edges shows the threshold without colour. Where the
score of an image as a whole comes from (`anomaly.detection.explanation`) is a second layer, in blue
and on the scale of its own scan.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "FONTS",
    "colour_bar",
    "contour_path",
    "histogram_path",
    "overlay_rgba",
    "png_bytes",
    "shrink_max",
    "shrink_mean",
    "spread_rgba",
]

_COLOURS: NDArray[np.uint8] = np.asarray(
    matplotlib.colormaps["inferno"](np.linspace(0.25, 1.0, 256), bytes=True)[:, :3], dtype=np.uint8
)
_TRUETYPE = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = {"normal": _TRUETYPE / "DejaVuSans.ttf", "bold": _TRUETYPE / "DejaVuSans-Bold.ttf"}
"""Fonts by weight; included in matplotlib, so the same on every machine."""
_SPREAD_COLOUR, _MOST_SPREAD = (64, 156, 255), 0.6
_FAINTEST = 0.35  # opacity at the threshold: regions just above it must be visible


def overlay_rgba(
    evidence: NDArray[np.floating[Any]], threshold: float, ceiling: float
) -> NDArray[np.uint8]:
    """Colour evidence on the fixed scale, transparent below the threshold.

    Parameters
    ----------
    evidence : ndarray (H, W) of float, >= 0
    threshold, ceiling : float
        Ends of the scale, ``threshold < ceiling``, both finite.

    Returns
    -------
    ndarray (H, W, 4) uint8
        Red, green, blue, opacity. All four are 0 below the threshold; opacity does not decrease
        with evidence and is 255 from the ceiling on.

    Raises
    ------
    ValueError
        The scale is empty, or the evidence contains NaN.
    """
    if not (math.isfinite(threshold) and math.isfinite(ceiling) and threshold < ceiling):
        raise ValueError(
            f"the colour scale needs threshold < ceiling, both finite; got {threshold}, {ceiling}"
        )
    if np.isnan(evidence).any():
        raise ValueError("the evidence holds NaN; blank would read as normal")
    place = np.clip((evidence.astype(np.float64) - threshold) / (ceiling - threshold), 0.0, 1.0)
    opacity = _FAINTEST + (1.0 - _FAINTEST) * place
    rgba = np.empty((*evidence.shape, 4), dtype=np.uint8)
    rgba[..., :3] = _COLOURS[np.rint(255 * place).astype(np.intp)]
    rgba[..., 3] = np.rint(255 * opacity)
    rgba[evidence < threshold] = 0
    return rgba


def spread_rgba(spread: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Colour the spread of a score in blue, on the scan's own scale.

    Parameters
    ----------
    spread : ndarray (H, W) of float
        Contributions to the score; negative ones are not drawn.

    Returns
    -------
    ndarray (H, W, 4) uint8
        Opacity in proportion to the contribution, at most `_MOST_SPREAD`.

    Raises
    ------
    ValueError
        The spread contains NaN.
    """
    if np.isnan(spread).any():
        raise ValueError("the spread holds NaN; blank would read as normal")
    share = np.maximum(spread.astype(np.float64), 0)
    share /= max(float(share.max()), 1e-12)
    rgba = np.empty((*spread.shape, 4), dtype=np.uint8)
    rgba[..., :3] = _SPREAD_COLOUR
    rgba[..., 3] = np.rint(255 * _MOST_SPREAD * share)
    return rgba


def colour_bar(threshold: float, ceiling: float, steps: int = 256) -> NDArray[np.uint8]:
    """Return the scale of `overlay_rgba` as a column of pixels, with the ceiling at the top.

    Returns
    -------
    ndarray (steps, 1, 4) uint8
    """
    return overlay_rgba(np.linspace(ceiling, threshold, steps)[:, None], threshold, ceiling)


def contour_path(mask: NDArray[np.bool_]) -> str:
    """Return the outline of a mask along its pixel edges, as SVG path data.

    Coordinates are pixel corners: pixel ``(row, column)`` spans ``column .. column + 1`` to the
    right and ``row .. row + 1`` downwards. Horizontal runs come first, top to bottom, then
    vertical runs, left to right; stroke the path, do not fill it.

    Parameters
    ----------
    mask : ndarray (H, W) bool

    Returns
    -------
    str
        Such as ``"M0 0H3M0 2H3M0 0V2M3 0V2"`` for two rows of three pixels; empty for no region.
    """
    horizontal = (f"M{start} {line}H{stop}" for line, start, stop in _edge_runs(mask))
    vertical = (f"M{line} {start}V{stop}" for line, start, stop in _edge_runs(mask.T))
    return "".join([*horizontal, *vertical])


def _edge_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Straight runs of the horizontal pixel edges of a mask: (line, start, stop)."""
    walled = np.pad(mask, 1)
    edges = (walled[1:] ^ walled[:-1]).astype(np.int8)  # the padding also ends every run
    change = np.diff(edges, axis=1)
    line, start = np.nonzero(change == 1)
    stop = np.nonzero(change == -1)[1]
    return list(zip(line.tolist(), start.tolist(), stop.tolist(), strict=True))


def histogram_path(
    scores: NDArray[np.float64], low: float, high: float, width: float, height: float
) -> str:
    """Return the bars of a histogram as SVG path data for a filled path.

    Parameters
    ----------
    scores : ndarray (n,) float64
        Not empty; their range is divided into about ``sqrt(n)`` bars, from 8 to 40.
    low, high : float
        Scores at the left and right edge of the drawing, ``low < high``.
    width, height : float
        Size of the drawing; the tallest bar has the full height, and a count of 0 is at the bottom.

    Returns
    -------
    str
    """
    bars = min(40, max(8, math.isqrt(scores.size)))
    counts, edges = np.histogram(scores, bins=bars)
    corners = (edges - low) / (high - low) * width
    tops = height * (1 - counts / counts.max())
    return "".join(
        f"M{left:.1f} {height:g}V{top:.1f}H{right:.1f}V{height:g}Z"
        for left, right, top in zip(corners[:-1], corners[1:], tops, strict=True)
        if top < height
    )


def shrink_mean(image: NDArray[np.float32], longest: int) -> NDArray[np.float32]:
    """Shrink an image by area averaging so that neither side exceeds `longest`.

    Parameters
    ----------
    image : ndarray (H, W) float32
    longest : int
        Maximum side in pixels; a smaller image is returned unchanged.

    Returns
    -------
    ndarray (h, w) float32
        Means over blocks that tile the image; `shrink_max` uses the same blocks.
    """
    rows, columns = _block_starts(image.shape, longest)
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0, dtype=np.float64), columns, axis=1)
    heights = np.diff(rows, append=image.shape[0])
    widths = np.diff(columns, append=image.shape[1])
    means: NDArray[np.float32] = (sums / np.outer(heights, widths)).astype(np.float32)
    return means


def shrink_max(evidence: NDArray[np.float32], longest: int) -> NDArray[np.float32]:
    """Shrink an evidence map to the maxima of blocks, which preserves small peaks.

    Parameters
    ----------
    evidence : ndarray (H, W) float32
    longest : int
        Maximum side in pixels.

    Returns
    -------
    ndarray (h, w) float32
    """
    rows, columns = _block_starts(evidence.shape, longest)
    tallest = np.maximum.reduceat(evidence, rows, axis=0)
    shrunk: NDArray[np.float32] = np.maximum.reduceat(tallest, columns, axis=1)
    return shrunk


def _block_starts(
    shape: tuple[int, ...], longest: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First row and first column of each block, with at most `longest` blocks per side."""
    scale = min(1.0, longest / max(shape))
    rows, columns = (
        np.arange(blocks, dtype=np.intp) * side // blocks
        for side, blocks in ((side, max(1, round(side * scale))) for side in shape)
    )
    return rows, columns


def png_bytes(array: NDArray[np.uint8]) -> bytes:
    """Encode an image as PNG without text, time or profile chunks.

    Parameters
    ----------
    array : ndarray (H, W) or (H, W, 4) uint8
        Grey, or red, green, blue, opacity.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()
