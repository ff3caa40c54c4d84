"""The results of scoring on disk: their provenance, their parts, and one file with all rows.

::

    parts/job.json             provenance of the results, with the number of parts
    parts/finished.json        the same, written when all parts are complete and exported
    parts/part-00012.*         rows of shard 12, and its maps (`anomaly.store.parts`)
    parts/worklist.parquet     all rows without features, most anomalous first, once complete

A row identifies its scan by pseudonym only: no path, no UID, no name, no exception text. A scan
that could not be scored is a row with a reason, never a missing row and never "normal". Many tools
read Parquet; `Results.query` runs SQL over all parts (`anomaly.store.database`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from anomaly.errors import AnomalyError
from anomaly.files import file_hash, whole_path
from anomaly.store.database import connected, select
from anomaly.store.parts import Parts, part_file
from anomaly.store.provenance import Provenance
from anomaly.store.rows import CSV_TABLE, TABLE, ScoreRow

__all__ = ["Provenance", "Results", "ScoreRow"]


@dataclass(frozen=True)
class Results(Parts):
    """The results store of one run.

    Attributes
    ----------
    folder : Path
    """

    @property
    def job(self) -> Path:
        """Path of the provenance of the results."""
        return self.folder / "job.json"

    @property
    def finished(self) -> Path:
        """Path of the provenance of the last results that were complete and exported."""
        return self.folder / "finished.json"

    @property
    def worklist(self) -> Path:
        """Path of all rows in one file, for fast queries; valid while `is_finished`."""
        return self.folder / "worklist.parquet"

    def begin(self, provenance: Provenance) -> None:
        """Start results with this provenance; parts with another one no longer count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reopen()
        with part_file(self.job) as file:
            file.write(_job_text(provenance).encode())

    def provenance(self) -> Provenance:
        """Read the provenance of the results.

        Raises
        ------
        AnomalyError
            If there are no results, or they are of another version.
        """
        try:
            return Provenance(**json.loads(self.job.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise AnomalyError(
                f"there are no scores at {self.folder}: run `anomaly score` first"
            ) from error
        except (ValueError, TypeError) as error:
            raise AnomalyError(f"{self.job} is damaged ({error}): score again") from error

    def done(self, provenance: Provenance | None = None) -> list[int]:
        """Shards with a complete part of this provenance; default: the one in `job.json`."""
        expected = provenance or self.provenance()
        return [index for index in range(expected.parts) if self.is_done(index, expected)]

    def read(self) -> tuple[list[ScoreRow], Provenance]:
        """Read all rows, in the order of the table of scans.

        Raises
        ------
        AnomalyError
            If parts are missing or damaged.
        """
        provenance = self.provenance()
        done = self.done()
        if len(done) < provenance.parts:
            raise AnomalyError(
                f"{self.folder} holds {len(done)} of {provenance.parts} parts: run `anomaly score` "
                "again, it goes on where it stopped"
            )
        return [row for index in done for row in self.rows(index)], provenance

    def reopen(self) -> None:
        """Mark the results as not finished, before they change."""
        self.finished.unlink(missing_ok=True)

    def forget(self, index: int) -> None:
        """Remove a shard's part, so that the shard is scored again."""
        self.reopen()
        self.checksums(index).unlink(missing_ok=True)
        self.part(index).unlink()

    def finish(self, provenance: Provenance, table: Path) -> None:
        """Remove leftover files and export all rows, after the last part; not concurrently."""
        self.reopen()
        self._clean(provenance)
        for left in table.parent.glob(f"{table.name}.*.tmp"):
            left.unlink(missing_ok=True)
        self.export_csv(table)
        self._sort()
        hashes = {path.name: file_hash(path) for path in (table, self.worklist)}
        with part_file(self.finished) as file:
            file.write(_job_text(provenance, sha256=hashes).encode())

    def _clean(self, provenance: Provenance) -> None:
        # All parts are complete, so anything still being written is a duplicate.
        names = ("*.tmp", "*.stale", "part-*.lease")
        for path in (path for name in names for path in self.folder.glob(name)):
            path.unlink(missing_ok=True)
        for path in [
            path
            for kind in ("part-*.parquet", "part-*.sha256", "maps-*.npz")
            for path in self.folder.glob(kind)
        ]:
            number = path.stem.partition("-")[2]
            if not number.isdigit() or int(number) >= provenance.parts:
                path.unlink(missing_ok=True)

    def _sort(self) -> None:
        """Write the worklist: one sorted file makes the first of ten million rows fast to find."""
        with self._asked(self.worklist) as (connection, temporary):
            rows = connection.sql("SELECT * FROM worklist ORDER BY score DESC NULLS LAST")
            rows.write_parquet(temporary, compression="zstd")

    def is_finished(self, provenance: Provenance) -> bool:
        """Whether the results were finished with this provenance and not changed since."""
        return self._finished(provenance) is not None

    def _finished(self, provenance: Provenance) -> dict[str, str] | None:
        """Hashes of the exports, by file name; None if the results are not finished."""
        try:
            finished = json.loads(self.finished.read_text(encoding="utf-8"))
            earlier: dict[str, str] = {}  # earlier versions stored no hashes
            hashes = {str(k): str(v) for k, v in finished.pop("sha256", earlier).items()}
            return hashes if Provenance(**finished) == provenance else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def is_exported(self, provenance: Provenance, path: Path) -> bool:
        """Whether the results are finished and an export of them is undamaged."""
        hashes = self._finished(provenance)
        if hashes is None:
            return False
        try:
            return hashes.get(path.name, "") == file_hash(path) if hashes else path.exists()
        except OSError:
            return False

    def export_csv(self, path: Path) -> int:
        """Write all rows, in order and without features, as CSV; return their number.

        Raises
        ------
        AnomalyError
            If there is no part yet or the file cannot be written.
        """
        with self._asked(path) as (connection, temporary):
            rows = connection.sql(f"SELECT {CSV_TABLE} FROM scores")  # noqa: S608
            rows.write_csv(temporary)
            return int(rows.shape[0])

    @contextmanager
    def _asked(self, path: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """Yield the database and a temporary name for a file that then replaces `path`."""
        try:
            with whole_path(path) as temporary, self._open() as connection:
                yield connection, str(temporary)
        except (duckdb.Error, OSError) as error:
            raise AnomalyError(
                f"{path} could not be written ({str(error).splitlines()[0]}): make room for it and "
                "run again. Parts that are done are kept"
            ) from error

    def table(self) -> pa.Table:
        """All rows, in order and without features."""
        return self.query(f"SELECT {TABLE} FROM scores")  # noqa: S608

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """Run a SQL query over the finished parts.

        The query can read only the parts and the given tables, and can write nothing.

        Parameters
        ----------
        sql : str
            One SELECT over ``scores``, all rows; ``worklist``, the same rows without features,
            which is faster; ``studies`` and ``patients``, one row for each
            (`anomaly.store.database`); and the given tables.
        **tables : pyarrow.Table
            Additional tables, by name.

        Raises
        ------
        AnomalyError
            If there is no part yet, or DuckDB refuses the query.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in sql):
            raise AnomalyError(
                "the query holds bytes that are no text here: set a locale of UTF-8, such as "
                "LC_ALL=C.UTF-8"
            )
        try:
            with self._open(parts="scores" in sql.lower()) as connection:
                return select(connection, sql, tables)
        except duckdb.Error as error:
            cause = str(error).splitlines()[0]  # the other lines repeat the query
            raise AnomalyError(f"the query is refused: {cause}") from error

    @contextmanager
    def _open(self, *, parts: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield an in-memory database of the finished parts.

        If the results are finished and the query does not need the parts, only the worklist is
        read.
        """
        provenance = self.provenance()
        # Check only that the files exist; opening thousands of them takes long.
        everything = [*map(self.part, range(provenance.parts)), self.worklist]
        complete = self.is_finished(provenance) and all(path.exists() for path in everything)
        done = range(provenance.parts) if complete else self.done(provenance)
        paths = [self.part(index) for index in done]
        if not paths:
            raise AnomalyError(f"{self.folder} holds no finished part yet: run `anomaly score`")
        if parts or not complete:
            self.check_intact(done)
        if complete and not self.is_exported(provenance, self.worklist):
            raise AnomalyError(
                f"{self.worklist} is damaged: its bytes are not those that were written. Run "
                "`anomaly score` again: it is made again from the parts"
            )
        worklist = self.worklist if complete else None
        with connected(self.folder, paths, worklist, provenance.alpha) as connection:
            yield connection


def _job_text(provenance: Provenance, **more: object) -> str:
    return json.dumps({**asdict(provenance), **more}, indent=1)
