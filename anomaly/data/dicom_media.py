"""DICOMDIR: what the table of contents of a disc says should be there (PS3.3 F)."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread
from pydicom.uid import MediaStorageDirectoryStorage

from anomaly.data.frames import decoding
from anomaly.errors import UnsupportedScan

__all__ = ["listed_files"]

MAX_RECORDS = 1_000_000


def listed_files(path: Path) -> list[str]:
    """Names of the files that a DICOMDIR lists, relative to its folder, with forward slashes.

    A name that leads out of the folder is listed as the standard's characters allow, which exclude
    dots and slashes, and so leads nowhere.

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
            raise UnsupportedScan("not an image", f"{path} is no DICOMDIR.")
        records = dataset.get("DirectoryRecordSequence", None) or []
        if len(records) > MAX_RECORDS:
            raise UnsupportedScan("too large", f"{path} lists {len(records)} records.")
        names = []
        for record in records:
            value = record.get("ReferencedFileID", None)
            if not value:
                continue
            parts = [value] if isinstance(value, str) else [str(part) for part in value]
            if all(part.replace("_", "").isalnum() for part in parts):
                names.append("/".join(parts))
        return names
