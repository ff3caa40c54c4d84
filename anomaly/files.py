"""Atomic writes: a file appears under its name only when it is complete.

::

    whole = written under a temporary name, flushed to disk, renamed

A process that is killed while it writes leaves a hidden file with a unique name, which is harmless.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from anomaly.errors import AnomalyError

__all__ = [
    "CONFIGS",
    "MARKS",
    "TEMPORARY",
    "checked_line",
    "file_hash",
    "holds_results",
    "make_results_folder",
    "read_checked",
    "refuse_foreign",
    "results_mark",
    "strict_json",
    "sync_folder",
    "temporary_name",
    "whole",
    "whole_path",
    "write_together",
    "writing",
]

CONFIGS = Path(__file__).parent / "configs"
"""Configurations that are installed with the package."""

TEMPORARY = ".tmp"
"""Suffix of files that are being written."""


def temporary_name(path: Path) -> Path:
    """Hidden, unique name under which to write a file that will be renamed to `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an `OSError` to an error that names the file; the error of a full disk does not.

    Raises
    ------
    AnomalyError
    """
    try:
        yield
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and run again"
        ) from error


def strict_json(value: object, *, indent: int | None = None) -> str:
    """Encode a value as standard JSON, without NaN and infinity.

    Raises
    ------
    AnomalyError
        If the value contains NaN or infinity.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise AnomalyError(
            f"a figure is not finite and has no place in JSON ({error}): it is nothing to be kept"
        ) from error


def checked_line(record: Mapping[str, Any]) -> str:
    """Encode a record as a line of JSON with a checksum, for files that are appended to."""
    plain = strict_json(dict(record))
    return strict_json({**record, "check": _check(plain)}) + "\n"


def read_checked(line: str) -> dict[str, Any]:
    """Decode a line of `checked_line`; lines of earlier versions have no checksum.

    Raises
    ------
    ValueError
        If the line is not a JSON record, or does not match its checksum.
    """
    # Earlier versions wrote NaN, which is not JSON, for a missing value.
    record: dict[str, Any] = json.loads(line, parse_constant=lambda _: None)
    if type(record) is not dict:
        raise ValueError("a line that is no record")
    check = record.pop("check", None)
    if check is not None and check != _check(json.dumps(record)):
        raise ValueError("a line is not the one that was written")
    return record


def _check(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


@contextmanager
def whole(path: Path, *, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when all of it is on disk.

    Parameters
    ----------
    path : Path
        Its folder must exist. An existing file is replaced.
    mode : int
        Permissions, before the process's umask; use 0o600 for data that identifies patients.

    Raises
    ------
    OSError
        If the file cannot be written; then nothing is left of it.
    """
    with whole_path(path, mode=mode) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def whole_path(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a path to write to, for libraries that open the file; otherwise the same as `whole`.

    Yields
    ------
    Path
        An empty file in the same folder, which replaces `path` at the end of the block.
    """
    temporary = temporary_name(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files: all contents are on disk before the first file is replaced.

    Parameters
    ----------
    contents : mapping of Path to bytes

    Raises
    ------
    OSError
        If a file cannot be written; the error names it. If there is not enough space for all files,
        none is changed.
    """
    with ExitStack() as stack:
        for path, data in contents.items():
            try:
                temporary = stack.enter_context(whole_path(path))
                temporary.write_bytes(data)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                error.filename = str(path)
                raise


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises
    ------
    OSError
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_MARK = ".anomaly-results"
MARKS = (_MARK, "site.key", "bundle.json")
"""Files that mark a folder of results; the last two occur alone in folders of earlier versions."""


def make_results_folder(path: Path, *, mode: int = 0o777) -> Path:
    """Create a folder for results with a marker file; return its path.

    Raises
    ------
    AnomalyError
        If the folder cannot be written.
    """
    mark = path / _MARK
    with writing(path):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if not mark.exists():
            mark.write_text("Results of anomaly: no scans are read here.\n", encoding="ascii")
    return path


def refuse_foreign(folder: Path, ours: Collection[str] = ()) -> None:
    """Refuse a folder of scans as a folder for results, where its scans would no longer be read.

    Parameters
    ----------
    folder : Path
        May be missing.
    ours : collection of str
        Names of files and folders that are allowed.

    Raises
    ------
    AnomalyError
        If the folder contains a file that may be a scan, and no results.
    """
    if not folder.is_dir() or holds_results(folder) or holds_results(folder.parent):
        return
    scan = next(_may_be_scans(folder, ours), None)
    if scan is not None:
        raise AnomalyError(
            f"{folder} holds {scan.relative_to(folder)} and is no folder of results: results in it "
            "would be taken for scans, or its scans for results. Name a new folder"
        )


_SCANS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".dcm", ".dicom", ".zip")
"""Suffixes of files that readers accept as scans, besides files with DICOM content."""

_LOOKED_AT = 10_000


def _may_be_scans(folder: Path, ours: Collection[str]) -> Iterator[Path]:
    """Files of a folder that readers would open; stops after some thousands of files."""
    looked_at = 0
    for here, folders, names in os.walk(folder):  # skips folders without permission
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in ours and not holds_results(Path(here, name))
        )
        for name in sorted(names):
            looked_at += 1
            if not name.startswith(".") and name not in ours and _may_be_scan(Path(here, name)):
                yield Path(here, name)
        if looked_at > _LOOKED_AT:
            return


def _may_be_scan(path: Path) -> bool:
    if path.name.lower().endswith(_SCANS):
        return True
    if not path.is_file():  # opening a pipe would block
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_results(folder: Path) -> bool:
    """Whether a folder contains results, in which nothing is read as a scan."""
    return results_mark(folder) is not None


def results_mark(folder: Path) -> str | None:
    """Name of the file that marks a folder of results; None if the folder is not one."""
    return next((name for name in MARKS if (folder / name).exists()), None)


def sync_folder(path: Path) -> None:
    """Flush a folder, to make renames in it durable; flushing a file does not cover its name."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
