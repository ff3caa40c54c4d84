"""Parts: rows and evidence maps of a run on disk, a file of each a shard.

::

    part-00012.parquet   rows of shard 12
    maps-00012.npz       evidence maps of shard 12 that are kept, float16, by pseudonym
    part-00012.sha256    hashes of the two, written last
    part-00012.lease     who is working on it (`anomaly.scoring.leases`)

A part is there whole or not at all: it is written under a temporary name, flushed to disk and
renamed. Its metadata says what it was made of (`Provenance`) and which shard it is, so a part of
something else is never taken for the one that is wanted. Disks lose bits, so nothing is read whose
hash is not the one that was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.errors import AnomalyError, Reason, UnreadableScan
from anomaly.files import file_hash, whole
from anomaly.store.provenance import Provenance
from anomaly.store.rows import SCHEMA, ScoreRow

__all__ = ["Parts", "part_file"]

_MOST_OF_A_MAP = 64 * 2**20
"""Bytes; one of 2048 x 2048 has 8 MiB."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

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
            with part_file(path) as file:
                file.write(data)
        self.seal(index)

    def _write_checksums(self, index: int, coming: Mapping[Path, str]) -> None:
        text = self.checksums(index).read_text(encoding="ascii", errors="replace")  # may be damaged
        lines = text.splitlines(keepends=True)
        lines += [f"{digest}  {path.name}\n" for path, digest in coming.items()]
        with part_file(self.checksums(index)) as file:
            file.write("".join(lines).encode())

    def restate(self, index: int, rows: Sequence[ScoreRow], provenance: Provenance) -> None:
        """Write a shard's rows anew, beside the maps that are there, which must be intact."""
        self.write(index, rows, {}, provenance)

    def seal(self, index: int) -> None:
        """Write the hashes of a shard's part, which then counts.

        Raises
        ------
        AnomalyError
            If they cannot be written.
        """
        paths = [path for path in (self.part(index), self.maps(index)) if path.exists()]
        lines = [f"{file_hash(path)}  {path.name}\n" for path in paths]
        with part_file(self.checksums(index)) as file:
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

    def check_intact(self, indices: Iterable[int]) -> None:
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

    def rows(self, index: int) -> list[ScoreRow]:
        """Read the rows of one shard.

        Raises
        ------
        AnomalyError
            If the part is damaged.
        """
        self.check_intact([index])
        try:
            records: list[dict[str, Any]] = pq.read_table(self.part(index)).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise AnomalyError(
                f"{self.part(index)} cannot be read as parquet ({error}): delete it and score again"
            ) from error
        return [ScoreRow(**{**r, "features": dict(r["features"] or ())}) for r in records]

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
            raise _lost_map(Reason.MAP_MISSING, row, path, "it is not there") from error
        except Exception as error:  # zip, deflate and numpy raise many kinds for damaged bytes
            raise _lost_map(Reason.MAP_DAMAGED, row, path, str(error)) from error
        if evidence.ndim != 2 or not np.isfinite(evidence).all():
            raise _lost_map(
                Reason.MAP_DAMAGED, row, path, "expected finite numbers of two dimensions"
            )
        return evidence


def _lost_map(reason: Reason, row: ScoreRow, path: Path, why: str) -> UnreadableScan:
    return UnreadableScan(
        reason,
        f"the evidence map of {row.key} in {path} cannot be read ({why}): delete "
        f"part-{row.map_part:05d}.parquet beside it and score again",
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def part_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as `anomaly.files.whole` does; say what to do where the disk refuses."""
    try:
        with whole(path) as file:
            yield file
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and run again. Parts that are done are kept"
        ) from error
