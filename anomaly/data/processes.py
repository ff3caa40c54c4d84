"""Apply a function to many items in processes that may die.

A decoder in native code can end its process on a damaged file, where no exception reaches Python.
A dying process takes its whole pool with it and does not say which item it held, so the unfinished
items of the batch in flight are repeated, each alone in a process of its own; the one that dies
again is the culprit.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["map_in_processes"]

# Items in flight between two looks at the pool: a crash repeats at most these, one by one.
_BATCH_PER_WORKER = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_processes(
    function: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[tuple[_Item, _Result | None]]:
    """Apply a function to each item, in order; None for an item that kills its process twice.

    Parameters
    ----------
    function : callable
        Importable by name, as are its items and results; what it raises passes through.
    items : sequence
    workers : int
        Number of processes. With 1, the function runs in this process and nothing is isolated.

    Yields
    ------
    item, result
    """
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    size = _BATCH_PER_WORKER * workers
    pool = _pool(workers)
    try:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            broken = False
            for item, future in [(item, _submit(pool, function, item)) for item in batch]:
                try:
                    result: _Result | None = future.result()
                except BrokenProcessPool:
                    broken, result = True, _alone(function, item)
                yield item, result
            if broken:
                pool.shutdown()
                pool = _pool(workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: a forked child may inherit a lock that nobody will release
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


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
