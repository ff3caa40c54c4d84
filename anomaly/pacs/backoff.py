"""Exponential backoff: the pause doubles with each consecutive failure, up to a maximum.

::

    pause after failure k = min(first * 2 ** (k - 1), longest)
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Backoff", "growing_pause"]


def growing_pause(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after a number of consecutive failures.

    Parameters
    ----------
    failures : int
        1 or more.
    first, longest : float
        Length of the first pause and the maximum, in seconds.

    Examples
    --------
    >>> [growing_pause(failures, 0.5, 3.0) for failures in (1, 2, 3, 4)]
    [0.5, 1.0, 2.0, 3.0]
    """
    doublings = min(failures - 1, 64)  # `longest` is reached well before this
    return min(first * 2.0**doublings, longest)


class Backoff:
    """Timer that says when a failed operation may be retried.

    Parameters
    ----------
    clock : callable
        Returns monotonic time in seconds.
    first, longest : float
        Length of the first pause and the maximum, in seconds.
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
        """Whether the pause is over; always true before the first failure."""
        return self._clock() >= self._end

    def begin(self) -> float:
        """Start the pause after a failure; return its length in seconds."""
        self._failures += 1
        pause = growing_pause(self._failures, self._first, self._longest)
        self._end = self._clock() + pause
        return pause

    def reset(self) -> None:
        """Reset the failure count, so that the next pause has the first length again."""
        self._failures = 0
