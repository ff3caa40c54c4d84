r"""Blank places: parts of an image without anatomy, which get no evidence.

There are three kinds, all detected in the scan itself:

- *empty border*: black areas from a collimator, a shutter or padding. A pixel is empty if it has
  the smallest value of the image, :math:`x(p) \le \min x + \tau`, and is connected with the
  border by such pixels. White areas do not count as empty: a white lung that reaches the border is
  a finding;
- *rim*: the outermost `RIM` of height and width, whose content depends on how the scan was cropped;
- *marks*: letters and side markers, compact, bright and sharp, near the border,

.. math:: x - x \circ B > c \quad \text{and} \quad |\nabla x| \ge g,

  with the opening :math:`x \circ B` by a square larger than a letter, which leaves smaller
  structures. Bones are as bright as letters, but nothing imaged by X-rays is as sharp.

Without this, heatmaps of normal scans have their peaks at these places. Features of the
evidence exclude them as well; all other features use the whole image.
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
"""Tolerance of grey values in [0, 1]: deviation of a constant after lossy coding and averaging."""

RIM = 1 / 32
"""Width of the rim on each side, as a fraction of height and width."""

SIDE = 224
"""Largest size of the longer side, in pixels, for the detection of rim and marks: that of the scans
on which the sharpness of a letter was chosen."""

# Chosen by eye on normal paediatric X-rays of the training split; fractions of the longer side, and
# of the range between the 0.5 % and the 99.5 % quantile of the grey values.
_LARGEST, _SMALLEST = 0.07, 0.012
_CONTRAST, _SHARP_SHARE = 0.3, 0.1
_SHARPNESS = 0.17 * SIDE  # gradient per longer side: independent of the pixel size
_MARGINS = (0.1, 0.2)  # of the height at top and bottom, of the width at left and right


def blank_pixels(pixels: NDArray[np.float32], framed: Tensor, frame: Frame) -> NDArray[np.bool_]:
    """Return the mask of network pixels without evidence.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        Pixels of the scan.
    framed : Tensor (1, 2 size, 2 size) float32 in [0, 1]
        Result of `anomaly.data.images.transforms.frame_scan`.
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
    # For a pixel on the boundary between padding and image, only the part in the image counts.
    share = _network_share(blank, frame)
    covered = _network_share(np.ones_like(blank), frame)
    return np.asarray((share >= 0.25 * covered) | empty_border(framed, frame))


def _network_share(mask: NDArray[np.bool_], frame: Frame) -> NDArray[np.float32]:
    """Share of each network pixel (size, size) that a mask (H, W) of the source covers."""
    return frame.to_network(torch.from_numpy(mask.astype(np.float32))[None])[0].numpy()


def empty_border(framed: Tensor, frame: Frame) -> NDArray[np.bool_]:
    """Return the mask of network pixels that show only an empty border, or padding.

    Parameters
    ----------
    framed : Tensor (1, 2 size, 2 size) float32 in [0, 1]
    frame : Frame

    Returns
    -------
    ndarray (size, size) bool
        True if all pixels of the framed image within a network pixel are empty.
    """
    pixels = framed[0].numpy()
    covered = frame.to_network(torch.ones(1, *frame.source), len(pixels))[0].numpy()
    padding = covered < min(0.99, covered.max())  # a very narrow image covers no pixel completely
    dark = pixels <= pixels[~padding].min() + TOLERANCE
    labels, _ = ndimage.label(dark | padding)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    empty = np.isin(labels, np.unique(edge[edge > 0]))
    blocks = empty.reshape(frame.size, SUPERSAMPLING, frame.size, SUPERSAMPLING)
    return np.asarray(blocks.all(axis=(1, 3)))


def marks(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the mask of letters and side markers, with their bounding boxes.

    Parameters
    ----------
    pixels : ndarray (H, W) float32
        At most about `SIDE` pixels on the longer side. Below half of that letters are too coarse to
        be distinguished from anatomy, and few are found.

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
        centre = [(a.start + a.stop) / 2 / n for a, n in zip(box, unit.shape, strict=True)]
        near = any(min(c, 1 - c) <= margin for c, margin in zip(centre, _MARGINS, strict=True))
        if not near or not _SMALLEST * side <= max(sizes) <= _LARGEST * side:
            continue
        with_edge = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
        if sharp[with_edge].mean() >= _SHARP_SHARE:
            marked[with_edge] = True
    return marked


def _shrunk(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce to `SIDE` pixels on the longer side by area means, if it is longer."""
    scale = SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    size = [max(1, round(scale * side)) for side in pixels.shape]
    image = torch.from_numpy(np.ascontiguousarray(pixels))[None, None]
    return functional.interpolate(image, size=size, mode="area")[0, 0].numpy()
