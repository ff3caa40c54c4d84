"""Pauses after failures in a row: each twice as long as the one before, up to a longest.

::

    pause after failure k = min(first * 2 ** (k - 1), longest)
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Backoff", "growing_pause"]


def growing_pause(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after so many failures in a row.

    Parameters
    ----------
    failures : int
        1 or more.
    first, longest : float
        Seconds of the first pause, and of the longest.

    Examples
    --------
    >>> [growing_pause(failures, 0.5, 3.0) for failures in (1, 2, 3, 4)]
    [0.5, 1.0, 2.0, 3.0]
    """
    doublings = min(failures - 1, 64)  # beyond, `longest` has long been reached
    return min(first * 2.0**doublings, longest)


class Backoff:
    """When something that failed may be tried again.

    Parameters
    ----------
    clock : callable
        Monotonic seconds.
    first, longest : float
        Seconds of the first pause, and of the longest.
    """

    def __init__(
        self, clock: Callable[[], float], *, first: float = 1.0, longest: float = 300.0
    ) -> None:
        self._clock = clock
        self._first, self._longest = first, longest
        self._failures = 0
        self._end = -math.inf

    @property
    def is_over(self) -> bool:
        """Whether the pause is over; there is none before the first failure."""
        return self._clock() >= self._end

    def begin(self) -> float:
        """Begin the pause after a failure; return its seconds."""
        self._failures += 1
        pause = growing_pause(self._failures, self._first, self._longest)
        self._end = self._clock() + pause
        return pause

    def reset(self) -> None:
        """Forget the failures: the next pause is the first again."""
        self._failures = 0
