"""Log lines: numbers and marked text pass, nothing else does."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly.logs import AllowList, Public, printable
from tests.pipelines.road import anomaly

CANARY = "CANARY^PATIENT"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.addFilter(AllowList())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield said
    root.removeHandler(handler)
    root.setLevel(level)


def test_numbers_and_marked_text_pass(lines: io.StringIO) -> None:
    log = logging.getLogger("anomaly.pipelines.score")
    log.info("%d of %g, %s", 3, 0.5, Public("truncated"))
    log.info("100 % of it")
    assert lines.getvalue() == "3 of 0.5, truncated\n100 % of it\n"


@pytest.mark.parametrize(
    "argument", [CANARY, Path(CANARY), ValueError(CANARY), {"name": CANARY}, [CANARY], b"CANARY^"]
)
def test_everything_else_is_withheld(lines: io.StringIO, argument: object) -> None:
    logging.getLogger("anomaly.data.readers.dicom").warning("%s, %s", argument, 7)
    logging.getLogger("anomaly.data.readers.dicom").warning("%d %r", 1, argument)
    logging.getLogger("anomaly").warning("%(name)s", {"name": argument})
    assert "CANARY" not in lines.getvalue()
    assert lines.getvalue().startswith("[withheld], 7\n1 '[withheld]'\n")


def test_other_libraries_are_withheld_whole(lines: io.StringIO) -> None:
    logging.getLogger("matplotlib").warning("a bad value: %s", CANARY)
    logging.getLogger("anomalyx").error(CANARY)
    logging.getLogger("PIL").info(CANARY)
    assert lines.getvalue().splitlines() == [
        "a message of matplotlib is withheld: it may quote a scan",
        "a message of anomalyx is withheld: it may quote a scan",
    ]


SHOUTS = """
import logging
from anomaly.data.readers.isolation import map_in_processes

def shout(number):
    logging.getLogger("matplotlib").warning("CANARY is odd")
    logging.getLogger("pydicom").warning("CANARY is odd")
    return number

if __name__ == "__main__":
    assert [result for _, result in map_in_processes(shout, [1, 2, 3], 2)] == [1, 2, 3]
"""


def test_processes_withhold_it_too(tmp_path: Path) -> None:
    script = tmp_path / "shouts.py"
    script.write_text(SHOUTS.replace("CANARY", CANARY))
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert CANARY not in done.stderr
    assert done.stderr.count("a message of matplotlib is withheld") == 3


def test_a_traceback_is_withheld(lines: io.StringIO) -> None:
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("anomaly.training.loop").exception("it failed")
    assert lines.getvalue() == "it failed\n"


HOSTILE = "north\x1b]0;owned\x07\x1b[2K\rerror: none\u202etxt.exe\x9b31m"


def test_what_a_terminal_obeys_is_shown(lines: io.StringIO) -> None:
    shown = printable(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith("north\\x1b]0;owned\\x07")
    assert printable("Größe\tÄ") == "Größe\tÄ"
    assert printable("two\nlines") == "two\\nlines"
    logging.getLogger("anomaly.pipelines.score").info("%s", Public(HOSTILE))
    assert lines.getvalue() == f"{shown}\n"


def test_an_error_quotes_what_a_terminal_would_obey(tmp_path: Path) -> None:
    said = anomaly("score", tmp_path / "no\x1b[2Jsuch\nfolder", "--bundle", "zhanglab")
    assert said.code == 1
    assert "\x1b[2J" not in said.err
    assert "no\\x1b[2Jsuch\\nfolder" in said.err
