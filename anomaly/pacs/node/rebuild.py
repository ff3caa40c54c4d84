"""Reconcile the database of a node with its files after a crash or a lost database.

::

    file without a row          an instance that was (or was about to be) acknowledged: add a row
    file that is no instance    move it to FOLDER/unknown, never delete it
    row without a file          delivered since the database was copied, or deleted by the owner

A database may be lost, restored from an older copy, or missing its write-ahead log. The files are
then the only record of acknowledged instances, so an unknown file is never deleted.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from anomaly.pacs.identity import instance_digest, read_file_identity, read_syntax
from anomaly.pacs.node.batches import Arrival, State
from anomaly.pacs.node.database import NodeDatabase
from anomaly.pacs.node.layout import NodeFolder, file_name

__all__ = ["Rebuilt", "read_stored", "rebuild"]


class Rebuilt(NamedTuple):
    """Number of instances restored, unknown files moved aside, and rows without a file."""

    restored: int
    unknown: int
    missing: int


def read_stored(content: bytes) -> Arrival:
    """Read an instance from a file that a node stored.

    Parameters
    ----------
    content : bytes
        Preamble, file meta information and data set.

    Returns
    -------
    Arrival

    Raises
    ------
    ValueError
        If it is not such a file.
    """
    syntax, begin = read_syntax(content)
    identity = read_file_identity(content)
    digest = instance_digest(syntax, content[begin:])
    return Arrival(identity.instance, identity.study, content, digest)


class _Row(NamedTuple):
    uid: str
    batch: int | None
    state: State | None


def rebuild(database: NodeDatabase, files: NodeFolder) -> Rebuilt:
    """Add a row for every instance file that has none, and count rows without a file.

    Parameters
    ----------
    database : NodeDatabase
    files : NodeFolder

    Returns
    -------
    Rebuilt

    Raises
    ------
    OSError, sqlite3.Error
        If reading or writing fails; the database is then unchanged.
    """
    with database.transaction():
        work = _Rebuild(database, files)
        for number in files.batches():
            work.take_batch(number)
        for path in files.waiting():
            work.take_waiting(path)
        missing = work.forget_missing()
    return Rebuilt(work.restored, work.unknown, missing)


class _Rebuild:
    def __init__(self, database: NodeDatabase, files: NodeFolder) -> None:
        self.restored = self.unknown = 0
        self._database, self._files = database, files
        rows = database.rows(
            "SELECT uid, batch, state FROM instances LEFT JOIN batches ON batch = number"
        )
        self._rows = {
            file_name(uid): _Row(uid, batch, None if state is None else State(state))
            for uid, batch, state in rows
        }
        self._numbers = {number for (number,) in database.rows("SELECT number FROM batches")}

    def take_batch(self, number: int) -> None:
        """Add the missing rows of a batch and of its scans."""
        scans = self._files.scans(number)
        is_known = number in self._numbers
        if not is_known:
            # A delivered batch has no scans left; its number stays reserved.
            self._database.add_batch(State.CLOSED if scans else State.SENT, number)
        for path in scans:
            row = self._rows.get(path.name)
            if row is not None and row.batch == number:
                continue
            if row is not None and self._files.has(row.batch, path.name):
                path.unlink()  # a duplicate: the row points to another copy
            elif row is None and is_known:
                self._set_aside(path)
            else:
                self._restore(path, number)

    def take_waiting(self, path: Path) -> None:
        """Add the row of a waiting instance if it is missing."""
        row = self._rows.get(path.name)
        if row is None or row.state not in (None, State.CLOSED, State.FAILED):
            self._restore(path, None)

    def forget_missing(self) -> int:
        """Remove unscored instances whose file is missing; return their number.

        While such a row exists, the instance is not accepted when it is sent again. An instance
        that was delivered after an older copy of the database was made has a record of its scores;
        its row is kept and marked as scored.
        """
        missing = 0
        for name, row in self._rows.items():
            if row.state not in (None, State.CLOSED) or self._files.has(row.batch, name):
                continue
            missing += 1
            if row.batch is not None and self._files.has_record(row.batch):
                change = "UPDATE instances SET outcome = 'scored', held = 0 WHERE uid = ?"
            else:
                change = "DELETE FROM instances WHERE uid = ?"
            self._database.change(change, row.uid)
        return missing

    def _restore(self, path: Path, number: int | None) -> None:
        try:
            arrival = read_stored(path.read_bytes())
        except ValueError:
            return self._set_aside(path)
        if file_name(arrival.instance) != path.name:
            return self._set_aside(path)
        self._database.change(
            "INSERT INTO instances (uid, study, digest, size, batch) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (uid) DO UPDATE SET batch = excluded.batch, outcome = NULL, held = 1",
            *(arrival.instance, arrival.study, arrival.digest, arrival.size, number),
        )
        state = None if number is None else State.CLOSED
        self._rows[path.name] = _Row(arrival.instance, number, state)
        self.restored += 1
        return None

    def _set_aside(self, path: Path) -> None:
        self._files.set_aside(path)
        self.unknown += 1
