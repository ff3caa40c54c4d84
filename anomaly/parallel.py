"""Work in parallel threads, each of which computes with one thread of PyTorch and of BLAS.

PyTorch by itself divides every operation among its threads, which wait for each other at the end of
each. With the small images of this project the waiting is as long as the work, and on a busy
machine every operation waits for the slowest thread. Here every thread has items of its own, waits
for no other, and on a busy machine loses only its share (`benchmarks/threads.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar, cast

import torch

__all__ = ["ParallelThreads", "in_parallel", "one_ahead"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class ParallelThreads:
    """As many threads as PyTorch has (`torch.get_num_threads`) on a CPU, and one elsewhere.

    They end with the object.

    Parameters
    ----------
    device : torch.device
        Where the functions that they apply compute.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.count, initializer=_use_one_thread)

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[tuple[_Item, _Result]]:
        """Apply a function to items, and yield each with its result, in order.

        At most one item more than threads is in work, so memory does not grow with the number of
        items; they are taken in the calling thread. An exception of the function ends the
        iteration.
        """
        flight: deque[tuple[_Item, Future[_Result]]] = deque()
        with _one_thread_each():
            try:
                for item in items:
                    flight.append((item, self._pool.submit(function, item)))
                    if len(flight) > self.count:
                        first, result = flight.popleft()
                        yield first, result.result()
                while flight:
                    first, result = flight.popleft()
                    yield first, result.result()
            finally:
                # What is in work ends before the caller goes on; what waits is not begun.
                wait([result for _, result in flight if not result.cancel()])


def in_parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], device: torch.device
) -> Iterator[tuple[_Item, _Result]]:
    """Apply a function to items by `ParallelThreads` that end with the iteration."""
    yield from ParallelThreads(device).map(function, items)


def one_ahead(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield items, each of which a thread has taken while the one before was used."""
    iterator, end = iter(items), object()
    before = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=_use_one_thread) as thread:
        coming = thread.submit(next, iterator, end)
        try:
            while (item := coming.result()) is not end:
                coming = thread.submit(next, iterator, end)
                yield cast(_Item, item)
        finally:
            torch.set_num_threads(before)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Limit BLAS to one thread, and restore it and PyTorch afterwards."""
    before = torch.get_num_threads()
    with _one_thread_of_blas():
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _use_one_thread() -> None:
    # For this thread; the number that later threads start with is restored by `_one_thread_each`.
    torch.set_num_threads(1)


def _one_thread_of_blas() -> AbstractContextManager[Any]:
    libraries = _libraries()
    return nullcontext() if libraries is None else libraries.limit(limits=1, user_api="blas")


@cache
def _libraries() -> Any:
    """Return threadpoolctl's handle on the libraries in use; None beside PyTorch alone."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
