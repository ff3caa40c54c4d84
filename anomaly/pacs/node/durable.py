"""Private files (mode 0600) that survive a power failure once written.

::

    durable = flush the content, rename the file into place, flush the folder
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from anomaly.errors import AnomalyError
from anomaly.files import sync_folder, whole

__all__ = ["lock", "open_private", "write_durably"]


def open_private(path: Path, flags: int) -> int:
    """Open a file like `os.open`; create it with mode 0600 if it does not exist."""
    return os.open(path, flags | os.O_CREAT, 0o600)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file atomically and flush it to disk.

    Raises
    ------
    OSError
        If writing fails; no partial file remains.
    """
    with whole(path, mode=0o600) as file:
        file.write(content)
    sync_folder(path.parent)


def lock(path: Path) -> int:
    """Acquire a lock that lasts until the returned handle is closed or the process ends.

    Raises
    ------
    AnomalyError
        If another process holds it.
    """
    handle = open_private(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise AnomalyError(
            f"another node works in {path.parent}: stop it, or name another folder"
        ) from error
    return handle
