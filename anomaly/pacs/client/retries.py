"""Retries of unanswered requests to an archive, with exponential backoff.

::

    pause after attempt k = max(growing_pause(k) * u, asked),    u ~ U[1/2, 1]

Only `ArchiveUnreachable` is retried: no connection, no answer in time, or "try again later". Other
errors are decisions of the archive, which would not change. The random factor prevents clients that
were stopped by the same outage from returning at the same time. If the archive requests a pause
(Retry-After), the client waits that long, but at most two minutes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anomaly.errors import ArchiveUnreachable, ConfigError
from anomaly.pacs.backoff import growing_pause

__all__ = ["Attempts"]

_Answer = TypeVar("_Answer")

LONGEST_ASKED = 120.0
"""Maximum seconds to wait at the request of an archive."""

_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class Attempts:
    """Number of attempts of a request, and the pauses between them.

    Attributes
    ----------
    count : int
        Total number of attempts, 1 or more.
    first, longest : float
        Length of the first pause and the maximum, in seconds.
    sleep : callable
        Waits a number of seconds.
    """

    count: int = 5
    first: float = 0.5
    longest: float = 30.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"attempts are {self.count}; expected 1 or more.")

    def __call__(self, ask: Callable[[], _Answer]) -> _Answer:
        """Call until there is an answer.

        Parameters
        ----------
        ask : callable
            The request; raises `ArchiveUnreachable` if a retry may succeed.

        Raises
        ------
        ArchiveUnreachable
            If the last attempt also failed this way.
        ArchiveError
            Any other error of `ask` is raised immediately.
        """
        for attempt in range(1, self.count):
            try:
                return ask()
            except ArchiveUnreachable as error:
                pause = growing_pause(attempt, self.first, self.longest)
                asked = min(error.wait, LONGEST_ASKED)
                self.sleep(max(pause * _RANDOM.uniform(0.5, 1), asked))
        try:
            return ask()
        except ArchiveUnreachable as error:
            raise type(error)(
                error.reason,
                f"{error.message}, in {self.count} attempt(s): run again when it is back; what is "
                "done is not done twice.",
            ) from error
