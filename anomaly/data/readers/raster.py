"""Common parts of the readers of PNG, JPEG, TIFF and NIfTI.

These formats contain no patient, no modality and no photometric information beyond "0 is black",
so fewer checks are possible than for DICOM. Colour is never silently converted to grey: an RGB
image is accepted only if red, green and blue are equal at every pixel.

The range of values has two sources. PNG, JPEG and unsigned TIFF of up to 16 bits use the range of
their bits. NIfTI and other TIFF (float, signed, 32 bits) declare no range, so they use the
configured window, or else the minimum and maximum of the *whole file*, never of one slice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.readers.frames import check_varied
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.errors import Reason, UnreadableScan
from anomaly.grey import GreyCurve
from anomaly.types import Scan, ScanIdentity, SpacingSource

__all__ = [
    "FLOAT_LEVELS",
    "IMAGE_KINDS",
    "check_finite",
    "configured_display",
    "kind_by_name",
    "make_scan",
]

IMAGE_KINDS: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "tiff": (".tif", ".tiff"),
    "nifti": (".nii", ".nii.gz"),
}

FLOAT_LEVELS = 2**16
"""Grey values assumed for floats: 16 bits, as the finest integer format that is read here."""


def kind_by_name(path: Path) -> str:
    """Kind of an image file by its extension: a key of `IMAGE_KINDS`, or empty."""
    name = path.name.lower()
    for kind, endings in IMAGE_KINDS.items():
        if name.endswith(endings):
            return kind
    return ""


def make_scan(
    path: Path,
    index: int,
    pixels: NDArray[np.float32],
    levels: int,
    intensity: str,
    spacing: tuple[float, float] | None = None,
) -> Scan:
    """Build the scan of a page or slice; its identity contains only the frame.

    Parameters
    ----------
    path : Path
    index : int
    pixels : ndarray (H, W) float32 in [0, 1]
    levels : int
        Number of grey values.
    intensity : str
        How grey values were scaled.
    spacing : (float, float) or None
        Height and width of a pixel in mm.

    Raises
    ------
    UnsupportedScan
        ``"constant"``.
    """
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


def configured_display(policy: IntensityPolicy) -> GreyCurve | None:
    """Display curve of a configured window: the identity, as the window is already applied."""
    if policy.window is None:
        return None
    return GreyCurve.identity("window {:g} / {:g} as configured".format(*policy.window))


def check_finite(path: Path, values: NDArray[Any]) -> None:
    """Refuse values that are NaN or infinite.

    Raises
    ------
    UnreadableScan
        ``"non-finite"``.
    """
    wrong = int(np.count_nonzero(~np.isfinite(values)))
    if wrong:
        raise UnreadableScan(
            Reason.NON_FINITE, f"{path} holds {wrong} value(s) that are NaN or infinite."
        )
