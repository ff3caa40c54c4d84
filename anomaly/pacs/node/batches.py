"""Types of a spool: arriving instances, batches of one study, and their states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from pathlib import Path

from anomaly.errors import Reason

__all__ = ["PASSING", "Arrival", "Batch", "Received", "State"]

PASSING = (
    Reason.DECODER_CRASHED,
    Reason.DECODER_TIMED_OUT,
    Reason.OUT_OF_MEMORY,
    Reason.UNREADABLE,
)
"""Reasons that may be due to the machine, not the scan: a retry may succeed."""


class State(StrEnum):
    """Processing state of a batch; the value is stored in the database."""

    CLOSED = "closed"
    SCORED = "scored"
    SENT = "sent"
    KEPT = "kept"
    """Scored; there is no destination."""
    FAILED = "failed"
    """Scoring was given up until the next start."""
    UNDELIVERED = "undelivered"
    """Rejected by the destination; not retried until the next start."""


class Received(Enum):
    """Result of receiving an instance; the value is a message for people."""

    STORED = "stored"
    AGAIN = "stored before, with equal content"
    CONFLICT = "another instance with this UID was stored before"
    FULL = "no room"


@dataclass(frozen=True)
class Arrival:
    """One instance from the network.

    Attributes
    ----------
    instance, study : str
        SOP and Study Instance UID.
    content : bytes or Path
        The DICOM file. A path must be of a flushed file on the same disk as the spool, which moves
        it.
    digest : str
        Hash that is equal if the same instance arrives again.
    """

    instance: str
    study: str
    content: bytes | Path
    digest: str

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Batch:
    """The instances of one study that are scored together.

    Attributes
    ----------
    number : int
        From 1, in the order of completion.
    folder : Path
    attempts : int
        Number of scoring attempts that were started and did not return.
    objects : tuple of Path
        Objects to send; empty until the batch is scored.
    reason : str
        Reason why an earlier delivery failed; may quote paths.
    """

    number: int
    folder: Path
    attempts: int
    objects: tuple[Path, ...]
    reason: str

    @property
    def scans(self) -> Path:
        """Folder of the instances."""
        return self.folder / "scans"
