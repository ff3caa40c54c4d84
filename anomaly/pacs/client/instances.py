"""An instance: the three UIDs that place it in an archive, its class, and its file.

UIDs come from archives and become names of files, so nothing else than a UID is one here: digits in
groups parted by single dots, 64 characters at most (PS3.5 section 9.1). A group may begin with 0,
which the standard forbids and real archives hold.
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
    """Whether a text is a UID, and so a safe name of a file and part of a URL."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@dataclass(frozen=True)
class Instance:
    """What an archive lists.

    Attributes
    ----------
    study, series, instance : str
        Study, Series and SOP Instance UIDs.
    sop_class : str
        SOP Class UID.
    patient : str
        Patient ID by which it was asked for, or that its study is listed with; empty: not known.

    Raises
    ------
    ArchiveError
        ``"uid"``: one of the UIDs is none.
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
    """A DICOM file that is to be stored.

    Attributes
    ----------
    path : Path
    instance : Instance
    transfer_syntax : str
        Transfer Syntax UID.
    size : int
        Bytes.
    """

    path: Path
    instance: Instance
    transfer_syntax: str
    size: int

    @classmethod
    def read(cls, path: Path) -> InstanceFile:
        """Read the header.

        Raises
        ------
        AnomalyError
            The file cannot be read, is no DICOM file, or lacks a UID.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what matters of them is an error below
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
            # A damaged file can make a reader raise anything at all.
            raise AnomalyError(
                f"{path} cannot be stored ({type(error).__name__}: {error}); expected a DICOM file "
                "with its UIDs."
            ) from error
        return cls(path, instance, syntax, size)


def read_files(paths: Sequence[Path], refused: Counter[str]) -> list[InstanceFile]:
    """Read the headers of files to be stored; one that is none is counted in `refused`."""
    files = []
    for path in paths:
        try:
            files.append(InstanceFile.read(path))
        except AnomalyError as error:
            reason = error.reason if isinstance(error, ArchiveError) else "not readable"
            refused[f"not sent, {reason}"] += 1
    return files


def write_whole(path: Path, content: IO[bytes]) -> None:
    """Write a file that appears under its name only when all of it is on disk; mode 0600.

    Until then its name begins with a dot, so that no reader of the folder takes it for a scan.

    Parameters
    ----------
    path : Path
    content : file
        Open for reading, where the content begins.

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
