"""Where the pixels of a DICOM image lie: their size, which way up they are, what a shutter hides.

An image is shown as radiologists look at it: of a frontal or axial image the patient's left is on
the right, the feet or the back are below. Where the tags say that pixels are stored another way
round, `Orientation` turns them; what the tags leave open stays as it is stored.
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

# Letters of PatientOrientation (PS3.3 C.7.6.1.1.1), and the axis that each lies on.
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
        ``None, "none"`` where the object does not say. ImagerPixelSpacing lies in the plane of the
        detector; where EstimatedRadiographicMagnificationFactor is given it is divided by it.
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
    """How the stored pixels of a frame have to be turned to be shown upright.

    ImageOrientationPatient decides, and PatientOrientation where there is none. Nothing is turned
    where they are absent or contradict themselves, nor in mammography, whose own convention goes by
    laterality. A lateral radiograph is set upright and never mirrored: whether the front is on the
    left depends on the side it was taken from.

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
    """First letters of PatientOrientation: where a row leads to, and where a column does."""
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
    """Remarks on tags of size and direction whose values are not of their type, or out of range.

    Such a tag counts as absent: pixels need no spacing to be judged.
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
    """Pixels ``(Rows, Columns)`` of a frame that no display shutter covers, and remarks.

    None where there is no shutter. One of unknown shape, without the edges that belong to it
    (PS3.3 C.7.6.11) or with edges that leave nothing open covers nothing, and a remark says so.
    """
    shutter = functional_group(dataset, index, "FrameDisplayShutterSequence") or dataset
    shapes = value_of(shutter, "ShutterShape")
    if not shapes:
        return None, ()
    size = int(dataset.Rows), int(dataset.Columns)
    seen: NDArray[np.bool_] | None = None
    remarks = []
    for shape in [shapes] if isinstance(shapes, str) else shapes:
        hole = _hole(shutter, str(shape), size)
        if hole is None:
            remarks.append(f"display shutter {shape!r} not used: {_why_not(str(shape))}")
        elif not hole.any():
            remarks.append(f"display shutter {shape!r} not used: it leaves nothing open")
        else:
            seen = hole if seen is None else seen & hole
    if seen is not None and not seen.any():
        return None, (*remarks, "display shutters not used: together they leave nothing open")
    return seen, tuple(remarks)


def shutter_tags(header: Dataset) -> Dataset:
    """Elements of the display shutters of a single image that are used, covered black."""
    made = Dataset()
    shapes = value_of(header, "ShutterShape") or []
    size = int(header.Rows), int(header.Columns)
    used = []
    for shape in map(str, [shapes] if isinstance(shapes, str) else shapes):
        hole = _hole(header, shape, size)
        if hole is not None and hole.any():
            used.append(shape)
            for keyword in _SHUTTERS[shape]:
                made.add(header[keyword])
    if used:
        made.ShutterShape = used
        made.ShutterPresentationValue = 0
    return made


_SHUTTERS = {
    "RECTANGULAR": (
        *("ShutterLeftVerticalEdge", "ShutterRightVerticalEdge"),
        *("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge"),
    ),
    "CIRCULAR": ("CenterOfCircularShutter", "RadiusOfCircularShutter"),
    "POLYGONAL": ("VerticesOfThePolygonalShutter",),
}
"""Elements of a shutter, by its shape (PS3.3 C.7.6.11)."""


def _why_not(shape: str) -> str:
    missing = shape in _SHUTTERS
    return "its edges are missing" if missing else f"expected {', '.join(_SHUTTERS)}"


def _hole(dataset: Dataset, shape: str, size: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return what one shutter leaves open; its positions count from 1 (PS3.3 C.7.6.11)."""
    rows, columns = np.ogrid[1 : size[0] + 1, 1 : size[1] + 1]
    if shape == "RECTANGULAR":
        edges = [
            numbers(dataset, f"Shutter{edge}Edge", 1)
            for edge in ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        ]
        if any(edge is None for edge in edges):
            return None
        top, bottom, left, right = (edge[0] for edge in edges if edge is not None)
        open_: NDArray[np.bool_] = (
            (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
        )
        return open_
    if shape == "CIRCULAR":
        centre = numbers(dataset, "CenterOfCircularShutter", 2)
        radius = numbers(dataset, "RadiusOfCircularShutter", 1)
        if centre is None or radius is None:
            return None
        round_: NDArray[np.bool_] = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius[
            0
        ] ** 2
        return round_
    corners = numbers(dataset, "VerticesOfThePolygonalShutter")
    if shape != "POLYGONAL" or corners is None or len(corners) < 6 or len(corners) % 2:
        return None
    drawing = Image.new("1", size[::-1])
    points = [(corners[k + 1] - 1, corners[k] - 1) for k in range(0, len(corners), 2)]
    ImageDraw.Draw(drawing).polygon(points, fill=1, outline=1)
    return np.asarray(drawing, dtype=bool)
