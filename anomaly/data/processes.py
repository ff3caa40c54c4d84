"""Apply a function to many items in processes that may die.

A decoder in native code can end its process on a damaged file, where no exception reaches Python.
A dying process takes its whole pool with it and does not say which item it held, so the unfinished
items that were in flight are repeated, each alone in a process of its own; the one that dies again
is the culprit.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from anomaly.logs import log_what_is_allowed

__all__ = ["Workers", "map_in_processes"]

# Items in flight: they are decoded ahead of who takes them, and a crash repeats at most these.
_AHEAD_PER_WORKER = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers:
    """Processes that are started at their first use and kept until the end of a ``with`` block.

    Parameters
    ----------
    count : int
        Number of processes. With 1, functions run in this process and nothing is isolated.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes; what they have not begun is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[tuple[_Item, _Result | None]]:
        """Apply a function to each item, in order; None for an item that kills its process twice.

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
        if self.count == 1:
            for item in items:
                yield item, function(item)
            return
        source = iter(items)
        flight: deque[tuple[_Item, ProcessPoolExecutor, Future[_Result]]] = deque()
        while True:
            for item in islice(source, _AHEAD_PER_WORKER * self.count - len(flight)):
                pool = self._running()
                flight.append((item, pool, _submit(pool, function, item)))
            if not flight:
                return
            item, pool, future = flight.popleft()
            result: _Result | None
            try:
                result = future.result()
            except BrokenProcessPool:
                if pool is self._pool:
                    pool.shutdown()
                    self._pool = None
                result = _alone(function, item)
            yield item, result

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = _pool(self.count)
        return self._pool


def map_in_processes(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[tuple[_Item, _Result | None]]:
    """Do `Workers.map` with processes that are for this alone."""
    with Workers(workers) as processes:
        yield from processes.map(function, items)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a forked child may inherit a lock that nobody will release
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=log_what_is_allowed,
    )


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[_Item], _Result], item: _Item
) -> Future[_Result]:
    """Submit, also to a pool that has just died: the error then waits in the future."""
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        failed: Future[_Result] = Future()
        failed.set_exception(error)
        return failed


def _alone(function: Callable[[_Item], _Result], item: _Item) -> _Result | None:
    with _pool(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return None
