"""Readers of PNG, JPEG, TIFF and NIfTI files, chosen by extension."""

from __future__ import annotations

from pathlib import Path

from anomaly.data.readers.frames import Frames, decoding
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.nifti import open_nifti
from anomaly.data.readers.png_jpeg import open_png_jpeg
from anomaly.data.readers.raster import IMAGE_KINDS, kind_by_name
from anomaly.data.readers.tiff import open_tiff
from anomaly.errors import Reason, ScanError, UnsupportedScan
from anomaly.types import Scan

__all__ = ["open_image", "read_image"]


def read_image(path: Path, policy: IntensityPolicy) -> list[Scan | ScanError]:
    """Read every page or slice of an image file; see `open_image`.

    Returns
    -------
    list of Scan or ScanError
        One entry per page or slice: the scan, or the error if it cannot be used.
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
        One frame per page or slice; pixels ``(H, W)`` float32 in [0, 1], 0 = black. The identity
        contains only the frame, since these formats store no other. A NIfTI volume is reoriented
        to its closest canonical axes and cut along the third, from inferior to superior; slices
        follow the radiological convention: row 0 anterior, column 0 at the patient's right.

    Raises
    ------
    UnreadableScan
        ``"undecodable"``, ``"unreadable"``, ``"no decoder"``, ``"non-finite"``.
    UnsupportedScan
        ``"not an image"``, ``"colour"``, ``"alpha"``, ``"bit depth"``, ``"orientation"``,
        ``"dimensions"``, ``"too large"``, ``"empty"``; decoding a frame also raises
        ``"constant"``.
    """
    openers = {
        "png": open_png_jpeg,
        "jpeg": open_png_jpeg,
        "tiff": open_tiff,
        "nifti": open_nifti,
    }
    kind = kind_by_name(path)
    if kind not in openers:
        endings = ", ".join(ending for known in IMAGE_KINDS.values() for ending in known)
        raise UnsupportedScan(Reason.NOT_AN_IMAGE, f"{path} is not one of {endings}.")
    with decoding(path):
        return openers[kind](path, policy)
