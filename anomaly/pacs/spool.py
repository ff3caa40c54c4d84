"""What a node has received and how far it is with it: files, and one SQLite database beside them.

::

    FOLDER/node.sqlite               instances and batches
    FOLDER/node.lock                 held by the one node that works here
    FOLDER/spool/HASH.dcm            instances of studies that may not be complete yet
    FOLDER/batches/000001/scans/     instances of one study that were complete together

    instance    received -> outcome ("scored", or why not)
    batch       open (instances without a number) -> closed -> scored -> sent, or failed

An instance is received once its file is on the disk and then its row; only then may it be
acknowledged. A step of a batch is recorded after it is done. A process may therefore die at any
moment: files without a row were never acknowledged and are removed at the next start, and steps
without a record are done again.

Everything here identifies patients: the folder is for its owner alone (mode 0700), and so are the
files (0600). File names are hashes; no text from the network becomes part of a path.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError
from anomaly.files import sync_folder
from anomaly.pacs.durable import lock, open_private, write_durably

__all__ = ["Arrival", "Batch", "Received", "Spool"]

_TABLES = """
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL,               -- closed, scored, sent, failed
    attempts INTEGER NOT NULL,         -- at scoring it
    kept INTEGER NOT NULL,             -- whether its scans are still there
    objects TEXT NOT NULL,             -- paths to send, a JSON list
    reason TEXT NOT NULL               -- why it failed; may quote paths
);
CREATE TABLE IF NOT EXISTS instances (
    uid TEXT PRIMARY KEY,
    study TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,             -- bytes of the file
    batch INTEGER REFERENCES batches,  -- NULL while its batch is open
    outcome TEXT                       -- NULL until its batch is scored
);
CREATE INDEX IF NOT EXISTS of_study ON instances (study) WHERE batch IS NULL;
CREATE INDEX IF NOT EXISTS of_batch ON instances (batch);
"""


class Received(Enum):
    """What became of an instance that arrived; the value is for a person."""

    STORED = "stored"
    AGAIN = "stored before, with equal content"
    CONFLICT = "another instance with this UID was stored before"
    FULL = "no room"


@dataclass(frozen=True)
class Arrival:
    """One instance from the network.

    Attributes
    ----------
    instance, study : str
        SOP and Study Instance UID.
    content : bytes
        The DICOM file.
    digest : str
        Hash that is equal when the same instance comes again.
    """

    instance: str
    study: str
    content: bytes
    digest: str


@dataclass(frozen=True)
class Batch:
    """The instances of one study that were complete together.

    Attributes
    ----------
    number : int
        From 1, in the order of completion.
    folder : Path
    attempts : int
        How often scoring it was begun.
    objects : tuple of Path
        What is to be sent; empty until it is scored.
    """

    number: int
    folder: Path
    attempts: int
    objects: tuple[Path, ...]

    @property
    def scans(self) -> Path:
        """Folder of its instances."""
        return self.folder / "scans"


class Spool:
    """The folder of a node; a context manager. Its methods may be called from any thread.

    Parameters
    ----------
    folder : Path
        Made where it does not exist; its parent must.
    max_instances : int
        Instances that may wait, received and neither sent nor failed.
    max_bytes : int
        Size of the scans that may be held, those of finished batches that are kept included.
    clock : callable
        Monotonic seconds.

    Raises
    ------
    AnomalyError
        If another node works in the folder, or the database is damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_instances: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.refused: Counter[Received] = Counter()
        self._limits = max_instances, max_bytes
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiting = self._bytes = 0
        for path in (folder, self._files, self._batches):
            path.mkdir(exist_ok=True)
            path.chmod(0o700)  # also where somebody else made it
        self._lock_file = lock(folder / "node.lock")
        try:
            self._db = _open(folder / "node.sqlite")
            self._tidy()
        except sqlite3.DatabaseError as error:
            os.close(self._lock_file)
            raise AnomalyError(
                f"{folder / 'node.sqlite'} cannot be used ({error}): expected the database of a "
                "node. Name a new folder, and keep this one to look into"
            ) from error
        # When a study was last heard of is not kept: after a start its quiet time begins anew.
        studies = self._rows("SELECT DISTINCT study FROM instances WHERE batch IS NULL")
        self._heard = dict.fromkeys((study for (study,) in studies), self._clock())

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._db.close()
        os.close(self._lock_file)

    # --- receiving ----------------------------------------------------------------------------

    def receive(self, arrival: Arrival) -> Received:
        """Put an instance on the disk, unless it is there or there is no room for it.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk refuses; then the instance is not received.
        """
        with self._mutex:
            said = self._look(arrival)
            if said is Received.STORED:
                self._keep(arrival)
            elif said is not Received.AGAIN:
                self.refused[said] += 1
            return said

    def _look(self, arrival: Arrival) -> Received:
        known = self._rows("SELECT digest FROM instances WHERE uid = ?", arrival.instance)
        if known:
            return Received.AGAIN if known[0][0] == arrival.digest else Received.CONFLICT
        most, room = self._limits
        size = len(arrival.content)
        is_full = self._waiting >= most or self._bytes + size > room
        return Received.FULL if is_full else Received.STORED

    def _keep(self, arrival: Arrival) -> None:
        write_durably(self._files / _file_name(arrival.instance), arrival.content)
        with self._db:
            self._db.execute(
                "INSERT INTO instances (uid, study, digest, size) VALUES (?, ?, ?, ?)",
                (arrival.instance, arrival.study, arrival.digest, len(arrival.content)),
            )
        self._waiting += 1
        self._bytes += len(arrival.content)
        self._heard[arrival.study] = self._clock()

    # --- batches ------------------------------------------------------------------------------

    def close_quiet(self, seconds: float) -> int:
        """Make a batch of each study that nothing came for so long; return how many.

        What comes for such a study later is the beginning of a further batch.
        """
        with self._mutex:
            now = self._clock()
            quiet = [study for study, heard in self._heard.items() if now - heard >= seconds]
            for study in quiet:
                with self._db:
                    number = self._db.execute(
                        "INSERT INTO batches (state, attempts, kept, objects, reason) "
                        "VALUES ('closed', 0, 1, '[]', '')"
                    ).lastrowid
                    self._db.execute(
                        "UPDATE instances SET batch = ? WHERE study = ? AND batch IS NULL",
                        (number, study),
                    )
                del self._heard[study]
            return len(quiet)

    def batches(self, state: str) -> list[Batch]:
        """Batches in a state, those tried least first, then the oldest."""
        with self._mutex:
            rows = self._rows(
                "SELECT number, attempts, objects FROM batches WHERE state = ? "
                "ORDER BY attempts, number",
                state,
            )
        return [
            Batch(
                number,
                self._folder_of(number),
                attempts,
                tuple(self.folder / path for path in json.loads(objects)),
            )
            for number, attempts, objects in rows
        ]

    def begin(self, batch: Batch) -> int:
        """Note an attempt at scoring and gather the scans in their folder; return how many."""
        with self._mutex:
            self._change(batch, "attempts = attempts + 1")
            rows = self._rows("SELECT uid FROM instances WHERE batch = ?", batch.number)
            batch.folder.mkdir(mode=0o700, exist_ok=True)
            batch.scans.mkdir(mode=0o700, exist_ok=True)
            for (uid,) in rows:
                waiting = self._files / _file_name(uid)
                if waiting.exists():  # else an attempt before has moved it
                    waiting.replace(batch.scans / waiting.name)
            for folder in (self._files, batch.scans, batch.folder, self._batches):
                sync_folder(folder)
            return len(rows)

    def scored(self, batch: Batch, outcomes: Mapping[str, str], objects: Sequence[Path]) -> None:
        """Record that a batch is scored.

        Parameters
        ----------
        batch : Batch
        outcomes : mapping of str to str
            Name of the file -> ``"scored"``, or the reason why not.
        objects : sequence of Path
            What is to be sent, in the folder of the spool.
        """
        paths = [str(path.relative_to(self.folder)) for path in objects]
        with self._mutex, self._db:
            for (uid,) in self._rows("SELECT uid FROM instances WHERE batch = ?", batch.number):
                self._db.execute(
                    "UPDATE instances SET outcome = ? WHERE uid = ?",
                    (outcomes[_file_name(uid)], uid),
                )
            self._db.execute(
                "UPDATE batches SET state = 'scored', objects = ? WHERE number = ?",
                (json.dumps(paths), batch.number),
            )

    def sent(self, batch: Batch, *, keep_scans: bool) -> None:
        """Record that the results of a batch are where they belong; its scans may then go."""
        with self._mutex:
            self._change(batch, "state = 'sent', kept = ?", keep_scans)
            self._tidy_batch(batch.number, keep_scans)
            self._count()

    def failed(self, batch: Batch, reason: str) -> None:
        """Record that a batch cannot be scored; its scans stay, and the next start tries again."""
        with self._mutex:
            self._change(batch, "state = 'failed', reason = ?", reason)
            self._count()

    @property
    def waiting(self) -> int:
        """Instances that are received and neither sent nor failed."""
        with self._mutex:
            return self._waiting

    # --- inside -------------------------------------------------------------------------------

    @property
    def _files(self) -> Path:
        return self.folder / "spool"

    @property
    def _batches(self) -> Path:
        return self.folder / "batches"

    def _folder_of(self, number: int) -> Path:
        return self._batches / f"{number:06d}"

    def _tidy(self) -> None:
        """Remove what was never acknowledged and what has been sent; count what is left."""
        known = {_file_name(uid) for (uid,) in self._rows("SELECT uid FROM instances")}
        for path in self._files.iterdir():
            if path.name not in known:
                path.unlink()
        for number, kept in self._rows(
            "SELECT number, kept FROM batches WHERE state IN ('sent', 'failed')"
        ):
            self._tidy_batch(number, bool(kept))
        with self._db:
            self._db.execute("UPDATE batches SET state = 'closed' WHERE state = 'failed' AND kept")
        self._count()

    def _tidy_batch(self, number: int, kept: bool) -> None:
        scans = self._folder_of(number) / "scans"
        if not kept:
            shutil.rmtree(scans, ignore_errors=True)
        elif not scans.exists():  # their owner has removed them to make room
            with self._db:
                self._db.execute("UPDATE batches SET kept = 0 WHERE number = ?", (number,))

    def _count(self) -> None:
        """Add up what the limits are about; in between, `_keep` goes on counting."""
        self._waiting, self._bytes = self._db.execute(
            "SELECT coalesce(sum(state IS NULL OR state IN ('closed', 'scored')), 0), "
            "coalesce(sum(size * coalesce(kept, 1)), 0) "
            "FROM instances LEFT JOIN batches ON batch = number"
        ).fetchone()

    def _change(self, batch: Batch, what: str, *values: object) -> None:
        with self._db:
            # `what` is one of the constants above
            self._db.execute(
                f"UPDATE batches SET {what} WHERE number = ?",  # noqa: S608
                (*values, batch.number),
            )

    def _rows(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        return self._db.execute(question, values).fetchall()


def _file_name(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:40] + ".dcm"


def _open(path: Path) -> sqlite3.Connection:
    os.close(open_private(path, os.O_RDWR))  # SQLite's side files get its mode
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(_TABLES)
    return database
