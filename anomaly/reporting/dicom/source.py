"""The source of a DICOM object: the header of the judged image, and the names derived from it.

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
"""What places a plane in a frame of reference (PS3.3 C.7.6.2): all of it, or none is used. Images
of many frames say it in functional groups (PS3.3 C.7.6.16.2), named here with its count of numbers.
"""

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


class ObjectArguments(TypedDict):
    """Arguments of highdicom that every constructor takes."""

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
            row, column = direction_letters(cosines[:3]), direction_letters(cosines[3:])
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

    def arguments(self, kind: Kind) -> ObjectArguments:
        """Names, place in the study and equipment of the object of a kind."""
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
