"""Leases: one holder at a time, death noticed, and clocks that jump."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from anomaly.scoring.leases import Leases, _boot

PATH = Path(__file__).parents[2]


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part-00001.lease"


def foreign(path: Path, beats: int = 0) -> None:
    """Write a lease as another machine would."""
    path.write_bytes(json.dumps({"boot": "elsewhere", "pid": 1, "began": "1"}).encode())
    with path.open("ab") as file:
        file.write(b"." * beats)


def test_a_lease_is_held_once_and_given_back(path: Path) -> None:
    one, two = Leases(), Leases()
    lease = one.claim(path)
    assert lease is not None
    with lease:
        assert two.claim(path) is None
        assert two.is_held(path)
        assert one.claim(path) is None  # not even by the process that holds it
    assert not path.exists()
    assert not two.is_held(path)
    assert two.claim(path) is not None


def test_an_error_gives_it_back_too(path: Path) -> None:
    lease = Leases().claim(path)
    assert lease is not None
    with pytest.raises(ValueError, match="broken"), lease:
        raise ValueError("broken")
    assert not path.exists()


def test_beats_keep_a_lease_and_their_absence_frees_it(path: Path) -> None:
    clock = Clock()
    leases = Leases(beat=5, patience=30, clock=clock)
    foreign(path)
    assert leases.claim(path) is None  # watched from here
    for beats in (1, 2, 3):
        clock.now += 29
        foreign(path, beats)
        assert leases.claim(path) is None
    clock.now += 29
    assert leases.claim(path) is None
    clock.now += 2
    taken = leases.claim(path)
    assert taken is not None
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - what moved away is gone
    assert json.loads(path.read_bytes())["pid"] == os.getpid()


def test_a_wall_clock_that_jumps_changes_nothing(path: Path) -> None:
    clock = Clock()
    leases = Leases(clock=clock)
    foreign(path)
    for jump in (3600, -3600):
        os.utime(path, (time.time() + jump, time.time() + jump))
        assert leases.claim(path) is None
        clock.now += 14


def test_a_lease_seen_for_the_first_time_is_never_stale(path: Path) -> None:
    foreign(path)
    os.utime(path, (0, 0))  # old by any clock
    assert Leases().claim(path) is None


@pytest.mark.parametrize("content", [b"", b'{"boot": "', b"....", b"[1]", b"\xff"])
def test_a_lease_cut_short_waits_for_its_time(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    clock = Clock()
    leases = Leases(clock=clock)
    assert leases.claim(path) is None
    clock.now += 31
    assert leases.claim(path) is not None


def test_the_holder_beats(path: Path) -> None:
    lease = Leases(beat=0.05).claim(path)
    assert lease is not None
    with lease:
        before = path.stat().st_size
        deadline = time.monotonic() + 20
        while path.stat().st_size < before + 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_size >= before + 3


def test_a_lease_that_was_taken_over_does_not_come_back(path: Path) -> None:
    lease = Leases(beat=0.05).claim(path)
    assert lease is not None
    with lease:
        path.unlink()
        time.sleep(0.3)
        assert not path.exists()


@pytest.mark.skipif(_boot() is None, reason="this system does not name its boots")
def test_a_killed_holder_on_this_machine_is_noticed_at_once(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from anomaly.scoring.leases import Leases;"
        "lease = Leases().claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=PATH
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert Leases().claim(path) is None
        holder.kill()
    assert Leases().claim(path) is not None


def _try(folder: Path, count: int, done: Barrier) -> None:
    leases = Leases()
    taken = [i for i in range(count) if leases.claim(folder / f"{i}.lease") is not None]
    (folder / f"taken-{os.getpid()}").write_text(" ".join(map(str, taken)))
    done.wait()  # a process that has ended holds nothing


def test_of_many_processes_one_gets_each_lease(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Barrier(4)
    workers = [spawn.Process(target=_try, args=(tmp_path, 300, done)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    taken = [int(i) for file in tmp_path.glob("taken-*") for i in file.read_text().split()]
    assert sorted(taken) == list(range(300))


def test_to_tell_whether_a_strange_lease_is_held_takes_watching(path: Path) -> None:
    clock = Clock()
    leases = Leases(clock=clock, sleep=clock.sleep)
    foreign(path)
    assert not leases.is_held(path)
    assert clock.now == 1000 + 30

    def beat(seconds: float) -> None:
        clock.sleep(seconds)
        foreign(path, beats=1)

    path.unlink()
    foreign(path)
    assert Leases(clock=clock, sleep=beat).is_held(path)


def test_a_new_holder_that_was_moved_away_by_mistake_is_put_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    leases = Leases(clock=clock)
    foreign(path)
    assert leases.claim(path) is None
    clock.now += 31
    rename = Path.rename

    def somebody_is_faster(self: Path, target: Path) -> Path:
        self.unlink()
        foreign(self, beats=3)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", somebody_is_faster)
    assert leases.claim(path) is None
    monkeypatch.undo()
    assert path.read_bytes().endswith(b"...")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_who_lost_a_lease_does_not_give_back_its_successors(path: Path) -> None:
    lease = Leases(beat=0.05).claim(path)
    assert lease is not None
    with lease:
        path.unlink()
        foreign(path)
        before = path.read_bytes()
        time.sleep(0.3)
        assert path.read_bytes() == before  # nor keeps it alive
    assert path.exists()


def test_no_machine_is_named(path: Path) -> None:
    import socket

    assert Leases().claim(path) is not None
    assert socket.gethostname() not in path.read_text()
