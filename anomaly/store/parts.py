"""Parts: rows and evidence maps of a run on disk, one file of each per shard.

::

    part-00012.parquet   rows of shard 12
    maps-00012.npz       stored maps of shard 12, float16: evidence by pseudonym, and where a
                         score comes from by pseudonym and ".spread"
    part-00012.sha256    hashes of the two, written last
    part-00012.lease     lease of the process that scores it (`anomaly.scoring.leases`)

Parts are written atomically: under a temporary name, flushed to disk and renamed. The metadata of a
part contains its provenance (`Provenance`) and the number of its shard, so a part of other results
is never mistaken for one of these. Disks can corrupt data, so every file is compared with its hash
before it is read.
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

__all__ = ["Parts", "part_file", "spread_key"]

_MOST_OF_A_MAP = 64 * 2**20
"""Bytes; a map of 2048 x 2048 has 8 MiB."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    def part(self, index: int) -> Path:
        """Path of the rows of a shard."""
        return self.folder / f"part-{index:05d}.parquet"

    def maps(self, index: int) -> Path:
        """Path of the evidence maps of a shard."""
        return self.folder / f"maps-{index:05d}.npz"

    def checksums(self, index: int) -> Path:
        """Path of the hashes of a shard's rows and maps, in the format of sha256sum."""
        return self.folder / f"part-{index:05d}.sha256"

    def lease(self, index: int) -> Path:
        """Path of the lease of a shard."""
        return self.folder / f"part-{index:05d}.lease"

    def write(
        self,
        index: int,
        rows: Sequence[ScoreRow],
        maps: Mapping[str, NDArray[np.float32]],
        provenance: Provenance,
    ) -> None:
        """Write a shard's maps and then its rows, each file atomically.

        Parameters
        ----------
        index : int
        rows : sequence of ScoreRow
        maps : mapping of str to ndarray (size, size) float32
            By key, in the network's frame; stored in half precision.
        provenance : Provenance

        Raises
        ------
        AnomalyError
            If a file cannot be written.
        """
        records = [{**asdict(row), "features": list((row.features or {}).items())} for row in rows]
        table = pa.Table.from_pylist(records, schema=SCHEMA)
        metadata = {"provenance": json.dumps(asdict(provenance)), "shard": str(index)}
        files: dict[Path, bytes] = {}
        if maps:
            # A huge value must stay finite in half precision.
            top = np.finfo(np.float16).max
            halves = {key: np.minimum(m, top).astype(np.float16) for key, m in maps.items()}
            buffer = BytesIO()
            np.savez_compressed(buffer, **halves)  # type: ignore[arg-type]
            files[self.maps(index)] = buffer.getvalue()
        buffer = BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        files[self.part(index)] = buffer.getvalue()
        if self.checksums(index).exists():
            # While a part is being replaced, the hashes of both versions are valid. A process that
            # reads at the same time, or after a kill in between, must not report damage.
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
        """Write a shard's rows again and keep its existing maps, which must be intact."""
        self.write(index, rows, {}, provenance)

    def seal(self, index: int) -> None:
        """Write the hashes of a shard's part, which completes it.

        Raises
        ------
        AnomalyError
            If the hashes cannot be written.
        """
        paths = [path for path in (self.part(index), self.maps(index)) if path.exists()]
        lines = [f"{file_hash(path)}  {path.name}\n" for path in paths]
        with part_file(self.checksums(index)) as file:
            file.write("".join(lines).encode())

    def is_done(self, index: int, provenance: Provenance) -> bool:
        """Whether a shard's part exists with this provenance; does not check its bytes."""
        try:
            metadata = pq.read_schema(self.part(index)).metadata or {}
            made_of = Provenance(**json.loads(metadata[b"provenance"]))
            shard = metadata.get(b"shard", None)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return False  # missing, foreign or of another version: score it again
        # Parts of earlier versions contain no shard number and have no file of hashes.
        is_whole = shard is None or self.checksums(index).exists()
        return made_of == provenance and shard in (None, str(index).encode()) and is_whole

    def is_intact(self, index: int, *, maps: bool = True) -> bool:
        """Whether a shard's rows and maps match their recorded hashes.

        Parameters
        ----------
        index : int
        maps : bool
            Check the maps too.
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
        """Check that the rows of parts match their recorded hashes.

        Raises
        ------
        AnomalyError
            If some do not; the message names one of them.
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
        """Evidence map of a row, (size, size) float32; None if no map is stored.

        Raises
        ------
        UnreadableScan
            If the map's file is missing or damaged. The row itself remains valid.
        """
        if row.map_part is None:
            return None
        return self._map(row, row.map_part, row.key)

    def spread(self, row: ScoreRow) -> NDArray[np.float32] | None:
        """Contributions of a row's pixels to its score, (size, size) float32; None if not stored.

        Raises
        ------
        UnreadableScan
            As `evidence`.
        """
        if row.map_part is None or not row.explanation:
            return None
        return self._map(row, row.map_part, spread_key(row.key))

    def _map(self, row: ScoreRow, part: int, name: str) -> NDArray[np.float32]:
        path = self.maps(part)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if arrays.zip.getinfo(f"{name}.npy").file_size > _MOST_OF_A_MAP:
                    raise ValueError("it claims to be larger than any map is")
                evidence = np.asarray(arrays[name], dtype=np.float32)
        except (FileNotFoundError, KeyError) as error:
            raise _lost_map(Reason.MAP_MISSING, row, path, "it is not there") from error
        except Exception as error:  # damaged bytes raise many types from zip and NumPy
            raise _lost_map(Reason.MAP_DAMAGED, row, path, str(error)) from error
        if evidence.ndim != 2 or not np.isfinite(evidence).all():
            raise _lost_map(
                Reason.MAP_DAMAGED, row, path, "expected finite numbers of two dimensions"
            )
        return evidence


def spread_key(key: str) -> str:
    """Name of a scan's spread among the maps of its shard."""
    return f"{key}.spread"


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
    """Open a file as `anomaly.files.whole` does; a failed write raises a clear `AnomalyError`."""
    try:
        with whole(path) as file:
            yield file
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror or error}): make room for it, or mend "
            "the folder, and run again. Parts that are done are kept"
        ) from error
