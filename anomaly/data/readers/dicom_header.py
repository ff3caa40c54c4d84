"""Checks of the header of a DICOM image before a pixel is decoded.

Optional tags that are missing or invalid get their default values, in memory only. A missing or
invalid required tag raises an error that names the tag and its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.errors import BytesLengthException

from anomaly.data.readers.dicom_pixels import decoders
from anomaly.data.readers.frames import check_size
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.dicom.frames import (
    frames_present,
    holds_many,
    lay_out_frames,
    native_length,
    stated_frames,
)
from anomaly.dicom.tags import text, value_of, whole_number
from anomaly.errors import Reason, UnreadableScan, UnsupportedScan
from anomaly.types import DETECTOR_MODEL

__all__ = ["IMAGE_CLASSES", "check_header", "is_coloured"]

IMAGE_CLASSES: frozenset[str] = frozenset(
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
        uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
        uids.EnhancedXAImageStorage,
        uids.EnhancedXRFImageStorage,
        uids.BreastTomosynthesisImageStorage,
        uids.DigitalIntraOralXRayImageStorageForPresentation,
        uids.DigitalIntraOralXRayImageStorageForProcessing,
        uids.PositronEmissionTomographyImageStorage,
        uids.NuclearMedicineImageStorage,
        uids.UltrasoundImageStorage,
        uids.UltrasoundMultiFrameImageStorage,
        uids.RTImageStorage,
    }
)
"""SOP classes that can hold a scan; objects of other classes are skipped with a reason."""

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def check_header(path: Path, dataset: FileDataset, policy: IntensityPolicy) -> tuple[int, int]:
    """Return the frames that an object states and those present; complete its header.

    Raises
    ------
    ScanError
        The errors of `open_dicom` that can be detected from the header.
    """
    if not _knows_its_characters(dataset):
        del dataset.SpecificCharacterSet  # in memory only; texts are then read as ASCII
    _check_transfer_syntax(path, dataset)
    _check_class(path, dataset)
    _complete_pixel_module(path, dataset)
    _check_pixel_module(path, dataset, policy)
    stated = stated_frames(dataset)
    check_size(path, int(dataset.Rows), int(dataset.Columns), stated or 1)
    # In memory only: decoders take the count from this tag and fail if it is not a number.
    dataset.NumberOfFrames = stated or 1
    _check_decodable(path, dataset)
    count, present = _count_frames(path, dataset, stated)
    check_size(path, int(dataset.Rows), int(dataset.Columns), count)
    return count, present


def _knows_its_characters(dataset: FileDataset) -> bool:
    """Whether SpecificCharacterSet is absent, a string or a list of strings."""
    value = value_of(dataset, "SpecificCharacterSet")
    several = [value] if isinstance(value, str) else value or []
    return "SpecificCharacterSet" not in dataset or (
        isinstance(several, Sequence) and all(isinstance(name, str) for name in several)
    )


def _check_transfer_syntax(path: Path, dataset: FileDataset) -> None:
    if not dataset.file_meta.get("TransferSyntaxUID"):
        raise UnreadableScan(
            Reason.NO_TRANSFER_SYNTAX,
            f"{path} has no TransferSyntaxUID (0002,0010), so the coding of its pixels is unknown; "
            "export it again.",
        )


def _check_class(path: Path, dataset: FileDataset) -> None:
    # A DICOMDIR states its class only in the file meta information.
    named = text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")
    sop_class = uids.UID(named)
    if sop_class == uids.MediaStorageDirectoryStorage:
        raise UnsupportedScan(
            Reason.MEDIA_DIRECTORY, f"{path} is a DICOMDIR: it lists scans and holds none."
        )
    if text(dataset, "ManufacturerModelName") == DETECTOR_MODEL:
        raise UnsupportedScan(
            Reason.OWN_RESULT, f"{path} is a result that this toolkit has written."
        )
    if sop_class not in IMAGE_CLASSES:
        retired = ", which the standard has retired" if sop_class.is_retired else ""
        has_pixels = any(keyword in dataset for keyword in _PIXEL_KEYWORDS)
        raise UnsupportedScan(
            Reason.SOP_CLASS if has_pixels else Reason.NOT_AN_IMAGE,
            f"{path} has SOP class {sop_class.name or 'none'!r}{retired}; expected a radiograph, "
            "CT, MR, PET, ultrasound, fluoroscopy, angiography or secondary capture.",
        )
    has_floats = any(keyword in dataset for keyword in _PIXEL_KEYWORDS[1:])
    if "PixelData" not in dataset:
        raise UnreadableScan(
            Reason.NO_PIXEL_DATA,
            f"{path} is a {sop_class.name} without PixelData (7FE0,0010)"
            f"{', but with values in floating point' if has_floats else ''}.",
        )


def _complete_pixel_module(path: Path, dataset: Dataset) -> None:
    """Set missing or invalid optional tags to defaults, in memory; refuse required ones."""
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored"):
        try:
            int(dataset[keyword].value)
        except (LookupError, TypeError, ValueError, ArithmeticError, BytesLengthException) as error:
            raise UnreadableScan(
                Reason.UNDECODABLE,
                f"{path} says no {keyword}, or no whole number: its pixels cannot be told apart. "
                "Export it again.",
            ) from error
    photometric = text(dataset, "PhotometricInterpretation")
    defaults = {
        "SamplesPerPixel": 3 if photometric.startswith(("RGB", "YBR")) else 1,
        "PixelRepresentation": 0,
        "PlanarConfiguration": 0,
    }
    for keyword, value in defaults.items():
        if whole_number(dataset, keyword) is None:
            setattr(dataset, keyword, value)


def _check_pixel_module(path: Path, dataset: Dataset, policy: IntensityPolicy) -> None:
    photometric = text(dataset, "PhotometricInterpretation")
    samples = int(dataset.get("SamplesPerPixel", 1))
    if samples != 1 or is_coloured(dataset):
        if policy.colour == "refuse":
            raise UnsupportedScan(
                Reason.COLOUR,
                f"{path} is {photometric} with {samples} sample(s) per pixel; expected grey. "
                "intensity.colour = luminance takes its brightness.",
            )
        if not is_coloured(dataset) or samples != (1 if photometric == "PALETTE COLOR" else 3):
            raise UnsupportedScan(
                Reason.PHOTOMETRIC, f"{path} is {photometric!r} with {samples} samples per pixel."
            )
    elif photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsupportedScan(
            Reason.PHOTOMETRIC,
            f"{path} has PhotometricInterpretation {photometric!r}; expected MONOCHROME1 or "
            "MONOCHROME2.",
        )
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = whole_number(dataset, "HighBit")
    high = stored - 1 if high is None else high
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise UnsupportedScan(
            Reason.BIT_DEPTH,
            f"{path} has BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}; expected "
            "8 or 16 allocated, 1 to that many stored, and HighBit = BitsStored - 1.",
        )


def _check_decodable(path: Path, dataset: FileDataset) -> None:
    transfer_syntax = dataset.file_meta.TransferSyntaxUID
    plugins = decoders(transfer_syntax)
    # pillow and gdcm list JPEG Extended but decode only its 8-bit form.
    if transfer_syntax == uids.JPEGExtended12Bit and int(dataset.BitsStored) > 8:
        plugins = [plugin for plugin in plugins if plugin == "pylibjpeg"]
    if not plugins:
        raise UnreadableScan(
            Reason.NO_DECODER,
            f"{path} is coded as {transfer_syntax.name} with {dataset.BitsStored} bits, for which "
            "no decoder is installed; `anomaly doctor` lists those that are.",
        )
    if transfer_syntax.is_encapsulated:
        return
    actual, expected = len(dataset.PixelData), native_length(dataset)
    if actual < expected:
        raise UnreadableScan(
            Reason.TRUNCATED,
            f"{path} has {actual} bytes of pixel data; its header implies {expected}. "
            "Copy it again.",
        )


def _count_frames(path: Path, dataset: FileDataset, stated: int | None) -> tuple[int, int]:
    """Count the frames of an object, and the frames whose pixel data are present.

    Raises
    ------
    UnreadableScan
        ``"frames"``: more than one frame in a class of single images; ``"too long"``: more pixel
        data than the header implies.
    """
    present = frames_present(dataset)
    count = stated or 1
    if present is not None and present > count:
        if not (holds_many(dataset) or count > 1):
            raise UnreadableScan(
                Reason.FRAMES
                if dataset.file_meta.TransferSyntaxUID.is_encapsulated
                else Reason.TOO_LONG,
                f"{path} holds pixel data of {present} frames; its header says "
                f"{'nothing' if stated is None else stated} of them (NumberOfFrames), and "
                f"{uids.UID(dataset.SOPClassUID).name} has one. Export it again.",
            )
        count = present
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        lay_out_frames(dataset)
        dataset.NumberOfFrames = present or count  # decoders assign fragments by this count
    else:
        dataset.NumberOfFrames = count
        expected = native_length(dataset)
        excess = dataset.PixelData[expected:]
        if len(excess) > 1 and any(excess):  # zeros are padding, of which some writers add a lot
            raise UnreadableScan(
                Reason.TOO_LONG,
                f"{path} has {len(dataset.PixelData)} bytes of pixel data; its header implies "
                f"{expected}, so Rows, Columns or BitsAllocated are wrong. Export it again.",
            )
    return count, int(dataset.NumberOfFrames)


def is_coloured(dataset: Dataset) -> bool:
    """Whether PhotometricInterpretation names a colour space or a palette."""
    photometric = text(dataset, "PhotometricInterpretation")
    return photometric.startswith(("RGB", "YBR", "PALETTE"))
