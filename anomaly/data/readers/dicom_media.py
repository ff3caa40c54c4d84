"""DICOMDIR: the files that the directory of a disc lists (PS3.3 F)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydicom import dcmread
from pydicom.uid import MediaStorageDirectoryStorage

from anomaly.data.readers.frames import decoding
from anomaly.dicom.tags import value_of
from anomaly.errors import Reason, UnsupportedScan

__all__ = ["ListedFile", "listed_files"]

MAX_RECORDS = 100_000

# The standard allows capitals, digits and underscores (PS3.10 8.5); real discs use more.
_NAME = re.compile(r"[^\x00-\x1f\x7f:/\\]+")


class ListedFile(NamedTuple):
    """A file that a DICOMDIR lists.

    Attributes
    ----------
    name : str
        Path relative to the folder of the DICOMDIR, with forward slashes.
    instance : str
        SOP Instance UID of the object in the file, or empty.
    """

    name: str
    instance: str


def listed_files(path: Path) -> list[ListedFile]:
    """Files that a DICOMDIR lists.

    Names that point outside the folder are left out, so they are never reported as missing.

    Raises
    ------
    UnreadableScan
        ``"undecodable"``.
    UnsupportedScan
        ``"not an image"``: not a DICOMDIR; ``"too large"``: too many records.
    """
    with decoding(path):
        dataset = dcmread(path)
        if dataset.get("SOPClassUID", None) is None:
            sop_class = dataset.file_meta.get("MediaStorageSOPClassUID", None)
        else:
            sop_class = dataset.SOPClassUID
        if sop_class != MediaStorageDirectoryStorage:
            raise UnsupportedScan(Reason.NOT_AN_IMAGE, f"{path} is no DICOMDIR.")
        records = dataset.get("DirectoryRecordSequence", None) or []
        if len(records) > MAX_RECORDS:
            raise UnsupportedScan(Reason.TOO_LARGE, f"{path} lists {len(records)} records.")
        names = []
        for record in records:
            value = record.get("ReferencedFileID", None)
            if not value:
                continue
            joined = value if isinstance(value, str) else "/".join(map(str, value))
            parts = re.split(r"[/\\]", joined)
            if all(part not in ("", ".", "..") and _NAME.fullmatch(part) for part in parts):
                uid = value_of(record, "ReferencedSOPInstanceUIDInFile")
                names.append(ListedFile("/".join(parts), uid if isinstance(uid, str) else ""))
        return names
