"""How many frames an object holds: what its header says, and what is there."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.encaps import get_frame, parse_basic_offsets
from pydicom.pixels.utils import get_expected_length

from anomaly.dicom.tags import text, value_of

__all__ = [
    "encoded_frame",
    "forget_offsets",
    "frames_present",
    "holds_many",
    "is_multiframe",
    "stated_frames",
]

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

    Coded frames are counted by their offset table and by the fragments that begin a codestream,
    whichever are more; in run-length coding a fragment is a frame (PS3.5 A.4.2).
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        frame = get_expected_length(dataset) // (stated_frames(dataset) or 1)
        return len(dataset.PixelData) // frame if frame else None
    return max(_offsets(dataset), _beginnings(dataset)) or None


def forget_offsets(dataset: FileDataset) -> None:
    """Drop offset tables that know fewer frames than there are codestreams, in memory only.

    A decoder would believe them, and lay several frames end to end as one.
    """
    if not _extended(dataset):
        _drop_extended(dataset)
    if _offsets(dataset) >= _beginnings(dataset):
        return
    data = dataset.PixelData
    dataset.PixelData = _NO_OFFSETS + data[8 + int.from_bytes(data[4:8], "little") :]
    _drop_extended(dataset)


def _drop_extended(dataset: FileDataset) -> None:
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if keyword in dataset:
            delattr(dataset, keyword)


def encoded_frame(dataset: FileDataset, index: int, count: int) -> bytes:
    """Codestream of one frame of an encapsulated object of `count` frames."""
    extended = None
    if _extended(dataset):
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return get_frame(dataset.PixelData, index, number_of_frames=count, extended_offsets=extended)


_ITEM, _NO_OFFSETS = b"\xfe\xff\x00\xe0", b"\xfe\xff\x00\xe0\0\0\0\0"


def _offsets(dataset: FileDataset) -> int:
    """Frames that the offset tables know."""
    return max(_extended(dataset), len(parse_basic_offsets(dataset.PixelData)))


def _extended(dataset: FileDataset) -> int:
    """Frames that an extended offset table knows; 0 where it is not whole (PS3.3 C.7.6.3.1.8)."""
    tables = [
        value_of(dataset, keyword)
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    ]
    if not all(isinstance(table, bytes) for table in tables) or len(tables[0]) != len(tables[1]):
        return 0
    return len(tables[0]) // 8


def _beginnings(dataset: FileDataset) -> int:
    """Fragments that begin a frame."""
    if dataset.file_meta.TransferSyntaxUID == uids.RLELossless:
        return sum(1 for _ in _fragments(dataset.PixelData))
    return sum(_begins(head) for head in _fragments(dataset.PixelData))


def _fragments(data: bytes) -> Iterator[bytes]:
    """First bytes of every fragment; the item before them is the offset table (PS3.5 A.4)."""
    place = 8 + int.from_bytes(data[4:8], "little")
    while data[place : place + 4] == _ITEM:
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        yield data[place + 8 : place + 24]
        place += 8 + length


def _begins(head: bytes) -> bool:
    return head.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) or head[4:8] == b"jP  "
