"""Regions of an evidence map: connected areas at or above a threshold.

::

    region = connected area (8 neighbours) of pixels with evidence >= threshold

The detector's verdict, the pages and the DICOM objects all take regions from here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.types import Region

__all__ = ["find_regions", "label_regions"]


def label_regions(evidence: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.int32], int]:
    """Return the number of the region of every pixel, and how many regions there are.

    Parameters
    ----------
    evidence : ndarray (H, W)
    threshold : float

    Returns
    -------
    labels : ndarray (H, W) int32
        0 outside of regions; regions count from 1.
    count : int

    Examples
    --------
    >>> labels, count = label_regions(np.array([[5, 0, 0], [0, 5, 0], [0, 0, 0], [0, 0, 7]]), 5)
    >>> count
    2
    """
    labels, count = ndimage.label(evidence >= threshold, structure=np.ones((3, 3)))
    return labels, int(count)


def find_regions(
    evidence: NDArray[np.float32], threshold: float, spacing: tuple[float, float] | None
) -> tuple[Region, ...]:
    """Return the regions of an evidence map, the one with the highest peak first.

    Parameters
    ----------
    evidence : ndarray (H, W), in source geometry
    threshold : float
    spacing : tuple of float or None
        Height and width of a pixel in mm.
    """
    labels, count = label_regions(evidence, threshold)
    if not count:
        return ()
    index = range(1, count + 1)
    centres = ndimage.center_of_mass(labels > 0, labels, index)
    areas = ndimage.sum_labels(labels > 0, labels, index)
    peaks = ndimage.maximum(evidence, labels, index)
    pixel = spacing[0] * spacing[1] if spacing is not None else None
    regions = [
        Region(float(row), float(column), int(area), pixel and float(area) * pixel, float(peak))
        for (row, column), area, peak in zip(centres, areas, peaks, strict=True)
    ]
    return tuple(sorted(regions, key=lambda region: -region.peak))
