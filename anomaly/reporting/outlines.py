"""Outlines of the regions of an evidence map, as closed polygons along pixel edges.

A point is (column, row), measured from the top left corner of the first pixel, so pixel (r, c)
spans [c, c + 1] x [r, r + 1]. DICOM uses the same coordinates in SCOORD (PS3.3 C.18.6.1.2) and in
graphics with PIXEL units (PS3.3 C.10.5), although it numbers pixels from 1.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.errors import AnomalyError
from anomaly.regions import label_regions
from anomaly.types import Region

__all__ = ["MAX_POINTS", "outlines", "region_outlines"]

MAX_POINTS = 8000
"""Maximum points of an outline: 16-bit lengths (PS3.5 7.1.2) allow at most 8191 float pairs."""

_Corner = tuple[int, int]


def region_outlines(
    evidence: NDArray[np.float32], threshold: float, regions: tuple[Region, ...]
) -> list[list[NDArray[np.float64]]]:
    """Find the pixels of each region and return its outlines.

    Parameters
    ----------
    evidence : ndarray (H, W) float32
    threshold : float
        Threshold with which the regions were found; they are 8-connected.
    regions : tuple of Region

    Returns
    -------
    list of list of ndarray (n, 2) float64
        `outlines` of each region, in the order of `regions`.

    Raises
    ------
    AnomalyError
        A region does not belong to this evidence at this threshold.
    """
    labels, count = label_regions(evidence, threshold)
    index = np.arange(1, count + 1)
    areas = ndimage.sum_labels(labels > 0, labels, index)
    centres = np.reshape(ndimage.center_of_mass(labels > 0, labels, index), (-1, 2))
    boxes = ndimage.find_objects(labels)
    traced = []
    for region in regions:
        distance = np.abs(centres - (region.row, region.column)).max(axis=1)
        # A ring and a region inside it have the same centre but different areas.
        match = np.flatnonzero((areas == region.area) & (distance < 1e-3))
        if not match.size:
            raise AnomalyError(
                f"no place of {region.area} pixels around row {region.row:.1f}, column "
                f"{region.column:.1f} has evidence >= {threshold:g}: expected the regions of this "
                "evidence at this threshold, in the geometry of the stored pixels"
            )
        label = int(match[0])
        rows, columns = boxes[label]
        corner = np.array([columns.start, rows.start])
        traced.append([loop + corner for loop in outlines(labels[rows, columns] == index[label])])
    return traced


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Trace the edges of one connected region: the outer edge first, then its holes.

    Parameters
    ----------
    mask : ndarray (H, W) bool
        One 8-connected region.

    Returns
    -------
    list of ndarray (n, 2) float64
        (column, row) of the corners, with the first repeated at the end. If there are more than
        `MAX_POINTS` corners, they are subsampled evenly, so that n <= `MAX_POINTS` + 1.
    """
    onward = _directed_edges(mask)
    loops = []
    # Start from the left: a loop passes its leftmost corner once. If two loops share this corner,
    # it is the start of both.
    for start in sorted(onward):
        while start in onward:
            loops.append(_thinned(_walk(onward, start)))
    return sorted(loops, key=_area, reverse=True)


def _directed_edges(mask: NDArray[np.bool_]) -> dict[_Corner, list[_Corner]]:
    """Directed edges between inside and outside pixels, with the inside on the right."""
    walled = np.pad(mask, 1)
    inside = walled[1:-1, 1:-1]
    onward: dict[_Corner, list[_Corner]] = defaultdict(list)
    sides = (
        (walled[:-2, 1:-1], (0, 0), (1, 0)),  # outside above: along the top, to the right
        (walled[1:-1, 2:], (1, 0), (1, 1)),  # outside right: down the right side
        (walled[2:, 1:-1], (1, 1), (0, 1)),
        (walled[1:-1, :-2], (0, 1), (0, 0)),
    )
    for neighbour, (x0, y0), (x1, y1) in sides:
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            onward[column + x0, row + y0].append((column + x1, row + y1))
    return onward


def _walk(onward: dict[_Corner, list[_Corner]], start: _Corner) -> list[_Corner]:
    """Remove the edges of one loop from `onward`; return its corners, without collinear points."""
    corners, here, heading = [], start, (0, 0)
    while here in onward:
        ways = onward[here]
        # If two pixels touch at a corner, turning left continues along the other pixel.
        left = (here[0] + heading[1], here[1] - heading[0])
        step = ways.pop(ways.index(left) if left in ways else 0)
        if not ways:
            del onward[here]
        direction = (step[0] - here[0], step[1] - here[1])
        if direction != heading:
            corners.append(here)
        here, heading = step, direction
    return [*corners, corners[0]]


def _thinned(corners: list[_Corner]) -> NDArray[np.float64]:
    every = -(-(len(corners) - 1) // MAX_POINTS)
    return np.array([*corners[:-1:every], corners[-1]], dtype=np.float64)


def _area(loop: NDArray[np.float64]) -> float:
    x, y = loop.T
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
