"""Measure scoring and training on an idle machine, beside busy neighbours, and two at once.

    python benchmarks/threads.py --bundle zhanglab

A neighbour is an endless loop. Beside one neighbour on two cores, a fair share is 3/4 of the two
cores where work can be divided finely, and at least 1/2; two scorers at once have 1/2 each. Every
row runs `benchmarks/scoring.py` (full verdict from arrays) and `benchmarks/training.py` in separate
processes and prints their rates beside those of the idle machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = Path(__file__).parent
CORES = os.cpu_count() or 1


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Endless loops beside the block."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def rates(command: list[str], pattern: str, copies: int) -> list[float]:
    """Rates that copies of a command print when they run at once."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PLACE.parent)
        for _ in range(copies)
    ]
    printed = [process.communicate()[0] for process in running]
    return [float(re.findall(pattern, text)[0]) for text in printed]


def main() -> None:
    """Measure every case and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="zhanglab")
    options = parser.parse_args()
    score = [sys.executable, str(PLACE / "scoring.py"), "--images", "192", "--repeat", "5"]
    train = [sys.executable, str(PLACE / "training.py"), "--bundle", options.bundle]
    train += ["--steps", "60", "--threads", str(CORES)]
    works = {
        "images/s": (score, r"full verdict +([\d.]+)"),
        "training steps/s": (train, r"([\d.]+) steps/s"),
    }
    cases = (("idle", 0, 1), ("one neighbour", 1, 1), (f"{CORES} neighbours", CORES, 1))
    for unit, (command, pattern) in works.items():
        for name, loops, copies in (*cases, ("two at once", 0, 2)):
            with neighbours(loops):
                found = rates(command, pattern, copies)
            print(f"{name:<16} {' and '.join(f'{rate:.1f}' for rate in found)} {unit}", flush=True)


if __name__ == "__main__":
    main()
