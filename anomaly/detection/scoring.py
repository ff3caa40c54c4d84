"""From observations to scores: heatmap model, local features and detector, fitted and applied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.detector import Detector
from anomaly.detection.features import FeatureSettings, Observation, all_names
from anomaly.detection.heatmap import (
    LOCAL_FEATURES,
    HeatmapModel,
    HeatmapSettings,
    local_features,
)

__all__ = ["Scores", "fit_scoring", "score_observation"]

FOLDS = 5


@dataclass(frozen=True)
class Scores:
    """What detector and heatmap say of N scans.

    Attributes
    ----------
    scores : ndarray (N,) float64; higher = more anomalous
    features : ndarray (N, F) float64, columns as `anomaly.detection.features.all_names`
    evidence : ndarray (N, H, W) float32, in the network's frame
    """

    scores: NDArray[np.float64]
    features: NDArray[np.float64]
    evidence: NDArray[np.float32]


def fit_scoring(
    observed: Observation, features: FeatureSettings, heatmap: HeatmapSettings
) -> tuple[Detector, HeatmapModel]:
    """Fit heatmap model and detector on normal scans that the network was not trained on.

    The detector sees local features of each scan from a heatmap model fitted *without* that scan
    (five folds): in-sample evidence is too low, and new normals would look unusual.

    Raises
    ------
    CalibrationError
        If there are too few scans; see `Detector.fit`.
    """
    count = len(observed.features)
    local = np.zeros((count, len(LOCAL_FEATURES)))
    for fold in range(FOLDS):
        out = np.arange(count) % FOLDS == fold
        if out.any() and (~out).any():
            part = HeatmapModel.fit(observed.residuals[~out], heatmap)
            local[out] = local_features(part.evidence(observed.residuals[out]))
    columns, names = _used(features)
    table = np.concatenate([observed.features, local], axis=1)
    detector = Detector.fit(table[:, columns], names)
    return detector, HeatmapModel.fit(observed.residuals, heatmap)


def score_observation(
    observed: Observation, features: FeatureSettings, detector: Detector, heatmap: HeatmapModel
) -> Scores:
    """Score what the network said; all features are kept, the detector sees the ones in use."""
    evidence = heatmap.evidence(observed.residuals)
    table = np.concatenate([observed.features, local_features(evidence)], axis=1)
    columns, _ = _used(features)
    return Scores(detector.score(table[:, columns]), table, evidence)


def _used(features: FeatureSettings) -> tuple[list[int], list[str]]:
    """Columns and names of the features that the detector sees."""
    chosen = [(i, n) for i, n in enumerate(all_names(features)) if n.startswith(features.use)]
    return [i for i, _ in chosen], [n for _, n in chosen]
