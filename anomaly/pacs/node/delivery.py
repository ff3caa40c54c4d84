"""Delivery of the results of scored batches to the destination, with retries.

::

    scored --(stored)-----------------> sent           scans, objects and maps are deleted here
           --(refused FINAL times)----> undelivered    all is kept; the next start tries once more
           --(there is no destination)> kept           all is kept

A destination that does not answer is retried indefinitely, with growing pauses. An `ArchiveError`
is a decision of the destination, which is unlikely to change.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from anomaly.errors import ArchiveError, ArchiveUnreachable
from anomaly.logs import Public
from anomaly.pacs.backoff import Backoff
from anomaly.pacs.client.destinations import Destination
from anomaly.pacs.node.batches import Batch, State
from anomaly.pacs.node.spool import Spool

__all__ = ["FINAL", "Delivery"]

log = logging.getLogger(__name__)

FINAL = 5
"""Number of refusals after which a batch is undelivered; unanswered attempts do not count."""


class Delivery:
    """Sends the results of scored batches, one batch at a time.

    Parameters
    ----------
    spool : Spool
    destination : Destination or None
    clock : callable
        Returns monotonic time in seconds.
    """

    def __init__(
        self, spool: Spool, destination: Destination | None, clock: Callable[[], float]
    ) -> None:
        self._spool = spool
        self._destination = destination
        self._backoff = Backoff(clock)
        self._troubles: Counter[int] = Counter()
        self._refusals: Counter[int] = Counter()

    def send_next(self) -> bool:
        """Send the results of one batch; return whether one was due."""
        batches = self._spool.batches(State.SCORED)
        if not batches or not self._backoff.is_over:
            return False
        # A batch that is always refused must not block the others.
        batch = min(batches, key=lambda batch: (self._troubles[batch.number], batch.number))
        if self._destination is None:
            self._spool.kept(batch)
            log.info("batch %d: done; its results are kept", batch.number)
            return True
        try:
            if batch.objects:
                self._destination.store(batch.objects)
        except Exception as error:  # after any error the node must keep receiving and scoring
            self._refused(batch, error)
            return True
        self._backoff.reset()
        kept = self._spool.sent(batch)
        log.info("batch %d: %d objects sent", batch.number, len(batch.objects))
        if kept:
            log.warning(
                "%d scans of batch %d are kept: they may be scored when they are sent again",
                kept,
                batch.number,
            )
        return True

    def _refused(self, batch: Batch, error: Exception) -> None:
        reason = Public(error.reason if isinstance(error, ArchiveError) else type(error).__name__)
        seconds = self._backoff.begin()
        self._troubles[batch.number] += 1
        if isinstance(error, ArchiveError) and not isinstance(error, ArchiveUnreachable):
            self._refusals[batch.number] += 1
            # A batch with a reason was given up before; this was its one retry.
            if batch.reason or self._refusals[batch.number] >= FINAL:
                self._spool.undelivered(batch, str(error))
                log.error(
                    "batch %d is refused for good (%s); its results are kept, and the next start "
                    "tries once more",
                    batch.number,
                    reason,
                )
                return
        log.warning("batch %d cannot be sent (%s); again in %g s", batch.number, reason, seconds)
