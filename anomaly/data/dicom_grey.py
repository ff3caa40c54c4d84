"""From stored values to grey in [0, 1], in the order of the standard (PS3.4 N.2).

::

    stored values -> modality LUT or rescale -> window or VOI LUT -> [0, 1] -> inversion

Each arrow maps a *range* as well as the values (`Graded`); scaling and inversion use the range,
never the extremes of one image. MONOCHROME1 is inverted here and nowhere else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset

from anomaly.data.dicom_tags import first_number, functional_group, text
from anomaly.data.intensity import IntensityPolicy, to_unit, window_range
from anomaly.errors import UnsupportedScan

__all__ = ["Graded", "apply_modality", "apply_voi"]


class Graded(NamedTuple):
    """Values on their way to grey, the range they may span, and how they came here."""

    values: NDArray[Any]
    low: float
    high: float
    steps: tuple[str, ...]


def apply_modality(path: Path, dataset: FileDataset, index: int, stored: Graded) -> Graded:
    """Modality LUT or rescale (PS3.3 C.11.1), for values and range alike."""
    tables = dataset.get("ModalityLUTSequence", None)
    if tables:
        return _look_up(path, dataset, stored, tables[0], "modality LUT")
    rescale = functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
    slope, intercept = rescale.get("RescaleSlope", None), rescale.get("RescaleIntercept", None)
    if slope is None or intercept is None:
        return stored
    slope, intercept = float(slope), float(intercept)
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise UnsupportedScan(
            "rescale",
            f"{path} has RescaleSlope {slope} and RescaleIntercept {intercept}; expected finite "
            "numbers and a slope other than 0.",
        )
    ends = sorted((stored.low * slope + intercept, stored.high * slope + intercept))
    step = f"rescaled by {slope:g} and {intercept:g}"
    return Graded(stored.values * slope + intercept, ends[0], ends[1], (*stored.steps, step))


def apply_voi(
    path: Path,
    dataset: FileDataset,
    index: int,
    rescaled: Graded,
    policy: IntensityPolicy,
    *,
    inverted: bool,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Window or VOI LUT by the policy (PS3.3 C.11.2), then grey in [0, 1], then inversion."""
    last = ("inverted",) if inverted else ()
    if policy.window is not None:
        step = "window {:g} / {:g} as configured".format(*policy.window)
        unit = to_unit(rescaled.values, *window_range(*policy.window), inverted=inverted)
        return unit, (*rescaled.steps, step, *last)
    if policy.voi == "file":
        tables = dataset.get("VOILUTSequence", None)
        if tables:
            seen = _look_up(path, dataset, rescaled, tables[0], "VOI LUT of the file")
            unit = to_unit(seen.values, seen.low, seen.high, inverted=inverted)
            return unit, (*seen.steps, *last)
        window = functional_group(dataset, index, "FrameVOILUTSequence") or dataset
        if window.get("WindowCenter", None) is not None and "WindowWidth" in window:
            unit, step = _file_window(path, window, rescaled.values, inverted)
            return unit, (*rescaled.steps, step, *last)
    step = f"full range {rescaled.low:g} to {rescaled.high:g}"
    unit = to_unit(rescaled.values, rescaled.low, rescaled.high, inverted=inverted)
    return unit, (*rescaled.steps, step, *last)


def _file_window(
    path: Path, window: Dataset, values: NDArray[Any], inverted: bool
) -> tuple[NDArray[np.float32], str]:
    """Apply the first window of the file by its VOILUTFunction (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    centre, width = first_number(window.WindowCenter), first_number(window.WindowWidth)
    function = text(window, "VOILUTFunction").upper() or "LINEAR"
    least = 1.0 if function == "LINEAR" else 0.0
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not (
        math.isfinite(centre) and (width >= 1 if function == "LINEAR" else width > 0)
    ):
        raise UnsupportedScan(
            "window",
            f"{path} has VOILUTFunction {function!r}, WindowCenter {centre} and WindowWidth "
            f"{width}; expected LINEAR, LINEAR_EXACT or SIGMOID and a width of {least:g} or more.",
        )
    step = f"window {centre:g} / {width:g} of the file, {function}"
    if function == "SIGMOID":
        # tanh form of 1 / (1 + exp(-4 (x - c) / w)), which cannot overflow
        slope = -2 if inverted else 2
        return (0.5 + 0.5 * np.tanh(slope * (values - centre) / width)).astype(np.float32), step
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return to_unit(values, *window_range(centre, width), inverted=inverted), step


def _look_up(path: Path, dataset: FileDataset, graded: Graded, item: Dataset, name: str) -> Graded:
    """Values through a modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1).

    Not by pydicom's own, which indexes in the type of the input or output and so wraps, for
    example in a table of 4096 entries of 8 bits.
    """
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count % 2**16 or 2**16  # 0 stands for 65536; a signed VR makes large counts negative
    table = _lut_entries(dataset, item, count)
    if table.size != count or not 1 <= bits <= 16 or table.max() >= 2**bits:
        raise UnsupportedScan(
            "lut",
            f"{path} has a {name} of {table.size} entries up to {table.max(initial=0)}; its "
            f"LUTDescriptor says {count} entries of {bits} bits.",
        )
    place = np.clip(np.rint(graded.values) - first, 0, count - 1).astype(np.int64)
    return Graded(table[place], 0, 2**bits - 1, (*graded.steps, name))


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
