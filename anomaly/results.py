"""The results of scoring on disk: parquet parts and evidence maps, one of each a shard.

::

    parts/job.json             whose results these are, and how many parts they will be
    parts/finished.json        the same, once all parts are there and exported
    parts/part-00012.parquet   rows of shard 12
    parts/maps-00012.npz       evidence maps of shard 12 that are kept, float16, by pseudonym

A part is there whole or not at all: it is written under a temporary name, flushed to disk and
renamed. Its metadata says what it was made of (`Provenance`), so a part of something else is never
taken for the one that is wanted.

A row names its scan by pseudonym alone: no path, no UID, no name, no exception text. A scan that
could not be scored is a row with a reason, never a missing row and never "normal". Parquet reads
everywhere; `query` asks all parts in SQL (DuckDB).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.errors import AnomalyError

__all__ = ["Provenance", "Results", "ScoreRow"]


@dataclass(frozen=True)
class ScoreRow:
    """What is known of one scan after scoring.

    Attributes
    ----------
    key : str
        Pseudonym.
    status : {"scored", "not scored"}
    reason : str
        Why it was not scored; one short word or two.
    score : float or None
        Higher = more anomalous.
    p_value : float or None
        None where not scored, or where the bundle is not calibrated.
    flagged : bool or None
        ``p_value <= alpha``.
    evidence_peak : float or None
        Largest evidence of the heatmap.
    regions : int or None
        Connected regions above the evidence threshold.
    view : str
    study, patient : str
        Pseudonyms; empty where the source says nothing.
    map_part : int or None
        Shard whose maps hold this scan's; None where no map is kept.
    features : mapping of str to float
    """

    key: str
    status: Literal["scored", "not scored"]
    reason: str = ""
    score: float | None = None
    p_value: float | None = None
    flagged: bool | None = None
    evidence_peak: float | None = None
    regions: int | None = None
    view: str = ""
    study: str = ""
    patient: str = ""
    map_part: int | None = None
    features: Mapping[str, float] | None = None


SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("flagged", pa.bool_()),
        ("evidence_peak", pa.float64()),
        ("regions", pa.int64()),
        ("view", pa.string()),
        ("study", pa.string()),
        ("patient", pa.string()),
        ("map_part", pa.int64()),
        ("features", pa.map_(pa.string(), pa.float32())),
    ]
)
"""Columns of a part, as in `ScoreRow`."""

_TABLE = ", ".join(name for name in SCHEMA.names if name not in ("features", "map_part"))

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Provenance:
    """What results were made of; two runs agree in it or are different results.

    Attributes
    ----------
    bundle, manifest, inputs, settings : str
        Hashes: of the bundle, of the table of scans, of the scans in the order of the shards, of
        the settings that a row depends on.
    alpha : float
        Rate that flags were raised at.
    parts : int
        Shards in all.
    versions : mapping of str to str
        Of the packages that computed.
    """

    bundle: str
    manifest: str
    inputs: str
    settings: str
    alpha: float
    parts: int
    versions: Mapping[str, str] = field(default_factory=dict)


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

    def begin(self, provenance: Provenance) -> None:
        """Say whose results these will be; parts of others no longer count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished.unlink(missing_ok=True)
        with _whole(self.job) as file:
            file.write(_said(provenance).encode())

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
        said = {"provenance": json.dumps(asdict(provenance))}
        if maps:
            # An absurd value must stay the largest there is, not become infinite.
            top = np.finfo(np.float16).max
            halves = {key: np.minimum(m, top).astype(np.float16) for key, m in maps.items()}
            with _whole(self.maps(index)) as file:
                np.savez_compressed(file, **halves)  # type: ignore[arg-type]
        with _whole(self.part(index)) as file:
            pq.write_table(table.replace_schema_metadata(said), file, compression="zstd")

    def is_done(self, index: int, provenance: Provenance) -> bool:
        """Whether a shard's part is there and was made of just this."""
        try:
            metadata = pq.read_schema(self.part(index)).metadata or {}
            return bool(Provenance(**json.loads(metadata[b"provenance"])) == provenance)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return False  # not there, not one of ours, or of another version: it is made

    def done(self, provenance: Provenance | None = None) -> list[int]:
        """Shards whose parts are there; of the results that `job.json` names by default."""
        wanted = provenance or self.provenance()
        return [index for index in range(wanted.parts) if self.is_done(index, wanted)]

    def is_finished(self, provenance: Provenance) -> bool:
        """Whether `finish` was the last word on these results."""
        try:
            return self.finished.read_text(encoding="utf-8") == _said(provenance)
        except OSError:
            return False

    def finish(self, provenance: Provenance, table: Path) -> None:
        """Tidy up after the last part and export; for one process at a time."""
        self._clean(provenance)
        self.export_csv(table)
        with _whole(self.finished) as file:
            file.write(_said(provenance).encode())

    def forget(self, index: int) -> None:
        """Remove a shard's part, so that it is made again."""
        self.finished.unlink(missing_ok=True)
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

    def rows(self, index: int) -> list[ScoreRow]:
        """Read the rows of one shard.

        Raises
        ------
        AnomalyError
            If the part is damaged.
        """
        try:
            records: list[dict[str, Any]] = pq.read_table(self.part(index)).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise AnomalyError(
                f"{self.part(index)} cannot be read as parquet ({error}): delete it and score again"
            ) from error
        return [ScoreRow(**{**r, "features": dict(r["features"] or ())}) for r in records]

    def evidence(self, row: ScoreRow) -> NDArray[np.float32] | None:
        """Evidence map of a row, (size, size) float32; None where none is kept."""
        if row.map_part is None:
            return None
        with np.load(self.maps(row.map_part), allow_pickle=False) as arrays:
            return np.asarray(arrays[row.key], dtype=np.float32)

    def _clean(self, provenance: Provenance) -> None:
        # All parts are there: what is being written now is written twice.
        names = ("*.tmp", "*.stale", "part-*.lease")
        for path in (path for name in names for path in self.folder.glob(name)):
            path.unlink(missing_ok=True)
        for path in [*self.folder.glob("part-*.parquet"), *self.folder.glob("maps-*.npz")]:
            number = path.stem.partition("-")[2]
            if not number.isdigit() or int(number) >= provenance.parts:
                path.unlink(missing_ok=True)

    def export_csv(self, path: Path) -> None:
        """Write all rows, in order and without features, as CSV for a spreadsheet.

        Raises
        ------
        AnomalyError
            If there is no part yet or the file cannot be written.
        """
        temporary = _temporary(self.folder / path.name)  # where tidying up finds it
        try:
            self._ask(lambda scores: scores.project(_TABLE).write_csv(str(temporary)))
            temporary.replace(path)
        except (duckdb.Error, OSError) as error:
            raise AnomalyError(
                f"{path} could not be written ({str(error).splitlines()[0]}): make room for it and "
                "run again. Parts that are done are kept"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def query(self, sql: str) -> pa.Table:
        """Ask the finished parts in SQL: the table is called ``scores``.

        Raises
        ------
        AnomalyError
            If there is no part yet, or DuckDB refuses the query.
        """

        def ask(scores: duckdb.DuckDBPyRelation) -> pa.Table:
            found = scores.query("scores", sql)
            if found is None:  # DuckDB 1.x has no answer to a statement
                raise AnomalyError(f"{sql!r} gives no table: expected a SELECT over `scores`")
            return found.to_arrow_table()

        try:
            return self._ask(ask)
        except duckdb.Error as error:
            said = str(error).splitlines()[0]  # below it the query is drawn again
            raise AnomalyError(f"the query is refused: {said}") from error

    def _ask(self, question: Callable[[duckdb.DuckDBPyRelation], _Answer]) -> _Answer:
        parts = [str(self.part(i)) for i in self.done()]
        if not parts:
            raise AnomalyError(f"{self.folder} holds no finished part yet: run `anomaly score`")
        with duckdb.connect() as connection:
            # A folder named "a=b" is a folder, not a column.
            return question(connection.read_parquet(parts, hive_partitioning=False))


def _said(provenance: Provenance) -> str:
    return json.dumps(asdict(provenance), indent=1)


def _temporary(path: Path) -> Path:
    # A name of its own: a second writer of the same file must not disturb the first.
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when all of it is on disk."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and run again. Parts that are done are kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
