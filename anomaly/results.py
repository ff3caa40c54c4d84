"""The results of scoring on disk: one parquet part, a CSV beside it, evidence maps by key.

A row names its scan by pseudonym alone: no path, no UID, no name, no exception text. A scan that
could not be scored is a row with a reason, never a missing row and never "normal".
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly.errors import AnomalyError

__all__ = [
    "ScoreRow",
    "export_csv",
    "read_evidence",
    "read_scores",
    "write_evidence",
    "write_scores",
]


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
    features: Mapping[str, float] | None = None


_SCHEMA = pa.schema(
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
        ("features", pa.map_(pa.string(), pa.float64())),
    ]
)


def write_scores(path: Path, rows: Sequence[ScoreRow], provenance: Mapping[str, str]) -> None:
    """Write rows to parquet, whole or not at all; provenance goes into the file's metadata."""
    records = [{**asdict(row), "features": list((row.features or {}).items())} for row in rows]
    table = pa.Table.from_pylist(records, schema=_SCHEMA)
    table = table.replace_schema_metadata({"provenance": json.dumps(dict(provenance))})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_scores(path: Path) -> tuple[list[ScoreRow], dict[str, str]]:
    """Read what `write_scores` wrote: rows and provenance.

    Raises
    ------
    AnomalyError
        If there is no such file, or it is something else.
    """
    if not path.exists():
        raise AnomalyError(f"there are no scores at {path}: run `anomaly score` first")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise AnomalyError(f"{path} cannot be read as parquet ({error}): score again") from error
    if not table.schema.equals(_SCHEMA) or b"provenance" not in (table.schema.metadata or {}):
        raise AnomalyError(f"{path} holds columns {table.schema.names}: not scores of this version")
    records: list[dict[str, Any]] = table.to_pylist()
    rows = [ScoreRow(**{**r, "features": dict(r["features"] or ())}) for r in records]
    return rows, json.loads(table.schema.metadata[b"provenance"])


def export_csv(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write rows, without features, as CSV for a spreadsheet."""
    names = [f.name for f in fields(ScoreRow) if f.name != "features"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)


def write_evidence(folder: Path, key: str, evidence: NDArray[np.float32]) -> None:
    """Keep an evidence map (size, size) in half precision, in the network's frame."""
    folder.mkdir(parents=True, exist_ok=True)
    # An absurd value must stay the largest there is, not become infinite.
    half = np.minimum(evidence, np.finfo(np.float16).max).astype(np.float16)
    np.savez_compressed(folder / f"{key}.npz", evidence=half)


def read_evidence(folder: Path, key: str) -> NDArray[np.float32]:
    """Read an evidence map back: (size, size) float32."""
    with np.load(folder / f"{key}.npz", allow_pickle=False) as arrays:
        return np.asarray(arrays["evidence"], dtype=np.float32)
