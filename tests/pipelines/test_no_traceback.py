"""One sentence instead of a traceback: full disks, closed outputs, poor locales, ended commands."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from anomaly.data.readers.isolation import Workers
from anomaly.errors import AnomalyError
from anomaly.files import strict_json, writing
from anomaly.pipelines.run import RunFolder
from anomaly.training.checkpoint import read_metrics
from tests.pipelines.road import Road, copy, done, refused

ROOT = Path(__file__).parents[2]


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "anomaly", *map(str, arguments)],
        cwd=ROOT,
        timeout=120,
        check=False,
        capture_output="stdout" not in options,
        **options,
    )


def small_files() -> None:
    """No file may grow beyond a few bytes: to a program, a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))


@pytest.mark.parametrize("stage", ["figures", "report", "evaluate"])
def test_a_full_disk_names_the_file(run: RunFolder, stage: str) -> None:
    said = command(stage, run.path, preexec_fn=small_files)
    text = said.stderr.decode()
    assert said.returncode == 1, text
    assert "Traceback" not in text
    assert "could not be written" in text.splitlines()[-1]
    assert str(run.path) in text.splitlines()[-1]


@pytest.mark.parametrize("most", [64, 3000, 20000])
def test_a_disk_that_fills_while_training_names_the_file(
    road: Road, tmp_path: Path, most: int
) -> None:
    run = copy(road.prepared, tmp_path / "run")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    said = command("train", run.path, "--device", "cpu", preexec_fn=limit)
    text = said.stderr.decode()
    assert said.returncode == 1, text
    assert "Traceback" not in text
    assert "could not be written" in text.splitlines()[-1]
    assert str(run.path) in text.splitlines()[-1]


def test_a_reader_that_has_read_enough_ends_a_query(run: RunFolder) -> None:
    reading, writing_end = os.pipe()
    os.close(reading)
    with os.fdopen(writing_end, "wb") as pipe:
        said = command(
            "query", run.path, "SELECT * FROM scores", stdout=pipe, stderr=subprocess.PIPE
        )
    assert said.stderr == b""
    assert said.returncode == 1


def test_a_closed_output_ends_nothing(run: RunFolder) -> None:
    said = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m anomaly export {run.path} {run.path}/t.csv >&-"],
        cwd=ROOT,
        timeout=120,
        check=False,
        capture_output=True,
    )
    assert (said.returncode, said.stderr) == (0, b"")
    assert (run.path / "t.csv").exists()


def test_a_locale_of_ascii_ends_nothing(run: RunFolder) -> None:
    poor = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    sql = "SELECT 'Gr' || chr(246) || chr(223) || 'e' AS name FROM scores LIMIT 1"
    said = command("query", run.path, sql, env=poor)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[1] == rb"Gr\xf6\xdfe"
    said = command("query", run.path, "SELECT 'Größe' FROM scores", env=poor)
    assert said.stderr.startswith(b"error: the query holds bytes that are no text")


def test_a_command_that_is_told_to_end_leaves_no_scratch(road: Road, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ready = tmp_path / "ready"
    script = tmp_path / "unpack.py"
    script.write_text(
        "import sys, tempfile, time\n"
        "from pathlib import Path\n"
        "import typer\n"
        "from anomaly.pipelines import __main__ as cli\n"
        "@cli.app.command()\n"
        "def hold() -> None:\n"
        "    with tempfile.TemporaryDirectory(prefix='anomaly-'):\n"
        f"        Path({str(ready)!r}).touch()\n"
        "        time.sleep(60)\n"
        "sys.argv = ['anomaly', 'hold']\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(scratch.iterdir())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_training_that_is_ended_says_so_to_the_shell(
    road: Road, tmp_path: Path, number: signal.Signals
) -> None:
    """``anomaly train RUN && anomaly calibrate RUN`` must not go on with a network of half."""
    run = copy(road.prepared, tmp_path / "run")
    command = [sys.executable, "-m", "anomaly", "train", str(run.path), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--set", "training.steps=100000"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 180
    while not run.checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert b"the same command resumes" in err
    assert b"Traceback" not in err
    assert not run.bundle.exists()
    assert not (run.path / "training.lease").exists()


def test_processes_that_cannot_start_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing.context

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("Lock", "RLock", "SimpleQueue", "Pipe"):
        monkeypatch.setattr(multiprocessing.context.BaseContext, name, refuse)
    with (
        Workers(1) as workers,
        pytest.raises(AnomalyError, match=r"data\.workers = 0 does without them"),
    ):
        list(workers.map(len, ["a"]))


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(AnomalyError, match="not finite"):
        strict_json({"auroc": float("nan")})
    assert strict_json({"a": 0.5}) == '{"a": 0.5}'
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "denoising_by_level": [NaN, 0.5]}\n')
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["denoising_by_level"] == [None, 0.5]


def test_every_record_of_a_run_is_strict_json(road: Road) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for path in (road.run.training_metrics, road.run.path / "run.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    for path in (road.run.metrics, road.run.bundle / "bundle.json"):
        json.loads(path.read_text(), parse_constant=refuse)


def test_writing_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "a"
    with (
        pytest.raises(AnomalyError, match=r"gone/a could not be written \(No such file"),
        writing(path),
    ):
        path.write_text("x")


def test_a_missing_package_is_named_as_it_can_be_had(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    run = copy(road.run, tmp_path / "run")
    said = refused("dicom", run.path, "--send", "AET@127.0.0.1:104")
    assert "pip install pynetdicom" in said
    assert tempfile.gettempdir() not in said
    assert done("status", run.path).code == 0
