"""Progress bars on standard error."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

__all__ = ["progress_bar"]


def progress_bar(total: int, what: str, unit: str, *, hidden: bool = False) -> tqdm[NoReturn]:
    """Return a progress bar, updated often on a terminal, rarely in a log file."""
    pause = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(total=total, desc=what, unit=unit, mininterval=pause, leave=False, disable=hidden)
