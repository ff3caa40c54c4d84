"""Hashes of the files of a run, beside them: what a disk has lost is named.

::

    RUN/SHA256SUMS     lines of sha256sum: hash, two spaces, path in the run

Files that carry a check of their own, and those that change between stages, are left out. A file
is hashed once, by the stage that wrote it; a later stage keeps that hash, or it would bless the
damage.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from anomaly.files import TEMPORARY, whole, writing

__all__ = ["SUMS", "damaged_files", "seal"]

SUMS = "SHA256SUMS"

_LEFT_OUT = frozenset({"parts", "bundle", "spool", "tensorboard"})
"""Folders of a run: with hashes of their own, of others' files, or written to all the time."""

_CHECKED_ELSEWHERE = frozenset({"checkpoint.pt", "feedback.sqlite"})
"""Files with checksums of their own, which grow between stages."""


def seal(run: Path) -> None:
    """Write the hashes of what was written since the last time, and keep the others.

    Raises
    ------
    AnomalyError
        If they cannot be written.
    """
    sums = run / SUMS
    known, before = _read(sums), _time(sums)
    lines = []
    with writing(sums):
        for path in _files(run):
            name = path.relative_to(run).as_posix()
            old = known.get(name) if path.stat().st_mtime_ns <= before else None
            lines.append(f"{old or _hash(path)}  {name}\n")
        with whole(sums, mode=0o600) as file:
            file.write("".join(lines).encode("utf-8", "surrogateescape"))


def damaged_files(run: Path) -> tuple[list[str], int]:
    """Names of files that are gone or hold other bytes than were written; and how many were read.

    What was written since the last stage ended is not known yet, and not looked at.
    """
    sums = run / SUMS
    known, before = _read(sums), _time(sums)
    damaged, read = [], 0
    for name, expected in known.items():
        path = run / name
        if not path.is_file() or path.is_symlink():
            damaged.append(name)
        elif path.stat().st_mtime_ns <= before:
            read += 1
            if _hash(path) != expected:
                damaged.append(name)
    return damaged, read


def _files(run: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(run):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here != run or name not in _LEFT_OUT)
        )
        for name in sorted(names):
            path = here / name
            is_other = name in _CHECKED_ELSEWHERE or name == SUMS or name.startswith(".")
            if not is_other and not name.endswith((TEMPORARY, ".lease")) and not path.is_symlink():
                yield path


def _read(sums: Path) -> dict[str, str]:
    """Hashes by name; lines that are none are passed over, as their files then count as new."""
    try:
        lines = sums.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return {}
    parted = [line.partition("  ") for line in lines]
    return {name: digest for digest, _, name in parted if len(digest) == 64 and name}


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
