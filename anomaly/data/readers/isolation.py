"""Apply a function to many items in processes that may die, hang or ask for too much memory.

A decoder in native code can end its process on a damaged file, or never come back, where no
exception reaches Python. Each item has its process to itself while it is worked on, and a time
limit; the one that dies, or is ended for its time, costs that item and no other (`Lost`).
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from pebble import ProcessExpired, ProcessPool

from anomaly.errors import AnomalyError, ConfigError, Reason, UnreadableScan
from anomaly.logs import log_what_is_allowed

__all__ = ["SECONDS", "Lost", "Workers", "map_in_processes"]

# Items in flight: they are decoded ahead of who takes them.
_AHEAD_PER_WORKER = 16

SECONDS = 120.0
"""Time limit of an item. A large mammogram decodes in two seconds, a CT of 3000 slices in a minute.
"""

# The largest frame that is read (`anomaly.data.readers.frames`) needs 3 GiB, the largest volume 4.
_MEMORY = 8 * 2**30
_PRELOADED = "anomaly.data.images.network_images"
_SCRATCH = "anomaly-"
_LOCK = "lock"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Lost:
    """Why there is no result: the process ended without one, or was ended for its time."""

    reason: Literal[Reason.DECODER_CRASHED, Reason.DECODER_TIMED_OUT]

    def error(self) -> UnreadableScan:
        """Say so of a scan."""
        return UnreadableScan(
            self.reason,
            "it ended the process that was decoding it, or took longer than data.seconds: the file "
            "is damaged or hostile, or the machine is out of memory",
        )


class Workers:
    """Processes that are started at their first use and kept until the end of a ``with`` block.

    Parameters
    ----------
    count : int
        Number of processes. With 0, functions run in this process: nothing is isolated.
    seconds : float
        Time limit of an item.

    Raises
    ------
    ConfigError
        `count` is below 0.
    """

    def __init__(self, count: int, seconds: float = SECONDS) -> None:
        if count < 0:
            raise ConfigError(f"workers is {count}; expected 0 or more.")
        self.count = count
        self.seconds = seconds
        self._pool: ProcessPool | None = None
        self._scratch: TemporaryDirectory[str] | None = None
        self._hold: int | None = None

    def __enter__(self) -> Workers:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes; what they have not finished is dropped."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[tuple[_Item, _Result | Lost]]:
        """Apply a function to each item, in order.

        Items are taken, and worked on, a bounded number ahead of the results.

        Parameters
        ----------
        function : callable
            Importable by name, as are its items and results; what it raises passes through.
        items : iterable

        Yields
        ------
        item, result
        """
        if self.count == 0:
            for item in items:
                yield item, function(item)
            return
        source = iter(items)
        flight: deque[tuple[_Item, Future[_Result]]] = deque()
        while True:
            for item in islice(source, _AHEAD_PER_WORKER * self.count - len(flight)):
                flight.append((item, self._submit(function, item)))
            if not flight:
                return
            item, ended = flight.popleft()
            try:
                outcome = _outcome(ended)
            except BrokenProcessPool:
                outcome = self._repeated(function, item)
            if isinstance(outcome, Lost):
                self._sweep()
            yield item, outcome

    def _repeated(self, function: Callable[[_Item], _Result], item: _Item) -> _Result | Lost:
        """Try once more in new processes: the old ones ended while none was at work."""
        try:
            return _outcome(self._submit(function, item))
        except BrokenProcessPool as error:
            raise AnomalyError(
                "the processes that decode end as soon as they start: is memory short, or does a "
                'script lack `if __name__ == "__main__":`? data.workers = 0 does without them'
            ) from error

    def _sweep(self) -> None:
        """Remove what processes that were ended have unpacked."""
        folders = Path(self._scratch.name).iterdir() if self._scratch else ()
        for folder in folders:
            if folder.name.isdigit() and not _is_running(int(folder.name)):
                shutil.rmtree(folder, ignore_errors=True)

    def _submit(self, function: Callable[[_Item], _Result], item: _Item) -> Future[_Result]:
        if self._pool is not None and not self._pool.active:
            self.__exit__()
        try:
            if self._pool is None:
                self._pool = self._new_pool()
            future: Future[_Result] = self._pool.schedule(function, (item,), timeout=self.seconds)
        except (OSError, BrokenProcessPool) as error:
            cause = error.__cause__ if isinstance(error, BrokenProcessPool) else error
            raise AnomalyError(
                f"processes that decode cannot be started ({cause}): is "
                "/dev/shm there and writable? data.workers = 0 does without them"  # noqa: S108
            ) from error
        return future

    def _new_pool(self) -> ProcessPool:
        # Forked from a server of one thread, not from this process, of which a child may inherit a
        # lock that nobody will release. The server imports once what takes a second to import.
        context = multiprocessing.get_context(_start_method())
        context.set_forkserver_preload([_PRELOADED])
        _sweep_scratch()
        self._scratch = TemporaryDirectory(prefix=_SCRATCH)
        self._hold = _held(Path(self._scratch.name) / _LOCK)
        return ProcessPool(
            self.count, initializer=_begin, initargs=(self._scratch.name,), context=context
        )


def map_in_processes(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int,
    seconds: float = SECONDS,
) -> Iterator[tuple[_Item, _Result | Lost]]:
    """Do `Workers.map` with processes that are for this alone."""
    with Workers(workers, seconds) as processes:
        yield from processes.map(function, items)


def _start_method() -> Literal["forkserver", "spawn"]:
    """How processes are started: anew where the server's socket would have too long a path."""
    longest = 107 - len("/pymp-12345678/listener-12345678")
    return "forkserver" if len(os.fsencode(tempfile.gettempdir())) <= longest else "spawn"


def _begin(scratch: str) -> None:
    """Prepare a process for untrusted bytes."""
    _end_with_parent()
    log_what_is_allowed()
    # What a process unpacks must not outlive it, and it may be ended without a warning.
    own = Path(scratch) / str(os.getpid())
    own.mkdir(mode=0o700)
    tempfile.tempdir = str(own)
    # The processes are the parallelism: for torch, imported by now or later.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        import resource
    except ImportError:  # not a system that bounds a process
        return
    # What asks for more gets a MemoryError, and the machine stays whole.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _end_with_parent() -> None:
    """End this process as soon as the one that it works for ends, however that ends.

    One that waits for a pipe would otherwise wait for ever, with a scan of a patient unpacked, and
    keep the server alive that it was forked from. Not by PR_SET_PDEATHSIG, which is about the
    thread that started a process, and that may end before.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # not started as a process of a pool

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sweep_scratch() -> None:
    """Remove what processes have left that were killed: scans of patients.

    Whose lock nobody holds. Not by numbers of processes, which another machine or container that
    shares the folder counts for itself.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        if folder.is_symlink() or not (folder / _LOCK).is_file():
            continue
        with suppress(OSError):  # held, or another user's
            handle = _held(folder / _LOCK, is_new=False)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _held(path: Path, *, is_new: bool = True) -> int:
    """Hold a lock until the handle is closed, or the process ends however it does.

    Raises
    ------
    OSError
        If another process holds it.
    """
    handle = os.open(path, os.O_RDWR | (os.O_CREAT if is_new else 0), 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _outcome(future: Future[_Result]) -> _Result | Lost:
    try:
        return future.result()
    except ProcessExpired:
        return Lost(Reason.DECODER_CRASHED)
    except NotInTime:
        return Lost(Reason.DECODER_TIMED_OUT)
