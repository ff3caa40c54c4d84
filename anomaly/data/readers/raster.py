"""Readers of PNG, JPEG, TIFF and NIfTI, giving the same `Scan` as DICOM does.

These formats say little about what they hold, so less can be checked: no patient, no modality, no
photometric promise beyond "0 is black". Colour is never reduced to grey behind the user's back: an
RGB image is accepted only where red, green and blue are equal at every pixel.

Two kinds of range. PNG, JPEG and unsigned TIFF of up to 16 bits have the range of their bits. NIfTI
and other TIFF (float, signed, 32 bits) declare none; theirs is the configured window, or else the
minimum and maximum of the *whole file*, never of one slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import tifffile
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anomaly.data.readers.frames import Frames, check_size, check_varied, decoding
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.jpeg import check_jpeg
from anomaly.errors import ScanError, UnreadableScan, UnsupportedScan
from anomaly.grey import GreyCurve, to_unit, window_range
from anomaly.types import DRAWN_PNG, FIGURE_PNG, Scan, ScanIdentity, SpacingSource

__all__ = ["IMAGE_KINDS", "kind_by_name", "open_image", "read_image"]

IMAGE_KINDS: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "tiff": (".tif", ".tiff"),
    "nifti": (".nii", ".nii.gz"),
}

_ALPHA = "their grey depends on what lies behind; save it without transparency."

# A float has no number of grey values; 16 bits is the finest of the integer formats read here.
_FLOAT_LEVELS = 2**16
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


def kind_by_name(path: Path) -> str:
    """Kind of an image file by its extension: a key of `IMAGE_KINDS`, or empty."""
    name = path.name.lower()
    for kind, endings in IMAGE_KINDS.items():
        if name.endswith(endings):
            return kind
    return ""


def read_image(path: Path, policy: IntensityPolicy) -> list[Scan | ScanError]:
    """Read every page or slice of an image file; see `open_image`.

    Returns
    -------
    list of Scan or ScanError
        One entry a page or slice; an error stands where one cannot be used.
    """
    return list(open_image(path, policy))


def open_image(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a PNG, JPEG, TIFF or NIfTI file, by its extension.

    Parameters
    ----------
    path : Path
    policy : IntensityPolicy
        PNG, JPEG and unsigned TIFF always use the full range of their bits.

    Returns
    -------
    Frames
        One frame a page or slice; pixels ``(H, W)`` float32 in [0, 1], 0 = black. The identity is
        empty but for the frame, as these formats hold none. A NIfTI volume is turned to its
        closest canonical axes and cut along the third, from inferior to superior; a slice is shown
        in the radiological convention: row 0 anterior, column 0 at the patient's right.

    Raises
    ------
    UnreadableScan
        ``"undecodable"``, ``"unreadable"``, ``"no decoder"``, ``"non-finite"``.
    UnsupportedScan
        ``"not an image"``, ``"colour"``, ``"alpha"``, ``"bit depth"``, ``"orientation"``,
        ``"dimensions"``, ``"too large"``, ``"empty"``; of a frame also ``"constant"``.
    """
    openers = {
        "png": _open_pillow,
        "jpeg": _open_pillow,
        "tiff": _open_tiff,
        "nifti": _open_nifti,
    }
    kind = kind_by_name(path)
    if kind not in openers:
        endings = ", ".join(ending for known in IMAGE_KINDS.values() for ending in known)
        raise UnsupportedScan("not an image", f"{path} is not one of {endings}.")
    with decoding(path):
        return openers[kind](path, policy)


def _configured(policy: IntensityPolicy) -> GreyCurve | None:
    """Display of a configured window, which grey has been through already."""
    if policy.window is None:
        return None
    return GreyCurve.identity("window {:g} / {:g} as configured".format(*policy.window))


def _scan(
    path: Path,
    index: int,
    pixels: NDArray[np.float32],
    levels: int,
    intensity: str,
    spacing: tuple[float, float] | None = None,
) -> Scan:
    check_varied(path, pixels)
    source: SpacingSource = "none" if spacing is None else "NIfTI"
    return Scan(
        pixels=np.ascontiguousarray(pixels),
        levels=levels,
        identity=ScanIdentity("", "", "", "", index),
        modality=kind_by_name(path).upper(),
        spacing=spacing,
        spacing_source=source,
        intensity=intensity,
    )


# --- PNG and JPEG -----------------------------------------------------------------------------


def _open_pillow(path: Path, policy: IntensityPolicy) -> Frames:
    del policy  # the bits give the range
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        # A multi-picture JPEG holds smaller copies of its first picture.
        count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        check_size(path, image.height, image.width, count)
        if any(image.info.get(key) == text for key, text in {**DRAWN_PNG, **FIGURE_PNG}.items()):
            raise UnsupportedScan(
                "own result", f"{path} is a picture that this toolkit has drawn, not a scan."
            )
    return Frames(count, partial(_read_pillow, path), path)


def _read_pillow(path: Path, index: int) -> Scan:
    with decoding(path), Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.format != "PNG" and image.mode in ("L", "RGB"):
            check_jpeg(path, path.read_bytes())
        image.seek(index)
        bits = _png_bits(path) if image.format == "PNG" else 8
        if bits == 16 and not image.mode.startswith("I"):
            raise UnsupportedScan(
                "bit depth", f"{path} has 16 bits and {image.mode}; expected 16-bit grey alone."
            )
        grey = _grey(path, ImageOps.exif_transpose(image))
        # pillow spreads grey of 2 and 4 bits over 0..255 exactly, so 255 stays the white of those
        white = 2**16 - 1 if bits == 16 else 255
        levels = 2**bits if image.mode in ("1", "L") or bits == 16 else 256
        return _scan(path, index, to_unit(grey, 0, white), levels, f"Full range of {bits} bits.")


def _png_bits(path: Path) -> int:
    """Bit depth from the IHDR chunk, which pillow does not tell (PNG specification 11.2.1)."""
    with path.open("rb") as stream:
        return stream.read(25)[24]


def _grey(path: Path, image: Image.Image) -> NDArray[Any]:
    """Grey values ``(H, W)`` of a pillow image, 255 or 65535 = white, or a refusal."""
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        clear = image.info.get("transparency")
        if clear is not None and (grey == clear).any():
            raise UnsupportedScan("alpha", f"{path} has transparent pixels: {_ALPHA}")
        return grey
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise UnsupportedScan("colour", f"{path} has pixel mode {image.mode}; expected grey.")
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] != 255).any():
        raise UnsupportedScan("alpha", f"{path} has transparent pixels: {_ALPHA}")
    if (rgba[..., 0] != rgba[..., 1]).any() or (rgba[..., 1] != rgba[..., 2]).any():
        raise UnsupportedScan(
            "colour",
            f"{path} has coloured pixels; expected grey (red, green and blue equal everywhere).",
        )
    return rgba[..., 0]


# --- TIFF -------------------------------------------------------------------------------------


def _open_tiff(path: Path, policy: IntensityPolicy) -> Frames:
    with tifffile.TiffFile(path) as tiff:
        pages = _tiff_images(tiff)
        if tiff.is_shaped or tiff.is_imagej:  # they may keep a stack behind a single page
            count = sum(series.size for series in tiff.series)
            there = sum(page.aspage().size for page in tiff.pages)
            if count > there:
                raise UnsupportedScan(
                    "frames",
                    f"{path} holds {count} values, and its {len(pages)} page(s) {there}: a stack "
                    "behind one page. Save every image as a page of its own.",
                )
        if not pages:
            raise UnsupportedScan("empty", f"{path} holds nothing but thumbnails and masks.")
        first = tiff.pages[pages[0]].aspage()
        check_size(path, first.imagelength, first.imagewidth, len(pages))
    file_range = cache(partial(_tiff_range, path, policy))
    return Frames(len(pages), partial(_read_tiff, path, policy, file_range), path)


def _tiff_images(tiff: tifffile.TiffFile) -> list[int]:
    """Places of the pages that are images of their own.

    NewSubfileType marks smaller copies of another page by bit 0 and transparency masks by bit 2
    (TIFF 6.0, section 8).
    """
    return [place for place, page in enumerate(tiff.pages) if not page.aspage().subfiletype & 5]


def _read_tiff(
    path: Path, policy: IntensityPolicy, file_range: Callable[[], tuple[float, float]], index: int
) -> Scan:
    with decoding(path), tifffile.TiffFile(path) as tiff:
        place = _tiff_images(tiff)[index]
        page = tiff.pages[place].aspage()
        check_size(path, page.imagelength, page.imagewidth)
        values = _tiff_values(path, page, place)
        voi = None
        bits = int(page.bitspersample)
        if values.dtype.kind in "bu" and bits <= 16:
            grey = to_unit(values, 0, 2**bits - 1)
            levels, intensity = 2**bits, f"Full range of {bits} bits."
        else:
            low, high = file_range()  # costs every page, so only where needed, and once
            grey, levels = to_unit(values, low, high), _FLOAT_LEVELS
            intensity = f"Values {low:g} to {high:g}."
            voi = _configured(policy)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            grey, intensity = 1 - grey, intensity[:-1] + ", inverted."
        return replace(_scan(path, index, grey, levels, intensity), voi=voi)


def _tiff_values(path: Path, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
    """Values ``(H, W)`` of a page as stored, finite; equal RGB channels count as one."""
    orientation = page.tags.valueof("Orientation", 1)
    if orientation != 1:
        raise UnsupportedScan(
            "orientation", f"{path} has TIFF orientation {orientation}; expected 1 (row 0 on top)."
        )
    kinds = tifffile.PHOTOMETRIC
    if page.photometric not in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB):
        raise UnsupportedScan("colour", f"{path} is {kinds(page.photometric).name}; expected grey.")
    if page.extrasamples:
        raise UnsupportedScan("alpha", f"{path} has an extra channel; expected grey alone.")
    values = _tiff_decoded(path, page, index)
    if page.photometric == kinds.RGB and values.ndim == 3:
        channels = values if page.planarconfig == 2 else np.moveaxis(values, -1, 0)
        if any((channel != channels[0]).any() for channel in channels):
            raise UnsupportedScan("colour", f"{path} has coloured pixels; expected grey.")
        values = channels[0]
    if values.ndim != 2:
        raise UnsupportedScan(
            "dimensions", f"{path} has pages of shape {values.shape}; expected (H, W)."
        )
    if values.dtype.kind not in "buif":
        raise UnsupportedScan("bit depth", f"{path} holds {values.dtype}; expected real numbers.")
    _check_finite(path, values)
    return values


def _tiff_decoded(path: Path, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
    kinds = tifffile.COMPRESSION
    simple = (kinds.NONE, kinds.ADOBE_DEFLATE, kinds.DEFLATE, kinds.PACKBITS)
    if page.compression in simple:
        return np.asarray(page.asarray())
    # LZW and the JPEG family need pillow's libtiff. It inverts MINISWHITE at 8 bits and not at
    # 16, so only MINISBLACK is left to it.
    if page.photometric != tifffile.PHOTOMETRIC.MINISBLACK:
        raise UnreadableScan(
            "no decoder",
            f"{path} is an inverted or coloured TIFF with {kinds(page.compression).name} "
            "compression; save it uncompressed or with deflate.",
        )
    if page.compression == kinds.JPEG:
        _check_tiff_jpeg(path, page)
    with Image.open(path, formats=("TIFF",)) as image:
        image.seek(index)
        values = np.asarray(image)
    whole = values.dtype.kind in "iu" and page.dtype is not None and page.dtype.kind in "iu"
    if whole and page.dtype is not None and values.dtype.itemsize == page.dtype.itemsize:
        return values.view(page.dtype)  # pillow takes 8 bits for unsigned and 32 for signed
    return values


def _check_tiff_jpeg(path: Path, page: tifffile.TiffPage) -> None:
    """Refuse a page of which a strip or tile ends early; its tables lie apart (TIFF TN 2)."""
    tables = (page.jpegtables or b"\xff\xd8\xff\xd9")[:-2]
    with path.open("rb") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.seek(offset)
            check_jpeg(path, tables + file.read(count)[2:])


def _tiff_range(path: Path, policy: IntensityPolicy) -> tuple[float, float]:
    if policy.window is not None:
        return window_range(*policy.window)
    ends: list[float] = []
    fault: ScanError | None = None
    with tifffile.TiffFile(path) as tiff:
        for index in _tiff_images(tiff):
            try:
                values = _tiff_values(path, tiff.pages[index].aspage(), index)
            except ScanError as error:  # costs its page alone
                fault = error
            else:
                ends += [float(values.min()), float(values.max())]
    if fault is not None and not ends:
        raise fault
    return min(ends), max(ends)


# --- NIfTI ------------------------------------------------------------------------------------


_NO_AFFINE = (
    "orientation unknown: the file has neither a usable qform nor sform, so left and right, and "
    "which way is up, are as its axes happen to lie"
)

_COARSE = 256
"""Where values lie further from zero than this many times their range, float32 has too few."""


class _Marks(NamedTuple):
    """What a slice has from its volume."""

    spacing: tuple[float, float] | None
    voi: GreyCurve | None
    notes: tuple[str, ...]


def _open_nifti(path: Path, policy: IntensityPolicy) -> Frames:
    image = nibabel.load(path)
    shape: tuple[int, ...] = getattr(image, "shape", ())
    # A time axis of one volume, and whatever else has the length of 1, is no fourth dimension.
    if not isinstance(image, Nifti1Image) or len(shape) < 3 or set(shape[3:]) - {1}:
        raise UnsupportedScan("dimensions", f"{path} has shape {shape}; expected three dimensions.")
    header: Any = image.header  # nibabel leaves its headers untyped
    stored = header.get_data_dtype()
    if stored.kind not in "buif":
        raise UnsupportedScan("colour", f"{path} holds {stored}; expected real numbers.")
    check_size(path, shape[1], shape[0], shape[2])
    affine = _nifti_affine(image)
    if not _leads_somewhere(image.affine):
        given = np.eye(4) if affine is None else affine
        image = Nifti1Image(image.dataobj, given, header)  # type: ignore[no-untyped-call]
    volume: Nifti1Image = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]
    values: NDArray[np.floating[Any]] = np.asarray(volume.dataobj, dtype=np.float32)
    values = values.reshape(volume.shape[:3])
    _check_finite(path, values)
    low, high = float(values.min()), float(values.max())
    if max(abs(low), abs(high)) > _COARSE * (high - low):
        values = np.asarray(volume.dataobj, dtype=np.float64).reshape(volume.shape[:3])
        low, high = float(values.min()), float(values.max())
    levels = _FLOAT_LEVELS
    if stored.kind != "f":
        slope = abs(float(getattr(image.dataobj, "slope", 1.0)))
        levels = min(max(round((high - low) / slope) + 1, 2), _FLOAT_LEVELS)
    if policy.window is not None:
        low, high = window_range(*policy.window)
    marks = _Marks(
        _nifti_spacing(volume.header),
        _configured(policy),
        () if affine is not None else (_NO_AFFINE,),
    )
    decode = partial(_nifti_slice, path, values, (low, high), levels, marks)
    return Frames(values.shape[2], decode, path)


def _nifti_affine(image: Nifti1Image) -> NDArray[np.float64] | None:
    """Affine of a volume by its sform, or else its qform; None where neither can be used."""
    header: Any = image.header
    for name in ("sform", "qform"):
        affine = getattr(header, f"get_{name}")(coded=True)[0]
        if affine is not None and _leads_somewhere(affine):
            return np.asarray(affine, dtype=np.float64)
    return None


def _leads_somewhere(affine: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0)


def _nifti_slice(
    path: Path,
    values: NDArray[np.floating[Any]],
    span: tuple[float, float],
    levels: int,
    marks: _Marks,
    index: int,
) -> Scan:
    # canonical axes grow to the right, anterior and superior of the patient: (x, y) -> (-y, -x)
    upright = values[::-1, ::-1, index].T
    intensity = f"Values {span[0]:g} to {span[1]:g} of the volume."
    scan = _scan(path, index, to_unit(upright, *span), levels, intensity, marks.spacing)
    return replace(scan, voi=marks.voi, notes=marks.notes)


def _nifti_spacing(header: Any) -> tuple[float, float] | None:
    try:
        unit = _MILLIMETRES.get(header.get_xyzt_units()[0])
    except KeyError:  # a code that the format does not know
        unit = None
    width, height = (float(zoom) for zoom in header.get_zooms()[:2])
    if unit is None or not (math.isfinite(width * height) and width > 0 and height > 0):
        return None
    return height * unit, width * unit


def _check_finite(path: Path, values: NDArray[Any]) -> None:
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    if wrong:
        raise UnreadableScan(
            "non-finite", f"{path} holds {wrong} value(s) that are NaN or infinite."
        )
