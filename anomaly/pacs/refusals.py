"""What an archive refuses: counted by reason while the rest is stored, and said at the end."""

from __future__ import annotations

from collections import Counter

from anomaly.errors import ArchiveError

__all__ = ["check_refused"]


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
    ArchiveError
        ``"refused"``: it refused some.
    """
    if not refused:
        return
    reasons = ", ".join(f"{count} x {reason}" for reason, count in refused.most_common())
    raise ArchiveError(
        "refused",
        f"{archive} refused {refused.total()} of {total} instances ({reasons}); codes of four "
        f"digits are explained in DICOM {table}. The others are stored: see the archive's log, "
        "and run again.",
    )
