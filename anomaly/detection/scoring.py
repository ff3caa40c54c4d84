"""From observations to scores: heatmap model, local features and detector, fitted and applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.detector import FOLDS, Detector, DetectorSettings, fold_of
from anomaly.detection.features import (
    GROUPS,
    FeatureSettings,
    Observation,
    feature_groups,
    reported_names,
)
from anomaly.detection.heatmap import (
    LOCAL_FEATURES,
    HeatmapModel,
    HeatmapSettings,
    local_features,
)

__all__ = [
    "FeatureTable",
    "Scores",
    "fit_on",
    "fit_scoring",
    "new_table",
    "normal_table",
    "score_observation",
]


@dataclass(frozen=True)
class FeatureTable:
    """Every feature of a set of scans.

    Attributes
    ----------
    names, groups : tuple of F str
        Name and group of every column.
    values : ndarray (N, F) float64
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    values: NDArray[np.float64]

    @classmethod
    def assemble(
        cls, observed: Observation, local: NDArray[np.float64], settings: FeatureSettings
    ) -> FeatureTable:
        """Put the network's features and those of the heatmap (N, 3) side by side."""
        columns = feature_groups(settings)
        parts = {**observed.groups, "evidence": local}
        return cls(
            tuple(name for group in GROUPS for name in columns[group]),
            tuple(group for group in GROUPS for _ in columns[group]),
            np.concatenate([parts[group] for group in GROUPS], axis=1),
        )

    def use(self, wanted: Sequence[str]) -> FeatureTable:
        """Return the columns of the features or groups named."""
        keep = [
            i
            for i, (name, group) in enumerate(zip(self.names, self.groups, strict=True))
            if name in wanted or group in wanted
        ]
        return FeatureTable(
            tuple(self.names[i] for i in keep),
            tuple(self.groups[i] for i in keep),
            self.values[:, keep],
        )


@dataclass(frozen=True)
class Scores:
    """What detector and heatmap say of N scans.

    Attributes
    ----------
    scores : ndarray (N,) float64; higher = more anomalous
    features : ndarray (N, F) float64, columns as `anomaly.detection.features.reported_names`
    evidence : ndarray (N, H, W) float32, in the network's frame
    """

    scores: NDArray[np.float64]
    features: NDArray[np.float64]
    evidence: NDArray[np.float32]


def normal_table(
    observed: Observation,
    features: FeatureSettings,
    heatmap: HeatmapSettings,
    scans: NDArray[np.intp],
) -> FeatureTable:
    """Every feature of the normal scans that a detector is fitted on.

    Local features of each scan come from a heatmap model fitted *without* that scan (five folds):
    in-sample evidence is too low, and new normals would look unusual.

    Parameters
    ----------
    observed : Observation
        Of N normal images.
    features, heatmap
    scans : ndarray (N,) int
        Images with the same number show the same scan.
    """
    maps = observed.residuals[:, features.in_map]
    local = np.zeros((len(maps), len(LOCAL_FEATURES)))
    fold = fold_of(scans)
    for out in (fold == f for f in range(FOLDS)):
        if out.any() and (~out).any():
            part = HeatmapModel.fit(maps[~out], observed.shifts[~out], heatmap)
            local[out] = _local(part, observed.select(out), features)[1]
    return FeatureTable.assemble(observed, local, features)


def fit_scoring(
    observed: Observation,
    features: FeatureSettings,
    heatmap: HeatmapSettings,
    detector: DetectorSettings,
    scans: NDArray[np.intp] | None = None,
) -> tuple[Detector, HeatmapModel]:
    """Fit heatmap model and detector on normal scans.

    Parameters
    ----------
    observed : Observation
        Of N normal images.
    features, heatmap, detector
    scans : ndarray (N,) int, optional
        As in `normal_table`; every image its own scan by default.

    Raises
    ------
    CalibrationError
        If there are too few scans; see `Detector.fit`.
    """
    if scans is None:
        scans = np.arange(len(observed.residuals))
    table = normal_table(observed, features, heatmap, scans)
    model = HeatmapModel.fit(observed.residuals[:, features.in_map], observed.shifts, heatmap)
    return fit_on(table, detector, scans), model


def fit_on(table: FeatureTable, settings: DetectorSettings, scans: NDArray[np.intp]) -> Detector:
    """Fit one detector on the `normal_table` of normal scans; `scans` as there."""
    used = table.use(settings.features)
    return Detector.fit(used.values, used.names, settings, used.groups, scans)


def new_table(
    observed: Observation, features: FeatureSettings, heatmap: HeatmapModel
) -> FeatureTable:
    """Every feature of scans that the heatmap model was not fitted on."""
    return FeatureTable.assemble(observed, _local(heatmap, observed, features)[1], features)


def score_observation(
    observed: Observation, features: FeatureSettings, detector: Detector, heatmap: HeatmapModel
) -> Scores:
    """Score what the network said; the detector sees the features that it was fitted on."""
    evidence, local = _local(heatmap, observed, features)
    table = FeatureTable.assemble(observed, local, features)
    return Scores(
        detector.score(table.use(detector.names).values),
        table.use(reported_names(features)).values,
        evidence,
    )


def _local(
    heatmap: HeatmapModel, observed: Observation, features: FeatureSettings
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Evidence (N, H, W), and its `local_features` (N, 3)."""
    residuals = observed.residuals[:, features.in_map]
    evidence = heatmap.evidence(residuals, observed.shifts, observed.blank)
    return evidence, local_features(evidence, observed.blank)
