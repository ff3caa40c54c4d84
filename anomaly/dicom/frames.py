"""Number of frames of an object: stated in its header, and present in its pixel data."""

from __future__ import annotations

from typing import NamedTuple

from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.encaps import encapsulate, get_frame, parse_basic_offsets
from pydicom.pixels.utils import get_expected_length

from anomaly.dicom.tags import text, value_of

__all__ = [
    "encoded_frame",
    "frames_present",
    "holds_many",
    "is_multiframe",
    "lay_out_frames",
    "native_length",
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
    """NumberOfFrames; None if it is absent, empty, not a number or below 1."""
    try:
        number = int(text(header, "NumberOfFrames"))
    except ValueError:
        return None
    return number if number >= 1 else None


def holds_many(header: Dataset) -> bool:
    """Whether objects of this SOP class may hold several frames."""
    return text(header, "SOPClassUID") in _MULTI_FRAME


def is_multiframe(header: Dataset) -> bool:
    """Whether references to an image must name its frame, because its object is multi-frame.

    A NumberOfFrames of 1 does not make an object multi-frame, in any SOP class. Functional groups
    do: an enhanced image with one frame has the layout of many (PS3.3 C.7.6.16).
    """
    return (stated_frames(header) or 1) > 1 or "SharedFunctionalGroupsSequence" in header


def frames_present(dataset: FileDataset) -> int | None:
    """Return the number of complete frames in the pixel data; None if it cannot be determined.

    Encapsulated frames are counted by the fragments that begin a frame, whatever an offset table
    states; the table is used only if no beginning is recognised. Zero padding of native data does
    not count as a frame.
    """
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        fragments = _fragments(dataset)
        known = sum(fragment.begins for fragment in fragments)
        return known or len(parse_basic_offsets(dataset.PixelData)) or None
    expected = native_length(dataset)
    frame = expected // (stated_frames(dataset) or 1)
    if not frame:
        return None
    # The last frame may end in black, and the next one be only padding.
    content = max(expected, len(dataset.PixelData.rstrip(b"\0")))
    return min(len(dataset.PixelData) // frame, -(-content // frame))


def native_length(dataset: Dataset) -> int:
    """Size in bytes of native pixel data according to a header."""
    if text(dataset, "PhotometricInterpretation") == "YBR_PARTIAL_422":
        # Two samples per pixel, like YBR_FULL_422; pydicom assumes three.
        return 2 * int(dataset.Rows) * int(dataset.Columns) * (stated_frames(dataset) or 1)
    return get_expected_length(dataset)


def lay_out_frames(dataset: FileDataset) -> None:
    """Rearrange encapsulated frames, in memory only, so that a decoder finds each of them.

    The decoder uses offset tables; with a wrong one it would join several frames into one, or
    return the wrong frame. Without a table it counts fragments.
    """
    fragments = _fragments(dataset)
    if not any(fragment.begins for fragment in fragments):
        return
    begins = [fragment.place for fragment in fragments if fragment.begins]
    table = parse_basic_offsets(dataset.PixelData)
    if _extended_is_right(dataset, fragments) and not table:
        return
    for keyword in _EXTENDED:
        if keyword in dataset:
            delattr(dataset, keyword)
    if table == begins or (not table and len(begins) == len(fragments)):
        return
    frames: list[bytes] = []
    for fragment in fragments:
        content = dataset.PixelData[fragment.start : fragment.start + fragment.length]
        if fragment.begins:
            frames.append(content)
        elif frames:
            frames[-1] += content
    dataset.PixelData = encapsulate(frames, has_bot=False)


def encoded_frame(dataset: FileDataset, index: int, count: int) -> bytes:
    """Codestream of one frame of an encapsulated object of `count` frames."""
    extended = None
    if _EXTENDED[0] in dataset:
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return get_frame(dataset.PixelData, index, number_of_frames=count, extended_offsets=extended)


_ITEM = b"\xfe\xff\x00\xe0"
_EXTENDED = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")


class _Fragment(NamedTuple):
    """Item of encapsulated pixel data (PS3.5 A.4).

    Attributes
    ----------
    place : int
        Offset of the item from the first fragment, as in an offset table.
    start, length : int
        Offset and size of its content in the pixel data.
    begins : bool
        Whether a frame begins with it.
    """

    place: int
    start: int
    length: int
    begins: bool


def _fragments(dataset: FileDataset) -> list[_Fragment]:
    """Fragments of encapsulated pixel data; the item before them is the offset table."""
    data = dataset.PixelData
    run_length = dataset.file_meta.TransferSyntaxUID == uids.RLELossless
    first = place = 8 + int.from_bytes(data[4:8], "little")
    fragments = []
    while data[place : place + 4] == _ITEM:
        start, length = place + 8, int.from_bytes(data[place + 4 : place + 8], "little")
        begins = length > 0 and (run_length or _begins(data[start : start + 16]))
        fragments.append(_Fragment(place - first, start, length, begins))
        place = start + length
    if len(fragments) == stated_frames(dataset) and any(item.begins for item in fragments):
        # One fragment per frame: a damaged or empty one is a frame that cannot be read.
        fragments = [item._replace(begins=True) for item in fragments]
    return fragments


def _begins(head: bytes) -> bool:
    return head.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) or head[4:8] == b"jP  "


def _extended_is_right(dataset: FileDataset, fragments: list[_Fragment]) -> bool:
    """Whether an extended offset table lists every frame, with one fragment each (C.7.6.3.1.8)."""
    offsets = value_of(dataset, "ExtendedOffsetTable")
    lengths = value_of(dataset, "ExtendedOffsetTableLengths")
    if not (isinstance(offsets, bytes) and isinstance(lengths, bytes)):
        return False
    extents = list(zip(_numbers(offsets), _numbers(lengths), strict=False))
    # A length excludes the zero that pads a fragment to even size.
    present = [(f.place, f.length) for f in fragments if f.begins]
    return len(extents) == len(present) == len(fragments) and all(
        place == offset and length in (size, size - 1)
        for (offset, length), (place, size) in zip(extents, present, strict=True)
    )


def _numbers(table: bytes) -> list[int]:
    return [int.from_bytes(table[k : k + 8], "little") for k in range(0, len(table), 8)]
