"""Measure training steps per second on an idle and a busy machine, by threads and spin count.

    python benchmarks/threads.py --bundle zhanglab --steps 40

Each row runs `benchmarks/training.py` in a separate process; "busy" means beside as many endless
loops as there are processors. The commands use the spin count of `anomaly.threads`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from anomaly.threads import SPINS


def speed(bundle: str, steps: int, threads: int, environment: dict[str, str]) -> str:
    """Return the last line printed by the benchmark of training."""
    command = [sys.executable, str(Path(__file__).with_name("training.py"))]
    command += ["--bundle", bundle, "--steps", str(steps), "--threads", str(threads)]
    plain = {name: value for name, value in os.environ.items() if "OMP" not in name}
    done = subprocess.run(
        command, env={**plain, **environment}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Measure every case and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="zhanglab")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    cases = [
        ("1 thread", 1, {}),
        (f"{cores} threads", cores, {}),
        (f"{cores} threads, {SPINS:,} spins", cores, {"GOMP_SPINCOUNT": str(SPINS)}),
        (f"{cores} threads, no spins", cores, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ]
    for state in ("idle", "busy"):
        loops = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for _ in range(cores if state == "busy" else 0)
        ]
        try:
            for name, threads, environment in cases:
                print(
                    f"{state}: {name}: {speed(options.bundle, options.steps, threads, environment)}"
                )
        finally:
            for loop in loops:
                loop.kill()


if __name__ == "__main__":
    main()
