"""Hashes of the files of a run, beside them: what a disk has lost is named.

::

    RUN/SHA256SUMS     lines of sha256sum: hash, two spaces, path in the run

A file is hashed by the stage that writes it, and by no other: a later stage would bless the damage.
Files that carry a check of their own are left out.
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
"""Folders of a run: with hashes of their own, of others' files, or written to all the time."""

_CHECKED_ELSEWHERE = frozenset(
    {
        *("config.yaml", "manifest.parquet", "site.key", "scores.csv", "feedback.sqlite"),
        *("checkpoint.pt", "metrics.jsonl", "run.jsonl", "node.yaml", SUMS),
    }
)


def seal(run: Path, wrote: Collection[Path] = ()) -> None:
    """Write the hashes of what a stage has written, and of what is new; keep the others.

    Parameters
    ----------
    run : Path
    wrote : collection of Path
        Files and folders of the run that the stage has written.

    Raises
    ------
    AnomalyError
        If they cannot be written.
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
    """Names of files that are gone or hold other bytes than were written; and how many are listed.

    `SUMS` itself is among the damaged where a line of it is none.
    """
    known, is_sound = _read(run / SUMS)
    damaged = [name for name, expected in known.items() if _hash(run / name) != expected]
    return (damaged if is_sound else [SUMS, *damaged]), len(known)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Let one process at a time read and write the hashes."""
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
    """Hashes by name, and whether every line is one."""
    try:
        lines = sums.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return {}, True
    parted = [line.partition("  ") for line in lines]
    known = {name: digest for digest, _, name in parted if len(digest) == 64 and name}
    return known, len(known) == len(lines)


def _hash(path: Path) -> str:
    """SHA-256 of a plain file; empty where there is none: gone meanwhile, a link, a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        return ""
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return ""
        return hashlib.file_digest(file, "sha256").hexdigest()
