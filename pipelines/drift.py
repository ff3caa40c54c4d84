"""Warnings, as sentences, where a run differs from the scans it is calibrated on.

The groups are all scans, the scans of each site and the scans of each view. For each group, the
warnings state which features have drifted (`anomaly.detection.drift`), and whether more than half
of the group is flagged, in which case the rest is too small to be representative.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from anomaly.detection.drift import FEWEST, FEWEST_NORMAL, Drift, find_drift
from anomaly.store.bundle import Calibrated
from anomaly.store.results import ScoreRow

__all__ = ["drift_warnings"]


def drift_warnings(rows: Sequence[ScoreRow], calibrated: Calibrated) -> list[str]:
    """Sentences that state for which groups of scans p-values may be invalid.

    Parameters
    ----------
    rows : sequence of ScoreRow
        All rows of one run, including those not scored; scans that the bundle has seen are ignored.
    calibrated : Calibrated
        Calibration of the run's bundle.
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
        if len(groups) > 1:  # a single group equals all scans
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
