"""Leases: who works on what, on a folder that any number of processes share, without a server.

A lease is a file beside the work: whoever creates it (`O_EXCL`) holds it. The holder adds a byte to
it every few seconds. Who wants it watches those beats by its *own* monotonic clock: a lease whose
beats have stood still for `PATIENCE` seconds of watching is stale and is taken over. No two clocks
are compared, so it does not matter whether they agree or jump. A holder on this machine whose
process is gone is stale at once.

A lease saves work and guards nothing: a holder that was only asleep may finish beside its
successor. What is written must therefore be whole, the same whoever writes it, and put in place by
one rename.
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
"""Seconds between two signs of life."""

PATIENCE = 30.0
"""Seconds without one after which a lease is stale."""


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
        """Give it back, unless somebody has taken it over; a second time changes nothing."""
        self._done.set()
        self._thread.join()
        if self._is_own():
            self.path.unlink(missing_ok=True)

    def _live(self, beat: float) -> None:
        while not self._done.wait(beat) and self._is_own():
            try:
                # Not "a": a lease that was taken over must not come back as a file of its own.
                with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_APPEND), "ab") as file:
                    file.write(b".")
            except OSError as error:
                log.warning("a lease cannot be kept alive (%s)", Public(error.strerror))

    def _is_own(self) -> bool:
        """Whether nobody has taken it over meanwhile."""
        content = _content(self.path)
        return content is not None and content.rstrip(b".") == self._name


class Leases:
    """The leases that this process asks for, and what it has seen of those of others.

    Parameters
    ----------
    beat, patience : float
        Seconds; `patience` several beats.
    clock, sleep : callable
        Monotonic seconds, and waiting for so many of them.
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
        """Take a lease that is free or stale; None where somebody holds it.

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
            return None  # somebody was faster
        if _content(away) != content:
            # Faster still, and at work: what was moved away is the new lease. Put it back, unless
            # a third one is there by now; then two work on it, which costs time and nothing else.
            with suppress(FileExistsError):
                os.link(away, path)
            away.unlink(missing_ok=True)
            return None
        away.unlink(missing_ok=True)
        log.info("work that another process left is taken over")
        return self._create(path)

    def is_held(self, path: Path) -> bool:
        """Whether somebody holds it; may watch it for `patience` seconds to tell."""
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
    """Return what a lease says; None where there is none, or a network folder has just lost it."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _holder() -> dict[str, object]:
    """Name this process without naming the machine: its boot, its number, when it began."""
    own = {"boot": _boot(), "pid": os.getpid(), "began": _began(os.getpid())}
    return {**own, "lease": uuid.uuid4().hex}


def _is_gone(content: bytes) -> bool:
    """Whether the holder was a process of this machine that no longer runs."""
    holder = _read_here(content)
    return holder is not None and holder[1] != _began(holder[0])


def _is_here(content: bytes) -> bool:
    """Whether the holder is a process of this machine that runs."""
    holder = _read_here(content)
    return holder is not None and holder[1] == _began(holder[0])


def _read_here(content: bytes) -> tuple[int, str] | None:
    """Process number and beginning of a holder on this machine; None for any other."""
    try:
        holder = json.loads(content.rstrip(b"."))
        boot, pid, began = holder["boot"], holder["pid"], holder["began"]
    except (ValueError, KeyError, TypeError):
        return None  # being written, or cut short when its writer died: time will tell
    return (pid, began) if boot is not None and boot == _boot() else None


def _boot() -> str | None:
    """Random name of this boot and container of this machine; None where the system has none."""
    path, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        # Containers of one machine share its boot, and each counts processes from 1.
        return f"{path.read_text().strip()} {space.readlink()}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since boot; None if it is not there.

    Process numbers are used again; a number and its beginning are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, began = (stat.rpartition(")")[2].split()[field] for field in (0, 19))
    return None if state == "Z" else began
