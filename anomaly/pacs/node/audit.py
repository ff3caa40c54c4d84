"""Audit log of a node: one JSON line per association, readable only by the owner (mode 0600).

::

    {"at": ..., "address": ..., "calling": ..., "called": ..., "outcome": ..., "answers": {...}}

AE titles come from the network: JSON escapes control characters that could affect a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anomaly.logs import Public
from anomaly.pacs.node.durable import open_private

__all__ = ["Audit"]

log = logging.getLogger(__name__)


class Audit:
    """The audit log of a listener; methods are thread-safe.

    Parameters
    ----------
    path : Path
        File to append to; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._answers: dict[Any, Counter[str]] = {}

    def requested(self, association: Any) -> None:
        """Record an association request."""
        with self._mutex:
            self._answers[association] = Counter()

    def answered(self, association: Any, status: int) -> None:
        """Count a C-STORE response."""
        with self._mutex:
            if association in self._answers:
                self._answers[association][f"{status:04X}"] += 1

    def ended(self, association: Any) -> None:
        """Write the line of an association; a connection without a request has no line."""
        with self._mutex:
            answers = self._answers.pop(association, None)
            if answers is None:
                return
            line = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "address": str(association.requestor.address),
                "calling": str(association.requestor.primitive.calling_ae_title),
                "called": str(association.requestor.primitive.called_ae_title),
                "outcome": _outcome(association),
                "answers": dict(answers),
            }
            try:
                with os.fdopen(open_private(self._path, os.O_WRONLY | os.O_APPEND), "a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                log.warning("the audit cannot be written (%s)", Public(error.strerror))


def _outcome(association: Any) -> str:
    if association.is_rejected:
        return "rejected"
    if association.is_released:
        return "released"
    return "aborted or lost"
