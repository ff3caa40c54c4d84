"""How threads that compute together wait for each other.

OpenMP's threads spin while they wait, a few hundred thousand times before they sleep. On a machine
that does anything else, the one that is waited for may have no processor, and the others keep
theirs from it: two threads then compute slower than one. A twentieth of the spinning costs little
where the machine is idle, and lets go where it is not (`benchmarks/threads.py`).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["SPINS", "limit_spinning"]

SPINS = 10_000
"""Turns of a waiting thread before it sleeps; libgomp's own is 300,000."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have waiting threads sleep soon, in this process and those that it starts.

    Works before PyTorch is imported, and leaves alone what the environment says already.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPINS))
