"""status: progress of a run's scoring, parts to score again, and readings."""

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
    """Lines that state progress, failures with reasons, speed and remaining time.

    Raises
    ------
    AnomalyError
        Scoring has not started.
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
    # The first part is not counted, because its start time is not recorded.
    if len(done) < parts and len(done) > 1 and times[-1] > times[0]:
        pace = (len(done) - 1) / (times[-1] - times[0])
        lines.append(
            f"{pace * rows / len(done):.1f} scans/s over all processes, about "
            f"{_duration((parts - len(done)) / pace)} left; the last part was finished "
            f"{_duration(max(0.0, time.time() - times[-1]))} ago"
        )
    return lines


def retry(run: RunFolder, reason: str) -> tuple[int, int]:
    """Remove the parts with rows that have a reason; return the number of parts and of such rows.

    Raises
    ------
    AnomalyError
        No row has this reason.
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
    """Store a reading of a scan next to the results.

    Raises
    ------
    AnomalyError
        The opinion is unknown, no row has the key, or the file cannot be written.
    """
    if opinion not in get_args(Opinion):
        raise AnomalyError(f"the opinion is {opinion!r}: expected one of {get_args(Opinion)}")
    if _unknown(run, [key]):
        raise AnomalyError(f"no row of {run.path} has key {key!r}: expected one of `scores`")
    reading = Feedback(key, cast("Opinion", opinion), reader, comment)
    reading.add(run.feedback)
    return reading


def merge_feedback(run: RunFolder, path: Path) -> tuple[int, int]:
    """Store all readings of a file saved from the report page, or none on an error.

    Returns
    -------
    tuple of int
        Number of readings that were added, and of those that existed already.

    Raises
    ------
    AnomalyError
        The file does not contain readings, an entry has an unknown key, or the file cannot be
        written.
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
    """Keys that no row has."""
    table = pa.table({"key": pa.array(keys, pa.string())})
    sql = "SELECT key FROM wanted ANTI JOIN worklist USING (key)"
    return set(run.results.query(sql, wanted=table)["key"].to_pylist())


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 2:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
