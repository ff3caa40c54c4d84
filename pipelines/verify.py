"""verify: whether the files of a run are unchanged since they were written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from anomaly.config import load_config
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.errors import AnomalyError
from anomaly.files import read_checked
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle
from anomaly.store.readings import Feedback
from anomaly.store.sums import SUMS, damaged_files
from anomaly.training.checkpoint import read_checkpoint, read_metrics

__all__ = ["verify"]


def verify(run: RunFolder) -> tuple[list[str], bool]:
    """Check every file of a run whose hash is recorded.

    Returns
    -------
    list of str, bool
        One line per item checked, and whether all are intact.

    Raises
    ------
    AnomalyError
        There is no run.
    """
    run.need(run.path, "prepare")
    lines, intact = [], True
    for name, fault in _faults(run):
        intact = intact and not fault
        lines.append(f"{name}: {fault or 'intact'}")
    return lines, intact


def _faults(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield the name of each existing item, with its fault or an empty string."""
    readers: dict[str, tuple[bool, Callable[[], object]]] = {
        "config.yaml": (run.config.exists(), lambda: load_config(run.config)),
        "manifest.parquet": (run.manifest.exists(), lambda: Manifest.read(run.manifest)),
        "site.key": (run.site_key.exists(), lambda: load_site_key(run.site_key)),
        "bundle": (run.bundle.exists(), lambda: read_bundle(run.bundle)),
        "checkpoint.pt": (run.checkpoint.exists(), lambda: read_checkpoint(run.checkpoint)),
        "metrics.jsonl": (
            run.training_metrics.exists(),
            lambda: read_metrics(run.training_metrics),
        ),
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
    yield from _faults_of_log(run)
    damaged, listed = damaged_files(run.path)
    for name in damaged:
        yield name, "damaged or gone: run the stage that made it again, or bring back a copy"
    yield f"{listed} files of {SUMS}", f"{len(damaged)} damaged" if damaged else ""


def _faults_of_log(run: RunFolder) -> Iterator[tuple[str, str]]:
    if not run.log.exists():
        return
    fault, is_sealed = "", False
    for line in run.log.read_text(encoding="utf-8", errors="replace").splitlines():
        is_sealed = is_sealed or '"check"' in line
        try:
            read_checked(line)
        except ValueError as error:
            fault = f"damaged ({error}): nothing reads it, bring back a copy"
    yield run.log.name, fault
    if is_sealed and not (run.path / SUMS).exists():
        yield SUMS, "gone: pages and figures cannot be looked at"


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
    again = "`anomaly score` makes it again"
    exports = ((results.worklist, again), (run.scores_csv, f"move it away, and {again}"))
    for path, advice in exports:
        if not results.is_exported(provenance, path):
            yield path.name, f"not as it was written: {advice}"
    yield f"{provenance.parts} parts", f"{len(damaged)} damaged" if damaged else ""
