"""A judged image as input of the DICOM objects: verdict, pixels and operating point.

::

    DicomCase = file and frame + verdict (score, p-value, evidence, regions) + displayed grey levels
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.types import JudgedScan, Region

__all__ = ["KINDS", "MAX_REGIONS", "SEEN", "DicomCase", "Kind"]

Kind: TypeAlias = str

KINDS: list[Kind] = [
    *("report", "overlay", "segmentation", "heatmap", "parametric_map", "contours"),
]
"""All kinds of objects, in the order of their series numbers."""

MAX_REGIONS = 100
"""Maximum number of listed regions: thousands are unreadable and take minutes to write."""

SEEN = "Seen in training or calibration: its p-value is not valid."
"""Remark on a scan used to fit the bundle; code meanings have at most 64 characters (PS3.5 6.2)."""


@dataclass(frozen=True)
class DicomCase:
    """One judged image, in the geometry of its stored pixels.

    Attributes
    ----------
    source : Path
        DICOM file that was scored.
    frame : int
        Index of the frame within the file, from 0.
    verdict : JudgedScan
        Its ``scan.evidence`` is (Rows, Columns) and its regions are those of that evidence. Row 0,
        column 0 is the first stored pixel of the frame.
    image : ndarray (Rows, Columns) float32 in [0, 1]
        Grey levels as displayed, 0 is black: MONOCHROME1 is already inverted.
    evidence_threshold : float
        Minimum evidence of a region, set on normal scans.
    evidence_ceiling : float
        Top of the colour scale, the same for the whole run; above `evidence_threshold`.
    calibration_scans : int
        Number of held-out normal scans behind the p-value.
    bundle : str
        SHA-256 of the bundle, hex.
    frame_count : int
        Number of frames that the reader found in the file.
    spread : (float, float) or None
        Grey levels displayed as black and as white, if no window or LUT of the file is used
        (`anomaly.dicom.grey.presentation_grey`).
    seen : bool
        The scan was used for training or calibration of the bundle; every object with text says so
        (`SEEN`).

    Raises
    ------
    ValueError
        Image and evidence have different shapes, or the colour scale is empty.
    """

    source: Path
    frame: int
    verdict: JudgedScan
    image: NDArray[np.float32]
    evidence_threshold: float
    evidence_ceiling: float
    calibration_scans: int
    bundle: str
    frame_count: int = 1
    spread: tuple[float, float] | None = None
    seen: bool = False

    def __post_init__(self) -> None:
        """Check that the evidence fits the image and that the colour scale is valid."""
        evidence = self.verdict.scan.evidence
        if evidence is None or evidence.shape != self.image.shape:
            shape = None if evidence is None else evidence.shape
            raise ValueError(
                f"evidence of shape {shape} does not fit an image of {self.image.shape}: give both "
                "in the geometry of the stored pixels"
            )
        low, high = self.evidence_threshold, self.evidence_ceiling
        if not (math.isfinite(low) and math.isfinite(high) and 0 < low < high):
            raise ValueError(
                f"the colour scale needs 0 < threshold < ceiling, both finite; got {low}, {high}"
            )

    @property
    def evidence(self) -> NDArray[np.float32]:
        """Evidence (Rows, Columns) float32, >= 0."""
        evidence = self.verdict.scan.evidence
        assert evidence is not None  # noqa: S101  checked by `__post_init__`
        return evidence

    @property
    def listed_regions(self) -> tuple[Region, ...]:
        """The regions that the objects list: the `MAX_REGIONS` with the largest peaks."""
        return self.verdict.regions[:MAX_REGIONS]
