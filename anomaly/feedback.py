"""What readers say of results: agree, disagree, a comment; a small SQLite file beside the results.

Results are never changed by it. Every entry is kept; who changes their mind adds another. Comments
may name a person, so the file is for its owner alone (mode 0600).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

from anomaly.errors import AnomalyError

__all__ = ["SCHEMA", "Feedback", "Opinion"]

Opinion = Literal["agree", "disagree"]

SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "opinion", "reader", "comment", "at")])
"""Columns of the table, all text."""

_TABLE = "CREATE TABLE IF NOT EXISTS feedback (key, opinion, reader, comment, at)"


@dataclass(frozen=True)
class Feedback:
    """One thing that a reader said.

    Attributes
    ----------
    key : str
        Pseudonym of the scan.
    opinion : {"agree", "disagree"}
        With what the results say of it.
    reader : str
        Any name; empty where it does not matter.
    comment : str
    at : str
        When, UTC, ISO 8601.
    """

    key: str
    opinion: Opinion
    reader: str = ""
    comment: str = ""
    at: str = ""

    def add(self, path: Path) -> None:
        """Append it to a file, which is made where there is none; now, unless it says when.

        Raises
        ------
        AnomalyError
            If the file cannot be written.
        """
        at = self.at or datetime.now(timezone.utc).isoformat(timespec="seconds")
        with _open(path, write=True) as connection, connection:
            connection.execute(_TABLE)
            connection.execute(
                "INSERT INTO feedback VALUES (:key, :opinion, :reader, :comment, :at)",
                {**asdict(self), "at": at},
            )

    @classmethod
    def read(cls, path: Path) -> list[Feedback]:
        """Everything that was said, in order; empty where there is no file.

        Raises
        ------
        AnomalyError
            If the file is damaged.
        """
        if not path.exists():
            return []
        names = ", ".join(field.name for field in fields(cls))
        with _open(path, write=False) as connection:
            return [cls(*row) for row in connection.execute(f"SELECT {names} FROM feedback")]  # noqa: S608

    @classmethod
    def table(cls, path: Path) -> pa.Table:
        """Read the same as a table for SQL."""
        return pa.Table.from_pylist([asdict(entry) for entry in cls.read(path)], schema=SCHEMA)


@contextmanager
def _open(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    try:
        if write:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        address = f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
        with closing(sqlite3.connect(address, timeout=30, uri=True)) as connection:
            yield connection
    except (OSError, sqlite3.Error) as error:
        raise AnomalyError(
            f"{path} cannot be used ({error}): expected a SQLite file of feedback in a folder that "
            "can be written"
        ) from error
