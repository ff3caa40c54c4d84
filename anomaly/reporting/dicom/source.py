"""The source of a DICOM object: the header of the judged image, and UIDs derived from it.

::

    UID = 2.25.<first 128 bits of SHA-256(bundle, alpha, version, of what, kind)>     (PS3.5 B.2)

The UID of an object depends on the judged image and frame, that of its series on the study and the
frame of reference. Scoring the same scan again with the same version of the toolkit, bundle and
alpha therefore gives the same UIDs, and an archive keeps one copy. Another version may change the
content of an object, so it gives other UIDs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypedDict

import highdicom as hd
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from anomaly import __version__
from anomaly.dicom.frames import holds_many, is_multiframe, stated_frames
from anomaly.dicom.geometry import direction_letters
from anomaly.dicom.tags import functional_group, numbers, value_of, whole_number
from anomaly.errors import Reason, UnsupportedScan
from anomaly.reporting.dicom.case import KINDS, DicomCase, Kind
from anomaly.types import DETECTOR_MODEL, NOTICE

__all__ = ["ALGORITHM", "MANUFACTURER", "ObjectArguments", "SourceImage"]

ALGORITHM = MANUFACTURER = "anomaly"

_FIRST_SERIES = 9901  # far above the numbers that modalities give their own series

_PLANE = {
    "ImagePositionPatient": ("PlanePositionSequence", 3),
    "ImageOrientationPatient": ("PlaneOrientationSequence", 6),
    "PixelSpacing": ("PixelMeasuresSequence", 2),
}
"""Attributes of a plane in a frame of reference (PS3.3 C.7.6.2), which are used only together, with
their functional groups in multi-frame images (PS3.3 C.7.6.16.2) and their numbers of values."""

_MOST_OBLONG = 10_000  # maximum aspect ratio of a pixel; larger values must be errors

_PIXELS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsStored",
    "PixelRepresentation",
    "PositionReferenceIndicator",
)
"""Attributes of storage and position that an object may copy from its source."""

_BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)

_MEASURES = ("SliceThickness", "SpacingBetweenSlices")
"""Numbers that an object may copy if they are valid."""


class ObjectArguments(TypedDict):
    """Common arguments of all constructors of highdicom."""

    series_instance_uid: UID
    series_number: int
    sop_instance_uid: UID
    instance_number: int
    manufacturer: str
    manufacturer_model_name: str
    software_versions: str
    device_serial_number: str
    series_description: str
    transfer_syntax_uid: UID
    contributing_equipment: list[hd.ContributingEquipment]


@dataclass(frozen=True)
class SourceImage:
    """The header of the judged file, and the values that every object takes from it.

    Attributes
    ----------
    case : DicomCase
    header : FileDataset
        The data set of the file without its pixels.
    """

    case: DicomCase
    header: FileDataset

    @classmethod
    def read(cls, case: DicomCase) -> SourceImage:
        """Read the header of a case's file.

        Raises
        ------
        UnsupportedScan
            The instance, series or study UID is missing, or shape or frame of the case do not fit
            the image.
        Exception
            Any exception of pydicom if the file is missing or damaged.
        """
        source = cls(case, dcmread(case.source, stop_before_pixels=True))
        source._check()
        return source

    def _check(self) -> None:
        """Raise an error if the image has no valid UIDs or does not match the case."""
        case, header = self.case, self.header
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            value = header.get(keyword)
            if not value or not isinstance(value, str):
                raise UnsupportedScan(
                    Reason.NO_IDENTITY,
                    f"{case.source} has no {keyword}, or several: results cannot be filed with "
                    "it; write an HTML report instead",
                )
        shape = (header.get("Rows"), header.get("Columns"))
        if shape != case.image.shape:
            raise UnsupportedScan(
                Reason.ANOTHER_SIZE,
                f"{case.source} has {shape[0]} rows and {shape[1]} columns, the evidence "
                f"{case.image.shape}: expected evidence in the geometry of the stored pixels",
            )
        if not 0 <= case.frame < self.frames:
            raise UnsupportedScan(
                Reason.NO_SUCH_FRAME,
                f"{case.source} has {self.frames} frame(s); frame {case.frame} was asked for "
                "(they count from 0)",
            )

    @property
    def frames(self) -> int:
        """Number of frames in the file; a header may state fewer (`anomaly.dicom.frames`)."""
        return max(stated_frames(self.header) or 1, self.case.frame_count)

    @property
    def is_multiframe(self) -> bool:
        """Whether references to this image must name a frame (PS3.3 table 10-3)."""
        return self.frames > 1 or is_multiframe(self.header)

    @property
    def is_lone_frame(self) -> bool:
        """Whether the SOP class allows several frames but this image has only one.

        highdicom decides by the SOP class and would require functional groups, which are absent.
        """
        return holds_many(self.header) and not self.is_multiframe

    def restore_class(self, made: Dataset) -> None:
        """Set the source's own SOP class in all references of an object built with `reference`."""
        if not self.is_lone_frame:
            return
        for item in made.iterall():
            if item.VR == "SQ":
                for reference in item.value:
                    if reference.get("ReferencedSOPInstanceUID") == self.header.SOPInstanceUID:
                        reference.ReferencedSOPClassUID = self.header.SOPClassUID

    @property
    def frame_numbers(self) -> list[int] | None:
        """Number of the judged frame in DICOM references, from 1; None for a single-frame image."""
        return [self.case.frame + 1] if self.is_multiframe else None

    @cached_property
    def plane(self) -> Dataset:
        """The attributes of `_PLANE` that the source has for the judged frame, possibly none.

        An invalid spacing is omitted.
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
        """Frame of Reference UID; None unless the source has it and all attributes of the plane."""
        complete = len(self.plane) == len(_PLANE)
        return (self.header.get("FrameOfReferenceUID") or None) if complete else None

    @property
    def patient_orientation(self) -> list[str] | None:
        """Patient directions of rows and columns (PS3.3 C.7.6.1.1.1); None if unknown."""
        stated = value_of(self.header, "PatientOrientation")
        several = isinstance(stated, Sequence) and not isinstance(stated, str)
        letters = [str(letter) for letter in stated] if several and len(stated) == 2 else None
        cosines = self.plane.get("ImageOrientationPatient", [])
        if letters is None and len(cosines) == 6:
            row, column = direction_letters(cosines[:3]), direction_letters(cosines[3:])
            return [row, column] if row and column else None
        return letters

    @property
    def aspect_ratio(self) -> list[int]:
        """Height and width of a pixel as integers (PS3.3 C.7.6.3.1.7); [1, 1] if unknown."""
        sizes = (
            _sizes(self.plane, "PixelSpacing"),
            _sizes(self.header, "ImagerPixelSpacing"),
            _sizes(self.header, "PixelAspectRatio"),
        )
        height, width = next(filter(None, sizes), (1.0, 1.0))
        ratio = Fraction(height / width).limit_denominator(_MOST_OBLONG)
        return [ratio.numerator, ratio.denominator]

    def uid(self, kind: str, *parts: str) -> UID:
        """Return a UID for an object of the judged frame; `parts` distinguish items inside it."""
        return self._derived(self.header.SOPInstanceUID, self.case.frame, kind, *parts)

    def series_uid(self, kind: Kind) -> UID:
        """Return the UID of the series of a kind, one per study and frame of reference.

        A series has a single frame of reference (PS3.3 A.1.2.3) and a single equipment, so the UID
        also depends on the version of the toolkit.
        """
        return self._derived(self.header.StudyInstanceUID, self.frame_of_reference, "series", kind)

    @property
    def device_uid(self) -> UID:
        """UID of the observer: the version, bundle and alpha, independent of the image."""
        return self._derived("device")

    def _derived(self, *of: str | int | None) -> UID:
        # JSON separates the parts: ("ab", "c") and ("a", "bc") give different UIDs.
        case = self.case
        name = json.dumps([case.bundle, repr(float(case.verdict.alpha)), __version__, *of])
        digest = hashlib.sha256(name.encode()).digest()
        return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")

    @cached_property
    def reference(self) -> Dataset:
        """Minimal data set of the source for highdicom: identifiers, size, position and display.

        The patient attributes are blank, because highdicom would check each value and log warnings;
        the true values are copied unchanged into the finished object.
        """
        header, slim = self.header, Dataset()
        for keyword in _BLANK:
            setattr(slim, keyword, "")
        for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(slim, keyword, header[keyword].value)
        if self.is_lone_frame:
            slim.SOPClassUID = SecondaryCaptureImageStorage  # see `restore_class`
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

    def arguments(self, kind: Kind) -> ObjectArguments:
        """UIDs, numbers in the study and equipment of the object of a kind."""
        order = max(whole_number(self.header, "InstanceNumber") or 1, 1)
        return ObjectArguments(
            series_instance_uid=self.series_uid(kind),
            series_number=_FIRST_SERIES + KINDS.index(kind),
            sop_instance_uid=self.uid(kind),
            instance_number=order + self.case.frame,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=DETECTOR_MODEL,
            software_versions=__version__,
            device_serial_number=self.case.bundle[:16],
            series_description=f"anomaly {kind.replace('_', ' ')}, research use only",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            contributing_equipment=[self._equipment()],
        )

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
        """Name, family and parameters of the algorithm (PS3.3 table 10-19)."""
        return hd.AlgorithmIdentificationSequence(
            name=ALGORITHM,
            family=codes.cid7162.ArtificialIntelligence,
            version=__version__,
            source=MANUFACTURER,
            parameters={"bundle": self.case.bundle, "alpha": repr(float(self.case.verdict.alpha))},
        )


def _sizes(holder: Dataset, keyword: str) -> tuple[float, float] | None:
    """Height and width of a pixel; None unless both are positive, finite and of plausible ratio."""
    pair = numbers(holder, keyword, 2)
    if pair is None:
        return None
    height, width = pair
    sane = 0 < height < math.inf and 0 < width < math.inf
    return (height, width) if sane and 1 / _MOST_OBLONG < height / width < _MOST_OBLONG else None
