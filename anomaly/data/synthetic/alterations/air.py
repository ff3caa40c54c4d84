"""Pockets of air: lung or pleural space that shows no tissue.

::

    image' = image - strength * profile * max(image - dark, 0)        profile (H, W) in [0, 1]

`dark` is the grey of the darkest lung. The texture behind a pocket is hidden first: the image is
blended towards a smoothed copy with the same profile. Pixels that are already as dark do not
change.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.synthetic.alterations.canvas import Array, Mask, at_224, smoothed

__all__ = ["aerated", "bulla_profile", "collapsed_lung"]


def aerated(pixels: Array, fields: Mask, profile: Array, strength: float) -> Array:
    """Hide texture and darken towards the darkest lung by ``strength * profile``, in [0, 1]."""
    dark = float(np.percentile(pixels[fields], 5))
    clear = pixels + profile * (smoothed(pixels, at_224(4, pixels)) - pixels)
    return np.asarray(clear - strength * profile * np.maximum(clear - dark, 0), dtype=np.float32)


def bulla_profile(shape: tuple[int, ...], centre: tuple[int, int], diameter: float) -> Array:
    """Draw a disc with a soft edge of a tenth of its radius, (H, W) in [0, 1]; diameter, pixels."""
    rows, columns = np.arange(shape[0])[:, None] - centre[0], np.arange(shape[1]) - centre[1]
    radius = np.hypot(rows, columns) / (diameter / 2)
    return np.clip((1 - radius) / 0.1, 0, 1).astype(np.float32)


def collapsed_lung(lung: Mask, share: float) -> Mask:
    """Shrink a lung towards its hilum to `share` of its size.

    Parameters
    ----------
    lung : ndarray (H, W) bool
        One lung, not empty. The hilum is taken half-way down, at the side of the image's middle.
    share : float
        In (0, 1).

    Returns
    -------
    ndarray (H, W) bool
        A part of `lung`.
    """
    rows, columns = np.nonzero(lung)
    middle = lung.shape[1] / 2
    hilum = np.array(
        [(rows.min() + rows.max()) / 2, columns[np.argmin(np.abs(columns + 0.5 - middle))]]
    )
    small = ndimage.affine_transform(
        lung.astype(np.float32), np.full(2, 1 / share), hilum - hilum / share, order=1
    )
    return np.asarray((small > 0.5) & lung, dtype=np.bool_)
