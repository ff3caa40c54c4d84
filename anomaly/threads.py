"""Spin count of OpenMP threads that wait for each other.

A waiting OpenMP thread spins a few hundred thousand times before it sleeps. On a busy machine the
spinning threads can occupy the processor that the last thread needs; two threads are then slower
than one. A thirtieth of the spin count costs little on an idle machine and frees the processor on a
busy one (`benchmarks/threads.py`).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["SPINS", "limit_spinning"]

SPINS = 10_000
"""Spins of a waiting thread before it sleeps; libgomp's default is 300,000."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting threads sleep sooner, in this process and its child processes.

    Must be called before PyTorch is imported. Existing environment variables take precedence.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))
