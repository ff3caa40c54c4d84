"""NIfTI volumes as frames, one per slice."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from anomaly.data.readers.frames import Frames, check_size
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.raster import FLOAT_LEVELS, check_finite, configured_display, make_scan
from anomaly.errors import Reason, UnsupportedScan
from anomaly.grey import GreyCurve, to_unit, window_range
from anomaly.types import Scan

__all__ = ["open_nifti"]

_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}

_NO_AFFINE = (
    "orientation unknown: the file has neither a usable qform nor sform, so left and right, and "
    "which way is up, are as its axes happen to lie"
)

_COARSE = 256
"""If values exceed this many times their range, float32 is too coarse and float64 is used."""


class _Marks(NamedTuple):
    """Metadata that every slice takes from its volume."""

    spacing: tuple[float, float] | None
    voi: GreyCurve | None
    notes: tuple[str, ...]


class _Grey(NamedTuple):
    """Range and number of grey values of a volume."""

    low: float
    high: float
    levels: int


def open_nifti(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a NIfTI volume; see `open_image`."""
    image = nibabel.load(path)
    shape: tuple[int, ...] = getattr(image, "shape", ())
    # Further axes of length 1, such as a time axis of one volume, do not count.
    if not isinstance(image, Nifti1Image) or len(shape) < 3 or set(shape[3:]) - {1}:
        raise UnsupportedScan(
            Reason.DIMENSIONS, f"{path} has shape {shape}; expected three dimensions."
        )
    header: Any = image.header  # nibabel leaves its headers untyped
    stored = header.get_data_dtype()
    if stored.kind not in "buif":
        raise UnsupportedScan(Reason.COLOUR, f"{path} holds {stored}; expected real numbers.")
    check_size(path, shape[1], shape[0], shape[2])
    affine = _affine(image)
    if not _leads_somewhere(image.affine):
        given = np.eye(4) if affine is None else affine
        image = Nifti1Image(image.dataobj, given, header)  # type: ignore[no-untyped-call]
    volume: Nifti1Image = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]
    values = _values(path, volume)
    low, high = float(values.min()), float(values.max())
    levels = FLOAT_LEVELS
    if stored.kind != "f":
        slope = abs(float(getattr(image.dataobj, "slope", 1.0)))
        levels = min(max(round((high - low) / slope) + 1, 2), FLOAT_LEVELS)
    if policy.window is not None:
        low, high = window_range(*policy.window)
    marks = _Marks(
        _spacing(volume.header),
        configured_display(policy),
        () if affine is not None else (_NO_AFFINE,),
    )
    decode = partial(_slice, path, values, _Grey(low, high, levels), marks)
    return Frames(values.shape[2], decode, path)


def _values(path: Path, volume: Nifti1Image) -> NDArray[np.floating[Any]]:
    """Values of a volume (X, Y, Z), finite; float32 if that is precise enough, else float64."""
    values: NDArray[np.floating[Any]] = np.asarray(volume.dataobj, dtype=np.float32)
    values = values.reshape(volume.shape[:3])
    check_finite(path, values)
    low, high = float(values.min()), float(values.max())
    if max(abs(low), abs(high)) > _COARSE * (high - low):
        values = np.asarray(volume.dataobj, dtype=np.float64).reshape(volume.shape[:3])
    return values


def _affine(image: Nifti1Image) -> NDArray[np.float64] | None:
    """Affine of a volume from its sform, or else its qform; None if neither is usable."""
    header: Any = image.header
    for name in ("sform", "qform"):
        affine = getattr(header, f"get_{name}")(coded=True)[0]
        if affine is not None and _leads_somewhere(affine):
            return np.asarray(affine, dtype=np.float64)
    return None


def _leads_somewhere(affine: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0)


def _slice(
    path: Path, values: NDArray[np.floating[Any]], grey: _Grey, marks: _Marks, index: int
) -> Scan:
    # canonical axes grow to the right, anterior and superior of the patient: (x, y) -> (-y, -x)
    upright = to_unit(values[::-1, ::-1, index].T, grey.low, grey.high)
    intensity = f"Values {grey.low:g} to {grey.high:g} of the volume."
    scan = make_scan(path, index, upright, grey.levels, intensity, marks.spacing)
    return replace(scan, voi=marks.voi, notes=marks.notes)


def _spacing(header: Any) -> tuple[float, float] | None:
    try:
        unit = _MILLIMETRES.get(header.get_xyzt_units()[0])
    except KeyError:  # a code that the format does not define
        unit = None
    width, height = (float(zoom) for zoom in header.get_zooms()[:2])
    if unit is None or not (math.isfinite(width * height) and width > 0 and height > 0):
        return None
    return height * unit, width * unit
