"""Who called a node: a line an association, in JSON, for the node's owner alone (mode 0600).

::

    {"at": ..., "address": ..., "calling": ..., "called": ..., "outcome": ..., "answers": {...}}

Titles come from the network: JSON escapes what a terminal or a log would take for something else.
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
    """The audit of a listener; its methods may be called from any thread.

    Parameters
    ----------
    path : Path
        Appended to; made where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._answers: dict[Any, Counter[str]] = {}

    def requested(self, association: Any) -> None:
        """Note that somebody asks for an association."""
        with self._mutex:
            self._answers[association] = Counter()

    def answered(self, association: Any, status: int) -> None:
        """Count an answer to a request to store."""
        with self._mutex:
            if association in self._answers:
                self._answers[association][f"{status:04X}"] += 1

    def ended(self, association: Any) -> None:
        """Write the line of an association; of a connection that asked for none there is none."""
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
