"""Writer of the DICOM objects of a verdict, for storage in an archive with the scan.

::

    report          Comprehensive 3D SR, TID 1500      `structured_report`
    overlay         Secondary Capture, RGB             `images`
    segmentation    Segmentation, BINARY               `images`; none without regions
    heatmap         Segmentation, FRACTIONAL           `images`
    parametric_map  Parametric Map, float32            `images`; CT and MR with a plane
    contours        Grayscale Presentation State       `images`

Patient, study, geometry and lossy compression are copied from the source, element by element and in
its character set. Nothing else is copied, in particular no private tags. UIDs are derived
(`source`), so writing a verdict twice gives files that differ only in dates and times. Multi-frame
sources support only the report and the overlay. The report and the contours list the `MAX_REGIONS`
regions with the largest peaks; the report counts all regions. The files contain the patient's name,
which archives need, and are readable only by their owner.
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
"""Function that returns the object of a source, or None if there is nothing to report."""

_MAKERS: dict[Kind, Maker] = {
    "report": report_object,
    "overlay": overlay_object,
    "segmentation": segmentation_object,
    "heatmap": heatmap_object,
    "parametric_map": parametric_map_object,
    "contours": contours_object,
}


def register_object(kind: Kind, maker: Maker) -> None:
    """Add a kind of object after the others, for use in ``--objects`` and by nodes.

    Parameters
    ----------
    kind : str
        Name; the series number of its objects comes after those of the earlier kinds.
    maker : callable
        ``maker(source)`` returns a data set, which `write_objects` completes, or None.

    Raises
    ------
    ConfigError
        If the name is taken.
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
    """Return the UID of an object before it is written, to query an archive for it.

    Returns
    -------
    str
        SOP Instance UID: 2.25 and a number from a hash of the bundle, the alpha, the version of the
        toolkit, the source's SOP Instance UID, the frame and the kind.

    Raises
    ------
    ScanError
        See `write_objects`.
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
        A segmentation is omitted if no evidence reaches the threshold: an empty one would look like
        a finding that nothing is abnormal.
    folder : Path
        Must exist. A file is named after its SOP Instance UID, written atomically with mode 0600,
        and replaces an existing file of that name.
    now : datetime, optional
        Date and time of the content; the local time by default.

    Returns
    -------
    list of Path
        In the order of `kinds`.

    Raises
    ------
    UnreadableScan
        The source file is missing, is not DICOM or is damaged (reason ``"unreadable"``).
    UnsupportedScan
        The source does not support an object of this kind; reasons ``"no frame of reference"``,
        ``"multi-frame"``, ``"no identity"``, ``"another size"``, ``"no such frame"``,
        ``"not expressible"``. Nothing is written in this case.
    AnomalyError
        A file cannot be written, or the verdict's regions do not belong to its evidence.
    """
    source, now = _read(case), now or datetime.now()
    made = [(source.uid(kind), _encode(source, kind, now)) for kind in kinds]
    return [_write(folder / f"{uid}.dcm", data) for uid, data in made if data]


@contextmanager
def _refusing(refusal: Callable[[str], ScanError]) -> Iterator[None]:
    """Convert any exception of pydicom or highdicom about the tags of a scan with `refusal`.

    Their warnings are suppressed, because they quote values of tags.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (AnomalyError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            # Catch everything here: tags can have any value, pydicom decodes each one on access,
            # and the exceptions of the two libraries are not documented completely.
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
    """Bytes of the file of an object; empty if there is nothing to report."""

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
    """Set patient, study, dates and times of an object, and replace random UIDs by derived ones."""
    header = source.header
    source.restore_class(made)
    made.copy_patient_and_study_information(header)
    # Copied texts keep their bytes; our texts are ASCII, which every character set contains.
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
    """Copy the lossy compression of the source; once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    if source.header.get("LossyImageCompression") == "01":
        for element in [source.header[name] for name in _LOSSY if name in source.header]:
            made.add(element)


def _orient(source: SourceImage, made: Dataset) -> None:
    """Copy orientation and laterality of the source.

    A series contains results of many images, so the laterality is stored in the image and stays
    empty in the series (PS3.3 C.7.3.1).
    """
    is_image = "Rows" in made
    # Required if the object has no orientation vectors (PS3.3 C.7.6.1).
    if is_image and ("PatientOrientation" in made or not source.frame_of_reference):
        made.PatientOrientation = source.patient_orientation
    side = source.header.get("ImageLaterality") or source.header.get("Laterality")
    if is_image and side:
        made.ImageLaterality = side
    elif made.Modality not in ("SEG", "SR"):  # series without laterality (PS3.3 C.8.20.1, C.17.1)
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
