"""From the values of a file to grey in [0, 1], and the policy that chooses the range.

::

    to_unit(v; low, high) = clip((v - low) / (high - low), 0, 1)

Where `low` and `high` come from is the policy: the range that the source *can* hold ("full"), the
display window that the file asks for ("file"), or a fixed window such as a Hounsfield range. The
range never comes from one image's own minimum and maximum, as then the same tissue would have
another grey in every scan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import ConfigError

__all__ = ["IntensityPolicy", "luminance", "to_unit", "window_range"]

# Rec. ITU-R BT.601, of which JPEG's and DICOM's YBR_FULL are made (PS3.3 C.7.6.3.1.2).
_RED_GREEN_BLUE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class IntensityPolicy:
    """How stored values become grey.

    Attributes
    ----------
    voi : {"full", "file"}
        ``"full"``: the range that the stored bits can hold, after the modality LUT maps it; for
        formats that declare no such range (NIfTI, float or signed TIFF), the minimum and maximum
        of the whole volume. ``"file"``: the VOI LUT or window in the file where there is one, else
        full.
    window : tuple of float, or None
        Centre and width in rescaled units (HU for CT). Overrides `voi`: ``centre - width / 2`` is
        black and ``centre + width / 2`` white (LINEAR_EXACT of PS3.3 C.11.2.1.3.2). PNG, JPEG and
        unsigned TIFF have no rescaled units and ignore it.
    colour : {"refuse", "luminance"}
        What to do with a coloured DICOM image: not use it, with the reason ``"colour"``, or take
        its `luminance`.

    Raises
    ------
    ConfigError
        `voi` or `colour` is unknown, or the window is not finite with a width above 0.
    """

    voi: Literal["file", "full"] = "full"
    window: tuple[float, float] | None = None
    colour: Literal["refuse", "luminance"] = "refuse"

    def __post_init__(self) -> None:
        if self.voi not in ("file", "full"):
            raise ConfigError(f"voi is {self.voi!r}; expected 'file' or 'full'.")
        if self.colour not in ("refuse", "luminance"):
            raise ConfigError(f"colour is {self.colour!r}; expected 'refuse' or 'luminance'.")
        if self.window is None:
            return
        if len(self.window) != 2 or not all(math.isfinite(value) for value in self.window):
            raise ConfigError(
                f"window is {self.window!r}; expected two finite numbers: (centre, width)."
            )
        if self.window[1] <= 0:
            raise ConfigError(f"window width is {self.window[1]}; expected a number above 0.")


def window_range(centre: float, width: float) -> tuple[float, float]:
    """Values that display black and white under a window, by LINEAR_EXACT.

    Parameters
    ----------
    centre, width : float
        In the units of the values.

    Returns
    -------
    low, high : float
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
