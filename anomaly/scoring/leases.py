"""Leases: a process's claims on shards in a folder that many processes share, without a server.

A lease is a file beside the part: the process that creates it (`O_EXCL`) holds it. The holder
appends a byte every few seconds as a heartbeat. Another process watches these heartbeats by its
*own* monotonic clock: a lease without a new heartbeat during `PATIENCE` seconds of watching is
stale and can be taken over. No two clocks are compared, so it does not matter whether they agree or
jump. A lease whose holder was a process of this machine is stale as soon as that process ends.

Leases avoid duplicate work, but they are not locks: a holder that was only suspended may finish at
the same time as its successor. Files must therefore be written atomically, by one rename, and have
the same content whichever process writes them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from anomaly.errors import AnomalyError
from anomaly.logs import Public

__all__ = ["BEAT", "PATIENCE", "Lease", "Leases"]

log = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two heartbeats."""

PATIENCE = 30.0
"""Seconds without a heartbeat after which a lease is stale."""


class Lease:
    """A lease that this process holds and keeps alive until it is released; a context manager.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: Path, name: bytes, beat: float) -> None:
        self.path = path
        self._name = name
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(beat,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Release the lease, unless another process took it over; can be called twice."""
        self._done.set()
        self._thread.join()
        if self._is_own():
            self.path.unlink(missing_ok=True)

    def _live(self, beat: float) -> None:
        while not self._done.wait(beat) and self._is_own():
            try:
                # Without O_CREAT, so that a lease that was taken over is not created again.
                with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND), "ab") as file:
                    file.write(b".")
            except OSError as error:
                log.warning("a lease cannot be kept alive (%s)", Public(error.strerror))

    def _is_own(self) -> bool:
        """Whether this process still holds the lease."""
        content = _content(self.path)
        return content is not None and content.rstrip(b".") == self._name


class Leases:
    """Claims leases for this process and watches the heartbeats of other processes.

    Parameters
    ----------
    beat, patience : float
        Seconds; `patience` should be several times `beat`.
    clock, sleep : callable
        ``clock()`` returns monotonic seconds; ``sleep(seconds)`` waits.
    """

    def __init__(
        self,
        beat: float = BEAT,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.beat = beat
        self.patience = patience
        self._clock = clock
        self._sleep = sleep
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def claim(self, path: Path) -> Lease | None:
        """Return a lease if it is free or stale; None if another process holds it.

        Raises
        ------
        AnomalyError
            If the folder cannot be written.
        """
        lease = self._create(path)
        if lease is not None:
            return lease
        content = _content(path)
        if content is None or not self._is_stale(path, content):
            return None
        away = path.with_name(f"{path.name}.{uuid.uuid4().hex}.stale")
        try:
            path.rename(away)
        except FileNotFoundError:
            return None  # another process was faster
        if _content(away) != content:
            # Another process took it over already, and its new lease was moved away. Put it back,
            # unless a third process created one; then two work on the shard, which only costs time.
            with suppress(FileExistsError):
                os.link(away, path)
            away.unlink(missing_ok=True)
            return None
        away.unlink(missing_ok=True)
        log.info("work that another process left is taken over")
        return self._create(path)

    def is_held(self, path: Path) -> bool:
        """Whether a process holds a lease; may need to watch it for `patience` seconds."""
        first = _content(path)
        while (content := _content(path)) is not None:
            if self._is_stale(path, content):
                return False
            if content != first or _is_here(content):
                return True
            self._sleep(self.beat)
        return False

    def _create(self, path: Path) -> Lease | None:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        except OSError as error:
            raise AnomalyError(
                f"{path} cannot be created ({error.strerror}): expected a folder to write to"
            ) from error
        name = json.dumps(_holder()).encode()
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(name)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise AnomalyError(
                f"{path} could not be written ({error.strerror}): make room for it and run again"
            ) from error
        self._seen.pop(path, None)
        return Lease(path, name, self.beat)

    def _is_stale(self, path: Path, content: bytes) -> bool:
        if _is_gone(content):
            return True
        now = self._clock()
        if path not in self._seen or self._seen[path][0] != content:
            self._seen[path] = (content, now)
        return now - self._seen[path][1] >= self.patience


def _content(path: Path) -> bytes | None:
    """Return the content of a lease; None if it does not exist or cannot be read right now."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _holder() -> dict[str, object]:
    """Identify this process without the name of the machine: boot ID, process ID, start time."""
    own = {"boot": _boot(), "pid": os.getpid(), "began": _began(os.getpid())}
    return {**own, "lease": uuid.uuid4().hex}


def _is_gone(content: bytes) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    holder = _read_here(content)
    return holder is not None and holder[1] != _began(holder[0])


def _is_here(content: bytes) -> bool:
    """Whether the holder is a running process of this machine."""
    holder = _read_here(content)
    return holder is not None and holder[1] == _began(holder[0])


def _read_here(content: bytes) -> tuple[int, str] | None:
    """Process ID and start time of a holder on this machine; None for any other holder."""
    try:
        holder = json.loads(content.rstrip(b"."))
        boot, pid, began = holder["boot"], holder["pid"], holder["began"]
    except (ValueError, KeyError, TypeError):
        return None  # half written, or its writer died: decide by heartbeats
    return (pid, began) if boot is not None and boot == _boot() else None


def _boot() -> str | None:
    """ID of this machine's current boot and of this container; None if the system has none."""
    path, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        # Containers on one machine share its boot ID, but each has its own process IDs.
        return f"{path.read_text().strip()} {space.readlink()}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """Start time of a process of this machine in clock ticks since boot; None if it has ended.

    Process IDs are reused; a process ID with its start time is unique.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, began = (stat.rpartition(")")[2].split()[field] for field in (0, 19))
    return None if state == "Z" else began
