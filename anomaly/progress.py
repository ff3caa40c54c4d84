"""Bars on standard error that say how far a long work is."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int, what: str, unit: str, *, hidden: bool = False) -> tqdm[NoReturn]:
    """Return a bar on standard error: lively on a terminal, a line now and then in a log file."""
    pause = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(total=total, desc=what, unit=unit, mininterval=pause, leave=False, disable=hidden)
