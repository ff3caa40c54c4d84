"""Scores from observations: heatmap model, local features and detector, fitted and applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.detector import FeatureDetector
from anomaly.detection.explanation import Explanations, explain
from anomaly.detection.extractor import Observation
from anomaly.detection.features import (
    GROUPS,
    EvidenceGroup,
    FeatureSettings,
    feature_groups,
    reported_names,
)
from anomaly.detection.heatmap import HeatmapModel, HeatmapSettings
from anomaly.detection.kinds import (
    KindSettings,
)
from anomaly.detection.kinds.base import FOLDS, fold_of
from anomaly.detection.local import Cells

__all__ = [
    "FeatureTable",
    "Scores",
    "fit_heatmap",
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
        cls,
        observed: Observation,
        of_evidence: Mapping[str, NDArray[np.float64]],
        settings: FeatureSettings,
    ) -> FeatureTable:
        """Concatenate the features of the network and of the heatmap, by group."""
        columns = feature_groups(settings)
        parts = {**observed.groups, **of_evidence}
        return cls(
            tuple(name for group in GROUPS for name in columns[group]),
            tuple(group for group in GROUPS for _ in columns[group]),
            np.concatenate([parts[group] for group in GROUPS], axis=1),
        )

    @property
    def one_sided(self) -> NDArray[np.bool_]:
        """Whether only large values of a column are unusual, (F,)."""
        return np.array([GROUPS[group].one_sided for group in self.groups], dtype=np.bool_)

    def use(self, features: Sequence[str]) -> FeatureTable:
        """Return the columns of the given features or groups."""
        named = frozenset(features)
        keep = [
            i
            for i, (name, group) in enumerate(zip(self.names, self.groups, strict=True))
            if name in named or group in named
        ]
        return FeatureTable(
            tuple(self.names[i] for i in keep),
            tuple(self.groups[i] for i in keep),
            self.values[:, keep],
        )


@dataclass(frozen=True)
class Scores:
    """Scores, reported features and evidence of N scans.

    Attributes
    ----------
    scores : ndarray (N,) float64; higher = more anomalous
    features : ndarray (N, F) float64, columns as `anomaly.detection.features.reported_names`
    evidence : ndarray (N, H, W) float32 >= 0, in the network's frame
    explanations : Explanations
    """

    scores: NDArray[np.float64]
    features: NDArray[np.float64]
    evidence: NDArray[np.float32]
    explanations: Explanations


def normal_table(
    observed: Observation,
    features: FeatureSettings,
    heatmap: HeatmapSettings,
    scans: NDArray[np.intp],
) -> FeatureTable:
    """All features of the normal scans, to fit a detector on.

    Local features of each scan come from a heatmap model fitted *without* that scan (five folds):
    in-sample evidence is too low, and new normals would look unusual.

    Parameters
    ----------
    observed : Observation
        Observation of N normal images.
    features, heatmap
    scans : ndarray (N,) int
        Images with the same number show the same scan.
    """
    of_evidence = {
        group.name: np.zeros((len(scans), len(group.columns(features))))
        for group in _evidence_groups()
    }
    fold = fold_of(scans)
    for number in range(FOLDS):
        out = fold == number
        if out.any() and (~out).any():
            model = fit_heatmap(observed.select(~out), features, heatmap)
            _, values_by_group = _evidence_features(model, observed.select(out))
            for name, values in values_by_group.items():
                of_evidence[name][out] = values
    return FeatureTable.assemble(observed, of_evidence, features)


def fit_scoring(
    observed: Observation,
    features: FeatureSettings,
    heatmap: HeatmapSettings,
    detector: KindSettings,
    scans: NDArray[np.intp] | None = None,
) -> tuple[FeatureDetector, HeatmapModel]:
    """Fit heatmap model and detector on normal scans.

    Parameters
    ----------
    observed : Observation
        Observation of N normal images.
    features, heatmap, detector
    scans : ndarray (N,) int, optional
        As in `normal_table`; by default every image is a separate scan.

    Raises
    ------
    CalibrationError
        If there are too few scans; see `FeatureDetector.fit`.
    """
    if scans is None:
        scans = np.arange(len(observed.residuals))
    table = normal_table(observed, features, heatmap, scans)
    return fit_on(table, detector, scans), fit_heatmap(observed, features, heatmap)


def fit_heatmap(
    observed: Observation, features: FeatureSettings, heatmap: HeatmapSettings
) -> HeatmapModel:
    """Fit a heatmap model on an observation of normal scans.

    Raises
    ------
    CalibrationError
        If the scans are all alike; see `HeatmapModel.fit`.
    """
    return HeatmapModel.fit(
        observed.residuals, observed.placement, observed.blank, heatmap, features.noise_to_signal
    )


def fit_on(table: FeatureTable, settings: KindSettings, scans: NDArray[np.intp]) -> FeatureDetector:
    """Fit one detector on a `normal_table`, with the same `scans`."""
    used = table.use(settings.features)
    return FeatureDetector.fit(
        used.values, used.names, settings, used.groups, scans, used.one_sided
    )


def new_table(
    observed: Observation, features: FeatureSettings, heatmap: HeatmapModel
) -> FeatureTable:
    """All features of scans that the heatmap model was not fitted on."""
    return FeatureTable.assemble(observed, _evidence_features(heatmap, observed)[1], features)


def score_observation(
    observed: Observation,
    features: FeatureSettings,
    detector: FeatureDetector,
    heatmap: HeatmapModel,
) -> Scores:
    """Score an observation, with the features that the detector was fitted on."""
    evidence, of_evidence = _evidence_features(heatmap, observed)
    table = FeatureTable.assemble(observed, of_evidence, features)
    own = table.use(detector.names).values
    sides = table.use(("evidence_bright", "evidence_dark")).values
    shape = evidence.shape[1:]
    grid = observed.cells or Cells.of(observed.placement, shape, features.grid, features.border)
    return Scores(
        detector.score(own),
        table.use(reported_names(features)).values,
        np.asarray(np.abs(evidence)),
        explain(detector, own, sides, grid, features, shape),
    )


def _evidence_groups() -> list[EvidenceGroup]:
    return [group for group in GROUPS.values() if isinstance(group, EvidenceGroup)]


def _evidence_features(
    heatmap: HeatmapModel, observed: Observation
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float64]]]:
    """Signed evidence (N, H, W), and the features of every evidence group."""
    evidence = heatmap.signed_evidence(observed.residuals, observed.placement, observed.blank)
    features = {group.name: group.compute(evidence, observed.blank) for group in _evidence_groups()}
    return evidence, features
