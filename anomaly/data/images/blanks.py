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

Without this, these are the places where heatmaps of normal scans have their peaks. Features of the
evidence leave them out as well; all other features look at the whole image.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from anomaly.data.images.transforms import SUPERSAMPLING, Frame, grey_range

__all__ = ["RIM", "blank_pixels", "empty_border", "marks"]

TOLERANCE = 2 / 255
"""Of grey values in [0, 1]: what a lossy coding leaves of a constant after averaging."""

RIM = 1 / 32
"""Share of height and of width at either side."""

SIDE = 224
"""Pixels of the longer side at which rim and marks are looked for, at most: of the scans that the
sharpness of a letter was chosen on."""

# Chosen by eye on normal paediatric X-rays of the training split; shares of the longer side, and of
# the range between the 0.5 % and the 99.5 % quantile of the grey values.
_LARGEST, _SMALLEST = 0.07, 0.012
_CONTRAST, _SHARP_SHARE = 0.3, 0.1
_SHARPNESS = 0.17 * SIDE  # rise over the longer side: the same edge, whatever the pixel
_MARGINS = (0.1, 0.2)  # of the height at top and bottom, of the width at left and right


def blank_pixels(pixels: NDArray[np.float32], framed: Tensor, frame: Frame) -> NDArray[np.bool_]:
    """Mark the network's pixels where no evidence is drawn.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        Of the scan.
    framed : Tensor (1, 2 size, 2 size) float32 in [0, 1]
        As `anomaly.data.images.transforms.frame_scan` returns it.
    frame : Frame

    Returns
    -------
    ndarray (size, size) bool
    """
    small = _shrunk(pixels)
    height, width = small.shape
    frame = Frame((height, width), frame.size, frame.geometry)
    blank = marks(small)
    rows, columns = round(RIM * height), round(RIM * width)
    blank[:rows] = blank[height - rows :] = True
    blank[:, :columns] = blank[:, width - columns :] = True
    # A pixel on the seam of padding and image is judged by the image in it.
    share, covered = (
        frame.to_network(torch.from_numpy(mask.astype(np.float32))[None])[0].numpy()
        for mask in (blank, np.ones_like(blank))
    )
    return np.asarray((share >= 0.25 * covered) | empty_border(framed, frame))


def empty_border(framed: Tensor, frame: Frame) -> NDArray[np.bool_]:
    """Mark the network's pixels that show no more than an empty border, or padding.

    Parameters
    ----------
    framed : Tensor (1, 2 size, 2 size) float32 in [0, 1]
    frame : Frame

    Returns
    -------
    ndarray (size, size) bool
        True where all pixels of the framed image under a pixel are empty.
    """
    pixels = framed[0].numpy()
    covered = frame.to_network(torch.ones(1, *frame.source), len(pixels))[0].numpy()
    padding = covered < min(0.99, covered.max())  # an image a pixel wide covers none wholly
    dark = pixels <= pixels[~padding].min() + TOLERANCE
    labels, _ = ndimage.label(dark | padding)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    empty = np.isin(labels, np.unique(edge[edge > 0]))
    blocks = empty.reshape(frame.size, SUPERSAMPLING, frame.size, SUPERSAMPLING)
    return np.asarray(blocks.all(axis=(1, 3)))


def marks(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Mark letters and side markers, with the boxes that hold them.

    Parameters
    ----------
    pixels : ndarray (H, W) float32
        At most about `SIDE` pixels on the longer side. Below half of that letters are too coarse to
        be told from anatomy, and few are found.

    Returns
    -------
    ndarray (H, W) bool
    """
    marked = np.zeros(pixels.shape, dtype=np.bool_)
    low, high = grey_range(pixels, "percentile")
    if not high > low:
        return marked
    unit = (pixels - low) / (high - low)
    side = max(unit.shape)
    window = max(1, int(_LARGEST * side))
    bright = unit - ndimage.grey_opening(unit, size=(window, window)) > _CONTRAST
    sharp = side * ndimage.gaussian_gradient_magnitude(unit, 0.7) >= _SHARPNESS
    labels, _ = ndimage.label(bright, structure=np.ones((3, 3)))
    for box in ndimage.find_objects(labels):
        sizes = [part.stop - part.start for part in box]
        middles = [(a.start + a.stop) / 2 / n for a, n in zip(box, unit.shape, strict=True)]
        near = any(min(m, 1 - m) <= most for m, most in zip(middles, _MARGINS, strict=True))
        if not near or not _SMALLEST * side <= max(sizes) <= _LARGEST * side:
            continue
        with_edge = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        if sharp[with_edge].mean() >= _SHARP_SHARE:
            marked[with_edge] = True
    return marked


def _shrunk(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shrink to `SIDE` on the longer side by means, where it is longer."""
    scale = SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    size = [max(1, round(scale * side)) for side in pixels.shape]
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None, None]
    return functional.interpolate(image, size=size, mode="area")[0, 0].numpy()
