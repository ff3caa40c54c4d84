"""TIFF files as frames, one per page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from anomaly.data.readers.frames import Frames, check_size, decoding
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.jpeg import check_jpeg
from anomaly.data.readers.raster import FLOAT_LEVELS, check_finite, configured_display, make_scan
from anomaly.errors import Reason, ScanError, UnreadableScan, UnsupportedScan
from anomaly.grey import to_unit, window_range
from anomaly.types import Scan

__all__ = ["open_tiff"]


def open_tiff(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a TIFF file; see `open_image`."""
    with tifffile.TiffFile(path) as tiff:
        pages = _image_pages(tiff)
        if tiff.is_shaped or tiff.is_imagej:  # may store a whole stack in a single page
            count = sum(series.size for series in tiff.series)
            there = sum(page.aspage().size for page in tiff.pages)
            if count > there:
                raise UnsupportedScan(
                    Reason.FRAMES,
                    f"{path} holds {count} values, and its {len(pages)} page(s) {there}: a stack "
                    "behind one page. Save every image as a page of its own.",
                )
        if not pages:
            raise UnsupportedScan(Reason.EMPTY, f"{path} holds nothing but thumbnails and masks.")
        first = tiff.pages[pages[0]].aspage()
        check_size(path, first.imagelength, first.imagewidth, len(pages))
    file_range = cache(partial(_range, path, policy))
    return Frames(len(pages), partial(_read_page, path, policy, file_range), path)


def _image_pages(tiff: tifffile.TiffFile) -> list[int]:
    """Return the indices of the pages that are full images.

    NewSubfileType marks reduced copies of another page with bit 0 and transparency masks with
    bit 2 (TIFF 6.0, section 8).
    """
    return [place for place, page in enumerate(tiff.pages) if not page.aspage().subfiletype & 5]


def _read_page(
    path: Path, policy: IntensityPolicy, file_range: Callable[[], tuple[float, float]], index: int
) -> Scan:
    with decoding(path), tifffile.TiffFile(path) as tiff:
        place = _image_pages(tiff)[index]
        page = tiff.pages[place].aspage()
        check_size(path, page.imagelength, page.imagewidth)
        values = _values(path, page, place)
        voi = None
        bits = int(page.bitspersample)
        if values.dtype.kind in "bu" and bits <= 16:
            grey = to_unit(values, 0, 2**bits - 1)
            levels, intensity = 2**bits, f"Full range of {bits} bits."
        else:
            low, high = file_range()  # reads every page, so computed once and only if needed
            grey, levels = to_unit(values, low, high), FLOAT_LEVELS
            intensity = f"Values {low:g} to {high:g}."
            voi = configured_display(policy)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            grey, intensity = 1 - grey, intensity[:-1] + ", inverted."
        return replace(make_scan(path, index, grey, levels, intensity), voi=voi)


def _values(path: Path, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
    """Values ``(H, W)`` of a page as stored, finite; equal RGB channels are reduced to one."""
    orientation = page.tags.valueof("Orientation", 1)
    if orientation != 1:
        raise UnsupportedScan(
            Reason.ORIENTATION,
            f"{path} has TIFF orientation {orientation}; expected 1 (row 0 on top).",
        )
    kinds = tifffile.PHOTOMETRIC
    if page.photometric not in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB):
        raise UnsupportedScan(
            Reason.COLOUR, f"{path} is {kinds(page.photometric).name}; expected grey."
        )
    if page.extrasamples:
        raise UnsupportedScan(Reason.ALPHA, f"{path} has an extra channel; expected grey alone.")
    values = _decoded(path, page, index)
    if page.photometric == kinds.RGB and values.ndim == 3:
        channels = values if page.planarconfig == 2 else np.moveaxis(values, -1, 0)
        if any((channel != channels[0]).any() for channel in channels):
            raise UnsupportedScan(Reason.COLOUR, f"{path} has coloured pixels; expected grey.")
        values = channels[0]
    if values.ndim != 2:
        raise UnsupportedScan(
            Reason.DIMENSIONS, f"{path} has pages of shape {values.shape}; expected (H, W)."
        )
    if values.dtype.kind not in "buif":
        raise UnsupportedScan(
            Reason.BIT_DEPTH, f"{path} holds {values.dtype}; expected real numbers."
        )
    check_finite(path, values)
    return values


def _decoded(path: Path, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
    kinds = tifffile.COMPRESSION
    simple = (kinds.NONE, kinds.ADOBE_DEFLATE, kinds.DEFLATE, kinds.PACKBITS)
    if page.compression in simple:
        return np.asarray(page.asarray())
    # LZW and the JPEG family need pillow's libtiff, which inverts MINISWHITE at 8 bits but not at
    # 16, so it decodes only MINISBLACK.
    if page.photometric != tifffile.PHOTOMETRIC.MINISBLACK:
        raise UnreadableScan(
            Reason.NO_DECODER,
            f"{path} is an inverted or coloured TIFF with {kinds(page.compression).name} "
            "compression; save it uncompressed or with deflate.",
        )
    if page.compression == kinds.JPEG:
        _check_page_jpeg(path, page)
    with Image.open(path, formats=("TIFF",)) as image:
        image.seek(index)
        values = np.asarray(image)
    whole = values.dtype.kind in "iu" and page.dtype is not None and page.dtype.kind in "iu"
    if whole and page.dtype is not None and values.dtype.itemsize == page.dtype.itemsize:
        return values.view(page.dtype)  # pillow assumes that 8 bits are unsigned and 32 signed
    return values


def _check_page_jpeg(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a page with a truncated strip or tile; JPEG tables are stored apart (TIFF TN 2)."""
    tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[:-2]
    with path.open("rb") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            check_jpeg(path, tables + file.read(count)[2:])


def _range(path: Path, policy: IntensityPolicy) -> tuple[float, float]:
    if policy.window is not None:
        return window_range(*policy.window)
    ends: list[float] = []
    fault: ScanError | None = None
    with tifffile.TiffFile(path) as tiff:
        for index in _image_pages(tiff):
            try:
                values = _values(path, tiff.pages[index].aspage(), index)
            except ScanError as error:  # only this page is lost
                fault = error
            else:
                ends += [float(values.min()), float(values.max())]
    if fault is not None and not ends:
        raise fault
    return min(ends), max(ends)
