"""Geometry of a DICOM image: pixel size, orientation, display shutter.

Images are displayed by the radiological convention: in a frontal or axial image the patient's left
is on the right, and the feet or the back are below. If the tags state that pixels are stored
otherwise, `Orientation` rotates them; without tags they stay as stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import Dataset

from anomaly.dicom.tags import functional_group, is_there, numbers, text, value_of
from anomaly.types import Orientation, SpacingSource

__all__ = [
    "direction_letters",
    "open_to_view",
    "orientation",
    "shutter_tags",
    "spacing",
    "unreadable_tags",
]

# Letters of PatientOrientation (PS3.3 C.7.6.1.1.1), and the axis of each.
_AXES = {"L": "x", "R": "x", "P": "y", "A": "y", "H": "z", "F": "z"}
# Of ImageOrientationPatient (PS3.3 C.7.6.2.1.1): x grows to the left, y to the back, z to the head.
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))

_STRAIGHT = 1e-4  # a smaller cosine is rounding, not an angle


def spacing(dataset: Dataset, index: int) -> tuple[tuple[float, float] | None, SpacingSource]:
    """Height and width of a stored pixel in mm, and the attributes they come from.

    Parameters
    ----------
    dataset : Dataset
    index : int
        Frame, from 0.

    Returns
    -------
    (height, width), source
        ``None, "none"`` if the object does not state it. ImagerPixelSpacing refers to the detector
        plane; it is divided by EstimatedRadiographicMagnificationFactor if that is given.
    """
    measures = functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    if pair := _positive_pair(measures, "PixelSpacing"):
        return pair, "PixelSpacing"
    pair = _positive_pair(dataset, "ImagerPixelSpacing")
    if pair is None:
        return None, "none"
    factor = _magnification(dataset, "EstimatedRadiographicMagnificationFactor")
    if factor is None:
        return pair, "ImagerPixelSpacing"
    return (pair[0] / factor, pair[1] / factor), "ImagerPixelSpacing / magnification"


def _magnification(dataset: Dataset, keyword: str) -> float | None:
    factor = numbers(dataset, keyword, 1)
    return factor[0] if factor is not None and math.isfinite(factor[0]) and factor[0] > 0 else None


def _cosines(plane: Dataset, keyword: str) -> tuple[float, ...] | None:
    cosines = numbers(plane, keyword, 6)
    return cosines if cosines is not None and all(map(math.isfinite, cosines)) else None


def _positive_pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    values = numbers(dataset, keyword, 2)
    if values is None or not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return values[0], values[1]


def orientation(dataset: Dataset, index: int) -> Orientation:
    """Rotation and mirroring that show the stored pixels of a frame upright.

    ImageOrientationPatient decides, or PatientOrientation if it is absent. Pixels stay as stored if
    both are absent or contradictory, and in mammography, whose convention depends on
    laterality. A lateral radiograph is set upright but never mirrored: whether the front is on the
    left depends on the side from which it was taken.

    Parameters
    ----------
    dataset : Dataset
    index : int
        Frame, from 0.
    """
    if text(dataset, "Modality") == "MG":
        return Orientation()
    plane = functional_group(dataset, index, "PlaneOrientationSequence") or dataset
    cosines = _cosines(plane, "ImageOrientationPatient")
    along_row, along_column = (
        _directions(dataset)
        if cosines is None
        else (direction_letters(cosines[:3])[:1], direction_letters(cosines[3:])[:1])
    )
    transposed = f"{_AXES.get(along_row, '')}{_AXES.get(along_column, '')}" in ("yx", "zx", "zy")
    if transposed:
        along_row, along_column = along_column, along_row
    axes = f"{_AXES.get(along_row, '')}{_AXES.get(along_column, '')}"
    if axes not in ("xy", "xz", "yz"):
        return Orientation()
    wrong = {"xy": "RA", "xz": "RH", "yz": "AH" if cosines is not None else "H"}[axes]
    return Orientation(transposed, along_column in wrong[-1:], along_row in wrong[:-1])


def _directions(dataset: Dataset) -> tuple[str, str]:
    """First letters of PatientOrientation: direction of the rows, and of the columns."""
    value = value_of(dataset, "PatientOrientation")
    if value is None or isinstance(value, str) or len(value) != 2:
        return "", ""
    return str(value[0])[:1], str(value[1])[:1]


def direction_letters(cosines: Sequence[float]) -> str:
    """Letters of the sides of the patient that a direction leads to, the main one first.

    Parameters
    ----------
    cosines : sequence of 3 floats
        Of one direction of ImageOrientationPatient.

    Returns
    -------
    str
        As PatientOrientation writes it (PS3.3 C.7.6.1.1.1); empty where all cosines are 0.

    Examples
    --------
    >>> direction_letters([0.8, 0.0, -0.6])
    'LF'
    """
    axes = sorted(zip(cosines, _LETTERS, strict=True), key=lambda axis: -abs(axis[0]))
    return "".join(sides[cosine > 0] for cosine, sides in axes if abs(cosine) > _STRAIGHT)


def unreadable_tags(dataset: Dataset, index: int) -> tuple[str, ...]:
    """Remarks on geometry tags with values of the wrong type or out of range.

    Such a tag is treated as absent, because pixels can be scored without spacing.
    """
    measures = functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    plane = functional_group(dataset, index, "PlaneOrientationSequence") or dataset
    remarks = []
    for holder, keyword, usable in (
        (measures, "PixelSpacing", _positive_pair),
        (dataset, "ImagerPixelSpacing", _positive_pair),
        (dataset, "EstimatedRadiographicMagnificationFactor", _magnification),
        (plane, "ImageOrientationPatient", _cosines),
    ):
        if is_there(holder, keyword) and usable(holder, keyword) is None:
            remarks.append(f"{keyword} not used: its value is out of range or no number")
    return tuple(remarks)


def open_to_view(dataset: Dataset, index: int) -> tuple[NDArray[np.bool_] | None, tuple[str, ...]]:
    """Mask ``(Rows, Columns)`` of the pixels that no display shutter covers, and remarks.

    The mask is None if there is no shutter. A shutter of unknown shape, without its edges
    (PS3.3 C.7.6.11) or with edges that would cover everything is ignored, with a remark.
    """
    shutter = functional_group(dataset, index, "FrameDisplayShutterSequence") or dataset
    shapes = value_of(shutter, "ShutterShape")
    if not shapes:
        return None, ()
    size = int(dataset.Rows), int(dataset.Columns)
    visible: NDArray[np.bool_] | None = None
    remarks = []
    for shape in [shapes] if isinstance(shapes, str) else shapes:
        hole = _hole(shutter, str(shape), size)
        if hole is None:
            remarks.append(f"display shutter {shape!r} not used: {_shutter_fault(str(shape))}")
        elif not hole.any():
            remarks.append(f"display shutter {shape!r} not used: it leaves nothing open")
        else:
            visible = hole if visible is None else visible & hole
    if visible is not None and not visible.any():
        return None, (*remarks, "display shutters not used: together they leave nothing open")
    return visible, tuple(remarks)


def shutter_tags(header: Dataset) -> Dataset:
    """Elements of the usable display shutters of a single-frame image, with black as cover."""
    elements = Dataset()
    shapes = value_of(header, "ShutterShape") or []
    size = int(header.Rows), int(header.Columns)
    used = []
    for shape in map(str, [shapes] if isinstance(shapes, str) else shapes):
        hole = _hole(header, shape, size)
        if hole is not None and hole.any():
            used.append(shape)
            for keyword in _SHUTTERS[shape]:
                elements.add(header[keyword])
    if used:
        elements.ShutterShape = used
        elements.ShutterPresentationValue = 0
    return elements


_SHUTTERS = {
    "RECTANGULAR": (
        *("ShutterLeftVerticalEdge", "ShutterRightVerticalEdge"),
        *("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge"),
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}
"""Keywords of a shutter's elements, by shape (PS3.3 C.7.6.11)."""


def _shutter_fault(shape: str) -> str:
    known = shape in _SHUTTERS
    return "its edges are missing" if known else f"expected {', '.join(_SHUTTERS)}"


def _hole(dataset: Dataset, shape: str, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Mask of the pixels that one shutter leaves open; positions start at 1 (PS3.3 C.7.6.11)."""
    rows, columns = np.ogrid[1 : size[0] + 1, 1 : size[1] + 1]
    if shape == "RECTANGULAR":
        top = numbers(dataset, "ShutterUpperHorizontalEdge", 1)
        bottom = numbers(dataset, "ShutterLowerHorizontalEdge", 1)
        left = numbers(dataset, "ShutterLeftVerticalEdge", 1)
        right = numbers(dataset, "ShutterRightVerticalEdge", 1)
        if top is None or bottom is None or left is None or right is None:
            return None
        rectangle: NDArray[np.bool_] = (
            (rows >= top[0]) & (rows <= bottom[0]) & (columns >= left[0]) & (columns <= right[0])
        )
        return rectangle
    if shape == "CIRCULAR":
        centre = numbers(dataset, "CenterOfCircularShutter", 2)
        radius = numbers(dataset, "RadiusOfCircularShutter", 1)
        if centre is None or radius is None:
            return None
        squares = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2
        circle: NDArray[np.bool_] = squares <= radius[0] ** 2
        return circle
    corners = numbers(dataset, "VerticesOfThePolygonalShutter")
    if shape != "POLYGONAL" or corners is None or len(corners) < 6 or len(corners) % 2:
        return None
    drawing = Image.new("1", size[::-1])
    points = [(corners[k + 1] - 1, corners[k] - 1) for k in range(0, len(corners), 2)]
    ImageDraw.Draw(drawing).polygon(points, fill=1, outline=1)
    return np.asarray(drawing, dtype=bool)
