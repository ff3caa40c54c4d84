"""The only reader of DICOM images.

::

    coded frame -> stored values or brightness        (anomaly.data.readers.dicom_pixels)
        -> grey in [0, 1], inverted where 0 is white  (anomaly.dicom.grey)
        -> shutter and padding black -> upright       (anomaly.dicom.geometry)

Overlay planes are not drawn: they are somebody's marks, not the patient. Only kinds that have been
tested are read; the rest raise `UnsupportedScan` with a short reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, dcmread
from pydicom import misc as pydicom_misc
from pydicom import uid as uids
from pydicom.errors import BytesLengthException

from anomaly.data.readers.dicom_pixels import brightness, coded_header, decoders, stored_values
from anomaly.data.readers.frames import Frames, check_size, check_varied, decoding
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.dicom.frames import (
    frames_present,
    holds_many,
    lay_out_frames,
    native_length,
    stated_frames,
)
from anomaly.dicom.geometry import open_to_view, orientation, spacing, unreadable_tags
from anomaly.dicom.grey import GradedValues, apply_modality, display_curve, file_voi, is_inverted
from anomaly.dicom.tags import text, value_of, whole_number
from anomaly.errors import Reason, ScanError, UnreadableScan, UnsupportedScan
from anomaly.grey import GreyCurve, percentile_curve, to_unit, window_range
from anomaly.types import DETECTOR_MODEL, Scan, ScanIdentity

__all__ = [
    "IMAGE_CLASSES",
    "IntensityPolicy",
    "decodable_transfer_syntaxes",
    "instance_uid",
    "is_dicom",
    "open_dicom",
    "read_dicom",
]

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
"""SOP classes that can hold a scan; objects of others are skipped with a reason."""

_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_ONE_GREY = 2 / 255  # whatever is displayed within less is flat to the eye


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


def instance_uid(path: Path) -> str:
    """SOP Instance UID of a file, whatever else is wrong with it; empty where it cannot be read."""
    try:
        with decoding(path):
            return text(dcmread(path, specific_tags=["SOPInstanceUID"]), "SOPInstanceUID")
    except ScanError:
        return ""


def open_dicom(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a DICOM image, check everything that its header can tell, and decode nothing yet.

    Parameters
    ----------
    path : Path
    policy : IntensityPolicy

    Returns
    -------
    Frames
        Each decodes to a `Scan`, float32 in [0, 1], 0 = black, turned upright: ``(Rows, Columns)``
        as stored, or transposed (`Scan.orientation`). Pixels that PixelPaddingValue marks or a
        display shutter covers are 0. `Scan.levels` is ``2 ** BitsStored`` under every policy.

    Raises
    ------
    UnreadableScan
        ``"not dicom"``, ``"no transfer syntax"``, ``"no pixel data"``, ``"truncated"``,
        ``"no decoder"``, ``"undecodable"``, ``"unreadable"``.
    UnsupportedScan
        ``"not an image"``, ``"media directory"``, ``"sop class"``, ``"own result"``,
        ``"colour"``, ``"photometric"``, ``"bit depth"``, ``"too large"``, ``"empty"``; of a frame
        also ``"out of range"``, ``"constant"``, ``"rescale"``, ``"window"``, ``"lut"``,
        ``"shutter"``.
    """
    with decoding(path) as warned:
        if not is_dicom(path):
            raise UnreadableScan(
                Reason.NOT_DICOM, f"{path} is not DICOM: bytes 128 to 131 are not 'DICM'."
            )
        dataset = dcmread(path)
        # pydicom goes on with what it has where a file ends early, and only warns
        ends = [str(warning.message) for warning in warned if "nd of file" in str(warning.message)]
        if ends:
            raise UnreadableScan(Reason.TRUNCATED, f"{path} is cut off ({ends[0]}); copy it again.")
        if not _knows_its_characters(dataset):
            del dataset.SpecificCharacterSet  # in memory; its texts are read as ASCII
        _check_transfer_syntax(path, dataset)
        _check_class(path, dataset)
        _complete_pixel_module(path, dataset)
        _check_pixel_module(path, dataset, policy)
        stated = stated_frames(dataset)
        check_size(path, int(dataset.Rows), int(dataset.Columns), stated or 1)
        # In memory only: decoders count by this tag, and stumble over one that is no number.
        dataset.NumberOfFrames = stated or 1
        _check_decodable(path, dataset)
        count, present = _count_frames(path, dataset, stated)
        check_size(path, int(dataset.Rows), int(dataset.Columns), count)
    return Frames(count, partial(_read_frame, path, dataset, policy, (count, present)), path)


def _knows_its_characters(dataset: FileDataset) -> bool:
    """Whether SpecificCharacterSet is a text, or several, or absent."""
    value = value_of(dataset, "SpecificCharacterSet")
    several = [value] if isinstance(value, str) else value or []
    return "SpecificCharacterSet" not in dataset or (
        isinstance(several, Sequence) and all(isinstance(name, str) for name in several)
    )


def decodable_transfer_syntaxes() -> dict[str, list[str]]:
    """List the transfer syntaxes that pydicom knows, with the installed decoders of each.

    Returns
    -------
    dict of str to list of str
        Name of the transfer syntax -> names of plugins; an empty list means that such files
        cannot be decoded here.
    """
    return {uid.name: decoders(uid) for uid in uids.AllTransferSyntaxes}


# --- what the header can tell -----------------------------------------------------------------


def _check_transfer_syntax(path: Path, dataset: FileDataset) -> None:
    if not dataset.file_meta.get("TransferSyntaxUID"):
        raise UnreadableScan(
            Reason.NO_TRANSFER_SYNTAX,
            f"{path} has no TransferSyntaxUID (0002,0010), so the coding of its pixels is unknown; "
            "export it again.",
        )


def _check_class(path: Path, dataset: FileDataset) -> None:
    # A DICOMDIR names its class in the file meta information alone.
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
    """Put what may be left open in its place, in memory only; refuse what may not."""
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
    if samples != 1 or _is_coloured(dataset):
        if policy.colour == "refuse":
            raise UnsupportedScan(
                Reason.COLOUR,
                f"{path} is {photometric} with {samples} sample(s) per pixel; expected grey. "
                "intensity.colour = luminance takes its brightness.",
            )
        if not _is_coloured(dataset) or samples != (1 if photometric == "PALETTE COLOR" else 3):
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
    # pillow and gdcm list JPEG Extended but decode its 8-bit form only
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
    """Frames of an object, and those of them that are there: its class may hold several.

    Raises
    ------
    UnreadableScan
        ``"frames"``: a class of single images with more than one; ``"too long"``: pixel data that
        the header leaves no frame for.
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
        dataset.NumberOfFrames = present or count  # by which decoders count fragments
    else:
        dataset.NumberOfFrames = count
        expected = native_length(dataset)
        excess = dataset.PixelData[expected:]
        if len(excess) > 1 and any(excess):  # zeros are padding, which some writers add a lot of
            raise UnreadableScan(
                Reason.TOO_LONG,
                f"{path} has {len(dataset.PixelData)} bytes of pixel data; its header implies "
                f"{expected}, so Rows, Columns or BitsAllocated are wrong. Export it again.",
            )
    return count, int(dataset.NumberOfFrames)


# --- one frame --------------------------------------------------------------------------------


def _read_frame(
    path: Path, dataset: FileDataset, policy: IntensityPolicy, counts: tuple[int, int], index: int
) -> Scan:
    count, present = counts
    if index >= present:
        raise UnreadableScan(
            Reason.TRUNCATED,
            f"{path} has {present} of the {count} frames it states. Copy it again.",
        )
    with decoding(path):
        coded = coded_header(path, dataset, present, index)
        voi: GreyCurve | None = None
        notes: tuple[str, ...] = ()
        if _is_coloured(dataset):
            pixels, hidden, steps = brightness(path, dataset, index, coded)
        else:
            stored, hidden, notes = stored_values(path, dataset, index, coded)
            rescaled = apply_modality(path, dataset, index, stored)
            pixels, steps, voi, more = _grey(dataset, index, rescaled, policy)
            notes += more
        seen, shutter_notes = open_to_view(dataset, index)
        if seen is not None:
            hidden, steps = hidden | ~seen, (*steps, "display shutter")
        check_varied(path, pixels[~hidden])
        if voi is not None and np.ptp(voi(pixels[~hidden])) < _ONE_GREY:
            notes, voi = (*notes, f"{voi.source} not used for display: it shows one grey"), None
        visible = percentile_curve(pixels[~hidden]) if hidden.any() else None
        pixels[hidden] = 0
        turn = orientation(dataset, index)
        size, source = spacing(dataset, index)
        return Scan(
            pixels=np.ascontiguousarray(turn.show(pixels)),
            levels=2 ** int(dataset.BitsStored),
            identity=ScanIdentity(
                patient=text(dataset, "PatientID"),
                study=text(dataset, "StudyInstanceUID"),
                series=text(dataset, "SeriesInstanceUID"),
                instance=text(dataset, "SOPInstanceUID"),
                frame=index,
            ),
            modality=text(dataset, "Modality"),
            spacing=size[::-1] if size is not None and turn.transposed else size,
            spacing_source=source,
            intensity=", ".join(steps) + ".",
            view=text(dataset, "ViewPosition"),
            body_part=text(dataset, "BodyPartExamined"),
            laterality=text(dataset, "ImageLaterality") or text(dataset, "Laterality"),
            burned_in=text(dataset, "BurnedInAnnotation").upper() == "YES",
            synthetic=text(dataset, "SyntheticData").upper() == "YES",
            orientation=turn,
            voi=voi,
            visible=visible,
            frame_count=count,
            notes=(*notes, *shutter_notes, *unreadable_tags(dataset, index)),
        )


def _grey(
    dataset: FileDataset, index: int, rescaled: GradedValues, policy: IntensityPolicy
) -> tuple[NDArray[np.float32], tuple[str, ...], GreyCurve | None, tuple[str, ...]]:
    """Grey by the policy, how it came about, how the file wants it displayed, and remarks."""
    inverted = is_inverted(dataset)
    usable, notes = file_voi(dataset, index)
    display = None
    if policy.window is not None:
        step = "window {:g} / {:g} as configured".format(*policy.window)
        pixels = to_unit(rescaled.values, *window_range(*policy.window), inverted=inverted)
        display = GreyCurve.identity(step)
    elif policy.voi == "file" and usable is not None:
        step = usable.name
        pixels = usable.apply(rescaled, inverted=inverted)
        display = GreyCurve.identity(step)
    else:
        step = f"full range {rescaled.low:g} to {rescaled.high:g}"
        pixels = to_unit(rescaled.values, rescaled.low, rescaled.high, inverted=inverted)
        if usable is not None:
            display = display_curve(usable, rescaled, inverted=inverted)
    steps = (*rescaled.steps, step, *(("inverted",) if inverted else ()))
    return pixels, steps, display, notes


def _is_coloured(dataset: Dataset) -> bool:
    photometric = text(dataset, "PhotometricInterpretation")
    return photometric.startswith(("RGB", "YBR", "PALETTE"))
