"""Apply a function to many items in processes that may crash, hang or request too much memory.

On a damaged file, a decoder in native code can crash its process or never return, without an
exception in Python. Each process handles one item at a time, with a time limit; a process that
crashes or exceeds the limit loses only its current item (`Lost`).
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

# Items in flight: they are decoded before the caller requests them.
_AHEAD_PER_WORKER = 16

SECONDS = 120.0
"""Time limit per item. A large mammogram decodes in two seconds, a CT of 3000 slices in a minute.
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
    """Why an item has no result: its process crashed, or exceeded the time limit."""

    reason: Literal[Reason.DECODER_CRASHED, Reason.DECODER_TIMED_OUT]

    def error(self) -> UnreadableScan:
        """Error of a scan that was lost this way."""
        return UnreadableScan(
            self.reason,
            "it ended the process that was decoding it, or took longer than data.seconds: the file "
            "is damaged or hostile, or the machine is out of memory",
        )


class Workers:
    """Worker processes, started on first use and kept until the end of a ``with`` block.

    Parameters
    ----------
    count : int
        Number of processes. With 0, functions run in this process, without isolation.
    seconds : float
        Time limit per item.

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
        """Stop the processes; unfinished items are dropped."""
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

        A bounded number of items is read and processed ahead of the results.

        Parameters
        ----------
        function : callable
            Must be importable by name, as must the types of its items and results; its exceptions
            pass through.
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
        """Retry an item once in new processes, after the pool broke while idle."""
        try:
            return _outcome(self._submit(function, item))
        except BrokenProcessPool as error:
            raise AnomalyError(
                "the processes that decode end as soon as they start: is memory short, or does a "
                'script lack `if __name__ == "__main__":`? data.workers = 0 does without them'
            ) from error

    def _sweep(self) -> None:
        """Remove the files that stopped processes have unpacked."""
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
        # Fork from a single-threaded server: a child of this process could inherit a lock that is
        # never released. The server does the slow imports (one second) only once.
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
    """Run `Workers.map` with processes of its own."""
    with Workers(workers, seconds) as processes:
        yield from processes.map(function, items)


def _start_method() -> Literal["forkserver", "spawn"]:
    """Start method of processes: spawn if the path of the fork server's socket is too long."""
    longest = 107 - len("/pymp-12345678/listener-12345678")
    return "forkserver" if len(os.fsencode(tempfile.gettempdir())) <= longest else "spawn"


def _begin(scratch: str) -> None:
    """Prepare a process for decoding untrusted bytes."""
    _end_with_parent()
    log_what_is_allowed()
    # Unpacked files must not outlive their process, which may be killed without warning.
    own = Path(scratch) / str(os.getpid())
    own.mkdir(mode=0o700)
    tempfile.tempdir = str(own)
    # The processes provide the parallelism, so torch uses one thread, if imported now or later.
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        import resource
    except ImportError:  # this system has no limits per process
        return
    # Larger requests raise MemoryError, and do not exhaust the machine.
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _end_with_parent() -> None:
    """Exit this process as soon as its parent ends for any reason.

    Otherwise a process that waits on a pipe would never exit, would leave a patient's scan
    unpacked, and would keep its fork server alive. PR_SET_PDEATHSIG is not used because it follows
    the thread that started the process, which may end earlier.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # not a process of a pool

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sweep_scratch() -> None:
    """Remove the folders that killed processes have left, which may contain scans of patients.

    A folder is removed if no process holds its lock. Process ids are not compared, because another
    machine or container that shares the folder has ids of its own.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        if folder.is_symlink() or not (folder / _LOCK).is_file():
            continue
        with suppress(OSError):  # held, or another user's
            handle = _held(folder / _LOCK, is_new=False)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _held(path: Path, *, is_new: bool = True) -> int:
    """Lock a file until the handle is closed or the process ends; return the handle.

    Raises
    ------
    OSError
        Another process holds the lock.
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
