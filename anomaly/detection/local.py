r"""Local features: statistics of maps by place and by octave.

With :math:`r_l` the residual map of level ``l`` (`anomaly.detection.features`) and ``c`` a cell of
a coarse grid over the frame,

.. math::
    \mathrm{signed}_{l,c} = \overline{r_l}\big|_c, \qquad
    \mathrm{energy}_{l,c} = \log \overline{r_l^2}\big|_c
        - \frac{1}{C} \sum_{c'} \log \overline{r_l^2}\big|_{c'} .

``signed`` detects large opacities: something that should be dark is bright. ``energy`` detects
texture that is missing or added, *relative to the rest of the same image and level*: an image that
as a whole is softer, sharper, or of more or less contrast than normal changes all cells equally,
and the difference removes this. ``texture`` is the same for octave bands of the image itself,
without the network.

The mean over a cell is weighted: the weights are a box blurred by a Gaussian of half a cell.
Cells follow the anatomy: the grid moves with the displacement of the image
(`anomaly.detection.placement`).

``octave`` is the log energy of :math:`r_l` in octaves of spatial frequency, over the whole image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped, unused-ignore]
from scipy.special import ndtr  # type: ignore[import-untyped, unused-ignore]

__all__ = [
    "OCTAVES",
    "cell_energies",
    "cell_means",
    "image_bands",
    "octave_energies",
]

OCTAVES = 4
"""Bands of spatial frequency: above 1/4, 1/8 and 1/16 cycles per pixel, and the rest."""

SOFTNESS = 0.5
"""Sigma of the blur of a cell's edges, in cells."""

FINEST = 0.75
"""Sigma in pixels of the blur that separates the finest band of an image."""

# Floors of mean squares, in units of x. For whole images: far below the rounding of 256 grey
# values (5e-6). For a cell: an amplitude of 0.01, somewhat above it; smaller amplitudes of a
# smooth place depend on the exposure and carry no information.
_FLOOR = 1e-7
_CELL_FLOOR = 1e-4


def cell_means(
    maps: NDArray[np.float32], grid: int, border: int, shifts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``signed``: weighted mean of every cell.

    Parameters
    ----------
    maps : ndarray (N, L, H, W), in units of ``x``
    grid : int
        Cells per side.
    border : int
        Cells excluded on every side: collimation and markers, not anatomy.
    shifts : ndarray (N, 2), pixels
        Displacement of every image's grid. If a cell extends beyond the frame, only the part
        inside counts.

    Returns
    -------
    ndarray (N, L, C) float64, ``C = (grid - 2 border)**2``
    """
    height, width = maps.shape[-2:]
    rows = _cell_weights(height, grid, border, shifts[:, 0])
    columns = _cell_weights(width, grid, border, shifts[:, 1])
    cells = rows[:, None] @ maps.astype(np.float64) @ columns[:, None].swapaxes(2, 3)
    return np.asarray(cells.reshape(*maps.shape[:2], -1))


def cell_energies(
    maps: NDArray[np.float32], grid: int, border: int, shifts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``energy`` and ``texture``: log mean square of every cell, minus its mean over the cells.

    Parameters and shape as in `cell_means`; every map sums to 0 over its cells.
    """
    energy = np.log(cell_means(np.square(maps), grid, border, shifts) + _CELL_FLOOR)
    return np.asarray(energy - energy.mean(-1, keepdims=True))


def image_bands(images: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Octave bands of images (N, H, W), finest first: (N, count, H, W) float32.

    Band ``k`` is the difference of two Gaussian blurs, of sigma `FINEST` ``2**(k - 1)`` and
    ``2**k`` pixels; the first uses the image itself as the sharper one. Borders repeat.
    """
    sigmas = FINEST * 2.0 ** np.arange(count)
    blurred = [gaussian_filter(images, (0, sigma, sigma), mode="nearest") for sigma in sigmas]
    sharper = [images, *blurred]
    bands = [fine - coarse for fine, coarse in zip(sharper, blurred, strict=False)]
    return np.stack(bands, 1).astype(np.float32)


def octave_energies(residuals: NDArray[np.float32]) -> NDArray[np.float64]:
    """``octave``: log energy per pixel in each octave, finest first: (N, L, `OCTAVES`) float64."""
    height, width = residuals.shape[-2:]
    power = np.square(np.abs(np.fft.rfft2(residuals, norm="ortho")))
    # rfft2 keeps half of the plane: all columns count twice, except the first (and an even side's
    # last).
    twice = np.full(power.shape[-1], 2.0)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    octave = np.digitize(frequency, 0.25 / 2.0 ** np.arange(OCTAVES - 1))
    energies = [
        (power * twice * (octave == k)).sum((-2, -1)) / (height * width) for k in range(OCTAVES)
    ]
    return np.asarray(np.log(np.stack(energies, -1) + _FLOOR), dtype=np.float64)


def _cell_weights(
    side: int, grid: int, border: int, shifts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights (N, grid - 2 border, side) of the pixels of one axis, summing to 1 over the last."""
    cell = side / grid
    pixels = np.arange(side) + 0.5
    start = np.arange(border, grid - border) * cell
    left = (pixels - start[:, None] - shifts[:, None, None]) / (SOFTNESS * cell)
    weights = ndtr(left) - ndtr(left - 1 / SOFTNESS)
    return np.asarray(weights / weights.sum(-1, keepdims=True))
