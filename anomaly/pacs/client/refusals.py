"""Errors for instances that an archive refused, by reason, raised after the rest is stored."""

from __future__ import annotations

import re
from collections import Counter

from anomaly.errors import ArchiveBusy, ArchiveError

__all__ = ["OUT_OF_RESOURCES", "check_refused"]

OUT_OF_RESOURCES = re.compile("A7[0-9A-F]{2}")
"""Status codes that mean "no room at present" (PS3.4 Table B.2-1, PS3.18 Table I.2-2)."""


def check_refused(archive: object, refused: Counter[str], total: int, table: str) -> None:
    """Raise an error if an archive refused any instances.

    Parameters
    ----------
    archive : object
        Shown as ``str(archive)``.
    refused : Counter of str
        Reason -> number of instances.
    total : int
        Number of instances that were to be stored.
    table : str
        Table of the standard that explains the status codes.

    Raises
    ------
    ArchiveBusy
        All refusals mean that the archive has no room at present.
    ArchiveError
        ``"refused"``: some refusals have another reason.
    """
    if not refused:
        return
    reasons = ", ".join(f"{count} x {reason}" for reason, count in refused.most_common())
    if all(map(OUT_OF_RESOURCES.fullmatch, refused)):
        raise ArchiveBusy(
            next(iter(refused)),
            f"{archive} has no room for {refused.total()} of {total} instances at present "
            f"({reasons}). The others are stored: run again when it has.",
        )
    raise ArchiveError(
        "refused",
        f"{archive} refused {refused.total()} of {total} instances ({reasons}); codes of four "
        f"digits are explained in DICOM {table}. The others are stored: see the archive's log, "
        "and run again.",
    )
