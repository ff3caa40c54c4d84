"""Hashes of the files of a run, stored in the run, to detect files that a disk damaged or lost.

::

    RUN/SHA256SUMS     format of sha256sum: hash, two spaces, path within the run

Only the stage that writes a file hashes it: a later stage could record the hash of a damaged file.
Files that have their own check are omitted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly.files import TEMPORARY, whole, writing

__all__ = ["SUMS", "damaged_files", "seal"]

SUMS = "SHA256SUMS"
_LOCK = ".sums.lock"

_LEFT_OUT = frozenset({"parts", "bundle", "spool", "tensorboard"})
"""Folders of a run that are omitted: they have their own hashes, contain files of other programs,
or are written to all the time."""

_CHECKED_ELSEWHERE = frozenset(
    {
        *("config.yaml", "manifest.parquet", "site.key", "scores.csv", "feedback.sqlite"),
        *("checkpoint.pt", "metrics.jsonl", "run.jsonl", "node.yaml", SUMS),
    }
)


def seal(run: Path, wrote: Collection[Path] = ()) -> None:
    """Write the hashes of the files that a stage wrote and of new files; keep all other hashes.

    Parameters
    ----------
    run : Path
    wrote : collection of Path
        Files and folders of the run that the stage wrote.

    Raises
    ------
    AnomalyError
        If the hashes cannot be written.
    """
    with _locked(run):
        known, _ = _read(run / SUMS)
        lines = []
        for path in _files(run):
            name = path.relative_to(run).as_posix()
            is_own = any(path == place or place in path.parents for place in wrote)
            digest = known.get(name) if not is_own else None
            digest = digest or _hash(path)
            if digest:
                lines.append(f"{digest}  {name}\n")
        with writing(run / SUMS), whole(run / SUMS, mode=0o600) as file:
            file.write("".join(lines).encode("utf-8", "surrogateescape"))


def damaged_files(run: Path) -> tuple[list[str], int]:
    """Names of files that are missing or do not match their hash, and the number of listed files.

    `SUMS` itself counts as damaged if one of its lines cannot be parsed.
    """
    known, is_sound = _read(run / SUMS)
    damaged = [name for name, expected in known.items() if _hash(run / name) != expected]
    return (damaged if is_sound else [SUMS, *damaged]), len(known)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Hold a lock, so that only one process at a time reads and writes the hashes."""
    with writing(run / _LOCK):
        handle = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _files(run: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(run):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (here != run or name not in _LEFT_OUT)
        )
        for name in sorted(names):
            is_other = name.startswith(".") or (here == run and name in _CHECKED_ELSEWHERE)
            if not is_other and not name.endswith((TEMPORARY, ".lease")):
                yield here / name


def _read(sums: Path) -> tuple[dict[str, str], bool]:
    """Hashes by name, and whether every line could be parsed."""
    try:
        lines = sums.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return {}, True
    parted = [line.partition("  ") for line in lines]
    known = {name: digest for digest, _, name in parted if len(digest) == 64 and name}
    return known, len(known) == len(lines)


def _hash(path: Path) -> str:
    """SHA-256 of a regular file; empty if it is missing, a link or a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return hashlib.file_digest(file, "sha256").hexdigest()
