"""Files that are there whole or not at all.

::

    whole = written under a temporary name, flushed to disk, renamed

Whoever is killed in between leaves a hidden file of a name of its own and disturbs nobody.
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
"""Ending of what is being written."""


def temporary_name(path: Path) -> Path:
    """Name under which to write what is to become `path`: hidden, and nobody else's."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file where the system refuses to write it, which a full disk does not.

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
    """Write JSON that every reader of JSON can read: no NaN and no infinity.

    Raises
    ------
    AnomalyError
        If there is one.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise AnomalyError(
            f"a figure is not finite and has no place in JSON ({error}): it is nothing to be kept"
        ) from error


def checked_line(record: Mapping[str, Any]) -> str:
    """Write a record as a line of JSON that carries a check of itself, for files that grow."""
    plain = strict_json(dict(record))
    return strict_json({**record, "check": _check(plain)}) + "\n"


def read_checked(line: str) -> dict[str, Any]:
    """Read a line of `checked_line`; one of an earlier version has no check.

    Raises
    ------
    ValueError
        It is no JSON record, or not the one that was written.
    """
    # NaN of earlier versions is not JSON: it stands for "no figure".
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
        Its folder must exist. A file of that name is replaced.
    mode : int
        Permissions, less the process's mask; 0o600 for what names patients.

    Raises
    ------
    OSError
        If the disk refuses; then nothing is left.
    """
    with whole_path(path, mode=mode) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def whole_path(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Name a file to write, for a library that opens it itself; parameters and errors as `whole`.

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
    """Write several files: what needs space comes before any of them changes.

    Parameters
    ----------
    contents : mapping of Path to bytes

    Raises
    ------
    OSError
        If the disk refuses, with the name of the file; while there is no room for all, nothing is
        changed.
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
"""Names by which a folder is one of results; the latter two where it was made before the first."""


def make_results_folder(path: Path, *, mode: int = 0o777) -> Path:
    """Make a folder for results, and mark it as one; return it.

    Raises
    ------
    AnomalyError
        If the disk refuses.
    """
    mark = path / _MARK
    with writing(path):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if not mark.exists():
            mark.write_text("Results of anomaly: no scans are read here.\n", encoding="ascii")
    return path


def refuse_foreign(folder: Path, ours: Collection[str] = ()) -> None:
    """Refuse to make results in a folder of scans: they would not be read there any more.

    Parameters
    ----------
    folder : Path
        It need not exist.
    ours : collection of str
        Names of what may be there.

    Raises
    ------
    AnomalyError
        It holds a file that may be a scan, and no results.
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
"""Endings of files that readers take for scans, beside what is DICOM by its content."""

_LOOKED_AT = 10_000


def _may_be_scans(folder: Path, ours: Collection[str]) -> Iterator[Path]:
    """Files of a folder that readers would look at; of a large one, the first thousands."""
    looked_at = 0
    for here, folders, names in os.walk(folder):  # a folder that may not be read is passed over
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
    if not path.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def holds_results(folder: Path) -> bool:
    """Whether a folder was made for results: whatever looks like a scan in it is none."""
    return results_mark(folder) is not None


def results_mark(folder: Path) -> str | None:
    """Name of the file by which a folder is one of results; None where it is none."""
    return next((name for name in MARKS if (folder / name).exists()), None)


def sync_folder(path: Path) -> None:
    """Make renames in a folder last; a file's own flush does not cover its name."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
