r"""Local features: residual maps by place and by octave.

With :math:`r_l` the residual map of level ``l`` (`anomaly.detection.features`) and ``c`` a cell of
a coarse grid over the frame,

.. math::
    \mathrm{signed}_{l,c} = \overline{r_l}\big|_c, \qquad
    \mathrm{energy}_{l,c} = \log \overline{r_l^2}\big|_c
        - \frac{1}{C} \sum_{c'} \log \overline{r_l^2}\big|_{c'} .

``signed`` sees large shadows: something that should be dark is bright. ``energy`` sees texture that
is missing or added, *relative to the rest of the same image and level*: a whole image that is
softer, sharper, of more or of less contrast than normal moves all cells alike, and the difference
takes that out. What is left is where.

``octave`` is the log energy of :math:`r_l` in octaves of spatial frequency, over the whole image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ConfigError

__all__ = ["OCTAVES", "cell_energies", "cell_means", "octave_energies"]

OCTAVES = 4
"""Bands of spatial frequency: above 1/4, 1/8 and 1/16 cycles a pixel, and the rest."""

# Of the square of a residual, in units of x: far below the rounding of 256 grey values (5e-6).
_FLOOR = 1e-7


def cell_means(residuals: NDArray[np.float32], grid: int, border: int) -> NDArray[np.float64]:
    """``signed``: mean residual of every cell.

    Parameters
    ----------
    residuals : ndarray (N, L, H, W), in units of ``x``
    grid : int
        Cells a side; must divide H and W.
    border : int
        Cells left out on every side: collimation and markers, not anatomy.

    Returns
    -------
    ndarray (N, L, C) float64, ``C = (grid - 2 border)**2``

    Raises
    ------
    ConfigError
        If the grid does not divide the frame.
    """
    return _cells(residuals, grid, border)


def cell_energies(residuals: NDArray[np.float32], grid: int, border: int) -> NDArray[np.float64]:
    """``energy``: log mean squared residual of every cell, less its mean over the cells.

    Shapes and errors as in `cell_means`; every level sums to 0 over its cells.
    """
    energy = np.log(_cells(np.square(residuals), grid, border) + _FLOOR)
    return np.asarray(energy - energy.mean(-1, keepdims=True))


def octave_energies(residuals: NDArray[np.float32]) -> NDArray[np.float64]:
    """``octave``: log energy a pixel in each octave, finest first: (N, L, `OCTAVES`) float64."""
    height, width = residuals.shape[-2:]
    power = np.square(np.abs(np.fft.rfft2(residuals, norm="ortho")))
    # rfft2 keeps half of the plane: every column but the first (and an even side's last) is twice.
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


def _cells(maps: NDArray[np.float32], grid: int, border: int) -> NDArray[np.float64]:
    count, levels, height, width = maps.shape
    if height % grid or width % grid:
        raise ConfigError(
            f"features.grid is {grid}: it must divide the frame of {height}x{width} pixels"
        )
    blocks = maps.reshape(count, levels, grid, height // grid, grid, width // grid)
    means = blocks.mean((3, 5), dtype=np.float64)
    inner = slice(border, grid - border)
    return np.asarray(means[:, :, inner, inner].reshape(count, levels, -1), dtype=np.float64)
