"""The only reader of DICOM tags.

Stored values become grey in the order of the standard (PS3.4 N.2)::

    stored bits -> modality LUT or rescale -> window or VOI LUT -> [0, 1] -> inversion

Each arrow maps a *range* as well as the values, and scaling and inversion use the range, never
the extremes of one image. MONOCHROME1 is inverted here and nowhere else. Only kinds that have
been tested are read; the rest raise `UnsupportedScan` with a short reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom import misc as pydicom_misc
from pydicom import uid as uids
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length, pixel_array

from anomaly.data.frames import Frames, check_size, check_varied, decoding
from anomaly.data.intensity import IntensityPolicy, to_unit, window_range
from anomaly.errors import ScanError, UnreadableScan, UnsupportedScan
from anomaly.types import Scan, ScanIdentity, SpacingSource

__all__ = [
    "IntensityPolicy",
    "decodable_transfer_syntaxes",
    "is_dicom",
    "open_dicom",
    "read_dicom",
]

_IMAGE_CLASSES = frozenset(
    {
        uids.ComputedRadiographyImageStorage,
        uids.DigitalXRayImageStorageForPresentation,
        uids.DigitalXRayImageStorageForProcessing,
        uids.DigitalMammographyXRayImageStorageForPresentation,
        uids.DigitalMammographyXRayImageStorageForProcessing,
        uids.CTImageStorage,
        uids.EnhancedCTImageStorage,
        uids.LegacyConvertedEnhancedCTImageStorage,
        uids.MRImageStorage,
        uids.EnhancedMRImageStorage,
        uids.LegacyConvertedEnhancedMRImageStorage,
        uids.XRayRadiofluoroscopicImageStorage,
        uids.XRayAngiographicImageStorage,
        uids.SecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    }
)
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


class _Graded(NamedTuple):
    """Values on their way to grey, the range they may span, and how they came here."""

    values: NDArray[Any]
    low: float
    high: float
    steps: tuple[str, ...]


def is_dicom(path: Path) -> bool:
    """Say whether a file is DICOM by its content: ``DICM`` after a preamble of 128 bytes.

    Files without that preamble, which the standard does not allow in exchange, are not taken for
    DICOM: guessing would also take in files that merely resemble it.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    return pydicom_misc.is_dicom(path)


def read_dicom(path: Path, policy: IntensityPolicy) -> list[Scan | ScanError]:
    """Read every frame of a DICOM file; see `open_dicom`.

    Returns
    -------
    list of Scan or ScanError
        One entry a frame; an error stands where a frame cannot be used.
    """
    return list(open_dicom(path, policy))


def open_dicom(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a DICOM image, check everything that its header can tell, and decode nothing yet.

    Parameters
    ----------
    path : Path
    policy : IntensityPolicy

    Returns
    -------
    Frames
        Each decodes to a `Scan`, pixels ``(Rows, Columns)`` float32 in [0, 1], 0 = black; pixels
        that PixelPaddingValue marks are 0. `Scan.levels` is ``2 ** BitsStored`` under every
        policy.

    Raises
    ------
    UnreadableScan
        ``"not dicom"``, ``"no transfer syntax"``, ``"no pixel data"``, ``"truncated"``,
        ``"no decoder"``, ``"undecodable"``, ``"unreadable"``.
    UnsupportedScan
        ``"not an image"``, ``"sop class"``, ``"colour"``, ``"photometric"``, ``"bit depth"``,
        ``"too large"``, ``"empty"``; of a frame also ``"out of range"``, ``"constant"``,
        ``"rescale"``, ``"window"``, ``"lut"``.
    """
    with decoding(path) as warned:
        if not is_dicom(path):
            raise UnreadableScan(
                "not dicom", f"{path} is not DICOM: bytes 128 to 131 are not 'DICM'."
            )
        dataset = dcmread(path)
        # pydicom goes on with what it has where a file ends early, and only warns
        ends = [str(warning.message) for warning in warned if "nd of file" in str(warning.message)]
        if ends:
            raise UnreadableScan("truncated", f"{path} is cut off ({ends[0]}); copy it again.")
        _check_transfer_syntax(path, dataset)
        _check_class(path, dataset)
        _check_pixel_module(path, dataset)
        count = max(int(dataset.get("NumberOfFrames", None) or 1), 1)
        check_size(path, int(dataset.Rows), int(dataset.Columns), count)
        _check_decodable(path, dataset)
    return Frames(count, partial(_read_frame, path, dataset, policy), path)


def decodable_transfer_syntaxes() -> dict[str, list[str]]:
    """List the transfer syntaxes that pydicom knows, with the installed decoders of each.

    Returns
    -------
    dict of str to list of str
        Name of the transfer syntax -> names of plugins; an empty list means that such files
        cannot be decoded here.
    """
    return {uid.name: _decoders(uid) for uid in uids.AllTransferSyntaxes}


def _decoders(transfer_syntax: uids.UID) -> list[str]:
    if transfer_syntax in uids.UncompressedTransferSyntaxes:
        return ["numpy"]
    try:
        return list(get_decoder(transfer_syntax).available_plugins)
    except NotImplementedError:
        return []


# --- what the header can tell -----------------------------------------------------------------


def _check_transfer_syntax(path: Path, dataset: FileDataset) -> None:
    if not dataset.file_meta.get("TransferSyntaxUID"):
        raise UnreadableScan(
            "no transfer syntax",
            f"{path} has no TransferSyntaxUID (0002,0010), so the coding of its pixels is unknown; "
            "export it again.",
        )


def _check_class(path: Path, dataset: Dataset) -> None:
    sop_class = uids.UID(_text(dataset, "SOPClassUID"))
    if sop_class not in _IMAGE_CLASSES:
        has_pixels = any(keyword in dataset for keyword in _PIXEL_KEYWORDS)
        raise UnsupportedScan(
            "sop class" if has_pixels else "not an image",
            f"{path} has SOP class {sop_class.name or 'none'!r}; expected a grey-scale radiograph, "
            "CT, MR, fluoroscopy, angiography or secondary capture.",
        )
    if "PixelData" not in dataset:
        raise UnreadableScan(
            "no pixel data", f"{path} is a {sop_class.name} without PixelData (7FE0,0010)."
        )


def _check_pixel_module(path: Path, dataset: Dataset) -> None:
    samples = int(dataset.get("SamplesPerPixel", 1))
    photometric = _text(dataset, "PhotometricInterpretation")
    if samples != 1 or photometric.startswith(("RGB", "YBR", "PALETTE")):
        raise UnsupportedScan(
            "colour",
            f"{path} is {photometric} with {samples} sample(s) per pixel; expected grey.",
        )
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsupportedScan(
            "photometric",
            f"{path} has PhotometricInterpretation {photometric!r}; expected MONOCHROME1 or "
            "MONOCHROME2.",
        )
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", stored - 1))
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise UnsupportedScan(
            "bit depth",
            f"{path} has BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}; expected "
            "8 or 16 allocated, 1 to that many stored, and HighBit = BitsStored - 1.",
        )


def _check_decodable(path: Path, dataset: FileDataset) -> None:
    transfer_syntax = dataset.file_meta.TransferSyntaxUID
    plugins = _decoders(transfer_syntax)
    # pillow and gdcm list JPEG Extended but decode its 8-bit form only
    if transfer_syntax == uids.JPEGExtended12Bit and int(dataset.BitsStored) > 8:
        plugins = [plugin for plugin in plugins if plugin == "pylibjpeg"]
    if not plugins:
        raise UnreadableScan(
            "no decoder",
            f"{path} is coded as {transfer_syntax.name} with {dataset.BitsStored} bits, for which "
            "no decoder is installed; `anomaly doctor` lists those that are.",
        )
    if transfer_syntax.is_encapsulated:
        return
    actual, expected = len(dataset.PixelData), get_expected_length(dataset)
    if actual < expected:
        raise UnreadableScan(
            "truncated",
            f"{path} has {actual} bytes of pixel data; its header implies {expected}. "
            "Copy it again.",
        )


# --- one frame --------------------------------------------------------------------------------


def _read_frame(path: Path, dataset: FileDataset, policy: IntensityPolicy, index: int) -> Scan:
    with decoding(path):
        stored, padding = _stored_values(path, dataset, index)
        rescaled = _apply_modality(path, dataset, index, stored)
        pixels, steps = _apply_voi(path, dataset, index, rescaled, policy)
        photometric = _text(dataset, "PhotometricInterpretation")
        if photometric == "MONOCHROME1" or _text(dataset, "PresentationLUTShape") == "INVERSE":
            pixels, steps = 1 - pixels, (*steps, "inverted")
        check_varied(path, pixels[~padding])
        pixels[padding] = 0
        spacing, source = _spacing(dataset, index)
        return Scan(
            pixels=pixels,
            levels=2 ** int(dataset.BitsStored),
            identity=ScanIdentity(
                patient=_text(dataset, "PatientID"),
                study=_text(dataset, "StudyInstanceUID"),
                series=_text(dataset, "SeriesInstanceUID"),
                instance=_text(dataset, "SOPInstanceUID"),
                frame=index,
            ),
            modality=_text(dataset, "Modality"),
            spacing=spacing,
            spacing_source=source,
            intensity=", ".join(steps) + ".",
            view=_text(dataset, "ViewPosition"),
            laterality=_text(dataset, "ImageLaterality") or _text(dataset, "Laterality"),
            burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES",
            synthetic=_text(dataset, "SyntheticData").upper() == "YES",
        )


def _stored_values(
    path: Path, dataset: FileDataset, index: int
) -> tuple[_Graded, NDArray[np.bool_]]:
    """Decode stored values as the standard reads them, and where PixelPaddingValue marks none.

    The bits above HighBit must be zero or a sign extension. Anything else there, such as an
    overlay of old files, is refused and not masked: the values may be what is wrong.
    """
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0)) == 1
    raw = pixel_array(dataset, index=index, raw=True, correct_unused_bits=False)
    if raw.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise UnreadableScan(
            "undecodable",
            f"{path} decodes to shape {raw.shape}; its header says "
            f"({dataset.Rows}, {dataset.Columns}).",
        )
    allocated = raw.dtype.itemsize * 8
    whole = raw.astype(np.int32)
    used = whole & (2**bits - 1)
    values = np.where(used >= 2 ** (bits - 1), used - 2**bits, used) if signed else used
    valid = (whole == values) | ((whole & (2**allocated - 1)) == used)
    values = np.where(valid, values, whole)
    padding = _padding(dataset, values, allocated, signed)

    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    wrong = values[~valid & ~padding]
    if wrong.size:
        raise UnsupportedScan(
            "out of range",
            f"{path}, frame {index}, holds {wrong.size} value(s) such as {wrong[0]} outside "
            f"[{low}, {high}], the range of BitsStored {bits}.",
        )
    return _Graded(values, low, high, (f"{bits} bits stored",)), padding


def _padding(
    dataset: Dataset, values: NDArray[np.int32], allocated: int, signed: bool
) -> NDArray[np.bool_]:
    first = dataset.get("PixelPaddingValue", None)
    if first is None:
        return np.zeros(values.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit", None)
    ends = [int(first), int(first if last is None else last)]
    if signed:
        # Writers put -2000 as the unsigned 63536 where the VR is ambiguous.
        ends = [(end + 2 ** (allocated - 1)) % 2**allocated - 2 ** (allocated - 1) for end in ends]
    return (values >= min(ends)) & (values <= max(ends))


def _apply_modality(path: Path, dataset: FileDataset, index: int, stored: _Graded) -> _Graded:
    """Modality LUT or rescale (PS3.3 C.11.1), for values and range alike."""
    tables = dataset.get("ModalityLUTSequence", None)
    if tables:
        return _look_up(path, dataset, stored, tables[0], "modality LUT")
    rescale = _functional_group(dataset, index, "PixelValueTransformationSequence") or dataset
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
    return _Graded(stored.values * slope + intercept, ends[0], ends[1], (*stored.steps, step))


def _apply_voi(
    path: Path, dataset: FileDataset, index: int, rescaled: _Graded, policy: IntensityPolicy
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Grey in [0, 1] before inversion, by the policy."""
    if policy.window is not None:
        step = "window {:g} / {:g} as configured".format(*policy.window)
        return to_unit(rescaled.values, *window_range(*policy.window)), (*rescaled.steps, step)
    if policy.voi == "file":
        tables = dataset.get("VOILUTSequence", None)
        if tables:
            seen = _look_up(path, dataset, rescaled, tables[0], "VOI LUT of the file")
            return to_unit(seen.values, seen.low, seen.high), seen.steps
        window = _functional_group(dataset, index, "FrameVOILUTSequence") or dataset
        if window.get("WindowCenter", None) is not None and "WindowWidth" in window:
            return _apply_file_window(path, window, rescaled)
    step = f"full range {rescaled.low:g} to {rescaled.high:g}"
    return to_unit(rescaled.values, rescaled.low, rescaled.high), (*rescaled.steps, step)


def _apply_file_window(
    path: Path, window: Dataset, rescaled: _Graded
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Apply the first window of the file by its VOILUTFunction (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
    centre, width = _first(window.WindowCenter), _first(window.WindowWidth)
    function = _text(window, "VOILUTFunction").upper() or "LINEAR"
    least = 1.0 if function == "LINEAR" else 0.0
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or not (
        math.isfinite(centre) and (width >= 1 if function == "LINEAR" else width > 0)
    ):
        raise UnsupportedScan(
            "window",
            f"{path} has VOILUTFunction {function!r}, WindowCenter {centre} and WindowWidth "
            f"{width}; expected LINEAR, LINEAR_EXACT or SIGMOID and a width of {least:g} or more.",
        )
    steps = (*rescaled.steps, f"window {centre:g} / {width:g} of the file, {function}")
    if function == "SIGMOID":
        # tanh form of 1 / (1 + exp(-4 (x - c) / w)), which cannot overflow
        curve = 0.5 + 0.5 * np.tanh(2 * (rescaled.values - centre) / width)
        return curve.astype(np.float32), steps
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return to_unit(rescaled.values, *window_range(centre, width)), steps


def _look_up(
    path: Path, dataset: FileDataset, graded: _Graded, item: Dataset, name: str
) -> _Graded:
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
    return _Graded(table[place], 0, 2**bits - 1, (*graded.steps, name))


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


# --- tags -------------------------------------------------------------------------------------


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword, None)
    return "" if value is None else str(value).strip()


def _first(value: Any) -> float:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0]
    return float(value)


def _functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Item of an enhanced multi-frame object that applies to one frame, or None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence", None) or []
    shared = dataset.get("SharedFunctionalGroupsSequence", None) or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        items = group.get(keyword, None)
        if items:
            item: Dataset = items[0]
            return item
    return None


def _spacing(dataset: Dataset, index: int) -> tuple[tuple[float, float] | None, SpacingSource]:
    """Height and width of a pixel in mm, and the attribute they come from."""
    measures = _functional_group(dataset, index, "PixelMeasuresSequence") or dataset
    keywords: tuple[SpacingSource, ...] = ("PixelSpacing", "ImagerPixelSpacing")
    for keyword, source in zip(keywords, (measures, dataset), strict=True):
        values = source.get(keyword, None)
        if values is None or isinstance(values, str) or len(values) != 2:
            continue
        height, width = float(values[0]), float(values[1])
        if math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0:
            return (height, width), keyword
    return None, "none"
