"""Files that are there whole or not at all.

::

    whole = written under a temporary name, flushed to disk, renamed

Whoever is killed in between leaves a hidden file of a name of its own and disturbs nobody.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["TEMPORARY", "sync_folder", "temporary_name", "whole"]

TEMPORARY = ".tmp"
"""Ending of what is being written."""


def temporary_name(path: Path) -> Path:
    """Name under which to write what is to become `path`: hidden, and nobody else's."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


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
    temporary = temporary_name(path)
    try:
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(opened, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make renames in a folder last; a file's own flush does not cover its name."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
