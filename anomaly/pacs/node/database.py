"""SQLite database of a node, with one row per instance and one row per batch.

::

    instance    received -> outcome ("scored", or the reason why it was not)
    batch       closed -> scored -> sent | kept | undelivered
                closed -> failed
                undelivered -> scored, failed -> closed     at the next start

`NEXT` lists all allowed state changes of a batch; any other change raises an error.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError
from anomaly.pacs.node.batches import State
from anomaly.pacs.node.durable import open_private

__all__ = ["NEXT", "NodeDatabase"]

NEXT: dict[State, frozenset[State]] = {
    # To "sent" at a start, if an older copy of the database does not know of the delivery.
    State.CLOSED: frozenset({State.SCORED, State.FAILED, State.SENT}),
    State.SCORED: frozenset({State.SENT, State.KEPT, State.UNDELIVERED}),
    State.UNDELIVERED: frozenset({State.SCORED, State.SENT}),
    State.FAILED: frozenset({State.CLOSED}),
    State.SENT: frozenset(),
    State.KEPT: frozenset(),
}
"""Allowed next states for each state of a batch."""

_VERSION = 1
_TABLES = f"""
BEGIN;
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    state TEXT NOT NULL DEFAULT 'closed',
    attempts INTEGER NOT NULL DEFAULT 0,  -- at scoring it that ended the process, or have not ended
    made INTEGER NOT NULL DEFAULT 0,      -- bytes that scoring it has left
    objects TEXT NOT NULL DEFAULT '[]',   -- paths to send, a JSON list
    reason TEXT NOT NULL DEFAULT ''       -- why it failed or was not delivered; may quote paths
);
CREATE TABLE instances (
    uid TEXT PRIMARY KEY,
    study TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,                -- bytes of the file
    batch INTEGER REFERENCES batches,     -- NULL while its batch is open
    outcome TEXT,                         -- NULL until its batch is scored
    held INTEGER NOT NULL DEFAULT 1       -- whether the file is still there
);
CREATE INDEX of_study ON instances (study) WHERE batch IS NULL;
CREATE INDEX of_batch ON instances (batch);
CREATE INDEX there ON instances (batch) WHERE held;
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class NodeDatabase:
    """The database of a node; not thread-safe, so callers must use a lock.

    Parameters
    ----------
    path : Path
        Created with mode 0600 if it does not exist.

    Raises
    ------
    sqlite3.DatabaseError
        If it is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        os.close(open_private(path, os.O_RDWR))  # SQLite's -wal and -shm files get the same mode
        self._connection = sqlite3.connect(path, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        ((condition,),) = self.rows("PRAGMA quick_check(1)")
        if condition != "ok":
            raise sqlite3.DatabaseError(condition.splitlines()[-1])
        ((version,),) = self.rows("PRAGMA user_version")
        if not version and not self.rows("SELECT 1 FROM sqlite_master"):
            self._connection.executescript(_TABLES)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {_VERSION}")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all changes of a block, or none if it raises."""
        with self._connection:
            yield

    def rows(self, question: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows that a query returns."""
        return self._connection.execute(question, values).fetchall()

    def change(self, statement: str, *values: object) -> int:
        """Execute a statement that changes rows; return the number of the last row inserted."""
        return self._connection.execute(statement, values).lastrowid or 0

    def add_batch(self, state: State = State.CLOSED, number: int | None = None) -> int:
        """Add a batch without instances; return its number."""
        return self.change("INSERT INTO batches (number, state) VALUES (?, ?)", number, state)

    def held(self, number: int) -> list[str]:
        """UIDs of the instances of a batch whose files still exist."""
        held = self.rows("SELECT uid FROM instances WHERE batch = ? AND held", number)
        return [uid for (uid,) in held]

    def count_attempts(self, number: int, by: int) -> None:
        """Add to the number of scoring attempts of a batch."""
        self.change("UPDATE batches SET attempts = attempts + ? WHERE number = ?", by, number)

    def move_batch(
        self,
        number: int,
        state: State,
        *,
        reason: str = "",
        made: int | None = None,
        objects: Sequence[str] | None = None,
    ) -> None:
        """Change the state of a batch.

        Parameters
        ----------
        number : int
        state : State
            Allowed next state (`NEXT`).
        reason : str
            Reason why it failed or was not delivered; may quote paths.
        made : int, optional
            Size of the scoring results in bytes; unchanged by default.
        objects : sequence of str, optional
            Paths to send; unchanged by default.

        Raises
        ------
        AnomalyError
            If there is no such batch, or the change is not allowed.
        """
        states = self.rows("SELECT state FROM batches WHERE number = ?", number)
        present = State(states[0][0]) if states else None
        if present is None or state not in NEXT[present]:
            raise AnomalyError(
                f"batch {number} is {present or 'unknown'} and cannot become {state}: expected a "
                "batch that is "
                + " or ".join(before for before, following in NEXT.items() if state in following)
            )
        self.change(
            "UPDATE batches SET state = ?, reason = ?, made = coalesce(?, made), "
            "objects = coalesce(?, objects) WHERE number = ?",
            *(state, reason, made, None if objects is None else json.dumps(objects), number),
        )
