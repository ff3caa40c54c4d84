"""The order in which batches are scored, and when one that fails is tried again or given up.

::

    closed --(scored)-----------------------------> scored
           --(failed 1 + len(PAUSES) times)-----> failed     all is kept, for the next start
           --(ended the process ATTEMPTS times)---> failed

A batch that waits for its next try does not keep the others waiting.
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
"""Times that scoring a batch may end the process before the batch is given up."""

PAUSES = (10.0, 60.0, 600.0)
"""Seconds after which scoring a batch is tried again; then it is given up, until the next start."""


@dataclass(frozen=True)
class BatchResult:
    """What scoring made of a batch.

    Attributes
    ----------
    outcomes : mapping of str to str
        Name of the file -> ``"scored"``, or the reason why not.
    objects : sequence of Path
        What is to be sent, in the folder of the spool.
    """

    outcomes: Mapping[str, str]
    objects: Sequence[Path]


class ScoringQueue:
    """Scores closed batches, one at a time.

    Parameters
    ----------
    spool : Spool
    score : callable
        Scores a batch; whatever it raises is a failed try.
    clock : callable
        Monotonic seconds.
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
        """Score the next batch; return whether there was one that is due."""
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
        except Exception as error:  # whatever it is, the next study must not wait for it
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
