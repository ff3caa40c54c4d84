"""verify: whether everything in a run is what was written there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from anomaly.bundle import read_bundle
from anomaly.checkpoint import read_checkpoint
from anomaly.config import load_config
from anomaly.data.manifest import Manifest
from anomaly.data.pseudonyms import load_site_key
from anomaly.errors import AnomalyError
from anomaly.feedback import Feedback
from anomaly.sums import SUMS, damaged_files
from pipelines.run import RunFolder

__all__ = ["verify"]


def verify(run: RunFolder) -> tuple[list[str], bool]:
    """Look at every file of a run that something knows the hash of.

    Returns
    -------
    list of str, bool
        What was found, a line a thing, and whether all of it is intact.

    Raises
    ------
    AnomalyError
        If there is no run.
    """
    run.need(run.path, "prepare")
    lines, intact = [], True
    for name, fault in _faults(run):
        intact = intact and not fault
        lines.append(f"{name}: {fault or 'intact'}")
    return lines, intact


def _faults(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Name what is there, each with what is wrong with it."""
    readers: dict[str, tuple[bool, Callable[[], object]]] = {
        "config.yaml": (run.config.exists(), lambda: load_config(run.config)),
        "manifest.parquet": (run.manifest.exists(), lambda: Manifest.read(run.manifest)),
        "site.key": (run.site_key.exists(), lambda: load_site_key(run.site_key)),
        "bundle": (run.bundle.exists(), lambda: read_bundle(run.bundle)),
        "checkpoint.pt": (run.checkpoint.exists(), lambda: read_checkpoint(run.checkpoint)),
        "feedback.sqlite": (run.feedback.exists(), lambda: Feedback.read(run.feedback)),
    }
    for name, (is_there, read) in readers.items():
        if is_there:
            try:
                read()
            except AnomalyError as error:
                yield name, str(error)
            else:
                yield name, ""
    if run.results.job.exists():
        yield from _faults_of_results(run)
    damaged, read_files = damaged_files(run.path)
    for name in damaged:
        yield name, "damaged or gone: run the stage that made it again, or bring back a copy"
    yield f"{read_files} files of {SUMS}", f"{len(damaged)} damaged" if damaged else ""


def _faults_of_results(run: RunFolder) -> Iterator[tuple[str, str]]:
    results = run.results
    try:
        provenance = results.provenance()
    except AnomalyError as error:
        yield "parts", str(error)
        return
    missing = provenance.parts - len(results.done(provenance))
    damaged = [n for n in results.done(provenance) if not results.is_intact(n)]
    for index in damaged:
        yield results.part(index).name, "damaged: `anomaly score` scores it again"
    if not results.is_finished(provenance):
        yield "parts", f"{missing} of {provenance.parts} are not there: `anomaly score` goes on"
        return
    for path in (results.worklist, run.scores_csv):
        if not results.is_exported(provenance, path):
            yield path.name, "not as it was written: `anomaly score` makes it again"
    yield f"{provenance.parts} parts", f"{len(damaged)} damaged" if damaged else ""
