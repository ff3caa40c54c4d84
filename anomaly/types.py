"""Types exchanged between packages: `Scan`, `Region`, `Verdict`, and others.

::

    shown image = Orientation.show(stored image)

A higher score is always more anomalous. Image arrays are ``(H, W)``, row first, row
0 at the top as displayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import NotCalibrated, Reason, UnsupportedScan
from anomaly.grey import GreyCurve, percentile_curve

__all__ = [
    "DETECTOR_MODEL",
    "DRAWN_PNG",
    "FIGURE_PNG",
    "NOTICE",
    "JudgedScan",
    "Orientation",
    "Region",
    "Scan",
    "ScanIdentity",
    "ScanScore",
    "SpacingSource",
    "StudyVerdict",
    "Verdict",
]

SpacingSource = Literal[
    "PixelSpacing", "ImagerPixelSpacing", "ImagerPixelSpacing / magnification", "NIfTI", "none"
]

NOTICE = "Research use only. Not a diagnosis."
"""Notice shown with every result."""

DETECTOR_MODEL = "anomaly detector"
"""ManufacturerModelName of every DICOM object that the toolkit writes: results, never scans."""

DRAWN_PNG = {"Source": "synthetic; drawn by a classification diffusion model"}
FIGURE_PNG = {"Software": "anomaly"}
"""Text in the PNG files of sampled images, and of figures: results, never scans."""

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Orientation:
    """Transposition and flips that show the stored pixels of an image upright.

    Attributes
    ----------
    transposed : bool
        Rows and columns are exchanged, first.
    upside_down, mirrored : bool
        Then the order of the rows, or of the columns, is reversed.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def show(self, stored: NDArray[_Value]) -> NDArray[_Value]:
        """Convert a stored image to a shown one; `store` is the inverse."""
        shown = stored.T if self.transposed else stored
        return shown[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def __str__(self) -> str:
        """One letter for each operation, ``"tum"`` for all three; `parse` reads it."""
        operations = (("t", self.transposed), ("u", self.upside_down), ("m", self.mirrored))
        return "".join(letter for letter, applied in operations if applied)

    @classmethod
    def parse(cls, text: str) -> Orientation:
        """Parse the ``str`` of an orientation."""
        return cls("t" in text, "u" in text, "m" in text)

    def store(self, shown: NDArray[_Value]) -> NDArray[_Value]:
        """Convert a shown image back to a stored one."""
        stored = shown[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]
        return stored.T if self.transposed else stored


@dataclass(frozen=True)
class ScanIdentity:
    """Identity of a scan. It is identifying and never written to a shared output.

    Attributes
    ----------
    patient, study, series, instance : str
        The DICOM PatientID and Study, Series and SOP Instance UIDs, or substitutes for formats that
        have none. Empty if unknown.
    frame : int
        Index of the frame or slice within the file, from 0.
    """

    patient: str
    study: str
    series: str
    instance: str
    frame: int = 0


@dataclass(frozen=True)
class Scan:
    """One two-dimensional monochrome image, as displayed to a reader.

    Attributes
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        0 displays black, 1 white: MONOCHROME1 is already inverted.
    levels : int
        Number of grey values that the source can represent, such as 4096 for 12 bits stored.
    identity : ScanIdentity
    modality : str
        DICOM Modality (``"DX"``, ``"CR"``, ...) or the file format, in capitals.
    spacing : tuple of float or None
        Height and width of a pixel in mm, or None if unknown.
    spacing_source : str
        Source of `spacing`; detector-plane spacing is not patient-plane spacing.
    intensity : str
        Conversion of stored values to [0, 1], described in one sentence.
    view, laterality, body_part : str
        DICOM ViewPosition, (Image)Laterality and BodyPartExamined, or empty.
    burned_in : bool
        Whether the source states that identifying text is burned into the pixels.
    synthetic : bool
        Whether the source states that a computer made the image (DICOM SyntheticData).
    orientation : Orientation
        Conversion of the stored pixels to `pixels`; `spacing` is that of `pixels`.
    voi : GreyCurve or None
        Display of `pixels` defined by the source or the configuration; None if neither does.
    visible : GreyCurve or None
        Display by the percentiles of the pixels not hidden by a shutter or padding; None if none
        are hidden.
    frame_count : int
        Number of frames, pages or slices in its file.
    notes : tuple of str
        Remarks on attributes of the source that could not be used.
    """

    pixels: NDArray[np.float32]
    levels: int
    identity: ScanIdentity
    modality: str
    spacing: tuple[float, float] | None
    spacing_source: SpacingSource
    intensity: str
    view: str = ""
    laterality: str = ""
    body_part: str = ""
    burned_in: bool = False
    synthetic: bool = False
    orientation: Orientation = Orientation()
    voi: GreyCurve | None = None
    visible: GreyCurve | None = None
    frame_count: int = 1
    notes: tuple[str, ...] = ()

    @property
    def display(self) -> GreyCurve:
        """Display of `pixels` for people: `voi`, or else the image's own percentiles."""
        return self.voi or self.visible or percentile_curve(self.pixels)


@dataclass(frozen=True)
class ScanScore:
    """Detector output for one scan, before any decision.

    Attributes
    ----------
    key : str
        Pseudonym of the scan.
    score : float
        Higher = more anomalous; no unit.
    features : mapping of str to float
        The named features behind `score`; ``nll`` is in bits/dim.
    evidence : ndarray (H, W) float32, >= 0, or None
        Per-pixel evidence in source geometry; in each channel and sign, 1 is reached by one normal
        scan in a hundred. 0 on blank places.
    part : str
        Part that gives the score: ``"whole"``, ``"place"`` or ``"guard"``; empty if there are none.
    explanation : str
        Where the score comes from, in one sentence; empty if the detector does not say.
    spread : ndarray (H, W) float32, or None
        Contribution of each place to the score of the image as a whole.
    """

    key: str
    score: float
    features: Mapping[str, float]
    evidence: NDArray[np.float32] | None = None
    part: str = ""
    explanation: str = ""
    spread: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Region:
    """A connected area whose evidence is above the pixel threshold.

    Attributes
    ----------
    row, column : float
        Centroid in source pixels; the centre of the first pixel is 0.
    area : int
        Number of source pixels.
    area_mm2 : float or None
        Area in square millimetres if the spacing is known.
    peak : float
        Largest evidence inside.
    """

    row: float
    column: float
    area: int
    area_mm2: float | None
    peak: float


@dataclass(frozen=True)
class JudgedScan:
    """A score compared with held-out normal scans.

    Attributes
    ----------
    scan : ScanScore
    p_value : float in (0, 1]
        Share of normal scans expected to look at least this unusual (split conformal).
    alpha : float in (0, 1)
        Stated false-alarm rate.
    threshold : float
        Score at and above which ``p_value <= alpha``.
    flagged : bool
        ``p_value <= alpha``.
    regions : tuple of Region
        Largest peak first; empty if there are none.
    """

    scan: ScanScore
    p_value: float
    alpha: float
    threshold: float
    flagged: bool
    regions: tuple[Region, ...] = field(default=())

    @property
    def spread(self) -> NDArray[np.float32] | None:
        """Spread of the score, if the image as a whole would be flagged by itself; else None."""
        whole = self.scan.features.get("part_whole", -np.inf)
        return self.scan.spread if self.flagged and whole >= self.threshold else None


@dataclass(frozen=True)
class Verdict:
    """Result of a detector for one scan, or the reason why there is none.

    Attributes
    ----------
    path : str
        The file, as given by the caller; empty for an array.
    frame : int
        Index of the frame within the file, from 0.
    alpha : float in (0, 1)
        Stated false-alarm rate.
    score : float or None
        Higher = more anomalous, no unit; None if the scan was not scored.
    p_value : float in (0, 1], or None
        Share of normal scans expected to look at least this unusual (split conformal); None if
        the scan was not scored or the detector is not calibrated.
    flag : bool or None
        ``p_value <= alpha``; None if there is no p-value, and then `flagged` raises.
    regions : tuple of Region
        Largest peak first, in the scan's own pixels; empty if there are none.
    evidence : ndarray (H, W) float32, >= 0, or None
        Evidence at each of the scan's own pixels; in each channel and sign, 1 is reached by one
        normal scan in a hundred. 0 on blank places.
    evidence_peak : float or None
        Largest evidence.
    features : mapping of str to float
        The named features behind `score`; ``nll`` is in bits/dim.
    part : str
        Part that gives the score: ``"whole"``, ``"place"`` or ``"guard"``; empty if there are none.
    explanation : str
        Where the score comes from, in one sentence; empty if the detector does not say.
    spread : ndarray (H, W) float32, or None
        Contribution of each place to the score of the image as a whole.
    seen : bool
        Whether the scan was used in training or calibration; then its p-value is not valid.
    reason, detail : str
        Why there is no score, as a short reason and as a sentence; empty if there is one.
    """

    path: str
    frame: int
    alpha: float
    score: float | None = None
    p_value: float | None = None
    flag: bool | None = None
    regions: tuple[Region, ...] = ()
    evidence: NDArray[np.float32] | None = None
    evidence_peak: float | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    part: str = ""
    explanation: str = ""
    spread: NDArray[np.float32] | None = None
    seen: bool = False
    reason: Reason | None = None
    detail: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the scan is flagged at `alpha`.

        Raises
        ------
        UnsupportedScan
            If it was not scored: it is neither normal nor abnormal.
        NotCalibrated
            If the detector is not calibrated.
        """
        if self.reason:
            raise UnsupportedScan(self.reason, f"the scan was not scored: {self.detail}")
        if self.flag is None:
            raise NotCalibrated("the detector is not calibrated: it gives scores and no flags")
        return self.flag

    def calibrated(self, *, p_value: float, flag: bool, regions: tuple[Region, ...]) -> Verdict:
        """Return the verdict with the results of a calibration."""
        return replace(self, p_value=p_value, flag=flag, regions=regions)


@dataclass(frozen=True)
class StudyVerdict:
    """Result of a detector for the scans of one study together.

    Attributes
    ----------
    alpha : float in (0, 1)
        Stated false-alarm rate, of studies.
    p_value : float in (0, 1], or None
        The smallest p-value of the scans, times their number (Bonferroni): valid for any dependence
        between the scans. None if no scan has one.
    flag : bool or None
        ``p_value <= alpha``. `flagged` raises if this is None.
    scans : tuple of Verdict
    """

    alpha: float
    p_value: float | None
    flag: bool | None
    scans: tuple[Verdict, ...]

    @property
    def flagged(self) -> bool:
        """Whether the study is flagged at `alpha`.

        Raises
        ------
        NotCalibrated
            If no scan of it has a p-value, which does not mean that it is normal.
        """
        if self.flag is None:
            raise NotCalibrated("no scan of the study has a p-value: it is not judged")
        return self.flag
