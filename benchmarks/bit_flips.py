"""Flip single bits in the files of a run, and count how many flips are detected.

    python benchmarks/bit_flips.py --run RUN --flips 3000 --seed 0

Half of the flips choose a file with a probability proportional to its size, the other half choose
all files with equal probability: most bytes are images and weights, but small files contain most
decisions. After each flip, all files that stages read are read (configuration, table of scans,
scores, maps, worklist, readings, bundle), and `verify` checks the rest. A flip is detected if
damage is reported, harmless if all data read is equal, and silent otherwise; silent flips must not
happen. The flips are made in a copy of RUN.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipelines.flips import flipped, look  # noqa: E402


def main() -> None:
    """Copy the run, flip bits, check and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--flips", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        run = Path(work, "run")
        shutil.copytree(options.run, run, symlinks=True)
        intact = look(run)
        if intact.faults:
            raise SystemExit(f"{options.run} is not intact: {intact.faults[0]}")
        files = sorted(p for p in run.rglob("*") if p.is_file() and p.stat().st_size)
        sizes = [path.stat().st_size for path in files]
        rng = random.Random(options.seed)  # noqa: S311
        counts: Counter[tuple[str, str]] = Counter()
        for number in range(options.flips):
            (path,) = rng.choices(files, sizes if number % 2 else None)
            content, before = path.read_bytes(), path.stat()
            path.write_bytes(flipped(content, rng.randrange(len(content)), rng.randrange(8)))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            seen = look(run)
            outcome = "harmless" if seen.results == intact.results else "silent"
            where = path.relative_to(run).parts[0] if path.parent != run else path.name
            counts[where, "detected" if seen.faults else outcome] += 1
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    outcomes = ("detected", "harmless", "silent")
    print("| where | " + " | ".join(outcomes) + " |\n|---|---|---|---|")
    for where in sorted({where for where, _ in counts}):
        print(
            f"| {where} | " + " | ".join(str(counts[where, outcome]) for outcome in outcomes) + " |"
        )
    totals = {o: sum(n for (_, kind), n in counts.items() if kind == o) for o in outcomes}
    print("| all | " + " | ".join(str(totals[outcome]) for outcome in outcomes) + " |")
    if totals["silent"]:
        raise SystemExit("flips were silent")


if __name__ == "__main__":
    main()
