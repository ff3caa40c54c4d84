"""The pictures of a scan: image, evidence overlay with outlines, and images for comparison.

Display images are shrunk to at most 512 pixels on the long side: the image by area averaging, the
evidence by block maxima, so that small peaks are preserved. If the image must not be shown, no map
is drawn either, because burned-in text can be legible in the evidence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.reporting.html.cases import ReportCase, ReportData
from anomaly.reporting.html.pictures import Pictures
from anomaly.reporting.html.rows import Figure
from anomaly.reporting.plots.figures import (
    contour_path,
    overlay_rgba,
    shrink_max,
    shrink_mean,
    spread_rgba,
)
from anomaly.types import Region

__all__ = ["figure_of"]

_LONGEST_SIDE = 512


def figure_of(case: ReportCase, data: ReportData, pictures: Pictures) -> Figure | None:
    """Store the pictures of a case and return their figure; None if its image is not shown."""
    if case.image is None:
        return None
    verdict, key = case.verdict, case.verdict.scan.key
    image = shrink_mean(case.image, _LONGEST_SIDE)
    height, width = image.shape

    def beside(what: str, picture: NDArray[np.float32] | None) -> str | None:
        if picture is None:
            return None
        return pictures.place(key, what, _grey(shrink_mean(picture, _LONGEST_SIDE)))

    address = pictures.place(key, "image", _grey(image))
    expected = beside("expected", case.expected)
    look_alike = beside("look-alike", case.look_alike)
    overlay, contour = None, ""
    labels: tuple[tuple[float, float], ...] = ()
    if verdict.scan.evidence is not None:
        evidence = shrink_max(verdict.scan.evidence, _LONGEST_SIDE)
        rgba = overlay_rgba(evidence, data.evidence_threshold, data.evidence_ceiling)
        overlay = pictures.place(key, "evidence", rgba)
        contour = contour_path(evidence >= data.evidence_threshold)
        labels = tuple(
            _label(region, case.image.shape, width, height) for region in verdict.regions
        )
    spread = None
    if verdict.spread is not None:
        blue = spread_rgba(shrink_mean(verdict.spread, _LONGEST_SIDE))
        spread = pictures.place(key, "spread", blue)
    return Figure(
        width, height, address, case.grey, expected, look_alike, overlay, spread, contour, labels
    )


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _label(region: Region, source: tuple[int, ...], width: int, height: int) -> tuple[float, float]:
    """Position of a region's number: beside the region, so that it does not hide a small one.

    In display pixels, from the left and from the top.
    """
    rows, columns = source
    radius = (region.area / np.pi) ** 0.5
    number = max(width, height) / 20  # space for two digits at the font size of the page
    right = (region.column + 1.2 * radius + 0.5) * width / columns + 6
    left = (region.column - 1.2 * radius + 0.5) * width / columns - 6 - number
    down = (region.row + 0.5) * height / rows
    return (
        round(right if right + number <= width else max(0.0, left), 1),
        round(min(max(down, number / 2), height - number / 2), 1),
    )
