"""Grey values in [0, 1], 0 = black: how values become grey, and how grey is displayed.

::

    to_unit(v; low, high) = clip((v - low) / (high - low), 0, 1)
    displayed grey        = curve(grey of the scan)                          (`GreyCurve`)

The grey of a scan keeps the whole range that its source can hold, for the detector to read. On a
screen that range can be all black, so what people see goes through the curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "GreyCurve",
    "luminance",
    "percentile_curve",
    "percentile_range",
    "to_unit",
    "window_range",
]

# Rec. ITU-R BT.601, of which JPEG's and DICOM's YBR_FULL are made (PS3.3 C.7.6.3.1.2).
_RED_GREEN_BLUE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class GreyCurve:
    """Displayed grey as a function of the grey of a scan: straight lines between points.

    Attributes
    ----------
    grey : ndarray (K,) in [0, 1], ascending
        Grey of the scan.
    displayed : ndarray (K,) in [0, 1]
        Grey on the screen; constant beyond the ends.
    source : str
        Where the curve comes from, in a few words for the reader.
    """

    grey: NDArray[np.float32]
    displayed: NDArray[np.float32]
    source: str

    @classmethod
    def identity(cls, source: str) -> GreyCurve:
        """Display of grey as it is."""
        ends = np.array([0, 1], dtype=np.float32)
        return cls(ends, ends, source)

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the displayed grey of pixels in [0, 1]: float32 in [0, 1], the same shape."""
        return np.interp(pixels, self.grey, self.displayed).astype(np.float32)


def percentile_curve(pixels: NDArray[np.float32]) -> GreyCurve:
    """Curve that spreads the middle 99 % of an image over black to white.

    For images whose source says nothing of their display. Where 99 % of the pixels are equal, the
    whole range of the image is spread; an image of one grey stays as it is.
    """
    low, high = percentile_range(pixels)
    source = "percentiles 0.5 to 99.5 of the image"
    if high <= low:
        low, high = float(pixels.min()), float(pixels.max())
        source = "whole range of the image"
    if high <= low:
        return GreyCurve.identity("as stored")
    ends = np.array([0, 1], dtype=np.float32)
    return GreyCurve(np.array([low, high], dtype=np.float32), ends, source)


def percentile_range(pixels: NDArray[np.float32]) -> tuple[float, float]:
    """0.5th and 99.5th percentile of an image."""
    # As NumPy gives them: a Python float would take the precision out of what is computed with it.
    low, high = np.percentile(pixels, (0.5, 99.5))
    return low, high


def window_range(centre: float, width: float) -> tuple[float, float]:
    """Values that display black and white under a window, by LINEAR_EXACT.

    Parameters
    ----------
    centre, width : float
        In the units of the values.

    Returns
    -------
    low, high : float

    Examples
    --------
    >>> window_range(40.0, 400.0)
    (-160.0, 240.0)
    """
    return centre - width / 2, centre + width / 2


def to_unit(
    values: ArrayLike, low: float, high: float, *, inverted: bool = False
) -> NDArray[np.float32]:
    """Map ``[low, high]`` to [0, 1], or to [1, 0], and clip what lies outside.

    Parameters
    ----------
    values : array_like, any shape
    low, high : float
        ``low <= high``. Where they are equal, the map is a step: 0 up to `low`, 1 above.
    inverted : bool
        `high` becomes 0. Counted down from `high`, so that a negative gives the bits of its
        positive, which ``1 - to_unit`` does not.

    Returns
    -------
    ndarray float32 in [0, 1], shape of `values`
    """
    # float64 inside: (v - low) loses the last bits of a 16-bit value in float32
    array = np.asarray(values, dtype=np.float64)
    if low == high:
        step: NDArray[np.float32] = ((array > low) != inverted).astype(np.float32)
        return step
    part = high - array if inverted else array - low
    return np.clip(part / (high - low), 0.0, 1.0).astype(np.float32)


def luminance(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Brightness ``0.299 R + 0.587 G + 0.114 B`` of colours (..., 3) in [0, 1]: (...) float32."""
    # Of equal channels exactly the channel: the weights add up to 1 but for rounding.
    grey: NDArray[np.float32] = np.clip(rgb @ np.asarray(_RED_GREEN_BLUE), 0, 1).astype(np.float32)
    return grey
