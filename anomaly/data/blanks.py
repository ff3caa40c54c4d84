r"""Blank places: where an image shows no anatomy, so that no evidence is drawn.

Three kinds, all found in the scan itself:

- *empty border*: what a collimator, a shutter or padding left black. A pixel is empty where it has
  the least value of the image, :math:`x(p) \le \min x + \tau`, and such pixels connect it with the
  border. White is not taken for empty: a white lung that reaches the border is a finding;
- *rim*: the outermost `RIM` of height and width, where how a scan was cut decides what is there;
- *marks*: letters and side markers, compact, bright and sharp, near the border,

.. math:: x - x \circ B > c \quad \text{and} \quad |\nabla x| \ge g,

  with the opening :math:`x \circ B` by a square larger than a letter: what is left is smaller than
  it. Bones are as bright as letters, but nothing that X-rays have passed through is as sharp.

Without this, these are the places where heatmaps of normal scans have their peaks. The score is not
touched: it looks at the whole image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from anomaly.data.transforms import SUPERSAMPLING, Frame, grey_range

__all__ = ["RIM", "blank_pixels", "empty_border", "marks"]

TOLERANCE = 2 / 255
"""Of grey values in [0, 1]: what a lossy coding leaves of a constant after averaging."""

RIM = 1 / 32
"""Share of height and of width at either side."""

# Chosen by eye on normal paediatric X-rays of the training split; shares of the longer side, and of
# the range between the 0.5 % and the 99.5 % quantile of the grey values.
_SIDE = 512  # pixels at which marks are looked for
_LARGEST, _SMALLEST = 0.07, 0.012
_CONTRAST, _SHARPNESS, _SHARP_SHARE = 0.3, 0.17, 0.1
_MARGINS = (0.1, 0.2)  # of the height at top and bottom, of the width at left and right


def blank_pixels(pixels: NDArray[np.float32], framed: Tensor, frame: Frame) -> NDArray[np.bool_]:
    """Mark the network's pixels where no evidence is drawn.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        Of the scan.
    framed : Tensor (1, 2 size, 2 size) float32 in [0, 1]
        As `anomaly.data.transforms.frame_scan` returns it.
    frame : Frame

    Returns
    -------
    ndarray (size, size) bool
    """
    blank = marks(pixels)
    height, width = pixels.shape
    rows, columns = round(RIM * height), round(RIM * width)
    blank[:rows] = blank[height - rows :] = True
    blank[:, :columns] = blank[:, width - columns :] = True
    share = frame.to_network(torch.from_numpy(blank.astype(np.float32))[None])[0].numpy()
    return np.asarray((share > 0.25) | empty_border(framed))


def empty_border(framed: Tensor) -> NDArray[np.bool_]:
    """Mark the network's pixels (size, size) that show no more than an empty border.

    All pixels of the framed image (1, 2 size, 2 size) under them are empty.
    """
    pixels = framed[0].numpy()
    labels, _ = ndimage.label(pixels <= pixels.min() + TOLERANCE)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    empty = np.isin(labels, np.unique(edge[edge > 0]))
    side = len(pixels) // SUPERSAMPLING
    blocks = empty.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING)
    return np.asarray(blocks.all(axis=(1, 3)))


def marks(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark letters and side markers, with the boxes that hold them, (H, W) bool."""
    found = np.zeros(pixels.shape, dtype=np.bool_)
    low, high = grey_range(pixels, "percentile")
    if high <= low:
        return found
    small = _shrunk((pixels - low) / (high - low))
    side = max(small.shape)
    window = int(_LARGEST * side)
    bright = small - ndimage.grey_opening(small, size=(window, window)) > _CONTRAST
    sharp = ndimage.gaussian_gradient_magnitude(small, 0.7) >= _SHARPNESS
    labels, _ = ndimage.label(bright, structure=np.ones((3, 3)))
    for box in ndimage.find_objects(labels):
        sizes = [part.stop - part.start for part in box]
        middles = [(a.start + a.stop) / 2 / n for a, n in zip(box, small.shape, strict=True)]
        near = any(min(m, 1 - m) <= most for m, most in zip(middles, _MARGINS, strict=True))
        if not near or not _SMALLEST * side <= max(sizes) <= _LARGEST * side:
            continue
        with_edge = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        if sharp[with_edge].mean() >= _SHARP_SHARE:
            found[_enlarged(with_edge, small.shape, pixels.shape)] = True
    return found


def _enlarged(
    box: tuple[slice, ...], small: tuple[int, ...], full: tuple[int, ...]
) -> tuple[slice, ...]:
    """Return the box of the whole image under a box of the shrunk one."""
    return tuple(
        slice(part.start * whole // short, -(-min(part.stop, short) * whole // short))
        for part, short, whole in zip(box, small, full, strict=True)
    )


def _shrunk(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shrink to `_SIDE` on the longer side by means, where it is longer."""
    scale = min(1.0, _SIDE / max(pixels.shape))
    size = [max(1, round(scale * side)) for side in pixels.shape]
    shrunk = functional.interpolate(torch.from_numpy(pixels)[None, None], size=size, mode="area")
    return np.asarray(shrunk[0, 0].numpy(), dtype=np.float32)
