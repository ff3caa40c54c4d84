"""Decoding of the samples of a frame, before any mapping to grey.

::

    encoded frame -> samples, none masked     (refused if its coding contradicts the header)
    grey:   samples -> stored values, and a mask of padding
    colour: samples -> brightness in [0, 1]

The colour space in the header and the one that a decoder returns need not agree; the header of the
codestream decides (`anomaly.dicom.codestream`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom import uid as uids
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut

from anomaly.data.readers.jpeg import jpeg_warnings
from anomaly.dicom.codestream import (
    CodestreamHeader,
    coding_of,
    read_codestream_header,
    run_length_conflict,
)
from anomaly.dicom.frames import encoded_frame
from anomaly.dicom.grey import GradedValues
from anomaly.dicom.tags import text, whole_number
from anomaly.errors import Reason, UnreadableScan, UnsupportedScan
from anomaly.grey import luminance, to_unit

__all__ = ["brightness", "coded_header", "decoders", "stored_values"]


def decoders(transfer_syntax: uids.UID) -> list[str]:
    """Names of the installed plugins that decode a transfer syntax; empty if there is none."""
    if transfer_syntax in uids.UncompressedTransferSyntaxes:
        return ["numpy"]
    try:
        return list(get_decoder(transfer_syntax).available_plugins)
    except NotImplementedError:
        return []


def coded_header(
    path: Path, dataset: FileDataset, count: int, index: int
) -> CodestreamHeader | None:
    """Header of the codestream of a frame, checked against the header of the object.

    Parameters
    ----------
    path : Path
        For error messages.
    dataset : FileDataset
    count : int
        Number of frames present.
    index : int

    Returns
    -------
    CodestreamHeader or None
        None if the frame is not encoded, or uses RLE, which has no such header.

    Raises
    ------
    UnreadableScan
        ``"codestream"``: the two headers contradict each other; ``"undecodable"``: the codestream
        has no header.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return None
    frame = encoded_frame(dataset, index, count)
    if syntax == uids.RLELossless:
        coded, conflict = None, run_length_conflict(frame, dataset)
    else:
        coded = read_codestream_header(frame)
        conflict = coded.conflict(dataset) if coded is not None else ""
        expected = coding_of(syntax)
        if coded is None and expected:
            raise UnreadableScan(
                Reason.UNDECODABLE,
                f"{path}, frame {index}: it holds no header of a {expected} codestream, as "
                f"{syntax.name} has. Export it again.",
            )
        if coded is not None and expected and coded.coding != expected:
            conflict = f"the codestream is {coded.coding}, the transfer syntax {syntax.name}"
    if conflict:
        raise UnreadableScan(
            Reason.CODESTREAM, f"{path}, frame {index}: {conflict}. Export it again."
        )
    return coded


def stored_values(
    path: Path, dataset: FileDataset, index: int, coded: CodestreamHeader | None
) -> tuple[GradedValues, NDArray[np.bool_], tuple[str, ...]]:
    """Decode the stored values of a grey frame and the mask of its padding.

    The bits above HighBit must be zero, a sign extension, or an overlay that the header declares
    there. Anything else is refused and not masked, because the values themselves may be wrong.

    Returns
    -------
    GradedValues, ndarray of bool, tuple of str
        Values ``(Rows, Columns)``, mask of PixelPaddingValue, and notes.

    Raises
    ------
    UnreadableScan
        ``"undecodable"``: the decoded size differs from the header.
    UnsupportedScan
        ``"out of range"``: a value does not fit into BitsStored.
    """
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0)) == 1
    raw, _ = _decoded(path, dataset, index, coded)
    if raw.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise UnreadableScan(
            Reason.UNDECODABLE,
            f"{path} decodes to shape {raw.shape}; its header says "
            f"({dataset.Rows}, {dataset.Columns}).",
        )
    allocated = raw.dtype.itemsize * 8
    whole = raw.astype(np.int32) & ~_overlay_bits(dataset)
    used = whole & (2**bits - 1)
    values = np.where(used >= 2 ** (bits - 1), used - 2**bits, used) if signed else used
    valid = (whole == values) | ((whole & (2**allocated - 1)) == used)
    values = np.where(valid, values, whole)
    padding, notes = _padding(dataset, values, allocated, signed)

    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    wrong = values[~valid & ~padding]
    if wrong.size:
        raise UnsupportedScan(
            Reason.OUT_OF_RANGE,
            f"{path}, frame {index}, holds {wrong.size} value(s) such as {wrong[0]} outside "
            f"[{low}, {high}], the range of BitsStored {bits}.",
        )
    graded = GradedValues(values, low, high, 2**bits, (f"{bits} bits stored",))
    return graded, padding, notes


def _overlay_bits(dataset: Dataset) -> int:
    """Bits of the stored values that overlay planes use in old files (PS3.5 8.1.2)."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        position = whole_number(dataset, (group, 0x0102))
        if position is not None and 0 < position < 16 and (group, 0x3000) not in dataset:
            bits |= 1 << position
    stored: int = 2 ** int(dataset.BitsStored) - 1
    return bits & ~stored


def _padding(
    dataset: Dataset, values: NDArray[np.int32], allocated: int, signed: bool
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Mask of PixelPaddingValue, and a note if the tag cannot be used."""
    nowhere = np.zeros(values.shape, dtype=bool)
    if "PixelPaddingValue" not in dataset:
        return nowhere, ()
    first = whole_number(dataset, "PixelPaddingValue")
    last = whole_number(dataset, "PixelPaddingRangeLimit")
    if first is None or (last is None and "PixelPaddingRangeLimit" in dataset):
        return nowhere, ("PixelPaddingValue not used: it is no number",)
    ends = [first, first if last is None else last]
    if signed:
        # Some writers store -2000 as the unsigned 63536, since the VR is ambiguous.
        ends = [(end + 2 ** (allocated - 1)) % 2**allocated - 2 ** (allocated - 1) for end in ends]
    else:  # and 65036, with the other VR, as -500
        ends = [end % 2**allocated for end in ends]
    padding = (values >= min(ends)) & (values <= max(ends))
    if padding.all():
        return nowhere, ("PixelPaddingValue not used: it would hide every pixel",)
    return padding, ()


def brightness(
    path: Path, dataset: FileDataset, index: int, coded: CodestreamHeader | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], tuple[str, ...]]:
    """Brightness of a coloured frame, in the colour space that the decoder returns.

    That colour space may differ from the one in the header.

    Returns
    -------
    ndarray, ndarray of bool, tuple of str
        Brightness ``(Rows, Columns)`` float32 in [0, 1], mask of hidden pixels (none), and the
        steps taken.

    Raises
    ------
    UnreadableScan
        ``"undecodable"``: there are not three samples per pixel.
    UnsupportedScan
        ``"out of range"``: a sample does not fit into BitsStored.
    """
    stated = text(dataset, "PhotometricInterpretation")
    top = 2 ** int(dataset.BitsStored) - 1
    values, colours = _decoded_colours(path, dataset, index, coded)
    if values.size and int(values.max()) > top:
        raise UnsupportedScan(
            Reason.OUT_OF_RANGE,
            f"{path}, frame {index}, holds values up to {values.max()}, above {top}, the largest "
            f"of BitsStored {dataset.BitsStored}.",
        )
    if colours == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        top = _palette_top(dataset, values)
    if values.ndim != 3 or values.shape[-1] != 3:
        raise UnreadableScan(
            Reason.UNDECODABLE,
            f"{path} decodes to shape {values.shape}; expected (Rows, Columns, 3).",
        )
    if colours.startswith("YBR"):
        # The first sample is the luminance (PS3.3 C.7.6.3.1.2); "partial" limits it to 16 to 235.
        low, high = (16, 235) if colours.startswith("YBR_PARTIAL") else (0, 255)
        scale = (top + 1) / 256 if colours.startswith("YBR_PARTIAL") else top / 255
        pixels = to_unit(values[..., 0], low * scale, high * scale)
    else:
        pixels = luminance(to_unit(values, 0, top))
    steps = f"luminance of {stated}" + ("" if colours == stated else f", decoded as {colours}")
    return pixels, np.zeros(pixels.shape, dtype=bool), (steps,)


def _palette_top(dataset: FileDataset, values: NDArray[Any]) -> int:
    """Largest entry that a palette can hold: some writers store 8-bit entries in 16-bit words."""
    widest = 2 ** (8 * values.dtype.itemsize) - 1
    colours = ("Red", "Green", "Blue")
    tables = [dataset.get(f"{colour}PaletteColorLookupTableData", None) for colour in colours]
    entries = [np.frombuffer(table, "<u2") for table in tables if isinstance(table, bytes)]
    narrow = len(entries) == 3 and all(table.max(initial=0) <= 255 for table in entries)
    return 255 if narrow else widest


def _decoded_colours(
    path: Path, dataset: FileDataset, index: int, coded: CodestreamHeader | None
) -> tuple[NDArray[Any], str]:
    """Decode the samples of a coloured frame (Rows, Columns, 3); return their colour space too."""
    stated = text(dataset, "PhotometricInterpretation")
    partial_native = coded is None and stated == "YBR_PARTIAL_422"
    # Same layout as YBR_FULL_422; of the two, pydicom knows only that one.
    options = {"photometric_interpretation": "YBR_FULL_422"} if partial_native else {}
    values, properties = _decoded(path, dataset, index, coded, **options)
    if partial_native:
        return values, stated
    if coded is not None and coded.colours:
        return values, coded.colours
    # In the standard, RCT and ICT name a transformation that the decoder reverses.
    return values, "RGB" if stated in ("YBR_ICT", "YBR_RCT") else str(
        properties["photometric_interpretation"]
    )


def _decoded(
    path: Path, dataset: FileDataset, index: int, coded: CodestreamHeader | None, **options: Any
) -> tuple[NDArray[np.generic], Mapping[str, Any]]:
    """Decode the samples of a frame as stored; return their layout too."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if coded is not None and coded.bits <= 8 < int(dataset.BitsAllocated):
        options["bits_allocated"] = 8  # the decoder returns bytes; this states their size
    if coded is not None and coded.components > 1 and coded.coding != "JPEG-LS":
        options["planar_configuration"] = 0  # the decoders support no other
    if coded is not None and coded.coding == "JPEG" and coded.bits > int(dataset.BitsStored):
        options["bits_stored"] = coded.bits  # otherwise the decoder masks the higher bits
    if coded is not None and coded.colours and coded.coding == "JPEG":
        plugins = [name for name in decoders(syntax) if name == "gdcm"]
        options["decoding_plugin"] = plugins[0] if plugins else ""  # gdcm does not convert colours
        options["photometric_interpretation"] = coded.colours  # and does not know every label
    decoder = get_decoder(syntax)
    options["correct_unused_bits"] = False  # bits above HighBit are checked, never masked
    if coded is None or coded.coding != "JPEG":
        return decoder.as_array(dataset, index=index, raw=True, **options)
    with jpeg_warnings(path):
        return decoder.as_array(dataset, index=index, raw=True, **options)
