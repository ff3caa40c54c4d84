"""status: how far a run's scoring is, what to do again, and what readers say of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast, get_args

import pyarrow as pa

from anomaly.errors import AnomalyError
from anomaly.pipelines.run import RunFolder
from anomaly.store.readings import Feedback, Opinion

__all__ = ["give_feedback", "merge_feedback", "retry", "status"]


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
        count = sum(row.reason == reason for row in results.rows(index))
        if count:
            counts[index] = count
    if not counts:
        known = results.query("SELECT DISTINCT reason FROM scores WHERE reason != ''")
        raise AnomalyError(
            f"no row of {run.path} has reason {reason!r}: expected one of "
            f"{sorted(known['reason'].to_pylist())}"
        )
    for index in counts:
        results.forget(index)
    return len(counts), sum(counts.values())


def give_feedback(
    run: RunFolder, key: str, opinion: str, *, reader: str = "", comment: str = ""
) -> Feedback:
    """Note what a reader says of a scan, beside the results.

    Raises
    ------
    AnomalyError
        If the opinion is none, no row has the key, or the file cannot be written.
    """
    if opinion not in get_args(Opinion):
        raise AnomalyError(f"the opinion is {opinion!r}: expected one of {get_args(Opinion)}")
    if _unknown(run, [key]):
        raise AnomalyError(f"no row of {run.path} has key {key!r}: expected one of `scores`")
    reading = Feedback(key, cast("Opinion", opinion), reader, comment)
    reading.add(run.feedback)
    return reading


def merge_feedback(run: RunFolder, path: Path) -> tuple[int, int]:
    """Note the verdicts of a file that was saved from the report page: all of them, or none.

    Returns
    -------
    tuple of int
        How many were added, and how many were there already.

    Raises
    ------
    AnomalyError
        If the file is not one of verdicts, an entry is about no row, or nothing can be written.
    """
    verdicts = Feedback.parse(path)
    unknown = _unknown(run, [verdict.key for verdict in verdicts])
    for number, verdict in enumerate(verdicts, 1):
        if verdict.key in unknown:
            raise AnomalyError(
                f"entry {number} of {path} is about {verdict.key!r:.60}, which no row of "
                f"{run.path} is: merge it into the run whose report it was saved from. Nothing "
                "was merged"
            )
    added = Feedback.merge(run.feedback, verdicts)
    return added, len(verdicts) - added


def _unknown(run: RunFolder, keys: list[str]) -> set[str]:
    """Those of some keys that no row has."""
    table = pa.table({"key": pa.array(keys, pa.string())})
    sql = "SELECT key FROM wanted ANTI JOIN worklist USING (key)"
    return set(run.results.query(sql, wanted=table)["key"].to_pylist())


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
