"""A verdict as DICOM objects that an archive takes in beside the scan it judges.

::

    report          Comprehensive 3D SR, TID 1500      `dicom_report`
    overlay         Secondary Capture, RGB             `dicom_images`
    segmentation    Segmentation, BINARY               `dicom_images`; none where nothing stands out
    heatmap         Segmentation, FRACTIONAL           `dicom_images`
    parametric_map  Parametric Map, float32            `dicom_images`; CT, MR with a plane
    contours        Grayscale Presentation State       `dicom_images`

Patient, study and geometry are the source's own, names are derived (`dicom_source`): two writings
of one verdict differ in their dates and times at most. Sources of many frames take a report and an
overlay. The files carry the patient's name, as an archive needs it: their owner alone reads them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset

from anomaly.errors import AnomalyError, UnsupportedScan
from anomaly.files import whole
from anomaly.reporting.dicom_images import (
    contours_object,
    heatmap_object,
    overlay_object,
    parametric_map_object,
    segmentation_object,
)
from anomaly.reporting.dicom_report import report_object
from anomaly.reporting.dicom_source import KINDS, DicomCase, Kind, SourceImage

__all__ = ["KINDS", "DicomCase", "Kind", "object_uid", "write_objects"]

_MAKERS: Mapping[Kind, Callable[[SourceImage], Dataset | None]] = {
    "report": report_object,
    "overlay": overlay_object,
    "segmentation": segmentation_object,
    "heatmap": heatmap_object,
    "parametric_map": parametric_map_object,
    "contours": contours_object,
}


def object_uid(case: DicomCase, kind: Kind) -> str:
    """Name the object of a kind before it is written, to ask an archive whether it has it.

    Returns
    -------
    str
        SOP Instance UID: 2.25 and a number from the bundle, the alpha, the source's SOP Instance
        UID, the frame and the kind.

    Raises
    ------
    ScanError
        As `write_objects`.
    """
    with _unquoted():
        return str(SourceImage.read(case).uid(kind))


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
        The source file is gone or is not DICOM.
    UnsupportedScan
        The source cannot carry an object of such a kind; reasons ``"no frame of reference"``,
        ``"multi-frame"``, ``"no identity"``, ``"another size"``, ``"no such frame"``,
        ``"not expressible"``. Nothing is written then.
    AnomalyError
        A file cannot be written, or the verdict's regions are not those of its evidence.
    """
    with _unquoted():
        source, now = SourceImage.read(case), now or datetime.now()
        made = [(source.uid(kind), _encode(source, kind, now)) for kind in kinds]
    return [_write(folder / f"{uid}.dcm", data) for uid, data in made if data]


@contextmanager
def _unquoted() -> Iterator[None]:
    """Keep warnings of pydicom and highdicom from anyone's screen: they quote values of tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _encode(source: SourceImage, kind: Kind, now: datetime) -> bytes:
    """Bytes of the file of an object, none where there is nothing to say."""
    file = io.BytesIO()
    try:
        made = _MAKERS[kind](source)
        if made is not None:
            source.stamp(made, now)
            made.save_as(file, enforce_file_format=True)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # The tags of a scan can be anything, and highdicom says so in as many ways.
        raise UnsupportedScan(
            "not expressible",
            f"{source.case.source} (SOP class {source.header.SOPClassUID}) cannot carry an object "
            f"of kind {kind} ({type(error).__name__}: {error}): leave this kind out",
        ) from error
    return file.getvalue()


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
