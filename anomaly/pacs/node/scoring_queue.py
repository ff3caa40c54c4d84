"""Queue of batches to score, with retries after failures.

::

    closed --(scored)-----------------------------> scored
           --(failed 1 + len(PAUSES) times)-----> failed     all is kept for the next start
           --(ended the process ATTEMPTS times)---> failed

A batch that waits for a retry does not block the others.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.errors import AnomalyError
from anomaly.logs import Public
from anomaly.pacs.node.batches import Batch, State
from anomaly.pacs.node.spool import Spool

__all__ = ["ATTEMPTS", "PAUSES", "BatchResult", "ScoringQueue"]

log = logging.getLogger(__name__)

ATTEMPTS = 10
"""Number of times scoring a batch may end the process before the batch is given up."""

PAUSES = (10.0, 60.0, 600.0)
"""Seconds before each retry of a batch; after the last one it is given up until the next start."""


@dataclass(frozen=True)
class BatchResult:
    """Result of scoring a batch.

    Attributes
    ----------
    outcomes : mapping of str to str
        File name -> ``"scored"``, or the reason why the scan was not scored.
    objects : sequence of Path
        Objects to send, in the folder of the spool.
    """

    outcomes: Mapping[str, str]
    objects: Sequence[Path]


class ScoringQueue:
    """Scores closed batches, one at a time.

    Parameters
    ----------
    spool : Spool
    score : callable
        Scores a batch; any exception counts as a failed attempt.
    clock : callable
        Returns monotonic time in seconds.
    """

    def __init__(
        self, spool: Spool, score: Callable[[Batch], BatchResult], clock: Callable[[], float]
    ) -> None:
        self._spool = spool
        self._score = score
        self._clock = clock
        self._failures: Counter[int] = Counter()
        self._due: dict[int, float] = {}

    def score_next(self) -> bool:
        """Score the next batch; return whether one was due."""
        now = self._clock()
        closed = self._spool.batches(State.CLOSED)
        due = [batch for batch in closed if self._due.get(batch.number, now) <= now]
        if not due:
            return False
        batch = min(due, key=lambda batch: self._failures[batch.number])
        if batch.attempts >= ATTEMPTS:
            self._give_up(
                batch,
                AnomalyError(
                    f"scoring ended the process {batch.attempts} times: expected scans that fit "
                    "into memory. Score the folder by `anomaly score` to see where it stops"
                ),
            )
            return True
        log.info("batch %d: %d instances", batch.number, self._spool.begin(batch))
        try:
            result = self._score(batch)
            self._spool.scored(batch, result.outcomes, result.objects)
        except Exception as error:  # any error must not block the next study
            self._spool.returned(batch)
            self._put_off(batch, error)
        return True

    def _put_off(self, batch: Batch, error: Exception) -> None:
        failures = self._failures[batch.number]
        if failures == len(PAUSES):
            self._give_up(batch, error)
            return
        self._due[batch.number] = self._clock() + PAUSES[failures]
        self._failures[batch.number] += 1
        log.warning(
            "batch %d cannot be scored (%s); again in %g s",
            batch.number,
            Public(type(error).__name__),
            PAUSES[failures],
        )

    def _give_up(self, batch: Batch, error: Exception) -> None:
        self._spool.failed(batch, f"{type(error).__name__}: {error}")
        log.error(
            "batch %d is given up (%s); the reason is in node.sqlite, its scans are kept",
            batch.number,
            Public(type(error).__name__),
        )
