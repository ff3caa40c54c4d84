"""status: how far a run's scoring is, and what to do again."""

from __future__ import annotations

import time

from anomaly.errors import AnomalyError
from pipelines.run import RunFolder

__all__ = ["retry", "status"]


def status(run: RunFolder) -> list[str]:
    """Say what is done, what failed and why, how fast, and how long it will take.

    Raises
    ------
    AnomalyError
        If scoring has not begun.
    """
    results = run.results
    parts, done = results.provenance().parts, results.done()
    working = len(list(results.folder.glob("*.lease")))
    lines = [f"{len(done)} of {parts} parts done, {working} in work"]
    if not done:
        return lines
    groups = results.query(
        "SELECT status, reason, count(*) AS n FROM scores GROUP BY ALL ORDER BY n DESC, reason"
    ).to_pylist()
    rows = sum(group["n"] for group in groups)
    scored = sum(group["n"] for group in groups if group["status"] == "scored")
    lines.append(f"{rows} scans: {scored} scored, {rows - scored} not scored")
    lines += [f"  {g['n']} {g['reason']}" for g in groups if g["status"] != "scored"]
    times = sorted(results.part(index).stat().st_mtime for index in done)
    # The first part took time too, but nobody wrote down when it was begun.
    if len(done) < parts and len(done) > 1 and times[-1] > times[0]:
        pace = (len(done) - 1) / (times[-1] - times[0])
        lines.append(
            f"{pace * rows / len(done):.1f} scans/s over all processes, about "
            f"{_duration((parts - len(done)) / pace)} left; the last part was finished "
            f"{_duration(max(0.0, time.time() - times[-1]))} ago"
        )
    return lines


def retry(run: RunFolder, reason: str) -> tuple[int, int]:
    """Remove the parts that hold rows with a reason; return how many parts and such rows.

    Raises
    ------
    AnomalyError
        If no row has it.
    """
    results = run.results
    counts: dict[int, int] = {}
    for index in results.done():
        found = sum(row.reason == reason for row in results.rows(index))
        if found:
            counts[index] = found
    if not counts:
        known = results.query("SELECT DISTINCT reason FROM scores WHERE reason != ''")
        raise AnomalyError(
            f"no row of {run.path} has reason {reason!r}: expected one of "
            f"{sorted(known['reason'].to_pylist())}"
        )
    for index in counts:
        results.forget(index)
    return len(counts), sum(counts.values())


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
