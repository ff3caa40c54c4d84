"""Send scans to a node that is killed at random moments, and count what became of each.

    python benchmarks/node_storm.py --bundle FOLDER --studies 20 --instances 10 --kills 5 --work DIR

The storm itself is the one of the tests (`tests/pipelines/node_senders.py`), and needs DCMTK's
storescu. At the end every acknowledged instance must be one row with a score, and at the
destination once.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / "pipelines"), str(ROOT / "tests" / "data")]

from node_senders import Node, storm, uid_of, write_studies  # noqa: E402


def main() -> None:
    """Write the scans, raise the storm, count."""
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="Empty folder to work in.")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    studies = write_studies(options.work / "scans", options.studies, options.instances)
    node = Node(options.work, bundle=options.bundle, quiet_seconds=options.quiet)
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
