"""What an archive refuses: counted by reason while the rest is stored, and said at the end."""

from __future__ import annotations

import re
from collections import Counter

from anomaly.errors import ArchiveBusy, ArchiveError

__all__ = ["OUT_OF_RESOURCES", "check_refused"]

OUT_OF_RESOURCES = re.compile("A7[0-9A-F]{2}")
"""Codes that mean "no room at present" (PS3.4 Table B.2-1, PS3.18 Table I.2-2)."""


def check_refused(archive: object, refused: Counter[str], total: int, table: str) -> None:
    """Say what an archive refused, if anything.

    Parameters
    ----------
    archive : object
        Its name is its ``str``.
    refused : Counter of str
        Reason -> number of instances.
    total : int
        Instances that it was to hold.
    table : str
        Where the standard explains the codes among the reasons.

    Raises
    ------
    ArchiveBusy
        It has no room for some at present, and refused none for good.
    ArchiveError
        ``"refused"``: it refused some.
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
