"""Attempts: what an archive did not answer is asked again, after pauses that grow.

::

    pause after attempt k = max(growing_pause(k) * u, asked),    u ~ U[1/2, 1]

Only `ArchiveUnreachable` is asked again: no connection, no answer in time, or "later, please".
Whatever else an archive says it has decided, and it would say it again. The random factor keeps
clients that one outage stopped together from coming back together. An archive that asks to be left
alone for a while is, for two minutes at most.
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
"""Seconds for which an archive is left alone because it asks for it, at most."""

_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class Attempts:
    """How often an archive is asked, and how long it is left alone in between.

    Attributes
    ----------
    count : int
        Attempts in all, 1 or more.
    first, longest : float
        Seconds of the first pause, and of the longest.
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
        """Ask until there is an answer.

        Parameters
        ----------
        ask : callable
            Raises `ArchiveUnreachable` where asking again may help.

        Raises
        ------
        ArchiveUnreachable
            If the last attempt failed so too.
        ArchiveError
            Whatever else `ask` raises passes through at once.
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
