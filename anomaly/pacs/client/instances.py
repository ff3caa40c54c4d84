"""DICOM instances: the study, series and instance UIDs, the SOP class, and the file.

UIDs come from archives and become file names, so they are checked: groups of digits separated by
single dots, at most 64 characters (PS3.5 section 9.1). A group may start with 0: the standard
forbids that, but such UIDs exist in real archives.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

from pydicom import dcmread

from anomaly.errors import AnomalyError, ArchiveError
from anomaly.files import whole

__all__ = ["Instance", "InstanceFile", "is_uid", "read_files", "write_whole"]

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Whether a text is a UID, and thus safe as a file name and in a URL."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@dataclass(frozen=True)
class Instance:
    """An instance as an archive lists it.

    Attributes
    ----------
    study, series, instance : str
        Study, Series and SOP Instance UIDs.
    sop_class : str
        SOP Class UID.
    patient : str
        Patient ID from the query or from the listed study; empty if unknown.

    Raises
    ------
    ArchiveError
        ``"uid"``: one of the UIDs is invalid.
    """

    study: str
    series: str
    instance: str
    sop_class: str
    patient: str = ""

    def __post_init__(self) -> None:
        wrong = [text for text in astuple(self)[:4] if not is_uid(text)]
        if wrong:
            raise ArchiveError(
                "uid",
                f"{wrong[0][:80]!r} stands for a UID; expected digits and single dots, 64 "
                "characters at most: mend the object where it comes from.",
            )


@dataclass(frozen=True)
class InstanceFile:
    """A DICOM file to store in an archive.

    Attributes
    ----------
    path : Path
    instance : Instance
    transfer_syntax : str
        Transfer Syntax UID.
    size : int
        Size in bytes.
    """

    path: Path
    instance: Instance
    transfer_syntax: str
    size: int

    @classmethod
    def read(cls, path: Path) -> InstanceFile:
        """Read the header of a file.

        Raises
        ------
        AnomalyError
            The file cannot be read, is not a DICOM file, or lacks a UID.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # relevant problems raise an error below
                header = dcmread(path, stop_before_pixels=True)
                instance = Instance(
                    study=str(header.StudyInstanceUID),
                    series=str(header.SeriesInstanceUID),
                    instance=str(header.SOPInstanceUID),
                    sop_class=str(header.SOPClassUID),
                )
            syntax, size = str(header.file_meta.TransferSyntaxUID), path.stat().st_size
        except AnomalyError:
            raise
        except Exception as error:
            # A damaged file can make pydicom raise any exception.
            raise AnomalyError(
                f"{path} cannot be stored ({type(error).__name__}: {error}); expected a DICOM file "
                "with its UIDs."
            ) from error
        return cls(path, instance, syntax, size)


def read_files(paths: Sequence[Path], refused: Counter[str]) -> list[InstanceFile]:
    """Read the headers of DICOM files; others are counted in `refused`."""
    files = []
    for path in paths:
        try:
            files.append(InstanceFile.read(path))
        except AnomalyError as error:
            reason = error.reason if isinstance(error, ArchiveError) else "not readable"
            refused[f"not sent, {reason}"] += 1
    return files


def write_whole(path: Path, content: IO[bytes]) -> None:
    """Write a file atomically with mode 0600.

    While it is written, its name starts with a dot, so that readers of the folder ignore it.

    Parameters
    ----------
    path : Path
    content : file
        Open for reading at the start of the content.

    Raises
    ------
    AnomalyError
        If it cannot be written.
    """
    try:
        with whole(path, mode=0o600) as file:
            shutil.copyfileobj(content, file, 2**20)
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and run again."
        ) from error
