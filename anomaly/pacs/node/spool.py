"""Storage of a node: received files and a SQLite database of their state.

::

    files       `anomaly.pacs.node.layout`
    rows        `anomaly.pacs.node.database`: instances without a batch, and batches by state

An instance is received once its file and then its row are on disk; only then may it be
acknowledged. A step of a batch is recorded after it is done. The process may therefore stop at any
time: the next start repeats steps that were not recorded and adds rows for files that have none
(`anomaly.pacs.node.rebuild`).

An outcome is final unless it is in `PASSING`. An instance without a final outcome is never deleted,
and is accepted again when it is sent again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from anomaly.errors import AnomalyError
from anomaly.files import sync_folder
from anomaly.pacs.node.batches import PASSING, Arrival, Batch, Received, State
from anomaly.pacs.node.database import NodeDatabase
from anomaly.pacs.node.durable import lock, write_durably
from anomaly.pacs.node.layout import NodeFolder, file_name
from anomaly.pacs.node.rebuild import Rebuilt, rebuild

__all__ = ["Spool"]

log = logging.getLogger(__name__)


class Spool:
    """The instances and batches of a node; a context manager.

    Methods are thread-safe. They raise OSError or sqlite3.Error if the disk fails, and can then be
    called again.

    Parameters
    ----------
    folder : Path
        Created if it does not exist; its parent must exist.
    max_instances : int
        Maximum number of waiting instances: received, but not yet delivered or given up.
    max_bytes : int
        Maximum size of the stored scans and scoring results.
    reserve : int
        Bytes of the disk that stay free.
    clock : callable
        Returns monotonic time in seconds.

    Raises
    ------
    AnomalyError
        If another node uses the folder, other users can read its files, or the database is damaged
        or of another version.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_instances: int,
        max_bytes: int,
        reserve: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.refused: Counter[Received] = Counter()
        self._files = NodeFolder(folder)
        self._limits = max_instances, max_bytes
        self._reserve = reserve
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiting = self._bytes = 0
        self._lock_file = lock(self._files.lock)
        try:
            self._db = NodeDatabase(self._files.database)
            _report(rebuild(self._db, self._files))
            self._tidy()
        except (sqlite3.DatabaseError, ValueError) as error:  # e.g. an unknown state
            os.close(self._lock_file)
            raise AnomalyError(
                f"{self._files.database} cannot be used ({error}): expected the database of a "
                "node. Move it out of the folder, with its -wal and -shm: the next start makes a "
                "new one from the scans that are there"
            ) from error
        # The arrival times of studies are not stored: their quiet time restarts with the process.
        studies = self._db.rows("SELECT DISTINCT study FROM instances WHERE batch IS NULL")
        self._heard = dict.fromkeys((study for (study,) in studies), self._clock())

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            self._db.close()
        os.close(self._lock_file)

    # --- receiving ----------------------------------------------------------------------------

    def receive(self, arrival: Arrival) -> Received:
        """Store an instance, unless it is already stored or there is no room for it.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails; the instance is then not received.
        """
        with self._mutex:
            received = self._look(arrival)
            if received is Received.STORED:
                self._keep(arrival)
            elif received is not Received.AGAIN:
                self.refused[received] += 1
            return received

    def _look(self, arrival: Arrival) -> Received:
        for digest, outcome, state in self._db.rows(
            "SELECT digest, outcome, state FROM instances LEFT JOIN batches ON batch = number "
            "WHERE uid = ?",
            arrival.instance,
        ):
            if digest != arrival.digest:
                return Received.CONFLICT
            if outcome not in PASSING and state != State.FAILED:
                return Received.AGAIN
        most, room = self._limits
        size = arrival.size
        is_full = self._waiting >= most or self._bytes + size > room or not self._disk_has(size)
        return Received.FULL if is_full else Received.STORED

    def has_room(self, size: int) -> bool:
        """Whether a file of this size can be accepted."""
        with self._mutex:
            return self._bytes + size <= self._limits[1] and self._disk_has(0)

    def _disk_has(self, size: int) -> bool:
        """Whether the disk keeps its reserve, which scoring and sending need."""
        return shutil.disk_usage(self.folder).free - size >= self._reserve

    @property
    def incoming(self) -> Path:
        """Folder for data sets during transfer; on the same disk, cleaned up at the start."""
        return self._files.spool

    def _keep(self, arrival: Arrival) -> None:
        name = file_name(arrival.instance)
        before = self._db.rows("SELECT batch FROM instances WHERE uid = ?", arrival.instance)
        path, size = self._files.spool / name, arrival.size
        if isinstance(arrival.content, Path):
            arrival.content.replace(path)
            sync_folder(path.parent)
        else:
            write_durably(path, arrival.content)
        with self._db.transaction():
            self._db.change(
                "INSERT INTO instances (uid, study, digest, size) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (uid) DO UPDATE SET study = excluded.study, size = excluded.size, "
                "batch = NULL, outcome = NULL, held = 1",
                *(arrival.instance, arrival.study, arrival.digest, size),
            )
        self._heard[arrival.study] = self._clock()
        if not before:
            self._waiting += 1
            self._bytes += size
            return
        self._count()
        for (number,) in before:
            (self._files.batch(number) / "scans" / name).unlink(missing_ok=True)

    # --- batches ------------------------------------------------------------------------------

    def close_quiet(self, seconds: float) -> int:
        """Make a batch of each study without new instances for `seconds`; return their number.

        Later instances of such a study start another batch.
        """
        with self._mutex:
            now = self._clock()
            quiet = [study for study, heard in self._heard.items() if now - heard >= seconds]
            for study in quiet:
                with self._db.transaction():
                    number = self._db.add_batch()
                    self._db.change(
                        "UPDATE instances SET batch = ? WHERE study = ? AND batch IS NULL",
                        *(number, study),
                    )
                del self._heard[study]
            return len(quiet)

    def batches(self, state: State) -> list[Batch]:
        """Batches in a state, by number of attempts, then by age."""
        with self._mutex:
            rows = self._db.rows(
                "SELECT number, attempts, objects, reason FROM batches WHERE state = ? "
                "ORDER BY attempts, number",
                state,
            )
        return [
            Batch(
                number,
                self._files.batch(number),
                attempts,
                tuple(self.folder / path for path in json.loads(objects)),
                reason,
            )
            for number, attempts, objects, reason in rows
        ]

    def begin(self, batch: Batch) -> int:
        """Move the scans to their folder and count an attempt; return the number of scans."""
        with self._mutex:
            names = [file_name(uid) for uid in self._db.held(batch.number)]
            self._files.assemble(batch.number, names)
            with self._db.transaction():
                self._db.count_attempts(batch.number, 1)
            return len(names)

    def returned(self, batch: Batch) -> None:
        """Record that a scoring attempt failed without ending the process."""
        with self._mutex, self._db.transaction():
            self._db.count_attempts(batch.number, -1)

    def scored(self, batch: Batch, outcomes: Mapping[str, str], objects: Sequence[Path]) -> None:
        """Record that a batch is scored.

        Parameters
        ----------
        batch : Batch
        outcomes : mapping of str to str
            File name -> ``"scored"``, or the reason why the scan was not scored.
        objects : sequence of Path
            Objects to send, in the folder of the spool.
        """
        paths = [str(path.relative_to(self.folder)) for path in objects]
        made = self._files.made(batch.number)
        with self._mutex:
            with self._db.transaction():
                for uid in self._db.held(batch.number):
                    self._db.change(
                        "UPDATE instances SET outcome = ? WHERE uid = ?",
                        *(outcomes[file_name(uid)], uid),
                    )
                self._db.count_attempts(batch.number, -1)
                self._db.move_batch(batch.number, State.SCORED, made=made, objects=paths)
            self._count()

    def sent(self, batch: Batch) -> int:
        """Record that the destination has the results; delete the local results and scans.

        Returns
        -------
        int
            Number of scans that are kept, because their outcome is in `PASSING`.
        """
        with self._mutex:
            with self._db.transaction():
                self._db.change(
                    "UPDATE instances SET held = 0 WHERE batch = ? AND outcome NOT IN (?, ?, ?, ?)",
                    *(batch.number, *PASSING),
                )
                self._db.move_batch(batch.number, State.SENT, made=0, objects=())
            self._count()
            kept = {file_name(uid) for uid in self._db.held(batch.number)}
            self._files.clear(batch.number, kept)
            return len(kept)

    def kept(self, batch: Batch) -> None:
        """Record that the results and the scans are kept locally."""
        self._move(batch, State.KEPT)

    def undelivered(self, batch: Batch, reason: str) -> None:
        """Record that the destination rejected the results; the next start tries once more."""
        self._move(batch, State.UNDELIVERED, reason)

    def failed(self, batch: Batch, reason: str) -> None:
        """Record that a batch cannot be scored; its scans stay, and the next start tries again."""
        self._move(batch, State.FAILED, reason, self._files.made(batch.number))

    def _move(self, batch: Batch, state: State, reason: str = "", made: int | None = None) -> None:
        with self._mutex:
            with self._db.transaction():
                self._db.move_batch(batch.number, state, reason=reason, made=made)
            self._count()

    @property
    def waiting(self) -> int:
        """Number of instances that are received but not yet delivered or given up."""
        with self._mutex:
            return self._waiting

    # --- inside -------------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Delete files that are no longer needed; count the rest.

        The owner of the folder may have deleted scans and results to free space.
        """
        with self._db.transaction():
            for number, state in self._db.rows("SELECT number, state FROM batches"):
                self._tidy_batch(number, State(state))
        self._count()

    def _tidy_batch(self, number: int, state: State) -> None:
        names = {uid: file_name(uid) for uid in self._db.held(number)}
        lost = {uid for uid, name in names.items() if not self._files.has(number, name)}
        for uid in lost:
            self._db.change("UPDATE instances SET held = 0 WHERE uid = ?", uid)
        is_empty = lost == names.keys()
        if state is State.SENT or (state is State.FAILED and is_empty):
            self._files.clear(number, names.values())
        made = 0 if state is State.SENT else self._files.made(number)
        self._db.change("UPDATE batches SET made = ? WHERE number = ?", made, number)
        if is_empty and state in (State.CLOSED, State.SCORED, State.UNDELIVERED):
            state = self._tidy_empty(number, state)
        if state is State.UNDELIVERED:
            self._retry(number, State.SCORED)
        elif state is State.FAILED and not is_empty:
            self._retry(number, State.CLOSED)

    def _retry(self, number: int, state: State) -> None:
        """Make a batch due again in this process; the reason of its last failure is kept."""
        ((reason,),) = self._db.rows("SELECT reason FROM batches WHERE number = ?", number)
        self._db.move_batch(number, state, reason=reason)

    def _tidy_empty(self, number: int, state: State) -> State:
        """Update a batch without scans: it may have been delivered after the database was copied.

        Returns its new state.
        """
        ((objects,),) = self._db.rows("SELECT objects FROM batches WHERE number = ?", number)
        if any((self.folder / path).exists() for path in json.loads(objects)):
            return state  # the objects can still be sent
        if self._files.has_record(number):
            self._db.move_batch(number, State.SENT, objects=())
            return State.SENT
        if state is State.CLOSED:
            self._db.move_batch(number, State.FAILED, reason="its scans are not on the disk")
            return State.FAILED
        return state

    def _count(self) -> None:
        """Recompute the totals that the limits apply to; `_keep` updates them between calls.

        A batch that was rejected before no longer counts as waiting.
        """
        ((self._waiting, scans),) = self._db.rows(
            "SELECT coalesce(sum(state IS NULL OR state = 'closed' "
            "OR (state = 'scored' AND reason = '')), 0), coalesce(sum(size), 0) "
            "FROM instances LEFT JOIN batches ON batch = number WHERE held"
        )
        ((made,),) = self._db.rows("SELECT coalesce(sum(made), 0) FROM batches")
        self._bytes = scans + made


def _report(rebuilt: Rebuilt) -> None:
    if rebuilt.restored:
        log.warning(
            "%d instances were on the disk and not in the database: it was lost, or is an older "
            "copy. They are scored as if they had come now",
            rebuilt.restored,
        )
    if rebuilt.unknown:
        log.warning("%d files that are no instances were moved to unknown/", rebuilt.unknown)
    if rebuilt.missing:
        log.warning(
            "%d instances that waited are not on the disk: they were delivered since this copy of "
            "the database was made, or somebody has removed them",
            rebuilt.missing,
        )
