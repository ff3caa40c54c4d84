"""What crosses from one part of the toolkit to the next: `Scan`, `Region`, `Verdict`, and others.

::

    shown image = Orientation.show(stored image)

One sign everywhere: a higher score is more anomalous. Image arrays are ``(H, W)``, row first, row
0 at the top as displayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import NotCalibrated, UnsupportedScan
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
"""Said wherever a result is shown."""

DETECTOR_MODEL = "anomaly detector"
"""ManufacturerModelName of every DICOM object that the toolkit writes: results, never scans."""

DRAWN_PNG = {"Source": "synthetic; drawn by a classification diffusion model"}
FIGURE_PNG = {"Software": "anomaly"}
"""Text in the PNG files of drawn images, and of figures: results, never scans."""

_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True)
class Orientation:
    """How the stored pixels of an image are turned to show it upright.

    Attributes
    ----------
    transposed : bool
        Rows and columns change places, first.
    upside_down, mirrored : bool
        Then the order of the rows, or of the columns, is reversed.
    """

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def show(self, stored: NDArray[_Value]) -> NDArray[_Value]:
        """Turn an image as stored into one as shown; `store` is the way back."""
        shown = stored.T if self.transposed else stored
        return shown[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]

    def __str__(self) -> str:
        """One letter for each turn, ``"tum"`` for all three; `parse` reads it."""
        turns = (("t", self.transposed), ("u", self.upside_down), ("m", self.mirrored))
        return "".join(letter for letter, turned in turns if turned)

    @classmethod
    def parse(cls, text: str) -> Orientation:
        """Read what ``str`` of an orientation says."""
        return cls("t" in text, "u" in text, "m" in text)

    def store(self, shown: NDArray[_Value]) -> NDArray[_Value]:
        """Turn an image as shown back into one as stored."""
        stored = shown[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]
        return stored.T if self.transposed else stored


@dataclass(frozen=True)
class ScanIdentity:
    """Who and what a scan is. Identifying: never written to a shared output.

    Attributes
    ----------
    patient, study, series, instance : str
        The DICOM PatientID and Study, Series and SOP Instance UIDs, or stand-ins for formats that
        have none. Empty where the source says nothing.
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
    """One two-dimensional monochrome image, as a reader should see it.

    Attributes
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        0 displays black, 1 white: MONOCHROME1 is already inverted.
    levels : int
        Number of grey values that the source can hold, such as 4096 for 12 bits stored.
    identity : ScanIdentity
    modality : str
        DICOM Modality (``"DX"``, ``"CR"``, ...) or the file format, in capitals.
    spacing : tuple of float or None
        Height and width of a pixel in mm, or None where unknown.
    spacing_source : str
        Where `spacing` comes from; detector-plane spacing is not patient-plane spacing.
    intensity : str
        How stored values became [0, 1], in one sentence, for the record.
    view, laterality, body_part : str
        DICOM ViewPosition, (Image)Laterality and BodyPartExamined, or empty.
    burned_in : bool
        The source says that identifying text is burned into the pixels.
    synthetic : bool
        The source says that a computer made the image (DICOM SyntheticData).
    orientation : Orientation
        How the stored pixels were turned into `pixels`; `spacing` is that of `pixels`.
    voi : GreyCurve or None
        Display of `pixels` that the source or the configuration asks for; None where neither says.
    visible : GreyCurve or None
        Display by the percentiles of what a shutter or padding leaves visible; None where nothing
        is hidden.
    frame_count : int
        Frames, pages or slices in the file that it is one of.
    notes : tuple of str
        What the source says beside its pixels and could not be used.
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
        """How `pixels` are shown to people: by `voi`, or else by the image's own percentiles."""
        return self.voi or self.visible or percentile_curve(self.pixels)


@dataclass(frozen=True)
class ScanScore:
    """What the detector says of one scan, before any decision.

    Attributes
    ----------
    key : str
        Pseudonym of the scan.
    score : float
        Higher = more anomalous; no unit.
    features : mapping of str to float
        The named features behind `score`; ``nll`` is in bits/dim.
    evidence : ndarray (H, W) float32, >= 0, or None
        Per-pixel evidence in source geometry: 0 where the place looks like any normal scan.
    """

    key: str
    score: float
    features: Mapping[str, float]
    evidence: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Region:
    """A connected place whose evidence is above the pixel threshold.

    Attributes
    ----------
    row, column : float
        Centroid in source pixels; the centre of the first pixel is 0.
    area : int
        Number of source pixels.
    area_mm2 : float or None
        Area in square millimetres where the spacing is known.
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
    """A score, and what it means against held-out normal scans.

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
        Largest peak first; empty where nothing stands out.
    """

    scan: ScanScore
    p_value: float
    alpha: float
    threshold: float
    flagged: bool
    regions: tuple[Region, ...] = field(default=())


@dataclass(frozen=True)
class Verdict:
    """What a detector says of one scan, or why it says nothing.

    Attributes
    ----------
    path : str
        The file, as the caller named it; empty for an array.
    frame : int
        Index of the frame within the file, from 0.
    alpha : float in (0, 1)
        Stated false-alarm rate.
    score : float or None
        Higher = more anomalous, no unit; None where the scan was not scored.
    p_value : float in (0, 1], or None
        Share of normal scans expected to look at least this unusual (split conformal); None where
        the scan was not scored or the detector is not calibrated.
    flag : bool or None
        ``p_value <= alpha``, or None likewise. `flagged` raises where this is None.
    regions : tuple of Region
        Largest peak first, in the scan's own pixels; empty where nothing stands out.
    evidence : ndarray (H, W) float32, >= 0, or None
        Evidence at each of the scan's own pixels: 1 as normal scans show in the middle, 0 on
        blank places.
    evidence_peak : float or None
        Largest evidence.
    features : mapping of str to float
        The named features behind `score`; ``nll`` is in bits/dim.
    seen : bool
        The scan took part in training or calibration: its score says nothing of other scans.
    reason, detail : str
        Why there is no score, in a word and in a sentence; empty where there is one.
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
    seen: bool = False
    reason: str = ""
    detail: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the scan is flagged at `alpha`.

        Raises
        ------
        UnsupportedScan
            If it was not scored: that is neither normal nor abnormal.
        NotCalibrated
            If the detector is not calibrated.
        """
        if self.reason:
            raise UnsupportedScan(self.reason, f"the scan was not scored: {self.detail}")
        if self.flag is None:
            raise NotCalibrated("the detector is not calibrated: it gives scores and no flags")
        return self.flag

    def calibrated(self, *, p_value: float, flag: bool, regions: tuple[Region, ...]) -> Verdict:
        """Return the verdict with what a calibration adds to it."""
        return replace(self, p_value=p_value, flag=flag, regions=regions)


@dataclass(frozen=True)
class StudyVerdict:
    """What a detector says of the scans of one study together.

    Attributes
    ----------
    alpha : float in (0, 1)
        Stated false-alarm rate, of studies.
    p_value : float in (0, 1], or None
        The smallest p-value of the scans, times their number (Bonferroni): valid whatever the scans
        have to do with each other. None where no scan has one.
    flag : bool or None
        ``p_value <= alpha``. `flagged` raises where this is None.
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
            If no scan of it has a p-value: not scored is not normal.
        """
        if self.flag is None:
            raise NotCalibrated("no scan of the study has a p-value: it is not judged")
        return self.flag
