"""Files that are for their owner alone, and that are there after a power cut once written.

::

    durable = content flushed, then renamed into place, then the folder flushed
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from anomaly.errors import AnomalyError
from anomaly.files import sync_folder, whole

__all__ = ["lock", "open_private", "write_durably"]


def open_private(path: Path, flags: int) -> int:
    """Open a file as `os.open` does, or make it with mode 0600."""
    return os.open(path, flags | os.O_CREAT, 0o600)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that is there whole, or not at all.

    Raises
    ------
    OSError
        If the disk refuses; then nothing is left.
    """
    with whole(path, mode=0o600) as file:
        file.write(content)
    sync_folder(path.parent)


def lock(path: Path) -> int:
    """Hold a lock until the handle returned is closed, or the process ends however it does.

    Raises
    ------
    AnomalyError
        If somebody else holds it.
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
