"""The results of scoring on disk: parquet parts and evidence maps, one of each a shard.

::

    parts/job.json             whose results these are, and how many parts they will be
    parts/finished.json        the same, once all parts are there and exported
    parts/part-00012.parquet   rows of shard 12
    parts/maps-00012.npz       evidence maps of shard 12 that are kept, float16, by pseudonym
    parts/part-00012.sha256    hashes of the two, written last
    parts/worklist.parquet     all rows without features, most anomalous first, once all are there

A part is there whole or not at all: it is written under a temporary name, flushed to disk and
renamed. Its metadata says what it was made of (`Provenance`) and which shard it is, so a part of
something else is never taken for the one that is wanted. Disks lose bits, so nothing is read whose
hash is not the one that was written.

A row names its scan by pseudonym alone: no path, no UID, no name, no exception text. A scan that
could not be scored is a row with a reason, never a missing row and never "normal". Parquet reads
everywhere; `query` asks all parts in SQL (DuckDB).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.errors import AnomalyError, UnreadableScan
from anomaly.files import file_hash, temporary_name, whole
from anomaly.store.provenance import Provenance
from anomaly.store.rows import CSV_TABLE, SCHEMA, TABLE, ScoreRow

__all__ = ["Provenance", "Results", "ScoreRow"]


_MOST_OF_A_MAP = 64 * 2**20
"""Bytes; one of 2048 x 2048 has 8 MiB."""

_GROUPS = """
CREATE VIEW {name} AS
SELECT *, p_value <= (SELECT alpha FROM operating_point) AS flagged
FROM (
    SELECT {column}, count(*) AS images, count(score) AS scored,
        arg_max(key, score) AS most_anomalous, max(score) AS score,
        CASE WHEN count(p_value) > 0 THEN least(1, count(p_value) * min(p_value)) END AS p_value
    FROM worklist WHERE {column} != '' AND NOT seen GROUP BY {column}
)
"""
"""A study or patient is as anomalous as its most anomalous image. The smallest of m p-values, times
m, is a p-value again, whatever the images have to do with each other (Bonferroni). Without any
there is none: not scored is not normal. Images that the bundle has seen do not count."""


@dataclass(frozen=True)
class Results:
    """The results store of one run.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    def part(self, index: int) -> Path:
        """Rows of a shard."""
        return self.folder / f"part-{index:05d}.parquet"

    def maps(self, index: int) -> Path:
        """Evidence maps of a shard."""
        return self.folder / f"maps-{index:05d}.npz"

    def checksums(self, index: int) -> Path:
        """Hashes of the rows and maps of a shard, in the format of sha256sum."""
        return self.folder / f"part-{index:05d}.sha256"

    def lease(self, index: int) -> Path:
        """Who is working on a shard."""
        return self.folder / f"part-{index:05d}.lease"

    @property
    def job(self) -> Path:
        """Whose results these are."""
        return self.folder / "job.json"

    @property
    def finished(self) -> Path:
        """Whose results were all there, and exported, last."""
        return self.folder / "finished.json"

    @property
    def worklist(self) -> Path:
        """All rows in one file, for quick questions; counts while `is_finished`."""
        return self.folder / "worklist.parquet"

    def begin(self, provenance: Provenance) -> None:
        """Say whose results these will be; parts of others no longer count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reopen()
        with _whole(self.job) as file:
            file.write(_job_text(provenance).encode())

    def provenance(self) -> Provenance:
        """Whose results these are.

        Raises
        ------
        AnomalyError
            If there are none, or they are of another version.
        """
        try:
            return Provenance(**json.loads(self.job.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise AnomalyError(
                f"there are no scores at {self.folder}: run `anomaly score` first"
            ) from error
        except (ValueError, TypeError) as error:
            raise AnomalyError(f"{self.job} is damaged ({error}): score again") from error

    def write(
        self,
        index: int,
        rows: Sequence[ScoreRow],
        maps: Mapping[str, NDArray[np.float32]],
        provenance: Provenance,
    ) -> None:
        """Write a shard's maps and then its rows, each whole or not at all.

        Parameters
        ----------
        index : int
        rows : sequence of ScoreRow
        maps : mapping of str to ndarray (size, size) float32
            By key; kept in half precision, in the network's frame.
        provenance : Provenance

        Raises
        ------
        AnomalyError
            If it cannot be written.
        """
        records = [{**asdict(row), "features": list((row.features or {}).items())} for row in rows]
        table = pa.Table.from_pylist(records, schema=SCHEMA)
        metadata = {"provenance": json.dumps(asdict(provenance)), "shard": str(index)}
        files: dict[Path, bytes] = {}
        if maps:
            # An absurd value must stay the largest there is, not become infinite.
            top = np.finfo(np.float16).max
            halves = {key: np.minimum(m, top).astype(np.float16) for key, m in maps.items()}
            buffer = BytesIO()
            np.savez_compressed(buffer, **halves)  # type: ignore[arg-type]
            files[self.maps(index)] = buffer.getvalue()
        buffer = BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        files[self.part(index)] = buffer.getvalue()
        if self.checksums(index).exists():
            # Until all is in place, either is right: who reads meanwhile, or after a kill in
            # between, finds rows that somebody has written, and no damage.
            self._write_checksums(index, {path: _digest(data) for path, data in files.items()})
        for path, data in files.items():
            with _whole(path) as file:
                file.write(data)
        self.seal(index)

    def _write_checksums(self, index: int, coming: Mapping[Path, str]) -> None:
        text = self.checksums(index).read_text(encoding="ascii", errors="replace")  # may be damaged
        lines = text.splitlines(keepends=True)
        lines += [f"{digest}  {path.name}\n" for path, digest in coming.items()]
        with _whole(self.checksums(index)) as file:
            file.write("".join(lines).encode())

    def seal(self, index: int) -> None:
        """Write the hashes of a shard's part, which then counts.

        Raises
        ------
        AnomalyError
            If they cannot be written.
        """
        paths = [path for path in (self.part(index), self.maps(index)) if path.exists()]
        lines = [f"{file_hash(path)}  {path.name}\n" for path in paths]
        with _whole(self.checksums(index)) as file:
            file.write("".join(lines).encode())

    def is_done(self, index: int, provenance: Provenance) -> bool:
        """Whether a shard's part is there and was made of just this; see `is_intact`."""
        try:
            metadata = pq.read_schema(self.part(index)).metadata or {}
            made_of = Provenance(**json.loads(metadata[b"provenance"]))
            shard = metadata.get(b"shard", None)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return False  # not there, not one of ours, or of another version: it is made
        # Parts of earlier versions name no shard, and have no hash beside them.
        is_whole = shard is None or self.checksums(index).exists()
        return made_of == provenance and shard in (None, str(index).encode()) and is_whole

    def is_intact(self, index: int, *, maps: bool = True) -> bool:
        """Whether a shard's rows, and its maps, hold the bytes that were written.

        Parameters
        ----------
        index : int
        maps : bool
            Look at the maps too.
        """
        try:
            if not self.checksums(index).exists():
                return b"shard" not in (pq.read_schema(self.part(index)).metadata or {})
            lines = self.checksums(index).read_text(encoding="ascii").splitlines()
            named: dict[str, set[str]] = {}
            for digest, _, name in (line.partition("  ") for line in lines):
                named.setdefault(name, set()).add(digest)
            there = {path.name: path for path in (self.part(index), self.maps(index))}
            if self.part(index).name not in named or not named.keys() <= there.keys():
                return False
            looked_at = named if maps else (self.part(index).name,)
            return all(file_hash(there[name]) in named[name] for name in looked_at)
        except (OSError, ValueError, pa.ArrowException):
            return False

    def done(self, provenance: Provenance | None = None) -> list[int]:
        """Shards whose parts are there; of the results that `job.json` names by default."""
        expected = provenance or self.provenance()
        return [index for index in range(expected.parts) if self.is_done(index, expected)]

    def is_finished(self, provenance: Provenance) -> bool:
        """Whether `finish` was the last word on these results."""
        return self._finished(provenance) is not None

    def _finished(self, provenance: Provenance) -> dict[str, str] | None:
        """Hashes of the exports, by name; None where these results are not finished."""
        try:
            finished = json.loads(self.finished.read_text(encoding="utf-8"))
            earlier: dict[str, str] = {}  # versions that kept no hashes
            hashes = {str(k): str(v) for k, v in finished.pop("sha256", earlier).items()}
            return hashes if Provenance(**finished) == provenance else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def is_exported(self, provenance: Provenance, path: Path) -> bool:
        """Whether results are finished, and an export of them is as it was written."""
        hashes = self._finished(provenance)
        if hashes is None:
            return False
        try:
            return hashes.get(path.name, "") == file_hash(path) if hashes else path.exists()
        except OSError:
            return False

    def finish(self, provenance: Provenance, table: Path) -> None:
        """Tidy up after the last part and export; for one process at a time."""
        self.reopen()
        self._clean(provenance)
        for left in table.parent.glob(f"{table.name}.*.tmp"):
            left.unlink(missing_ok=True)
        self.export_csv(table)
        self._sort()
        hashes = {path.name: file_hash(path) for path in (table, self.worklist)}
        with _whole(self.finished) as file:
            file.write(_job_text(provenance, sha256=hashes).encode())

    def reopen(self) -> None:
        """Say that the results are being changed: no longer finished."""
        self.finished.unlink(missing_ok=True)

    def forget(self, index: int) -> None:
        """Remove a shard's part, so that it is made again."""
        self.reopen()
        self.checksums(index).unlink(missing_ok=True)
        self.part(index).unlink()

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

    def restate(self, index: int, rows: Sequence[ScoreRow], provenance: Provenance) -> None:
        """Write a shard's rows anew, beside the maps that are there, which must be intact."""
        self.write(index, rows, {}, provenance)

    def rows(self, index: int) -> list[ScoreRow]:
        """Read the rows of one shard.

        Raises
        ------
        AnomalyError
            If the part is damaged.
        """
        self._check([index])
        try:
            records: list[dict[str, Any]] = pq.read_table(self.part(index)).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise AnomalyError(
                f"{self.part(index)} cannot be read as parquet ({error}): delete it and score again"
            ) from error
        return [ScoreRow(**{**r, "features": dict(r["features"] or ())}) for r in records]

    def _check(self, indices: Iterable[int]) -> None:
        """Refuse parts that hold other rows than were written.

        Raises
        ------
        AnomalyError
            Names one of them.
        """
        damaged = [index for index in indices if not self.is_intact(index, maps=False)]
        if damaged:
            raise AnomalyError(
                f"{self.part(damaged[0])} is damaged: its bytes, or its hash in "
                f"{self.checksums(damaged[0]).name}, are not those that were written "
                f"({len(damaged)} part(s) are). Run `anomaly score` again: what is damaged is "
                "scored again, and nothing else"
            )

    def evidence(self, row: ScoreRow) -> NDArray[np.float32] | None:
        """Evidence map of a row, (size, size) float32; None where none is kept.

        Raises
        ------
        UnreadableScan
            If one is kept, but its file is missing or damaged. The row itself stands.
        """
        if row.map_part is None:
            return None
        path = self.maps(row.map_part)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if arrays.zip.getinfo(f"{row.key}.npy").file_size > _MOST_OF_A_MAP:
                    raise ValueError("it claims to be larger than any map is")
                evidence = np.asarray(arrays[row.key], dtype=np.float32)
        except (FileNotFoundError, KeyError) as error:
            raise _lost_map("missing", row, path, "it is not there") from error
        except Exception as error:  # zip, deflate and numpy raise many kinds for damaged bytes
            raise _lost_map("damaged", row, path, str(error)) from error
        if evidence.ndim != 2 or not np.isfinite(evidence).all():
            raise _lost_map("damaged", row, path, "expected finite numbers of two dimensions")
        return evidence

    def _sort(self) -> None:
        """Write the worklist: in one sorted file the first of ten million are found fast."""
        with self._asked(self.worklist) as (connection, temporary):
            rows = connection.sql("SELECT * FROM worklist ORDER BY score DESC NULLS LAST")
            rows.write_parquet(temporary, compression="zstd")

    def _clean(self, provenance: Provenance) -> None:
        # All parts are there: what is being written now is written twice.
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

    def export_csv(self, path: Path) -> int:
        """Write all rows, in order and without features, as CSV; return how many.

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
        """Yield the database and the name under which to write a file that then appears whole."""
        temporary = temporary_name(path)
        try:
            with self._open() as connection:
                yield connection, str(temporary)
            temporary.replace(path)
        except (duckdb.Error, OSError) as error:
            raise AnomalyError(
                f"{path} could not be written ({str(error).splitlines()[0]}): make room for it and "
                "run again. Parts that are done are kept"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def table(self) -> pa.Table:
        """All rows, in order and without features."""
        return self.query(f"SELECT {TABLE} FROM scores")  # noqa: S608

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """Ask the finished parts in SQL.

        Nothing but the parts can be read, and nothing can be written.

        Parameters
        ----------
        sql : str
            One SELECT over ``scores``, the rows; ``worklist``, the same without features, quicker;
            ``studies`` and ``patients``, one row each (`_GROUPS`); and the tables given.
        **tables : pyarrow.Table

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
                for name, table in tables.items():
                    connection.register(name, table)
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
                statements = connection.extract_statements(sql)
                kinds = [statement.type for statement in statements]
                if kinds != [duckdb.StatementType.SELECT]:
                    names = ", ".join(kind.name for kind in kinds) or "nothing"
                    raise AnomalyError(
                        f"the query holds {names}: expected one SELECT over `scores`"
                    )
                return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            cause = str(error).splitlines()[0]  # below it the query is drawn again
            raise AnomalyError(f"the query is refused: {cause}") from error

    @contextmanager
    def _open(self, *, parts: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a database in memory that knows the parts that are done.

        Where all is finished and nothing asks for the parts, the worklist alone is read.
        """
        provenance = self.provenance()
        # A look whether they are there, and not into each of thousands.
        everything = [*map(self.part, range(provenance.parts)), self.worklist]
        complete = self.is_finished(provenance) and all(path.exists() for path in everything)
        done = range(provenance.parts) if complete else self.done(provenance)
        paths = [_plain(self.part(index).absolute()) for index in done]
        if not paths:
            raise AnomalyError(f"{self.folder} holds no finished part yet: run `anomaly score`")
        if parts or not complete:
            self._check(done)
        if complete and not self.is_exported(provenance, self.worklist):
            raise AnomalyError(
                f"{self.worklist} is damaged: its bytes are not those that were written. Run "
                "`anomaly score` again: it is made again from the parts"
            )
        with duckdb.connect() as connection:
            # What `query` may read when it shuts out everything else.
            folder = self.folder.absolute()
            names = (name.replace("'", "''") for name in (str(folder), _plain(folder)))
            allowed = ", ".join(f"'{name}'" for name in names)
            connection.execute(f"SET allowed_directories = [{allowed}]")
            # A folder named "a=b" is a folder, not a column.
            connection.read_parquet(paths, hive_partitioning=False).create_view("scores")
            if complete:
                sorted_rows = connection.read_parquet(
                    _plain(self.worklist.absolute()), hive_partitioning=False
                )
                sorted_rows.create_view("worklist")
            else:
                connection.execute(f"CREATE VIEW worklist AS SELECT {TABLE} FROM scores")  # noqa: S608
            connection.execute(
                "CREATE TABLE operating_point AS SELECT CAST(? AS DOUBLE) AS alpha",
                [provenance.alpha],
            )
            for name, column in (("studies", "study"), ("patients", "patient")):
                connection.execute(_GROUPS.format(name=name, column=column))
            yield connection


def _plain(path: Path) -> str:
    """Name a file for DuckDB, to which brackets and stars are a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def _lost_map(what: str, row: ScoreRow, path: Path, why: str) -> UnreadableScan:
    return UnreadableScan(
        f"map {what}",
        f"the evidence map of {row.key} in {path} cannot be read ({why}): delete "
        f"part-{row.map_part:05d}.parquet beside it and score again",
    )


def _job_text(provenance: Provenance, **more: object) -> str:
    return json.dumps({**asdict(provenance), **more}, indent=1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a part as `anomaly.files.whole` does; say what to do where the disk refuses."""
    try:
        with whole(path) as file:
            yield file
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and run again. Parts that are done are kept"
        ) from error
