"""The policy that maps the values of a file to grey in [0, 1].

::

    grey = to_unit(v; low, high)                                              (`anomaly.grey`)

The policy determines `low` and `high`: the range that the source *can* hold ("full"), the display
window in the file ("file"), or a fixed window such as a Hounsfield range. The range is never the
minimum and maximum of one image, because the same tissue would then have a different grey in every
scan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anomaly.errors import ConfigError

__all__ = ["IntensityPolicy"]


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
