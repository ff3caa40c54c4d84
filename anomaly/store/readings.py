"""Readings of results (agree, disagree, a comment) in a small SQLite file beside the results.

Readings never change the results. Every entry is kept, with a hash of its fields; a reader who
changes their mind adds another entry. Comments may name a person, so only the owner can read the
file (mode 0600).

The report page saves readings as a JSON list of ``{"key", "opinion", "comment", "reader", "at"}``.
Entries with equal fields are the same entry, so merging a file twice adds nothing. Pages of earlier
versions omit the time ``at``; then entries are the same if all other fields are equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

from anomaly.errors import AnomalyError

__all__ = ["MAX_FILE", "MAX_TEXT", "SCHEMA", "Feedback", "Opinion"]

Opinion = Literal["agree", "disagree"]

SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "opinion", "reader", "comment", "at")])
"""Columns of the table, all text."""

MAX_FILE = 10_000_000
"""Largest file of readings in bytes."""

MAX_TEXT = 10_000
"""Longest text in such a file, in bytes of UTF-8."""

_ENTRY = ("key", "opinion", "comment", "reader", "at")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)", re.ASCII)

_TABLE = "CREATE TABLE IF NOT EXISTS feedback (key, opinion, reader, comment, at, hash)"
_INSERT = "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Feedback:
    """One reading: a human reader's answer to a verdict.

    Attributes
    ----------
    key : str
        Pseudonym of the scan.
    opinion : {"agree", "disagree"}
        Whether the reader agrees with the verdict.
    reader : str
        Any name; may be empty.
    comment : str
    at : str
        Time in UTC, ISO 8601.
    """

    key: str
    opinion: Opinion
    reader: str = ""
    comment: str = ""
    at: str = ""

    def add(self, path: Path) -> None:
        """Append the reading to a file, which is created if missing; the default time is now.

        Raises
        ------
        AnomalyError
            If the file cannot be written.
        """
        at = self.at or datetime.now(UTC).isoformat(timespec="seconds")
        with _open(path, write=True) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")  # two processes must not both add the column
            _make_table(connection)
            words = (self.key, self.opinion, self.reader, self.comment, at)
            connection.execute(_INSERT, (*words, _hash(words)))
            _count(connection)

    @classmethod
    def parse(cls, path: Path) -> list[Feedback]:
        """Read readings that were saved from the report page.

        Parameters
        ----------
        path : Path
            A JSON list of at most `MAX_FILE` bytes. Every entry has ``key`` and ``opinion``; it may
            have ``comment``, ``reader`` and ``at``, a time such as ``2026-03-14T09:26:53.589Z``,
            which is stored to the second. Every text has at most `MAX_TEXT` bytes of UTF-8.

        Raises
        ------
        AnomalyError
            If the file is anything else; the message gives the number of the first invalid entry,
            from 1.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE + 1)
            if len(content) > MAX_FILE:
                raise AnomalyError(f"{path} is larger than {MAX_FILE} bytes: expected verdicts")
            entries = json.loads(content, object_pairs_hook=_once)
        except (OSError, ValueError, RecursionError) as error:
            raise AnomalyError(
                f"{path} cannot be read as verdicts ({error}): expected the JSON file that the "
                "report page saves"
            ) from error
        if not isinstance(entries, list):
            raise AnomalyError(f"{path} holds a {type(entries).__name__}: expected a JSON list")
        return [_parsed(entry, f"entry {n} of {path}") for n, entry in enumerate(entries, 1)]

    @classmethod
    def merge(cls, path: Path, entries: Sequence[Feedback]) -> int:
        """Append the entries that are new, all or none; return their number.

        An entry without a time is new if no entry, of any time, has equal other fields. Duplicates
        within `entries` are also removed.

        Raises
        ------
        AnomalyError
            If the file cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with _open(path, write=True) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")  # others must wait
            _make_table(connection)
            rows = connection.execute("SELECT key, opinion, reader, comment, at FROM feedback")
            known = set(rows)
            words = {row[:4] for row in known}
            new = []
            for e in entries:
                what = (e.key, e.opinion, e.reader, e.comment)
                if (*what, e.at) in known if e.at else what in words:
                    continue
                new.append((*what, e.at or now))
                known.add(new[-1])
                words.add(what)
            connection.executemany(_INSERT, [(*what, _hash(what)) for what in new])
            _count(connection)
        return len(new)

    @classmethod
    def read(cls, path: Path) -> list[Feedback]:
        """All readings in a file, in order; empty if there is no file.

        Raises
        ------
        AnomalyError
            If the file is damaged.
        """
        if not path.exists():
            return []
        with _open(path, write=False) as connection:
            rows = connection.execute("SELECT * FROM feedback").fetchall()
            ((count,),) = connection.execute("PRAGMA user_version").fetchall()
        if count not in (0, len(rows)):  # files of earlier versions have no count
            raise AnomalyError(
                f"{path} is damaged: it holds {len(rows)} entries, and {count} were written. Bring "
                "the file back from a copy"
            )
        for number, row in enumerate(rows, 1):
            words, kept = row[:5], row[5:]
            # Entries of earlier versions have no hash.
            is_text = all(isinstance(word, str) for word in words)
            is_own = is_text and kept in ((), (None,), (_hash(words),))
            if not is_own or row[1] not in get_args(Opinion):
                raise AnomalyError(
                    f"entry {number} of {path} is damaged: its words are not those that were "
                    "written. Bring the file back from a copy"
                )
        return [cls(*row[:5]) for row in rows]

    @classmethod
    def table(cls, path: Path) -> pa.Table:
        """Read all readings in a file as a table for SQL."""
        return pa.Table.from_pylist([asdict(entry) for entry in cls.read(path)], schema=SCHEMA)


def _make_table(connection: sqlite3.Connection) -> None:
    connection.execute(_TABLE)
    columns = [row[1] for row in connection.execute("PRAGMA table_info(feedback)")]
    if "hash" not in columns:  # made by an earlier version
        connection.execute("ALTER TABLE feedback ADD COLUMN hash")


def _count(connection: sqlite3.Connection) -> None:
    """Store the number of entries: SQLite does not notice if a page loses some."""
    ((count,),) = connection.execute("SELECT count(*) FROM feedback").fetchall()
    connection.execute(f"PRAGMA user_version = {int(count)}")


def _hash(words: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an entry; a name that occurs twice raises `ValueError`, because it is ambiguous."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one entry")
    return entry


def _parsed(entry: object, where: str) -> Feedback:
    if not isinstance(entry, dict) or not {"key", "opinion"} <= entry.keys() <= set(_ENTRY):
        # Truncate the quoted names: they are untrusted and may be long.
        held = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise AnomalyError(f"{where} holds {held!s:.100}: expected key and opinion, of {_ENTRY}")
    for name, text in entry.items():
        if not isinstance(text, str):
            raise AnomalyError(f"the {name} of {where} is a {type(text).__name__}: expected a text")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise AnomalyError(f"the {name} of {where} is no text ({error.reason})") from error
        if size > MAX_TEXT:
            raise AnomalyError(
                f"the {name} of {where} has {size} bytes: expected at most {MAX_TEXT}"
            )
    if entry["opinion"] not in get_args(Opinion):
        raise AnomalyError(
            f"the opinion of {where} is {entry['opinion']!r:.40}: expected one of "
            f"{get_args(Opinion)}"
        )
    if "at" in entry:
        entry = {**entry, "at": _utc(entry["at"], where)}
    return Feedback(**entry)


def _utc(text: str, where: str) -> str:
    """Normalise a time to the format of the SQLite file."""
    try:
        if not _TIME.fullmatch(text):
            raise ValueError("not of that form")
        at = datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
    except ValueError as error:
        raise AnomalyError(
            f"the time `at` of {where} is {text!r:.40} ({error}): expected a time in UTC such as "
            "2026-03-14T09:26:53Z"
        ) from error
    return at.isoformat(timespec="seconds")


@contextmanager
def _open(path: Path, *, write: bool) -> Iterator[sqlite3.Connection]:
    try:
        if write:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        address = f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
        with closing(sqlite3.connect(address, timeout=30, uri=True)) as connection:
            yield connection
    except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
        raise AnomalyError(
            f"{path} cannot be used ({error}): expected a SQLite file of feedback in a folder that "
            "can be written"
        ) from error
