"""Send scans to a node that is killed at random moments, and count the outcomes.

    python benchmarks/node_storm.py --bundle FOLDER --studies 20 --instances 10 --kills 5 --work DIR

The storm is the function used by the tests (`tests/pipelines/node_senders.py`) and needs storescu
of DCMTK. At the end every acknowledged instance must have one row with a score, and be at the
destination once. With --hostile, the node also gets hostile connections: 1,000 that connect and
disconnect, 50 that send nothing, and 10 that send a byte now and then; the latter two kinds
reconnect when the node closes the connection.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipelines.node_senders import Node, storm, uid_of, write_studies  # noqa: E402


@contextmanager
def hostile(port: int, counts: Counter[str]) -> Iterator[None]:
    """Open hostile connections to a node until the end of the context."""
    ended = threading.Event()

    def probe() -> None:
        for _ in range(1000):
            if ended.wait(0.02):
                return
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                counts["connected and gone"] += 1

    def hold(kind: str, pause: float, content: bytes) -> None:
        while not ended.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
                counts[kind] += 1
                while not ended.wait(pause):
                    connection.sendall(content)
                    readable, _, _ = select.select([connection], [], [], 0)
                    if readable:
                        break
            ended.wait(0.1)

    callers = [threading.Thread(target=probe)]
    callers += [threading.Thread(target=hold, args=("silent", 0.2, b"")) for _ in range(50)]
    callers += [threading.Thread(target=hold, args=("dripping", 0.5, b"\x01")) for _ in range(10)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        ended.set()
        for caller in callers:
            caller.join()


def peak_mebibytes(process: int) -> float:
    """Peak resident memory of a process in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Write the scans, run the storm and count the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--pause", type=float, default=3.0, help="Mean seconds before a kill.")
    parser.add_argument("--quiet", type=float, default=1.0, help="Of a study, in seconds.")
    parser.add_argument(
        "--lose-database", action="store_true", help="Remove it after the last kill."
    )
    parser.add_argument("--hostile", action="store_true", help="Others call meanwhile.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="Empty folder to work in.")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    studies = write_studies(options.work / "scans", options.studies, options.instances)
    node = Node(options.work, bundle=options.bundle, quiet_seconds=options.quiet)
    counts: Counter[str] = Counter()
    peaks: list[float] = []
    node.before_the_end = lambda: peaks.append(peak_mebibytes(node.process.pid))
    with hostile(node.port, counts) if options.hostile else nullcontext():
        done = storm(
            node,
            studies,
            kills=options.kills,
            pause=options.pause,
            seed=options.seed,
            lose_database=options.lose_database,
        )
    expected = sorted(
        uid_of(s, i) for s in range(options.studies) for i in range(options.instances)
    )
    scored, asked = node.scored(expected), node.asked()
    print(f"{len(done.acknowledged)} instances of {options.studies} studies acknowledged")
    print(f"{done.seconds:.0f} s, {len(done.kills)} kills; instances by state at each:")
    for states in done.kills:
        print(f"    {dict(states)}")
    print(f"peak of the node's process: {peaks[0]:.0f} MiB; others: {dict(counts)}")
    print(f"{done.attempts} runs of storescu; {done.again} instances sent again")
    print(f"{len(list((node.folder / 'batches').iterdir()))} batches")
    print(f"{scored.total()} scores of {len(scored)} instances")
    print(
        f"{len(node.sent())} objects at the destination; asked for {dict(Counter(asked.values()))}"
    )
    if sorted(scored.elements()) != expected or node.sent() != expected:
        raise SystemExit("something was lost or done twice")
    print("every acknowledged instance is scored once, and its object is at the destination once")


if __name__ == "__main__":
    main()
