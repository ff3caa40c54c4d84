"""Where a run is unlike the scans that it is calibrated on, in sentences.

Groups are all scans, those of each site and those of each view. Of a group it is said which
features have drifted (`anomaly.detection.drift`), and whether more than half of it is flagged,
which leaves too few scans that could speak for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from anomaly.detection.calibration import Calibration
from anomaly.detection.drift import FEWEST, Drift, find_drift
from anomaly.results import ScoreRow

__all__ = ["drift_warnings"]


def drift_warnings(rows: Sequence[ScoreRow], normal: Mapping[str, Calibration]) -> list[str]:
    """Say where p-values may not hold.

    Parameters
    ----------
    rows : sequence of ScoreRow
        Of one run, those that were not scored among them.
    normal : mapping of str to Calibration
        Features of the scans that it is calibrated on.
    """
    return [
        sentence
        for name, group in _groups([row for row in rows if row.status == "scored"])
        if len(group) >= FEWEST
        for sentence in _sentences(name, group, normal)
    ]


def _groups(scored: list[ScoreRow]) -> Iterator[tuple[str, list[ScoreRow]]]:
    yield "All scans", scored
    for what in ("site", "view"):
        names = sorted({str(getattr(row, what)) for row in scored} - {""})
        if len(names) > 1:  # one group alone is all scans again
            for name in names:
                yield f"{what} {name}", [row for row in scored if getattr(row, what) == name]


def _sentences(
    name: str, group: list[ScoreRow], normal: Mapping[str, Calibration]
) -> Iterator[str]:
    flagged = sum(bool(row.flagged) for row in group)
    start = f"{name[0].upper()}{name[1:]} ({len(group):,})"
    if 2 * flagged > len(group):
        yield (
            f"{start}: {flagged:,} are flagged, more than half. Either most are abnormal, or they "
            "are made otherwise than the scans of the calibration: their p-values may not hold."
        )
    found = find_drift([row.features or {} for row in group if not row.flagged], normal)
    if found:
        yield f"{start}: {_drifted(found)} P-values may not hold for them."


def _drifted(found: Sequence[Drift]) -> str:
    first, others = found[0], found[1:]
    more = f", and {len(others)} more features have moved" if others else ""
    return (
        f"typical values are not those of normal scans. {first.feature} is {first.median:.4g} in "
        f"the middle here, and {first.low:.4g} to {first.high:.4g} for half of the normal "
        f"scans{more}."
    )
