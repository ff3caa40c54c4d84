"""What a run says, read by everything that reads it; and a bit of it flipped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from anomaly.config import dump, load_config
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.errors import AnomalyError
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.verify import verify
from anomaly.store.bundle import read_bundle
from anomaly.store.readings import Feedback


@dataclass(frozen=True)
class Outcome:
    """What reading a run gives.

    Attributes
    ----------
    faults : tuple of str
        What is said to be damaged, by `verify` or by a reader.
    results : str
        Hash of all that the readers give.
    """

    faults: tuple[str, ...]
    results: str


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def look(path: Path) -> Outcome:
    """Read everything of a run, as its stages do, and verify it."""
    run = RunFolder(path)
    digest = hashlib.sha256()
    try:
        digest.update(dump(load_config(run.config)).encode())
        manifest = Manifest.read(run.manifest)
        digest.update(repr(manifest).encode())
        digest.update(load_site_key(run.site_key))
        digest.update(read_bundle(run.bundle).hash.encode())
        rows, provenance = run.results.read()
        digest.update(repr((rows, provenance)).encode())
        for row in rows:
            evidence = run.results.evidence(row)
            digest.update(b"" if evidence is None else evidence.tobytes())
        for table in ("scores", "worklist", "studies", "patients"):
            answer = run.results.query(f"SELECT * FROM {table} ORDER BY ALL")  # noqa: S608
            digest.update(repr(answer.to_pylist()).encode())
        digest.update(repr(Feedback.read(run.feedback)).encode())
        lines, intact = verify(run)
    except AnomalyError as error:
        return Outcome((str(error),), "")
    damaged = () if intact else tuple(line for line in lines if not line.endswith("intact"))
    return Outcome(damaged, digest.hexdigest())
