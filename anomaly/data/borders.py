r"""Empty borders: what a collimator, a shutter or padding left black around an image.

A pixel of the framed image is empty where it has the least value that the image has, within
`TOLERANCE`, and pixels that have it connect it with the border:

.. math:: x(p) \le \min x + \tau .

There is nothing to see there, so there is no evidence there either: an edge of a collimator that
lies elsewhere than on normal scans is no finding. White is not taken for empty: a white lung that
reaches the border is one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from anomaly.data.transforms import SUPERSAMPLING

__all__ = ["TOLERANCE", "empty_border"]

TOLERANCE = 2 / 255
"""Of grey values in [0, 1]: what a lossy coding leaves of a constant after averaging."""


def empty_border(framed: Tensor) -> NDArray[np.bool_]:
    """Mark the network's pixels that show no more than an empty border.

    Parameters
    ----------
    framed : Tensor (1, 2 size, 2 size) float32 in [0, 1]
        As `anomaly.data.transforms.frame_scan` returns it; its padding is black.

    Returns
    -------
    ndarray (size, size) bool
        True where all pixels of the framed image under it are empty.
    """
    pixels = framed[0].numpy()
    labels, _ = ndimage.label(pixels <= pixels.min() + TOLERANCE)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    empty = np.isin(labels, np.unique(edge[edge > 0]))
    side = len(pixels) // SUPERSAMPLING
    blocks = empty.reshape(side, SUPERSAMPLING, side, SUPERSAMPLING)
    return np.asarray(blocks.all(axis=(1, 3)))
