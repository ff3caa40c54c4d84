"""The sets of a benchmark: normal and abnormal scans, scored by one evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import ManifestError
from anomaly.evaluation.benchmark.scans import Bench, EvaluationSet, Evaluator, ScoredSet
from anomaly.evaluation.benchmark.splits import published_config, split_rows
from anomaly.training.detector_fit import calibration_change

__all__ = ["make_bench"]


def make_bench(
    evaluator: Evaluator, manifest: Manifest, published: tuple[ManifestRow, ...]
) -> Bench:
    """Score all scans of a benchmark.

    Parameters
    ----------
    evaluator : Evaluator
    manifest : Manifest
    published : tuple of ManifestRow
        The archive's published test set; may be empty.

    Raises
    ------
    ManifestError
        No scan of the test split is abnormal.
    """
    config = evaluator.observer.config
    normal = config.data.normal
    change = calibration_change(config)
    calibration = evaluator.look(split_rows(manifest, "calibration", normal), "calibration", change)
    test = split_rows(manifest, "test")
    held_out = evaluator.look([row for row in test if row.label == normal], "held-out normals")
    sets = list(_sets(evaluator, "held-out", held_out, test))
    if not sets:
        raise ManifestError(
            f"no usable scan of the test split has another label than {normal!r}: a benchmark "
            f"needs abnormal scans, check data.labels ({config.data.labels})"
        )
    if published:
        observer = replace(evaluator.observer, config=published_config(config))
        elsewhere = replace(evaluator, observer=observer)
        healthy = elsewhere.look([r for r in published if r.label == normal], "published normals")
        sets.extend(_sets(elsewhere, "published test", healthy, published))
    return Bench(config.alpha, calibration, held_out, tuple(sets))


def _sets(
    evaluator: Evaluator, name: str, healthy: ScoredSet, rows: Sequence[ManifestRow]
) -> Iterator[EvaluationSet]:
    """One set per abnormal class, all with the same normals."""
    normal = evaluator.observer.config.data.normal
    for label in sorted({row.label for row in rows} - {normal}):
        abnormal = evaluator.look([row for row in rows if row.label == label], f"{name} {label}")
        yield EvaluationSet(f"{name}: {normal} vs {label}", healthy, abnormal)
