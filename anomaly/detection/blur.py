r"""Gaussian blur of small maps, as products with matrices.

A separable filter is linear along each axis, so with :math:`B_n` the matrix that blurs a line of
``n`` values, a map :math:`u` of ``h`` by ``w`` becomes :math:`B_h\, u\, B_w^\top`. For maps of the
network's size two products of dense matrices are many times faster than a convolution, above all
with a wide Gaussian.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

__all__ = ["blurred", "blurred_box"]

Maps = TypeVar("Maps", bound=NDArray[np.floating])

Border = Literal["nearest", "constant"]
"""Beyond the border the values repeat, or are 0."""


def blurred(
    maps: Maps, sigma: float | tuple[float, float], border: Border = "nearest", reach: float = 4.0
) -> Maps:
    """Return maps (..., H, W) blurred over their last two axes, in their own precision.

    Parameters
    ----------
    maps : ndarray (..., H, W)
    sigma : float or (float, float)
        Standard deviation in pixels, of both axes or of rows and columns.
    border : {"nearest", "constant"}
    reach : float
        Standard deviations at which the Gaussian is cut off.
    """
    rows, columns = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    values = torch.from_numpy(np.ascontiguousarray(maps))
    down, across = (
        _matrix(side, width, border, reach).to(values.dtype)
        for side, width in zip(maps.shape[-2:], (rows, columns), strict=True)
    )
    return cast(Maps, (down @ (values @ across.T)).numpy())


def blurred_box(distance: NDArray[np.float32], half: float) -> NDArray[np.float32]:
    """Return the value of a box of height 1, blurred by a Gaussian, at distances from its middle.

    Parameters
    ----------
    distance : ndarray of float32, >= 0
        In standard deviations of the Gaussian.
    half : float
        Half the width of the box, likewise.
    """
    away = torch.from_numpy(distance)
    # In this form the difference of two nearly equal values never vanishes far outside.
    return cast(NDArray[np.float32], (_beyond(away - half) - _beyond(away + half)).numpy())


def _beyond(z: Tensor) -> Tensor:
    """Share of a standard Gaussian above z, with full relative precision in the upper tail."""
    share: Tensor = torch.special.erfc(z * 0.5**0.5) * 0.5
    return share


@lru_cache(maxsize=64)
def _matrix(side: int, sigma: float, border: Border, reach: float) -> Tensor:
    """Matrix (side, side) float64 that blurs a column of `side` values."""
    if sigma == 0:
        return torch.eye(side, dtype=torch.float64)
    lines = gaussian_filter1d(np.eye(side), sigma, axis=0, mode=border, truncate=reach)
    return torch.from_numpy(lines)
