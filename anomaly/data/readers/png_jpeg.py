"""PNG and JPEG files as frames."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anomaly.data.readers.frames import Frames, check_size, decoding
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.jpeg import check_jpeg
from anomaly.data.readers.raster import make_scan
from anomaly.errors import Reason, UnsupportedScan
from anomaly.grey import to_unit
from anomaly.types import DRAWN_PNG, FIGURE_PNG, Scan

__all__ = ["open_png_jpeg"]

_ALPHA = "their grey depends on what lies behind; save it without transparency."


def open_png_jpeg(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a PNG or JPEG file, scaled by the full range of its bits; see `open_image`."""
    del policy  # the range follows from the bits
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        # A multi-picture JPEG contains smaller copies of its first picture.
        count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
        check_size(path, image.height, image.width, count)
        if any(image.info.get(key) == text for key, text in {**DRAWN_PNG, **FIGURE_PNG}.items()):
            raise UnsupportedScan(
                Reason.OWN_RESULT, f"{path} is a picture that this toolkit has drawn, not a scan."
            )
    return Frames(count, partial(_read_png_jpeg, path), path)


def _read_png_jpeg(path: Path, index: int) -> Scan:
    with decoding(path), Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.format != "PNG" and image.mode in ("L", "RGB"):
            check_jpeg(path, path.read_bytes())
        image.seek(index)
        bits = _png_bits(path) if image.format == "PNG" else 8
        if bits == 16 and not image.mode.startswith("I"):
            raise UnsupportedScan(
                Reason.BIT_DEPTH,
                f"{path} has 16 bits and {image.mode}; expected 16-bit grey alone.",
            )
        grey = _grey(path, ImageOps.exif_transpose(image))
        # pillow scales 2-bit and 4-bit grey to 0..255 exactly, so their white is 255 too.
        white = 2**16 - 1 if bits == 16 else 255
        levels = 2**bits if image.mode in ("1", "L") or bits == 16 else 256
        return make_scan(
            path, index, to_unit(grey, 0, white), levels, f"Full range of {bits} bits."
        )


def _png_bits(path: Path) -> int:
    """Bit depth from the IHDR chunk, which pillow does not report (PNG specification 11.2.1)."""
    with path.open("rb") as stream:
        return stream.read(25)[24]


def _grey(path: Path, image: Image.Image) -> NDArray[Any]:
    """Grey values ``(H, W)`` of a pillow image, 255 or 65535 = white.

    Raises
    ------
    UnsupportedScan
        ``"alpha"``, ``"colour"``.
    """
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        clear = image.info.get("transparency")
        if clear is not None and (grey == clear).any():
            raise UnsupportedScan(Reason.ALPHA, f"{path} has transparent pixels: {_ALPHA}")
        return grey
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise UnsupportedScan(Reason.COLOUR, f"{path} has pixel mode {image.mode}; expected grey.")
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] != 255).any():
        raise UnsupportedScan(Reason.ALPHA, f"{path} has transparent pixels: {_ALPHA}")
    if (rgba[..., 0] != rgba[..., 1]).any() or (rgba[..., 1] != rgba[..., 2]).any():
        raise UnsupportedScan(
            Reason.COLOUR,
            f"{path} has coloured pixels; expected grey (red, green and blue equal everywhere).",
        )
    return rgba[..., 0]
