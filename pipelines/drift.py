"""Where a run is unlike the scans that it is calibrated on, in sentences.

Groups are all scans, those of each site and those of each view. Of a group it is said which
features have drifted (`anomaly.detection.drift`), and whether more than half of it is flagged,
which leaves too few scans that could speak for the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from anomaly.detection.drift import FEWEST, FEWEST_NORMAL, Drift, find_drift
from anomaly.store.bundle import Calibrated
from anomaly.store.results import ScoreRow

__all__ = ["drift_warnings"]


def drift_warnings(rows: Sequence[ScoreRow], calibrated: Calibrated) -> list[str]:
    """Say where p-values may not hold.

    Parameters
    ----------
    rows : sequence of ScoreRow
        Of one run, those that were not scored among them; what the bundle has seen does not count.
    calibrated : Calibrated
        What the run is calibrated on.
    """
    if len(calibrated.scores.scores) < FEWEST_NORMAL:
        return []
    return [
        f"P-values may not hold for {name} ({len(group):,}): {reason}"
        for name, group in _groups([row for row in rows if row.status == "scored" and not row.seen])
        if len(group) >= FEWEST
        for reason in _reasons(group, calibrated)
    ]


def _groups(scored: list[ScoreRow]) -> Iterator[tuple[str, list[ScoreRow]]]:
    yield "all scans", scored
    for what in ("site", "view"):
        groups: dict[str, list[ScoreRow]] = defaultdict(list)
        for row in scored:
            groups[str(getattr(row, what))].append(row)
        if len(groups) > 1:  # one group alone is all scans again
            for name in sorted(groups.keys() - {""}):
                yield f"{what} {name}", groups[name]


def _reasons(group: list[ScoreRow], calibrated: Calibrated) -> Iterator[str]:
    flagged = sum(bool(row.flagged) for row in group)
    if 2 * flagged > len(group):
        yield (
            f"{flagged:,} are flagged, more than half. Either most are abnormal, or they are made "
            "otherwise than the scans of the calibration."
        )
    drifts = find_drift(
        [row.features or {} for row in group if not row.flagged], calibrated.features
    )
    if drifts:
        yield _drifted(drifts)


def _drifted(drifts: Sequence[Drift]) -> str:
    first, others = drifts[0], len(drifts) - 1
    more = ("", " So is one more feature.", f" So are {others} more features.")[min(others, 2)]
    return (
        f"{first.feature} is {first.median:.4g} in the middle, unlike normal scans, half of which "
        f"are at {first.low:.4g} to {first.high:.4g}.{more}"
    )
