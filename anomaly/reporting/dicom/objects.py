"""A verdict as DICOM objects that an archive takes in beside the scan it judges.

::

    report          Comprehensive 3D SR, TID 1500      `structured_report`
    overlay         Secondary Capture, RGB             `images`
    segmentation    Segmentation, BINARY               `images`; none where nothing stands out
    heatmap         Segmentation, FRACTIONAL           `images`
    parametric_map  Parametric Map, float32            `images`; CT, MR with a plane
    contours        Grayscale Presentation State       `images`

Patient, study and geometry are the source's own, copied element by element in its own character
set, and so is what it says of lossy compression; nothing else is, so a private tag stays where it
was. Names are derived (`source`): two writings of one verdict differ in their dates and times
at most. Sources of many frames take a report and an overlay. The report and the contours list the
`MAX_REGIONS` regions with the largest peak; the report counts them all. The files carry the
patient's name, as an archive needs it: their owner alone reads them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from pydicom.dataset import Dataset

from anomaly.errors import (
    AnomalyError,
    ConfigError,
    Reason,
    ScanError,
    UnreadableScan,
    UnsupportedScan,
)
from anomaly.files import whole
from anomaly.reporting.dicom.case import KINDS, MAX_REGIONS, DicomCase, Kind
from anomaly.reporting.dicom.images import (
    contours_object,
    heatmap_object,
    overlay_object,
    parametric_map_object,
    segmentation_object,
)
from anomaly.reporting.dicom.source import SourceImage
from anomaly.reporting.dicom.structured_report import report_object

__all__ = [
    "KINDS",
    "MAX_REGIONS",
    "DicomCase",
    "Kind",
    "object_uid",
    "register_object",
    "write_objects",
]

Maker: TypeAlias = Callable[[SourceImage], Dataset | None]
"""Makes the object of a source, or None where there is nothing to say."""

_MAKERS: dict[Kind, Maker] = {
    "report": report_object,
    "overlay": overlay_object,
    "segmentation": segmentation_object,
    "heatmap": heatmap_object,
    "parametric_map": parametric_map_object,
    "contours": contours_object,
}


def register_object(kind: Kind, maker: Maker) -> None:
    """Add a kind of object behind the others, so that ``--objects`` and nodes may name it.

    Parameters
    ----------
    kind : str
        Its name; the series of its objects follows those of the kinds before it.
    maker : callable
        ``maker(source)``: a complete data set but for what `write_objects` adds, or None.

    Raises
    ------
    ConfigError
        If there is one of that name.
    """
    if kind in _MAKERS:
        raise ConfigError(f"there is a kind of object {kind!r} already: give it another name")
    _MAKERS[kind] = maker
    KINDS.append(kind)


_TIMES = (
    *("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"),
    *("PresentationCreationDate", "PresentationCreationTime"),
    *("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def object_uid(case: DicomCase, kind: Kind) -> str:
    """Name the object of a kind before it is written, to ask an archive whether it has it.

    Returns
    -------
    str
        SOP Instance UID: 2.25 and a number from the bundle, the alpha, the version of the toolkit,
        the source's SOP Instance UID, the frame and the kind.

    Raises
    ------
    ScanError
        As `write_objects`.
    """
    return str(_read(case).uid(kind))


def write_objects(
    case: DicomCase, kinds: Sequence[Kind], folder: Path, *, now: datetime | None = None
) -> list[Path]:
    """Write one file per object.

    Parameters
    ----------
    case : DicomCase
    kinds : sequence of Kind
        A segmentation is left out where no evidence reaches the threshold: an empty one would
        look like a finding of nothing.
    folder : Path
        Exists. A file is named after its SOP Instance UID, appears whole or not at all, replaces
        one of that name, and is its owner's alone (mode 0600).
    now : datetime, optional
        Dates and times of the content, by default those of the local clock.

    Returns
    -------
    list of Path
        In the order of `kinds`.

    Raises
    ------
    UnreadableScan
        The source file is gone, is not DICOM or is damaged (reason ``"unreadable"``).
    UnsupportedScan
        The source cannot carry an object of such a kind; reasons ``"no frame of reference"``,
        ``"multi-frame"``, ``"no identity"``, ``"another size"``, ``"no such frame"``,
        ``"not expressible"``. Nothing is written then.
    AnomalyError
        A file cannot be written, or the verdict's regions are not those of its evidence.
    """
    source, now = _read(case), now or datetime.now()
    made = [(source.uid(kind), _encode(source, kind, now)) for kind in kinds]
    return [_write(folder / f"{uid}.dcm", data) for uid, data in made if data]


@contextmanager
def _refusing(refusal: Callable[[str], ScanError]) -> Iterator[None]:
    """Raise what `refusal` makes of whatever pydicom or highdicom raise on the tags of a scan.

    Their warnings are kept from anyone's screen: they quote values of tags.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (AnomalyError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # The one place of the reports that catches everything: tags can be anything, pydicom
            # decodes each when it is asked for, and no list of what the two raise is complete.
            raise refusal(f"{type(error).__name__}: {error}") from error


def _read(case: DicomCase) -> SourceImage:
    def unreadable(what: str) -> UnreadableScan:
        return UnreadableScan(
            Reason.UNREADABLE,
            f"{case.source} cannot be read as DICOM ({what}): expected the file that was scored; "
            "give it back, or score again",
        )

    with _refusing(unreadable):
        return SourceImage.read(case)


def _encode(source: SourceImage, kind: Kind, now: datetime) -> bytes:
    """Bytes of the file of an object, none where there is nothing to say."""

    def not_expressible(what: str) -> UnsupportedScan:
        return UnsupportedScan(
            Reason.NOT_EXPRESSIBLE,
            f"{source.case.source} (SOP class {source.header.SOPClassUID}) cannot carry an object "
            f"of kind {kind} ({what}): leave this kind out",
        )

    file = io.BytesIO()
    with _refusing(not_expressible):
        made = _MAKERS[kind](source)
        if made is not None:
            _stamp(source, made, now)
            made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _stamp(source: SourceImage, made: Dataset, now: datetime) -> None:
    """Give an object its patient, its study, its time, and derived UIDs where it has random."""
    header = source.header
    source.restore_class(made)
    made.copy_patient_and_study_information(header)
    # Texts stay the bytes they were: ours are ASCII, which every character set holds.
    if "SpecificCharacterSet" in header:
        made.SpecificCharacterSet = header.SpecificCharacterSet
    elif "SpecificCharacterSet" in made:
        del made.SpecificCharacterSet
    if header.get("SyntheticData"):
        made.SyntheticData = header.SyntheticData
    if "Rows" in made:
        _inherit_losses(source, made)
    _orient(source, made)
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    for element in [made[name] for name in _TIMES if name in made]:
        element.value = date if element.VR == "DA" else time
    for item in made.ContributingEquipmentSequence:
        item.ContributionDateTime = date + time
    organisation = source.uid(str(made.SOPInstanceUID), "dimensions")
    for sequence in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(sequence, []):
            item.DimensionOrganizationUID = organisation


def _inherit_losses(source: SourceImage, made: Dataset) -> None:
    """Repeat the lossy compression of the source: once lossy, always (PS3.3 C.7.6.1.1.5)."""
    if source.header.get("LossyImageCompression") == "01":
        for element in [source.header[name] for name in _LOSSY if name in source.header]:
            made.add(element)


def _orient(source: SourceImage, made: Dataset) -> None:
    """Say which way the image lies and of which side it is, as the source does.

    One series holds results of many images: a side belongs to the image, never to the series
    (PS3.3 C.7.3.1), where it stays empty.
    """
    is_image = "Rows" in made
    # Required where no vectors of its own say it (PS3.3 C.7.6.1).
    if is_image and ("PatientOrientation" in made or not source.frame_of_reference):
        made.PatientOrientation = source.patient_orientation
    side = source.header.get("ImageLaterality") or source.header.get("Laterality")
    if is_image and side:
        made.ImageLaterality = side
    elif made.Modality not in ("SEG", "SR"):  # series without a side (PS3.3 C.8.20.1, C.17.1)
        made.Laterality = ""


def _write(path: Path, data: bytes) -> Path:
    try:
        with whole(path, mode=0o600) as file:
            file.write(data)
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and write the objects again"
        ) from error
    return path
