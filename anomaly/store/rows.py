"""A row of results, its columns on disk, and its safe form for spreadsheets and terminals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

__all__ = ["ADDED", "CSV_TABLE", "SCHEMA", "TABLE", "ScoreRow", "plain_cell", "plain_values"]


@dataclass(frozen=True)
class ScoreRow:
    """The results for one scan.

    Attributes
    ----------
    key : str
        Pseudonym.
    status : {"scored", "not scored"}
    reason : str
        Why the scan was not scored, in one or two words.
    score : float or None
        Higher = more anomalous.
    p_value : float or None
        None if the scan was not scored or the bundle is not calibrated.
    flagged : bool or None
        ``p_value <= alpha``.
    evidence_peak : float or None
        Largest evidence of the heatmap.
    regions : int or None
        Number of connected regions above the evidence threshold.
    view : str
    site : str
        Name from the configuration; empty if it gives none.
    study, patient : str
        Pseudonyms; empty if the source does not state them.
    map_part : int or None
        Shard whose file of maps contains the map of this scan; None if no map is stored.
    seen : bool
        Whether the scan was used in training or calibration; then no statistic includes it.
    part : str
        Part that gives the score, such as ``"place"``; empty if the detector has none.
    explanation : str
        Where the score comes from, in one sentence; empty if the detector does not say.
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
    site: str = ""
    study: str = ""
    patient: str = ""
    map_part: int | None = None
    seen: bool = False
    part: str = ""
    explanation: str = ""
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
        ("site", pa.string()),
        ("study", pa.string()),
        ("patient", pa.string()),
        ("map_part", pa.int64()),
        ("seen", pa.bool_()),
        ("part", pa.string()),
        ("explanation", pa.string()),
        ("features", pa.map_(pa.string(), pa.float32())),
    ]
)
"""Columns of a part: the attributes of `ScoreRow`."""

TABLE = ", ".join(name for name in SCHEMA.names if name not in ("features", "map_part"))
"""Columns of the worklist: all except features and the shard of the map."""

ADDED = ("part", "explanation")
"""Columns that parts of versions before 0.2 lack, all of them texts."""

_COMPUTED = "^[\\t\\r\\n]|^[ \u3000\xa0]*[=+\\-@\uff1d\uff0b\uff0d\uff20]"
"""Beginnings of text that spreadsheets read as a formula (OWASP, "CSV injection"). Some programs
skip leading spaces and accept full-width signs."""

_OBEYED = "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
"""Control characters that a terminal executes and no table needs."""


def plain_cell(value: object) -> object:
    """Return a value in a form that no spreadsheet computes and no terminal executes.

    Text that a spreadsheet would compute gets a leading quote. Control characters other than tabs
    and line ends become U+FFFD.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(_OBEYED, "\ufffd", value)
    return f"'{value}" if re.match(_COMPUTED, value) else value


def plain_values(column: pa.Array) -> list[object]:
    """Values of a column of a query result; times as text, because Python's range is smaller."""
    if pa.types.is_temporal(column.type) and not pa.types.is_interval(column.type):
        column = column.cast(pa.string())
    values: list[object] = column.to_pylist()
    return values


def _csv_column(name: str) -> str:
    if not pa.types.is_string(SCHEMA.field(name).type):
        return name
    shown = f"regexp_replace({name}, '{_OBEYED}', '\ufffd', 'g')"
    computed = f"regexp_matches({shown}, '{_COMPUTED}')"
    return f"CASE WHEN {computed} THEN chr(39) || {shown} ELSE {shown} END AS {name}"


CSV_TABLE = ", ".join(map(_csv_column, TABLE.split(", ")))
"""The same columns in the form of `plain_cell`, as SQL expressions."""
