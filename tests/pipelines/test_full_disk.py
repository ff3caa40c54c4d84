"""A disk that fills up at any moment: one sentence with the file's name, and nothing is lost by it.

A limit of the size of files stands for the disk: to a program it is the same refusal, at a byte
that a test can choose.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anomaly.data.readers.isolation import map_in_processes
from tests.pipelines.road import Road, anomaly, copy, done


@pytest.fixture(scope="module", autouse=True)
def _process_server() -> None:
    """Start the server that processes are forked from, which would keep a limit for ever."""
    assert list(map_in_processes(abs, [-1], workers=1)) == [(-1, 1)]


@contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """No file grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    """Files by name, without those that every command goes on writing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("run.jsonl", "SHA256SUMS")
    }


COMMANDS = {
    "evaluate": ("evaluate", "RUN"),
    "report": ("report", "RUN"),
    "single": ("report", "RUN", "--single-file"),
    "figures": ("figures", "RUN"),
    "dicom": ("dicom", "RUN"),
    "csv": ("export", "RUN", "RUN/table.csv"),
    "xlsx": ("export", "RUN", "RUN/table.xlsx"),
    "feedback": ("feedback", "RUN", "KEY", "agree"),
    "calibrate": ("calibrate", "TRAINED"),
    "prepare": ("prepare", "NEW", "--config", "CONFIG", "--data", "SCANS"),
    "score": ("score", "SCANS", "--bundle", "RUN/bundle", "--out", "NEW"),
}


@pytest.mark.parametrize("size", [64, 20_000])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_writes(road: Road, tmp_path: Path, name: str, size: int) -> None:
    folders = {
        "RUN": copy(road.run, tmp_path / "run").path,
        "TRAINED": copy(road.trained, tmp_path / "trained").path,
        "NEW": tmp_path / "new",
    }
    key = next(row.key for row in road.rows if row.status == "scored")
    words = {**folders, "KEY": key, "CONFIG": road.config, "SCANS": road.scans}
    command = COMMANDS[name]
    for word, value in words.items():
        command = tuple(part.replace(word, str(value)) for part in command)
    before = content(tmp_path)
    with full_beyond(size):
        said = anomaly(*command)
    after = content(tmp_path)
    done(*command)
    if said.code == 0:  # there was room
        assert {name: len(x) for name, x in after.items()} == {
            name: len(x) for name, x in content(tmp_path).items()
        }
        return
    assert said.code == 1
    assert "Traceback" not in said.err
    (sentence,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert re.search("could not be written|cannot be used", sentence)
    assert str(tmp_path) in sentence
    assert {name: after.get(name) for name in before} == before
