"""Grey in [0, 1], 0 = black: mapping from values to grey, and from grey to displayed grey.

::

    to_unit(v; low, high) = clip((v - low) / (high - low), 0, 1)
    displayed grey        = curve(grey of the scan)                          (`GreyCurve`)

The grey of a scan keeps the full value range of its source, for the detector. On a screen most of
that range can be black, so the curve is applied for display.
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

# Rec. ITU-R BT.601, as in YBR_FULL of JPEG and DICOM (PS3.3 C.7.6.3.1.2).
_RED_GREEN_BLUE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class GreyCurve:
    """Displayed grey as a piecewise linear function of the grey of a scan.

    Attributes
    ----------
    grey : ndarray (K,) in [0, 1], ascending
        Grey of the scan.
    displayed : ndarray (K,) in [0, 1]
        Displayed grey; constant beyond the ends.
    source : str
        Origin of the curve, as a short text for the reader.
    """

    grey: NDArray[np.float32]
    displayed: NDArray[np.float32]
    source: str

    @classmethod
    def identity(cls, source: str) -> GreyCurve:
        """Curve that displays grey unchanged."""
        ends = np.array([0, 1], dtype=np.float32)
        return cls(ends, ends, source)

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the displayed grey of pixels in [0, 1]: float32 in [0, 1], the same shape."""
        return np.interp(pixels, self.grey, self.displayed).astype(np.float32)


def percentile_curve(pixels: NDArray[np.float32]) -> GreyCurve:
    """Curve that maps percentiles 0.5 to 99.5 of an image to black and white.

    Used for images whose source does not define their display. If the two percentiles are equal,
    the curve maps the full range of the image; an image of a single grey stays unchanged.
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
    # Keep the NumPy scalars: with Python floats, later results would have a lower precision.
    low, high = np.percentile(pixels, (0.5, 99.5))
    return low, high


def window_range(centre: float, width: float) -> tuple[float, float]:
    """Values that display black and white under a window (LINEAR_EXACT).

    Parameters
    ----------
    centre, width : float
        In units of the values.

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
    """Map ``[low, high]`` to [0, 1], or to [1, 0], and clip values outside.

    Parameters
    ----------
    values : array_like, any shape
    low, high : float
        ``low <= high``. If they are equal, the map is a step: 0 up to `low`, 1 above.
    inverted : bool
        Map `high` to 0. Computed as ``high - value``, so that a negative gives exactly the bits of
        its positive, which ``1 - to_unit`` does not.

    Returns
    -------
    ndarray float32 in [0, 1], shape of `values`
    """
    # Use float64: in float32, (v - low) loses the last bits of a 16-bit value.
    array = np.asarray(values, dtype=np.float64)
    if low == high:
        step: NDArray[np.float32] = ((array > low) != inverted).astype(np.float32)
        return step
    part = high - array if inverted else array - low
    return np.clip(part / (high - low), 0.0, 1.0).astype(np.float32)


def luminance(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """Brightness ``0.299 R + 0.587 G + 0.114 B`` of colours (..., 3) in [0, 1]: (...) float32."""
    # Equal channels give exactly that channel: the weights add up to 1 except for rounding.
    grey: NDArray[np.float32] = np.clip(rgb @ np.asarray(_RED_GREEN_BLUE), 0, 1).astype(np.float32)
    return grey
