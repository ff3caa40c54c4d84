"""On Ray: the same parts as any other way, also where an actor dies."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anomaly.pipelines.run import RunFolder
from tests.pipelines.road import Road, copy, done

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install .[ray]"
)


@pytest.fixture(scope="module")
def serial(road: Road, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Scored by one process of one thread, as an actor is."""
    run = RunFolder(tmp_path_factory.mktemp("serial") / "run")
    scans = run.path.parent / "scans"
    scans.mkdir()
    for number, path in enumerate(sorted(road.scans.rglob("*.dcm"))[:30]):
        shutil.copy(path, scans / f"{number:02d}.dcm")
    (scans / "cut.dcm").write_bytes((scans / "00.dcm").read_bytes()[:2000])
    options = ["--bundle", road.run.bundle, "--out", run.path, "--set", "results.shard=4"]
    done("score", scans, *options, "--shard", "99/99")  # lists the scans
    score(run)
    return run


def score(run: RunFolder, *options: str) -> str:
    said = subprocess.run(
        [sys.executable, "-m", "anomaly", "score", str(run.path), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return said.stderr


def anew(run: RunFolder, place: Path) -> RunFolder:
    fresh = copy(run, place / "run")
    shutil.rmtree(fresh.results.folder)
    fresh.scores_csv.unlink()
    return fresh


def kill_one(run: RunFolder, killed: list[int]) -> None:
    """Kill the first process that holds a lease for a shard."""
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        for path in run.results.folder.glob("part-*.lease"):
            try:
                pid = json.loads(path.read_bytes().rstrip(b"."))["pid"]
                os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError):
                continue  # just given back, or being written
            killed.append(pid)
            return
        time.sleep(0.001)


def test_a_ray_run_equals_a_serial_one(serial: RunFolder, tmp_path: Path) -> None:
    run = anew(serial, tmp_path)
    score(run, "--ray", "2")
    assert run.results.read() == serial.results.read()
    assert run.scores_csv.read_bytes() == serial.scores_csv.read_bytes()


def test_a_killed_actor_costs_nothing(serial: RunFolder, tmp_path: Path) -> None:
    run = anew(serial, tmp_path)
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(run, killed))
    killer.start()
    score(run, "--ray", "1")
    killer.join()
    assert len(killed) == 1
    assert run.results.read() == serial.results.read()
    left = {path.suffix for path in run.results.folder.iterdir()}
    assert left == {".json", ".parquet", ".npz"}
