"""Where a DICOM object comes from: the case, the image it judges, and the names derived from both.

::

    UID = 2.25.<first 128 bits of SHA-256(bundle, alpha, of what, kind)>     (PS3.5 B.2)

An object is named after the image and frame it judges, its series after the study: scoring the
same scan again with the same bundle at the same alpha gives the same names, and an archive keeps
one copy. Patient and study are copied from the source element by element, in its own character
set; nothing else of it is, so a private tag stays where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian

from anomaly import __version__
from anomaly.errors import UnreadableScan, UnsupportedScan
from anomaly.types import DETECTOR_MODEL, Verdict

__all__ = ["ALGORITHM", "KINDS", "MANUFACTURER", "NOTICE", "DicomCase", "Kind", "SourceImage"]

Kind = Literal["report", "overlay", "segmentation", "heatmap", "parametric_map", "contours"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind of object, in the order of their series numbers."""

ALGORITHM = MANUFACTURER = "anomaly"

NOTICE = "Research use only. Not a diagnosis."

_FIRST_SERIES = 9901  # far above the numbers that modalities give their own series

_GEOMETRY = (
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
)
"""What places a plane in the patient (PS3.3 C.7.4.1, C.7.6.2): all of it, or none is used."""

_DISPLAY = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsStored",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "WindowCenterWidthExplanation",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PositionReferenceIndicator",
)
"""What an object may repeat of how its source is displayed and placed."""

_TIMES = (
    *("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"),
    *("PresentationCreationDate", "PresentationCreationTime"),
    *("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)


@dataclass(frozen=True)
class DicomCase:
    """One judged image, in the geometry of its stored pixels.

    Attributes
    ----------
    source : Path
        DICOM file that was scored.
    frame : int
        Index of the frame within the file, from 0.
    verdict : Verdict
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

    Raises
    ------
    ValueError
        Image and evidence have different shapes, or the colour scale is empty.
    """

    source: Path
    frame: int
    verdict: Verdict
    image: NDArray[np.float32]
    evidence_threshold: float
    evidence_ceiling: float
    calibration_scans: int
    bundle: str

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


@dataclass(frozen=True)
class SourceImage:
    """The header of the judged file, and what every object takes from it.

    Attributes
    ----------
    case : DicomCase
    header : Dataset
        The file without its pixels.
    """

    case: DicomCase
    header: Dataset

    @classmethod
    def read(cls, case: DicomCase) -> SourceImage:
        """Read the header of a case's file.

        Raises
        ------
        UnreadableScan
            The file is gone or is not DICOM (reason ``"unreadable"``).
        UnsupportedScan
            It names no instance, series or study, or it is not an image of the case's shape with
            the case's frame.
        """
        try:
            header = dcmread(case.source, stop_before_pixels=True)
        except (OSError, InvalidDicomError, EOFError) as error:
            raise UnreadableScan(
                "unreadable",
                f"{case.source} cannot be read as DICOM ({error}): expected the file that was "
                "scored; give it back, or score again",
            ) from error
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            if not header.get(keyword):
                raise UnsupportedScan(
                    "no identity",
                    f"{case.source} has no {keyword}: results cannot be filed with it; write an "
                    "HTML report instead",
                )
        shape = (header.get("Rows"), header.get("Columns"))
        if shape != case.image.shape:
            raise UnsupportedScan(
                "another size",
                f"{case.source} has {shape[0]} rows and {shape[1]} columns, the evidence "
                f"{case.image.shape}: expected evidence in the geometry of the stored pixels",
            )
        source = cls(case, header)
        try:
            frames = source.frames
        except ValueError as error:
            raise UnreadableScan(
                "unreadable",
                f"{case.source} has a damaged Number of Frames ({error}): expected a whole number",
            ) from error
        if not 0 <= case.frame < frames:
            raise UnsupportedScan(
                "no such frame",
                f"{case.source} has {frames} frame(s); frame {case.frame} was asked for "
                "(they count from 0)",
            )
        return source

    @property
    def frames(self) -> int:
        """Number of frames in the file."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def is_multiframe(self) -> bool:
        """Whether references to this image have to name a frame (PS3.3 table 10-3)."""
        return "NumberOfFrames" in self.header

    @property
    def frame_numbers(self) -> list[int] | None:
        """The judged frame as DICOM references count it, from 1; None where there is one only."""
        return [self.case.frame + 1] if self.is_multiframe else None

    @property
    def has_plane(self) -> bool:
        """Whether the source says where in the patient its plane lies."""
        return all(self.header.get(keyword) for keyword in _GEOMETRY)

    @property
    def aspect_ratio(self) -> list[int]:
        """Height and width of a pixel in whole numbers (PS3.3 C.7.6.3.1.7); unknown is [1, 1]."""
        said = ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")
        height, width = next(filter(None, map(self.header.get, said)), (1, 1))
        ratio = Fraction(float(height) / float(width)).limit_denominator(10_000)
        return [ratio.numerator, ratio.denominator]

    def uid(self, kind: str, *parts: str) -> UID:
        """Name something that belongs to the judged frame; `parts` tell apart what is inside."""
        return self._derived(self.header.SOPInstanceUID, self.case.frame, kind, *parts)

    def series_uid(self, kind: Kind) -> UID:
        """Name the series of a kind within the study."""
        return self._derived(self.header.StudyInstanceUID, "series", kind)

    @property
    def device_uid(self) -> UID:
        """Name the observer: this bundle at this alpha, whatever it looks at."""
        return self._derived("device")

    def _derived(self, *of: str | int) -> UID:
        # JSON keeps the parts apart: ("ab", "c") and ("a", "bc") are not the same name.
        said = json.dumps([self.case.bundle, repr(float(self.case.verdict.alpha)), *of])
        digest = hashlib.sha256(said.encode()).digest()
        return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")

    @cached_property
    def reference(self) -> Dataset:
        """What objects are built on: identifiers, size, place and display of the source, no more.

        The patient is blank here; `stamp` copies the true one untouched, where highdicom would
        first judge each value and log what it dislikes.
        """
        header, slim = self.header, Dataset()
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
            setattr(slim, keyword, "")
        for keyword in ("AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            setattr(slim, keyword, "")
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(slim, keyword, header[keyword].value)
        slim.Rows, slim.Columns = header.Rows, header.Columns
        if self.is_multiframe:
            slim.NumberOfFrames = header.NumberOfFrames
        for keyword in (*_DISPLAY, *(_GEOMETRY if self.has_plane else ())):
            if header.get(keyword) is not None:
                slim.add(header[keyword])
        return slim

    def common(self, kind: Kind) -> dict[str, Any]:
        """Arguments that every constructor takes: names, place in the study and equipment."""
        try:
            order = max(int(self.header.get("InstanceNumber") or 1), 1)
        except ValueError:
            order = 1
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

    def stamp(self, made: Dataset, now: datetime) -> None:
        """Give an object its patient, its study, its time, and derived UIDs where it has random."""
        made.copy_patient_and_study_information(self.header)
        # Texts stay the bytes they were: ours are ASCII, which every character set holds.
        if "SpecificCharacterSet" in self.header:
            made.SpecificCharacterSet = self.header.SpecificCharacterSet
        elif "SpecificCharacterSet" in made:
            del made.SpecificCharacterSet
        if self.header.get("SyntheticData"):
            made.SyntheticData = self.header.SyntheticData
        self._orient(made)
        date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
        for element in [made[name] for name in _TIMES if name in made]:
            element.value = date if element.VR == "DA" else time
        for item in made.ContributingEquipmentSequence:
            item.ContributionDateTime = date + time
        organisation = self.uid(str(made.SOPInstanceUID), "dimensions")
        for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
            for item in made.get(sequence, []):
                item.DimensionOrganizationUID = organisation

    def _orient(self, made: Dataset) -> None:
        """Say which way the image lies and of which side it is, as the source does.

        One series holds results of many images: a side belongs to the image, never to the series
        (PS3.3 C.7.3.1), where it stays empty.
        """
        is_image = "Rows" in made
        # Required where no vectors of its own say it (PS3.3 C.7.6.1).
        if is_image and ("PatientOrientation" in made or not self.has_plane):
            made.PatientOrientation = self.header.get("PatientOrientation") or None
        side = self.header.get("ImageLaterality") or self.header.get("Laterality")
        if is_image and side:
            made.ImageLaterality = side
        elif made.Modality not in (
            "SEG",
            "SR",
        ):  # series that have no side (PS3.3 C.8.20.1, C.17.1)
            made.Laterality = ""
