"""DICOM senders that are not ours (DCMTK), a node that is killed at random, and the count after it.

A sender repeats what was not acknowledged until all is. In the end every acknowledged instance must
be one row of one batch, and at the destination once.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from pydicom.uid import generate_uid

from anomaly.data.table.pseudonyms import load_site_key, pseudonym
from anomaly.pipelines.run import RunFolder
from tests.data.dicom_samples import write_sample

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds until a thing that must happen has not happened."""


def write_studies(folder: Path, studies: int, instances: int, seed: int = 0) -> list[list[Path]]:
    """Write small CR images with fixed UIDs; return the files of each study."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    return [
        [
            write_sample(
                folder / f"{study:03d}-{index:03d}.dcm",
                rng.integers(0, 4096, (32, 32)),
                kind="CR",
                patient=f"CANARY{study}",
                StudyInstanceUID=generate_uid(entropy_srcs=[f"study {seed} {study}"]),
                SOPInstanceUID=uid_of(study, index, seed),
            )
            for index in range(instances)
        ]
        for study in range(studies)
    ]


def uid_of(study: int, index: int, seed: int = 0) -> str:
    """Return the SOP Instance UID of one of `write_studies`."""
    return generate_uid(entropy_srcs=[f"instance {seed} {study} {index}"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def store(port: int, files: Sequence[Path], *options: str) -> dict[Path, str]:
    """Send files by storescu; return what the node answered, for each file that it answered."""
    command = ["storescu", "-v", "-to", "5", "-aec", "ANOMALY", *options, "127.0.0.1", str(port)]
    said = subprocess.run(
        [*command, *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    ).stdout
    answers: dict[Path, str] = {}
    current = None
    for line in said.splitlines():
        if sending := re.search(r"Sending file: (.*)", line):
            current = Path(sending[1])
        elif (answer := re.search(r"Received Store Response \((.*)\)", line)) and current:
            answers[current] = answer[1]
    return answers


class Node:
    """A node as its own process, which may be killed and started again."""

    def __init__(self, work: Path, **settings: object) -> None:
        self.port = free_port()
        self.folder, self.destination, self.log = work / "node", work / "sent", work / "log"
        self.destination.mkdir(parents=True)
        self._settings = work / "node.yaml"
        plain = {"folder": str(self.folder), "port": self.port, "destination": "a folder"}
        self._settings.write_text(yaml.safe_dump({**plain, **settings}))
        self.process: subprocess.Popen[bytes] | None = None
        self.before_the_end: Callable[[], None] = lambda: None

    def start(self) -> None:
        said = self.log.stat().st_size if self.log.exists() else 0
        script = [str(ROOT / "tests/pipelines/node_here.py"), str(self._settings)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *script, str(self.destination)],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for("listening on port", said)

    def wait_for(self, text: str, after: int = 0) -> None:
        """Wait until it has said something, behind so many bytes of its log."""
        assert self.process is not None
        end = time.monotonic() + PATIENCE
        while text.encode() not in self.log.read_bytes()[after:]:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def ask(self, question: str) -> list[tuple[object, ...]]:
        """Ask its database, as anyone may while it works."""
        database = sqlite3.connect(f"file:{self.folder / 'node.sqlite'}?mode=ro", uri=True)
        try:
            return database.execute(question).fetchall()
        finally:
            database.close()

    def states(self) -> Counter[str]:
        """Instances by the state of their batch."""
        rows = self.ask(
            "SELECT coalesce(state, 'open'), count(*) FROM instances "
            "LEFT JOIN batches ON batch = number GROUP BY 1"
        )
        return Counter({str(state): int(str(count)) for state, count in rows})

    def wait_until(self, **states: int) -> None:
        """Wait until so many instances, and no others, are in these states."""
        end = time.monotonic() + PATIENCE
        while self.states() != Counter(states):
            assert time.monotonic() < end, f"{self.states()}\n{self.log.read_text()}"
            time.sleep(0.05)

    def wait_until_sent(self, objects: int) -> None:
        """Wait until so many objects are at the destination, and all is on record."""
        end = time.monotonic() + PATIENCE
        while len(self.sent()) != objects or set(self.states()) != {"sent"}:
            assert time.monotonic() < end, f"{self.states()}\n{self.log.read_text()}"
            time.sleep(0.05)

    def scored(self, uids: Sequence[str]) -> Counter[str]:
        """SOP Instance UIDs, of those sent, of the rows of all batches that have a score."""
        key = load_site_key(self.folder / "site.key")
        names = {pseudonym(key, f"{uid}/0"): uid for uid in uids}
        found: Counter[str] = Counter()
        for folder in sorted((self.folder / "batches").iterdir()):
            with RunFolder(folder / "run").scores_csv.open(newline="") as file:
                rows = list(csv.DictReader(file))
            found.update(names[row["key"]] for row in rows if row["status"] == "scored")
        return found

    def sent(self) -> list[str]:
        """SOP Instance UIDs whose object is at the destination."""
        return sorted(path.read_text().strip() for path in self.destination.glob("*.txt"))

    def asked(self) -> Counter[str]:
        """How often the destination was asked to store each object."""
        return Counter((self.destination / "asked.log").read_text().split())


@dataclass
class Storm:
    """What a storm did.

    Attributes
    ----------
    kills : list of Counter
        Instances by state at each kill, as the next start found them.
    attempts : int
        Runs of storescu.
    again : int
        Instances sent a second time, since no acknowledgement had come.
    seconds : float
    acknowledged : set of Path
    """

    kills: list[Counter[str]] = field(default_factory=list)
    attempts: int = 0
    again: int = 0
    seconds: float = 0.0
    acknowledged: set[Path] = field(default_factory=set)


def storm(
    node: Node,
    studies: Sequence[Sequence[Path]],
    *,
    kills: int,
    pause: float,
    seed: int,
    lose_database: bool = False,
) -> Storm:
    """Send all studies while the node is killed; return when all is acknowledged and sent on.

    Parameters
    ----------
    node : Node
        Not started.
    studies : sequence of sequence of Path
    kills : int
    pause : float
        Seconds; a kill comes at random in (0, 2 pause) after the node listens.
    seed : int
    lose_database : bool
        Remove the database after the last kill.
    """
    done, began = Storm(), time.perf_counter()
    node.start()
    sender = threading.Thread(target=_send_all, args=(node, studies, done))
    sender.start()
    rng = random.Random(seed)  # noqa: S311
    try:
        for count in range(1, kills + 1):
            time.sleep(rng.uniform(0, 2 * pause))
            node.kill()
            done.kills.append(node.states())
            if lose_database and count == kills:
                for path in node.folder.glob("node.sqlite*"):
                    path.unlink()
            node.start()
        sender.join(PATIENCE)
        assert not sender.is_alive()
        node.wait_until_sent(sum(map(len, studies)))
        node.before_the_end()
    finally:
        status = node.stop()
    assert status == 0
    done.seconds = time.perf_counter() - began
    return done


def _send_all(node: Node, studies: Sequence[Sequence[Path]], done: Storm) -> None:
    end = time.monotonic() + PATIENCE
    tried: set[Path] = set()
    for files in studies:
        while missing := [file for file in files if file not in done.acknowledged]:
            done.attempts += 1
            answers = store(node.port, missing)
            done.again += len(tried & answers.keys())
            done.acknowledged |= {file for file, said in answers.items() if said == "Success"}
            # It may have arrived although no answer came.
            tried |= set(missing[: len(answers) + 1])
            if len(answers) < len(missing):
                time.sleep(0.2)  # the node is dead
            assert time.monotonic() < end
