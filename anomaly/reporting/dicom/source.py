"""Where a DICOM object comes from: the case, the image it judges, and the names derived from both.

::

    UID = 2.25.<first 128 bits of SHA-256(bundle, alpha, version, of what, kind)>     (PS3.5 B.2)

An object is named after the image and frame it judges, its series after the study and the frame
of reference: the same version of the toolkit that scores the same scan again with the same bundle
at the same alpha gives the same names, and an archive keeps one copy. Another version may lay an
object out otherwise, so it gives others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from anomaly import __version__
from anomaly.dicom.frames import holds_many, is_multiframe, stated_frames
from anomaly.dicom.tags import functional_group, numbers, value_of, whole_number
from anomaly.errors import UnsupportedScan
from anomaly.types import DETECTOR_MODEL, NOTICE, JudgedScan, Region

__all__ = [
    "ALGORITHM",
    "KINDS",
    "MANUFACTURER",
    "MAX_REGIONS",
    "NOTICE",
    "SEEN",
    "DicomCase",
    "Kind",
    "SourceImage",
]

Kind: TypeAlias = str

KINDS: list[Kind] = [
    *("report", "overlay", "segmentation", "heatmap", "parametric_map", "contours"),
]
"""Every kind of object, in the order of their series numbers."""

ALGORITHM = MANUFACTURER = "anomaly"

MAX_REGIONS = 100
"""Regions that are listed one by one: nobody reads thousands, and they take minutes to write."""

SEEN = "Seen in training or calibration: its p-value is not valid."
"""Of a scan that the bundle has seen; a code's meaning has at most 64 characters (PS3.5 6.2)."""

_FIRST_SERIES = 9901  # far above the numbers that modalities give their own series

_PLANE = {
    "ImagePositionPatient": ("PlanePositionSequence", 3),
    "ImageOrientationPatient": ("PlaneOrientationSequence", 6),
    "PixelSpacing": ("PixelMeasuresSequence", 2),
}
"""What places a plane in a frame of reference (PS3.3 C.7.6.2): all of it, or none is used. Images
of many frames say it in functional groups (PS3.3 C.7.6.16.2), named here with its count of numbers.
"""

_STRAIGHT = 1e-4  # a smaller cosine is rounding, not an angle

_MOST_OBLONG = 10_000  # no pixel is longer than wide by more: whoever says so is wrong

_PIXELS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsStored",
    "PixelRepresentation",
    "PositionReferenceIndicator",
)
"""What an object may repeat of how its source is stored and placed."""

_BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)

_MEASURES = ("SliceThickness", "SpacingBetweenSlices")
"""Numbers that it may repeat, where they are some."""


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
        Its ``scan.evidence`` is (Rows, Columns) and its regions are those of that evidence: row 0,
        column 0 is the first stored pixel of the frame.
    image : ndarray (Rows, Columns) float32 in [0, 1]
        Grey as displayed, 0 black: MONOCHROME1 is already inverted.
    evidence_threshold : float
        Evidence at and above which a region is drawn, set on normal scans.
    evidence_ceiling : float
        Top of the colour scale, the same for the whole run; above `evidence_threshold`.
    calibration_scans : int
        Number of held-out normal scans behind the p-value.
    bundle : str
        SHA-256 of the bundle, hex.
    frame_count : int
        Frames that the reader has found in the file.
    spread : (float, float) or None
        Grey of the scan that is displayed black and white, where no window or table of the file is
        used (`anomaly.dicom.grey.presentation_grey`).
    seen : bool
        The scan took part in training or calibration of the bundle; every object with words on it
        says so (`SEEN`).

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
        """Refuse what would draw evidence on other pixels, or on no scale."""
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
        assert evidence is not None  # noqa: S101  `__post_init__` has looked
        return evidence

    @property
    def listed_regions(self) -> tuple[Region, ...]:
        """The regions that objects list one by one: the `MAX_REGIONS` with the largest peak."""
        return self.verdict.regions[:MAX_REGIONS]


@dataclass(frozen=True)
class SourceImage:
    """The header of the judged file, and what every object takes from it.

    Attributes
    ----------
    case : DicomCase
    header : FileDataset
        The file without its pixels.
    """

    case: DicomCase
    header: FileDataset

    @classmethod
    def read(cls, case: DicomCase) -> SourceImage:
        """Read the header of a case's file.

        Raises
        ------
        UnsupportedScan
            It names no instance, series or study, or it is not an image of the case's shape with
            the case's frame.
        Exception
            Whatever pydicom raises where the file is gone or damaged.
        """
        source = cls(case, dcmread(case.source, stop_before_pixels=True))
        source._check()
        return source

    def _check(self) -> None:
        """Refuse an image that cannot be named, or that the case is not of."""
        case, header = self.case, self.header
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            value = header.get(keyword)
            if not value or not isinstance(value, str):
                raise UnsupportedScan(
                    "no identity",
                    f"{case.source} has no {keyword}, or several: results cannot be filed with "
                    "it; write an HTML report instead",
                )
        shape = (header.get("Rows"), header.get("Columns"))
        if shape != case.image.shape:
            raise UnsupportedScan(
                "another size",
                f"{case.source} has {shape[0]} rows and {shape[1]} columns, the evidence "
                f"{case.image.shape}: expected evidence in the geometry of the stored pixels",
            )
        if not 0 <= case.frame < self.frames:
            raise UnsupportedScan(
                "no such frame",
                f"{case.source} has {self.frames} frame(s); frame {case.frame} was asked for "
                "(they count from 0)",
            )

    @property
    def frames(self) -> int:
        """Number of frames in the file; a header may state fewer (`anomaly.dicom.frames`)."""
        return max(stated_frames(self.header) or 1, self.case.frame_count)

    @property
    def is_multiframe(self) -> bool:
        """Whether references to this image have to name a frame (PS3.3 table 10-3)."""
        return self.frames > 1 or is_multiframe(self.header)

    @property
    def is_lone_frame(self) -> bool:
        """Whether its class may hold several frames and this one does not.

        highdicom goes by the class alone, and asks for functional groups that are not there.
        """
        return holds_many(self.header) and not self.is_multiframe

    def restore_class(self, made: Dataset) -> None:
        """Name the source's own class wherever an object that was built on `reference` names it."""
        if not self.is_lone_frame:
            return
        for item in made.iterall():
            if item.VR == "SQ":
                for reference in item.value:
                    if reference.get("ReferencedSOPInstanceUID") == self.header.SOPInstanceUID:
                        reference.ReferencedSOPClassUID = self.header.SOPClassUID

    @property
    def frame_numbers(self) -> list[int] | None:
        """The judged frame as DICOM references count it, from 1; None where there is one only."""
        return [self.case.frame + 1] if self.is_multiframe else None

    @cached_property
    def plane(self) -> Dataset:
        """What the source says of the plane of the judged frame: none, some or all of `_PLANE`.

        A spacing that no pixel has says nothing, and is left out.
        """
        plane = Dataset()
        for keyword, (group, count) in _PLANE.items():
            holder = functional_group(self.header, self.case.frame, group) or self.header
            values = numbers(holder, keyword, count)
            if values is not None and all(map(math.isfinite, values)):
                plane.add(holder[keyword])
        if "PixelSpacing" in plane and not _sizes(plane, "PixelSpacing"):
            del plane.PixelSpacing
        return plane

    @property
    def frame_of_reference(self) -> str | None:
        """UID of the space that the plane lies in; None where the source does not say it all."""
        complete = len(self.plane) == len(_PLANE)
        return (self.header.get("FrameOfReferenceUID") or None) if complete else None

    @property
    def patient_orientation(self) -> list[str] | None:
        """Where in the patient a row and a column lead to (PS3.3 C.7.6.1.1.1); None is unknown."""
        stated = value_of(self.header, "PatientOrientation")
        several = isinstance(stated, Sequence) and not isinstance(stated, str)
        letters = [str(letter) for letter in stated] if several and len(stated) == 2 else None
        cosines = self.plane.get("ImageOrientationPatient", [])
        if letters is None and len(cosines) == 6:
            row, column = _letters(cosines[:3]), _letters(cosines[3:])
            return [row, column] if row and column else None
        return letters

    @property
    def aspect_ratio(self) -> list[int]:
        """Height and width of a pixel in whole numbers (PS3.3 C.7.6.3.1.7); unknown is [1, 1]."""
        sizes = (
            _sizes(self.plane, "PixelSpacing"),
            _sizes(self.header, "ImagerPixelSpacing"),
            _sizes(self.header, "PixelAspectRatio"),
        )
        height, width = next(filter(None, sizes), (1.0, 1.0))
        ratio = Fraction(height / width).limit_denominator(_MOST_OBLONG)
        return [ratio.numerator, ratio.denominator]

    def uid(self, kind: str, *parts: str) -> UID:
        """Name something that belongs to the judged frame; `parts` tell apart what is inside."""
        return self._derived(self.header.SOPInstanceUID, self.case.frame, kind, *parts)

    def series_uid(self, kind: Kind) -> UID:
        """Name the series of a kind within the study: one to a frame of reference (PS3.3 A.1.2.3).

        It is one to a version of the toolkit, too, as all of a series is of one equipment.
        """
        return self._derived(self.header.StudyInstanceUID, self.frame_of_reference, "series", kind)

    @property
    def device_uid(self) -> UID:
        """Name the observer: this version and bundle at this alpha, whatever it looks at."""
        return self._derived("device")

    def _derived(self, *of: str | int | None) -> UID:
        # JSON keeps the parts apart: ("ab", "c") and ("a", "bc") are not the same name.
        case = self.case
        name = json.dumps([case.bundle, repr(float(case.verdict.alpha)), __version__, *of])
        digest = hashlib.sha256(name.encode()).digest()
        return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")

    @cached_property
    def reference(self) -> Dataset:
        """What objects are built on: identifiers, size, place and display of the source, no more.

        The patient is blank here; the true one is copied untouched into what is made, where
        highdicom would first judge each value and log what it dislikes.
        """
        header, slim = self.header, Dataset()
        for keyword in _BLANK:
            setattr(slim, keyword, "")
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(slim, keyword, header[keyword].value)
        if self.is_lone_frame:
            slim.SOPClassUID = SecondaryCaptureImageStorage  # `restore_class` puts its own back
        slim.Rows, slim.Columns = header.Rows, header.Columns
        if self.is_multiframe:
            slim.NumberOfFrames = self.frames
        kept = [keyword for keyword in _PIXELS if value_of(header, keyword) is not None]
        kept += [keyword for keyword in _MEASURES if numbers(header, keyword, 1) is not None]
        for keyword in kept:
            slim.add(header[keyword])
        if self.frame_of_reference:
            slim.FrameOfReferenceUID = self.frame_of_reference
            slim.update(self.plane)
        elif "PixelSpacing" in self.plane:
            slim.PixelSpacing = self.plane.PixelSpacing
        return slim

    def common(self, kind: Kind) -> dict[str, Any]:
        """Arguments that every constructor takes: names, place in the study and equipment."""
        order = max(whole_number(self.header, "InstanceNumber") or 1, 1)
        return {
            "series_instance_uid": self.series_uid(kind),
            "series_number": _FIRST_SERIES + KINDS.index(kind),
            "sop_instance_uid": self.uid(kind),
            "instance_number": order + self.case.frame,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": DETECTOR_MODEL,
            "software_versions": __version__,
            "device_serial_number": self.case.bundle[:16],
            "series_description": f"anomaly {kind.replace('_', ' ')}, research use only",
            "transfer_syntax_uid": ExplicitVRLittleEndian,
            "contributing_equipment": [self._equipment()],
        }

    def _equipment(self) -> hd.ContributingEquipment:
        return hd.ContributingEquipment(
            MANUFACTURER,
            codes.cid7005.ProcessingEquipment,
            manufacturer_model_name=DETECTOR_MODEL,
            software_versions=__version__,
            device_serial_number=self.case.bundle[:16],
            contribution_description=f"{NOTICE} Bundle SHA-256 {self.case.bundle}",
        )

    @property
    def algorithm(self) -> hd.AlgorithmIdentificationSequence:
        """Which program, of what family, with which parameters (PS3.3 table 10-19)."""
        return hd.AlgorithmIdentificationSequence(
            name=ALGORITHM,
            family=codes.cid7162.ArtificialIntelligence,
            version=__version__,
            source=MANUFACTURER,
            parameters={"bundle": self.case.bundle, "alpha": repr(float(self.case.verdict.alpha))},
        )


def _sizes(holder: Dataset, keyword: str) -> tuple[float, float] | None:
    """Height and width of a pixel; None unless both are positive, finite and of one magnitude."""
    pair = numbers(holder, keyword, 2)
    if pair is None:
        return None
    height, width = pair
    sane = 0 < height < math.inf and 0 < width < math.inf
    return (height, width) if sane and 1 / _MOST_OBLONG < height / width < _MOST_OBLONG else None


def _letters(cosines: Sequence[float]) -> str:
    """Name a direction by the sides of the patient it leads to, the main one first."""
    axes = sorted(zip(cosines, ("RL", "AP", "FH"), strict=True), key=lambda axis: -abs(axis[0]))
    return "".join(sides[cosine > 0] for cosine, sides in axes if abs(cosine) > _STRAIGHT)
