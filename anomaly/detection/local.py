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
Cells follow the anatomy: the grid is one of the mean normal image, and is shifted, scaled and
turned with the placement of the image (`anomaly.detection.placement`).

``octave`` is the log energy of :math:`r_l` in octaves of spatial frequency, over the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.blur import blurred, blurred_box
from anomaly.detection.placement import Placement

__all__ = [
    "OCTAVES",
    "Cells",
    "cell_energies",
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
_FARTHEST = 7.0  # blurs of a cell's edge; weights there, 1e-9 along each axis, are still exact
_CELL_FLOOR = 1e-4


@dataclass(frozen=True)
class Cells:
    """Weights of the pixels of N images in a grid of cells that follows the anatomy.

    The weight of a pixel in cell (i, j) is the product of one weight for the row of cells and one
    for the column, divided by its sum over the pixels: if a cell extends beyond the frame, only the
    part inside counts.

    Attributes
    ----------
    rows, columns : ndarray (N, G, H W) float32, > 0
        Weights of every pixel in each row, and in each column, of cells.
    """

    rows: NDArray[np.float32]
    columns: NDArray[np.float32]

    @classmethod
    def of(cls, placement: Placement, shape: tuple[int, int], grid: int, border: int) -> Cells:
        """Lay a grid over images.

        Parameters
        ----------
        placement : Placement
            Of N images.
        shape : (int, int)
            Pixels of an image.
        grid : int
            Cells per side of the mean normal image.
        border : int
            Cells excluded on every side: collimation and markers, not anatomy.
        """
        centres = (np.arange(border, grid - border) + 0.5) / grid - 0.5
        places = placement.reference_positions(*shape)
        # Distances to the middle of a cell, in units of the blur of its edge.
        away = np.abs(places[:, None] - centres[:, None, None]) * (grid / SOFTNESS)
        inside = blurred_box(np.minimum(away, _FARTHEST).astype(np.float32), 0.5 / SOFTNESS)
        return cls(inside[..., 0], inside[..., 1])

    def means(self, maps: NDArray[np.floating]) -> NDArray[np.float64]:
        """``signed``: weighted means (N, L, G G) of maps (N, L, H, W), cells in order of rows."""
        levels = maps.shape[1]
        flat = maps.reshape(*maps.shape[:2], -1).astype(np.float32)
        result = []
        for values, rows, columns in zip(flat, self.rows, self.columns, strict=True):
            sums = (values[:, None] * rows).reshape(-1, rows.shape[1]) @ columns.T
            result.append(sums.reshape(levels, -1) / (rows @ columns.T).ravel())
        return np.asarray(result, dtype=np.float64)

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share values (N, G G) of cells out over their pixels, (N, H W); the sums are kept."""
        rows, columns = self.rows.astype(np.float64), self.columns.astype(np.float64)
        total = rows @ columns.swapaxes(1, 2)
        shares = values.reshape(total.shape) / total
        return np.asarray((rows * (shares @ columns)).sum(1))


def cell_energies(maps: NDArray[np.float32], cells: Cells) -> NDArray[np.float64]:
    """``energy`` and ``texture``: log mean square of every cell, minus its mean over the cells.

    Maps (N, L, H, W) give (N, L, C); every map sums to 0 over its cells.
    """
    energy = np.log(cells.means(np.square(maps)) + _CELL_FLOOR)
    return np.asarray(energy - energy.mean(-1, keepdims=True))


def image_bands(images: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Octave bands of images (N, H, W), finest first: (N, count, H, W) float32.

    Band ``k`` is the difference of two Gaussian blurs, of sigma `FINEST` ``2**(k - 1)`` and
    ``2**k`` pixels; the first uses the image itself as the sharper one. Borders repeat.
    """
    blurrier = [blurred(images, FINEST * 2.0**number) for number in range(count)]
    sharper = [images, *blurrier]
    bands = [fine - coarse for fine, coarse in zip(sharper, blurrier, strict=False)]
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
