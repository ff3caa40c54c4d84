"""Parallel threads: order, bounds, errors, and the threads of the libraries within them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from anomaly.parallel import in_parallel, one_ahead

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_if_even(number: int) -> int:
        time.sleep(0.02 * (number % 2 == 0))
        return number**2

    assert list(in_parallel(slow_if_even, range(7), CPU)) == [(n, n**2) for n in range(7)]


@pytest.mark.parametrize(("device", "threads"), [("cpu", 2), ("meta", 1)])
def test_as_many_threads_as_pytorch_has_work_at_once(device: str, threads: int) -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1

    list(in_parallel(work, range(6), torch.device(device)))
    assert most == threads


def test_items_are_taken_a_bounded_number_ahead() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = in_parallel(lambda n: n, endless(), CPU)
    for given in range(1, 6):
        assert next(results) == (given, given)
        assert taken <= given + 3
    results.close()  # type: ignore[attr-defined]


def test_an_error_reaches_the_caller_after_the_results_before_it() -> None:
    def fail_at_two(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    results = in_parallel(fail_at_two, range(5), CPU)
    assert [next(results)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_every_thread_computes_with_one_and_all_is_as_before_afterwards() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))

    def blas() -> dict[str, int]:
        found = [info for info in threadpool_info() if info["user_api"] == "blas"]
        return {info["filepath"]: info["num_threads"] for info in found}

    before = blas()
    within = [
        counts
        for _, counts in in_parallel(lambda _: (torch.get_num_threads(), blas()), range(4), CPU)
    ]
    assert before
    assert [threads for threads, _ in within] == [1] * 4
    assert {count for _, libraries in within for count in libraries.values()} == {1}
    assert torch.get_num_threads() == 2
    assert blas() == before
    started: list[int] = []
    thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started == [2]


def test_one_ahead_takes_the_next_item_while_the_last_is_used() -> None:
    taken = 0

    def count() -> Iterator[int]:
        nonlocal taken
        for number in range(4):
            taken += 1
            yield number

    given = []
    for number in one_ahead(count()):
        given.append(number)
        time.sleep(0.05)
        assert taken == min(number + 2, 4)
    assert given == [0, 1, 2, 3]
    assert torch.get_num_threads() == 2


def test_an_error_while_taking_reaches_the_caller() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no disk")

    items = one_ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="no disk"):
        next(items)
