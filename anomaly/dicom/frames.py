"""How many frames an object holds: what its header says, and what is there."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.encaps import generate_fragments, get_frame, parse_basic_offsets
from pydicom.pixels.utils import get_expected_length

from anomaly.dicom.tags import text

__all__ = ["encoded_frame", "frames_present", "holds_many", "is_multiframe", "stated_frames"]

_MULTI_FRAME = frozenset(
    {
        uids.EnhancedCTImageStorage,
        uids.LegacyConvertedEnhancedCTImageStorage,
        uids.EnhancedMRImageStorage,
        uids.LegacyConvertedEnhancedMRImageStorage,
        uids.EnhancedPETImageStorage,
        uids.LegacyConvertedEnhancedPETImageStorage,
        uids.EnhancedXAImageStorage,
        uids.EnhancedXRFImageStorage,
        uids.BreastTomosynthesisImageStorage,
        uids.XRayAngiographicImageStorage,
        uids.XRayRadiofluoroscopicImageStorage,
        uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
        uids.NuclearMedicineImageStorage,
        uids.UltrasoundMultiFrameImageStorage,
        uids.RTImageStorage,
    }
)


def stated_frames(header: Dataset) -> int | None:
    """NumberOfFrames; None where it is absent, empty, no number or below 1."""
    try:
        number = int(text(header, "NumberOfFrames"))
    except ValueError:
        return None
    return number if number >= 1 else None


def holds_many(header: Dataset) -> bool:
    """Whether objects of this SOP class may hold several frames."""
    return text(header, "SOPClassUID") in _MULTI_FRAME


def is_multiframe(header: Dataset) -> bool:
    """Whether an image is one of several in its object, so that references have to name its frame.

    A NumberOfFrames of 1 in a class of single images says nothing, and neither does one in a class
    that may hold several. Functional groups do: an enhanced image of one frame is laid out as one
    of many (PS3.3 C.7.6.16).
    """
    return (stated_frames(header) or 1) > 1 or "SharedFunctionalGroupsSequence" in header


def frames_present(dataset: FileDataset) -> int | None:
    """Whole frames in the pixel data; None where coded data do not tell.

    Coded frames are counted by their offset table, and without one by the fragments that begin a
    codestream; in run-length coding a fragment is a frame (PS3.5 A.4.2).
    """
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frame = get_expected_length(dataset) // (stated_frames(dataset) or 1)
        return len(dataset.PixelData) // frame if frame else None
    if "ExtendedOffsetTable" in dataset:
        return len(dataset.ExtendedOffsetTable) // 8
    offsets = parse_basic_offsets(dataset.PixelData)
    if offsets:
        return len(offsets)
    run_length = dataset.file_meta.TransferSyntaxUID == uids.RLELossless
    count = sum(run_length or _begins(fragment) for fragment in _fragments(dataset))
    return count or None


def encoded_frame(dataset: FileDataset, index: int, count: int) -> bytes:
    """Codestream of one frame of an encapsulated object of `count` frames."""
    extended = None
    if "ExtendedOffsetTable" in dataset:
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return get_frame(dataset.PixelData, index, number_of_frames=count, extended_offsets=extended)


def _fragments(dataset: FileDataset) -> Iterator[bytes]:
    # The first item is the offset table, which is empty here.
    data = dataset.PixelData
    return generate_fragments(data[8 + int.from_bytes(data[4:8], "little") :])


def _begins(fragment: bytes) -> bool:
    return fragment.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) or fragment[4:8] == b"jP  "
