"""Conversion of stored values to grey in [0, 1], in the order of the standard (PS3.4 N.2).

::

    stored values -> modality LUT or rescale -> window or VOI LUT -> [0, 1] -> inversion

Each arrow maps a *range* as well as the values (`GradedValues`); scaling and inversion use the
range, never the extremes of one image. Only this module interprets a file's display attributes, for
reading, display and writing: `is_inverted`, `modality_lut`, `file_voi`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.valuerep import DSfloat

from anomaly.dicom.tags import functional_group, is_there, numbers, text, value_of
from anomaly.errors import Reason, UnsupportedScan
from anomaly.grey import GreyCurve, to_unit, window_range

__all__ = [
    "GradedValues",
    "apply_modality",
    "display_curve",
    "file_voi",
    "is_inverted",
    "modality_lut",
    "presentation_grey",
]

_FLUOROSCOPY = frozenset(
    {
        uids.XRayAngiographicImageStorage,
        uids.XRayRadiofluoroscopicImageStorage,
        uids.UID("1.2.840.10008.5.1.4.1.1.12.3"),  # X-Ray Angiographic Bi-plane, retired
    }
)


class GradedValues(NamedTuple):
    """Values during conversion to grey, with their possible range and the steps so far.

    Attributes
    ----------
    values : ndarray
    low, high : float
        Smallest and largest value that the source can represent.
    grades : int
        Number of evenly spaced values that it can represent between the two.
    steps : tuple of str
        Descriptions of the conversions so far.
    """

    values: NDArray[Any]
    low: float
    high: float
    grades: int
    steps: tuple[str, ...]


def is_inverted(header: Dataset) -> bool:
    """Whether the smallest value of an image is displayed white.

    This is so for MONOCHROME1 and for a Presentation LUT Shape of INVERSE. MONOCHROME1 with a shape
    of IDENTITY is contradictory (PS3.3 C.8.11.3.1.2) and treated as inverted.
    """
    inverse = text(header, "PresentationLUTShape").upper() == "INVERSE"
    return inverse or text(header, "PhotometricInterpretation") == "MONOCHROME1"


def modality_lut(header: Dataset) -> Dataset | None:
    """Item of the modality LUT used to display an image; None if there is none.

    In X-ray angiography and fluoroscopy with LOG or DISP pixels the table maps back to linear
    intensity and is not for display (PS3.3 C.8.7.1.1.2).
    """
    tables = value_of(header, "ModalityLUTSequence")
    if not isinstance(tables, Sequence) or not len(tables):
        return None
    relation = text(header, "PixelIntensityRelationship").upper()
    if text(header, "SOPClassUID") in _FLUOROSCOPY and relation in ("LOG", "DISP"):
        return None
    table: Dataset = tables[0]
    return table


def apply_modality(
    path: Path, dataset: FileDataset, index: int, stored: GradedValues
) -> GradedValues:
    """Apply modality LUT or rescale (PS3.3 C.11.1) to values and range.

    Raises
    ------
    UnsupportedScan
        ``"lut"``, ``"rescale"``: the conversion to modality values is broken.
    """
    table = modality_lut(dataset)
    if table is not None:
        fault = _lut_fault(dataset, table)
        if fault:
            raise UnsupportedScan(Reason.LUT, f"{path} has a modality LUT of {fault}.")
        return _look_up(dataset, stored, table, "modality LUT")
    if dataset.get("ModalityLUTSequence", None):
        step = "modality LUT for linear intensity, not for display"
        return stored._replace(steps=(*stored.steps, step))
    rescale = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    if not (is_there(rescale, "RescaleSlope") and is_there(rescale, "RescaleIntercept")):
        return stored
    (slope,) = numbers(rescale, "RescaleSlope", 1) or (math.nan,)
    (intercept,) = numbers(rescale, "RescaleIntercept", 1) or (math.nan,)
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise UnsupportedScan(
            Reason.RESCALE,
            f"{path} has RescaleSlope {slope} and RescaleIntercept {intercept}; expected finite "
            "numbers (one each, with a decimal point) and a slope other than 0.",
        )
    low, high = sorted((stored.low * slope + intercept, stored.high * slope + intercept))
    step = f"rescaled by {slope:g} and {intercept:g}"
    values = stored.values * slope + intercept
    return GradedValues(values, low, high, stored.grades, (*stored.steps, step))


@dataclass(frozen=True)
class FileVOI:
    """Window or VOI LUT of a file (PS3.3 C.11.2), which defines the display of its values.

    Attributes
    ----------
    name : str
        Description for records, such as ``"window 40 / 400 of the file, LINEAR"``.
    dataset : FileDataset
        Its file.
    table : Dataset or None
        Item of the VOI LUT; None for a window.
    window : tuple
        Function, centre and width.
    bits : int
        Bits of the table's entries.
    """

    name: str
    dataset: FileDataset
    table: Dataset | None = None
    window: tuple[str, float, float] = ("LINEAR", 0.0, 1.0)
    bits: int = 0

    def apply(self, graded: GradedValues, *, inverted: bool) -> NDArray[np.float32]:
        """Grey in [0, 1] of rescaled values."""
        if self.table is not None:
            mapped = _look_up(self.dataset, graded, self.table, self.name)
            return to_unit(mapped.values, 0, 2**self.bits - 1, inverted=inverted)
        function, centre, width = self.window
        if function == "SIGMOID":
            # tanh form of 1 / (1 + exp(-4 (x - c) / w)), which cannot overflow
            slope = -2 if inverted else 2
            grey = 0.5 + 0.5 * np.tanh(slope * (graded.values - centre) / width)
            return grey.astype(np.float32)
        if function == "LINEAR":  # PS3.3 C.11.2.1.2.1
            centre, width = centre - 0.5, width - 1
        return to_unit(graded.values, *window_range(centre, width), inverted=inverted)


def file_voi(dataset: FileDataset, index: int) -> tuple[FileVOI | None, tuple[str, ...]]:
    """First usable window or VOI LUT of a frame, or None, and remarks.

    A broken one is treated as absent, with a remark that gives the reason, since a usable window
    may follow a broken table.
    """
    remarks: tuple[str, ...] = ()
    tables = value_of(dataset, "VOILUTSequence")
    for table in tables if isinstance(tables, Sequence) else ():
        fault = _lut_fault(dataset, table)
        name = "VOI LUT of the file"
        if not fault:
            bits, remark = _bits_in_use(dataset, table)
            notes = (f"{name}: {remark}",) if remark else ()
            return FileVOI(name, dataset, table=table, bits=bits), (*remarks, *notes)
        remarks = (*remarks, f"{name} not used: {fault}")
    window = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
    if not (is_there(window, "WindowCenter") and is_there(window, "WindowWidth")):
        return None, remarks
    centres, widths = numbers(window, "WindowCenter"), numbers(window, "WindowWidth")
    if not centres or not widths:
        return None, (*remarks, "window of the file not used: its values are no numbers")
    function = text(window, "VOILUTFunction").upper() or "LINEAR"
    for centre, width in zip(centres, widths, strict=False):
        name = f"window {centre:g} / {width:g} of the file, {function}"
        fault = _window_fault(function, centre, width)
        if not fault:
            return FileVOI(name, dataset, window=(function, centre, width)), remarks
        remarks = (*remarks, f"{name} not used: {fault}")
    return None, remarks


def _window_fault(function: str, centre: float, width: float) -> str:
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return f"VOILUTFunction {function!r}"
    least = 1 if function == "LINEAR" else math.ulp(0.0)
    if math.isfinite(centre) and least <= width < math.inf:
        return ""
    return f"centre {centre:g} and width {width:g}"


def _bits_in_use(dataset: FileDataset, table: Dataset) -> tuple[int, str]:
    """Bits used by the entries of a VOI LUT, and a remark if these are fewer than declared.

    The output range is displayed from black to white, so 10-bit entries declared as 16 bits would
    all be black.
    """
    count, _, declared = _lut_descriptor(table)
    largest = int(_lut_entries(dataset, table, count).max())
    used = max(largest.bit_length(), 1)
    if used > declared - 2:  # a table may well leave out the brightest greys
        return declared, ""
    return used, f"entries up to {largest} where {declared} bits are declared, displayed as {used}"


def display_curve(voi: FileVOI, graded: GradedValues, *, inverted: bool) -> GreyCurve:
    """Curve from grey over the whole range of `graded` to the display that the file defines.

    It is exact at every value that the source can represent.
    """
    values = np.linspace(graded.low, graded.high, graded.grades)
    grey = to_unit(values, graded.low, graded.high, inverted=inverted)
    displayed = voi.apply(graded._replace(values=values), inverted=inverted)
    order = slice(None, None, -1 if inverted else 1)
    return GreyCurve(grey[order], displayed[order], voi.name)


def presentation_grey(header: FileDataset, spread: tuple[float, float] | None = None) -> Dataset:
    """Elements with which a presentation state shows an image as its header does (PS3.3 A.33.1).

    These are the modality LUT or rescale, and the first usable window or VOI LUT. A presentation
    state replaces all of them, even with elements that it omits.

    Parameters
    ----------
    header : FileDataset
    spread : (float, float), optional
        Grey values, in the whole range of the image, that are displayed black and white if the
        header has no usable window or table; they are written as a window.
    """
    state = Dataset()
    bits = int(header.BitsStored)
    signed = int(header.get("PixelRepresentation", 0)) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = GradedValues(np.zeros(0), low, high, 2**bits, ())
    table = modality_lut(header)
    if table is not None:
        state.ModalityLUTSequence = [_portable_lut(header, table, stored)]
        state.ModalityLUTSequence[0].ModalityLUTType = text(table, "ModalityLUTType") or "US"
    elif not is_there(header, "ModalityLUTSequence") and all(
        is_there(header, keyword) for keyword in ("RescaleSlope", "RescaleIntercept")
    ):
        state.RescaleIntercept, state.RescaleSlope = header.RescaleIntercept, header.RescaleSlope
        state.RescaleType = text(header, "RescaleType") or "US"
    rescaled = apply_modality(Path(), header, 0, stored)
    voi, _ = file_voi(header, 0)
    item = Dataset()
    if spread is not None:
        black, white = _values_at(spread, rescaled, inverted=is_inverted(header))
        item.WindowCenter = DSfloat((black + white) / 2, auto_format=True)
        item.WindowWidth = DSfloat(abs(white - black), auto_format=True)
        item.VOILUTFunction = "LINEAR_EXACT"
    elif voi is None:
        return state
    elif voi.table is not None:
        item.VOILUTSequence = [_portable_lut(header, voi.table, rescaled, voi.bits)]
    else:
        function, centre, width = voi.window
        item.WindowCenter, item.WindowWidth = centre, width
        item.VOILUTFunction = function
    state.SoftcopyVOILUTSequence = [item]
    return state


def _values_at(
    grey: tuple[float, float], rescaled: GradedValues, *, inverted: bool
) -> tuple[float, float]:
    """Rescaled values of two grey values in the whole range of an image."""
    ends = [1 - one if inverted else one for one in grey]
    span = rescaled.high - rescaled.low
    return rescaled.low + ends[0] * span, rescaled.low + ends[1] * span


def _portable_lut(
    header: FileDataset, item: Dataset, values: GradedValues, bits: int | None = None
) -> Dataset:
    """Copy of a table with 16-bit little-endian entries and the number of bits in use."""
    count, first, declared = _lut_descriptor(item, values)
    bits = declared if bits is None else bits
    copy = Dataset()
    vr = "SS" if first < 0 else "US"
    copy.add_new("LUTDescriptor", vr, [count % 2**16, first, bits])
    copy.add_new("LUTData", "OW", _lut_entries(header, item, count).astype("<u2").tobytes())
    if text(item, "LUTExplanation"):
        copy.LUTExplanation = text(item, "LUTExplanation")
    return copy


def _look_up(dataset: FileDataset, graded: GradedValues, item: Dataset, name: str) -> GradedValues:
    """Values mapped by a modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1).

    pydicom's function is not used: it indexes in the type of the input or output and so wraps, for
    example with a table of 4096 8-bit entries.
    """
    count, first, bits = _lut_descriptor(item, graded)
    table = _lut_entries(dataset, item, count)
    place = np.clip(np.rint(graded.values) - first, 0, count - 1).astype(np.int64)
    return GradedValues(table[place], 0, 2**bits - 1, 2**bits, (*graded.steps, name))


def _lut_descriptor(item: Dataset, values: GradedValues | None = None) -> tuple[int, int, int]:
    """Return the number of entries, the first value mapped and the bits of an entry."""
    count, first, bits = map(int, item.LUTDescriptor)
    if values is not None:
        # Its VR depends on tags that may follow it, so only the range of the values tells
        # whether the first of them is below zero.
        if values.low < 0 and first >= 2**15:
            first -= 2**16
        elif values.low >= 0 and first < 0:
            first += 2**16
    return count % 2**16 or 2**16, first, bits  # 0 stands for 65536; a signed VR wraps large counts


def _lut_fault(dataset: FileDataset, item: Dataset) -> str:
    """Describe the fault of a table, as ``"4 entries up to 300; ..."``; empty if it is valid."""
    try:
        count, _, bits = _lut_descriptor(item)
        table = _lut_entries(dataset, item, count)
    except (AttributeError, TypeError, ValueError):
        return "no entries: its LUTDescriptor or LUTData is missing or no list of numbers"
    if table.size == count and 1 <= bits <= 16 and table.max() < 2**bits:
        return ""
    return (
        f"{table.size} entries up to {table.max(initial=0)}; its LUTDescriptor says {count} "
        f"entries of {bits} bits"
    )


def _lut_entries(dataset: FileDataset, item: Dataset, count: int) -> NDArray[np.uint16]:
    data = item.LUTData
    if isinstance(data, bytes):
        # pydicom leaves OW as bytes in the byte order of the file
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        words = np.frombuffer(data[: len(data) // 2 * 2], dtype=f"{order}u2")
    else:
        words = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(np.uint16)
    if words.size == (count + 1) // 2 and count > 1:  # two entries of 8 bits a word
        return words.astype("<u2").view(np.uint8)[:count].astype(np.uint16)
    return words.astype(np.uint16)
