"""What a spool takes in, one instance at a time, and gives out, one study at a time."""

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
"""Reasons that may be the machine's and not the scan's: another try may score it."""


class State(StrEnum):
    """How far the node is with a batch; the value is what its database holds."""

    CLOSED = "closed"
    SCORED = "scored"
    SENT = "sent"
    KEPT = "kept"
    """Scored, and there is no destination."""
    FAILED = "failed"
    """Given up instead of scored, until the next start."""
    UNDELIVERED = "undelivered"
    """Refused by the destination, until the next start."""


class Received(Enum):
    """What became of an instance that arrived; the value is for a person."""

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
        The DICOM file; a path is that of a file on the spool's own disk that is flushed, and is
        moved.
    digest : str
        Hash that is equal when the same instance comes again.
    """

    instance: str
    study: str
    content: bytes | Path
    digest: str

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Batch:
    """The instances of one study that were complete together.

    Attributes
    ----------
    number : int
        From 1, in the order of completion.
    folder : Path
    attempts : int
        How often scoring it was begun and did not return.
    objects : tuple of Path
        What is to be sent; empty until it is scored.
    reason : str
        Why it was not delivered before; may quote paths.
    """

    number: int
    folder: Path
    attempts: int
    objects: tuple[Path, ...]
    reason: str

    @property
    def scans(self) -> Path:
        """Folder of its instances."""
        return self.folder / "scans"
