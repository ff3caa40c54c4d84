"""Observed scans of a benchmark, and the figures that are computed from their scores.

All compared methods (detectors, baselines, maps) are fitted on normal scans only; the threshold of
each is conformal at the stated alpha, from *its own* scores of the calibration split. Labels are
used only to count hits, never to set a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.data.images.network_images import Change, NetworkImages
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection.calibration import Calibration
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.scoring import FeatureTable, new_table, score_observation
from anomaly.errors import CalibrationError
from anomaly.evaluation.metrics import (
    auroc,
    average_precision,
    exact_rate,
)
from anomaly.store.bundle import Bundle
from anomaly.training.detector_fit import ScanObserver

__all__ = ["Array", "Bench", "EvaluationSet", "Evaluator", "Row", "ScoredSet", "finite"]

Array: TypeAlias = NDArray[np.float64]
Row: TypeAlias = dict[str, Any]

GRADIENT_LEVEL = 0.25
"""``sigma / alpha`` of the residual map that represents the raw gradient."""


@dataclass(frozen=True)
class ScoredSet:
    """N scans with their scores, features and maps.

    Attributes
    ----------
    rows : tuple of ManifestRow
    seen : NetworkImages
    scores : ndarray (N,) float64; higher = more anomalous
        Scores by the bundle.
    table : FeatureTable
        Features of local evidence use the heatmap that all comparisons share.
    maps : dict of str to ndarray (N, S, S) float32 >= 0
        Bundle's evidence and raw gradient on the network's pixels, 0 in blank areas; empty unless
        requested.
    """

    rows: tuple[ManifestRow, ...]
    seen: NetworkImages
    scores: Array
    table: FeatureTable
    maps: dict[str, NDArray[np.float32]]

    @property
    def patients(self) -> list[str]:
        """Patient of each scan."""
        return [row.patient for row in self.rows]


@dataclass(frozen=True)
class Evaluator:
    """A bundle with the observer and heatmap that score scans for a benchmark.

    Attributes
    ----------
    observer : ScanObserver
    bundle : Bundle
    heatmap : HeatmapModel
        Fitted on the same normals as the compared methods; equal to the bundle's heatmap if the
        bundle was fitted on them.
    """

    observer: ScanObserver
    bundle: Bundle
    heatmap: HeatmapModel

    def look(
        self,
        rows: Sequence[ManifestRow],
        what: str,
        change: Change | None = None,
        *,
        maps: bool = False,
    ) -> ScoredSet:
        """Read scans, apply `change` if given, and score them; residuals are not kept.

        Raises
        ------
        CalibrationError
            A score is not finite.
        """
        seen = self.observer.images(rows, change)
        features, bundle = self.observer.config.features, self.bundle
        scores, tables, evidence, gradient = [], [], [], []
        level = int(np.argmin(np.abs(np.log(np.array(features.noise_to_signal) / GRADIENT_LEVEL))))
        for part in self.observer.parts(seen, what):
            result = score_observation(part, features, bundle.detector, bundle.heatmap)
            scores.append(result.scores)
            tables.append(new_table(part, features, self.heatmap))
            if maps:
                evidence.append(result.evidence)
                gradient.append(np.where(part.blank, 0, np.abs(part.residuals[:, level])))
        shown = {}
        if maps:
            shown = {"evidence": np.concatenate(evidence), "gradient": np.concatenate(gradient)}
        values = np.concatenate([table.values for table in tables])
        table = FeatureTable(tables[0].names, tables[0].groups, values)
        return ScoredSet(tuple(rows), seen, finite(np.concatenate(scores), what), table, shown)


@dataclass(frozen=True)
class EvaluationSet:
    """Normal and abnormal scans that were used for neither fitting nor calibration.

    Attributes
    ----------
    name : str
    normal, abnormal : ScoredSet
    """

    name: str
    normal: ScoredSet
    abnormal: ScoredSet

    @property
    def patients(self) -> list[str]:
        """Patient of each scan, normal scans first."""
        return self.normal.patients + self.abnormal.patients

    @property
    def is_abnormal(self) -> NDArray[np.bool_]:
        """Whether each scan is abnormal, normal scans first."""
        return np.repeat([False, True], [len(self.normal.rows), len(self.abnormal.rows)])


@dataclass(frozen=True)
class Bench:
    """All scored scans of a benchmark.

    Attributes
    ----------
    alpha : float
        Stated false-alarm rate.
    calibration : ScoredSet
        Normals of the calibration split, with the calibration change of the configuration, if any;
        every threshold comes from their scores.
    held_out : ScoredSet
        Normals of the test split, which are also altered.
    sets : tuple of EvaluationSet
    """

    alpha: float
    calibration: ScoredSet
    held_out: ScoredSet
    sets: tuple[EvaluationSet, ...]

    def flags(self, calibration: Array, scores: Array) -> NDArray[np.bool_]:
        """Return which scores are flagged at alpha, given the scores of the calibration scans."""
        return Calibration.from_scores(calibration).p_values(scores) <= self.alpha

    def figures(self, score: Callable[[ScoredSet], Array]) -> dict[str, Row]:
        """AUROC, average precision, sensitivity and specificity in each set."""
        calibration = finite(score(self.calibration), "calibration")
        figures = {}
        for item in self.sets:
            scores = np.concatenate([score(item.normal), score(item.abnormal)])
            abnormal = item.is_abnormal
            flags = self.flags(calibration, finite(scores, item.name))
            figures[item.name] = {
                "auroc": asdict(auroc(scores, abnormal, item.patients)),
                "average_precision": {
                    **asdict(average_precision(scores, abnormal, item.patients)),
                    "prevalence": float(abnormal.mean()),
                },
                "sensitivity": asdict(exact_rate(flags[abnormal])),
                "specificity": asdict(exact_rate(~flags[~abnormal])),
                "false_alarms": asdict(exact_rate(flags[~abnormal])),
            }
        return figures


def finite(scores: Array, what: str) -> Array:
    """Return the scores if all are finite, else raise `CalibrationError`."""
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise CalibrationError(
            f"{bad} of {len(scores)} scores ({what}) are not finite: expected numbers, train the "
            "network again"
        )
    return scores
