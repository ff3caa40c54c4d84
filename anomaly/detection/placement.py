r"""Placement: displacement of an image's anatomy from the mean normal image.

Patients stand a little higher or lower before the detector. With :math:`\bar m` the mean of the
training images, the displacement of an image is the shift :math:`\delta`, in whole pixels, with the
best correlation,

.. math::
    \delta(x) = \arg\max_\delta \operatorname{corr}\bigl(x_{p + \delta}, \bar m_p\bigr)_{p \in I},

over the inner three quarters ``I`` of the frame, so that :math:`|\delta|` is at most an eighth of a
side. Both are compared without their slow shading (a blur of a sixteenth of the side is
subtracted), which depends on exposure, not on anatomy.

Local features (`anomaly.detection.local`) and the statistics of the heatmap
(`anomaly.detection.heatmap`) are read at displaced positions; the image itself is never moved.
"""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped, unused-ignore]
from scipy.signal import fftconvolve  # type: ignore[import-untyped, unused-ignore]

from anomaly.errors import ConfigError

__all__ = ["displaced", "displacements"]

Maps = TypeVar("Maps", bound=NDArray[np.floating])

MARGIN = 1 / 8
"""Margin excluded on every side, and largest displacement, as a fraction of the side."""

SHADING = 1 / 16
"""Sigma of the subtracted blur, as a fraction of the side."""


def displacements(
    images: NDArray[np.float32], reference: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Shift of every image relative to the reference.

    Parameters
    ----------
    images : ndarray (N, H, W)
    reference : ndarray (H, W)
        Mean normal image.

    Returns
    -------
    ndarray (N, 2) float64
        Rows and columns, whole pixels: place ``p`` of the reference is at ``p + shift`` in the
        image. For an image unlike the reference the shift is arbitrary.

    Raises
    ------
    ConfigError
        If the sizes differ.
    """
    if images.shape[1:] != reference.shape:
        raise ConfigError(
            f"the images are {images.shape[1:]} and the reference {reference.shape}: expected the "
            "size that the network was trained at"
        )
    height, width = reference.shape
    rows, columns = int(height * MARGIN), int(width * MARGIN)
    inner = _unshaded(reference)[rows : height - rows, columns : width - columns]
    inner = inner - inner.mean()
    mirrored, ones = inner[None, ::-1, ::-1], np.ones((1, *inner.shape))
    detail = _unshaded(images)
    agreement = fftconvolve(detail, mirrored, "valid", axes=(1, 2))
    mean = fftconvolve(detail, ones, "valid", axes=(1, 2)) / inner.size
    power = fftconvolve(detail**2, ones, "valid", axes=(1, 2)) / inner.size
    # The floor avoids 0 / 0 for a window without any detail.
    correlation = agreement / np.sqrt(np.maximum(power - mean**2, 1e-9))
    best = correlation.reshape(len(images), -1).argmax(1)
    peaks = np.unravel_index(best, correlation.shape[1:])
    return np.stack(peaks, 1).astype(np.float64) - (rows, columns)


def displaced(maps: Maps, shifts: NDArray[np.float64]) -> Maps:
    """Read maps at ``p + shift``; the border repeats.

    Parameters
    ----------
    maps : ndarray (N, ..., H, W)
    shifts : ndarray (N, 2), whole pixels
        With the `displacements` of the maps' images, the result is aligned with the reference;
        with the negated ones, the alignment is undone.
    """
    height, width = maps.shape[-2:]
    whole = shifts.astype(np.intp)
    rows = np.clip(np.arange(height) + whole[:, :1], 0, height - 1)
    columns = np.clip(np.arange(width) + whole[:, 1:], 0, width - 1)
    pairs = zip(maps, rows, columns, strict=True)
    return cast(Maps, np.stack([map_[..., r[:, None], c] for map_, r, c in pairs]))


def _unshaded(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Images (..., H, W) minus their slow shading."""
    wide = images.astype(np.float64)
    sigmas = [0.0] * (wide.ndim - 2) + [SHADING * side for side in wide.shape[-2:]]
    return np.asarray(wide - gaussian_filter(wide, sigmas, mode="nearest"))
