"""A row of results, its columns on disk, and how it is shown to spreadsheets and terminals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

__all__ = ["CSV_TABLE", "SCHEMA", "TABLE", "ScoreRow", "plain_cell", "plain_values"]


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
    site : str
        As the configuration names it; empty where it does not.
    study, patient : str
        Pseudonyms; empty where the source says nothing.
    map_part : int or None
        Shard whose maps hold this scan's; None where no map is kept.
    seen : bool
        The scan took part in training or calibration: it counts in no figure.
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
        ("features", pa.map_(pa.string(), pa.float32())),
    ]
)
"""Columns of a part, as in `ScoreRow`."""

TABLE = ", ".join(name for name in SCHEMA.names if name not in ("features", "map_part"))
"""Columns of the worklist: all but features and maps."""

_COMPUTED = "^[\\t\\r\\n]|^[ \u3000\xa0]*[=+\\-@\uff1d\uff0b\uff0d\uff20]"
"""A text that begins so is a formula to a spreadsheet (OWASP, "CSV injection"); some look behind
spaces, and take full-width signs for signs."""

_OBEYED = "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
"""What a terminal obeys and no table needs."""


def plain_cell(value: object) -> object:
    """Return what a spreadsheet or a terminal shows as this value, and neither computes nor obeys.

    Text that would be computed gets a quote, control characters but tabs and line ends a mark.
    """
    if not isinstance(value, str):
        return value
    value = re.sub(_OBEYED, "\ufffd", value)
    return f"'{value}" if re.match(_COMPUTED, value) else value


def plain_values(column: pa.Array) -> list[object]:
    """Values of a column of an answer; times as text, which reach further than Python's."""
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
"""The same, as a CSV file shows them."""
