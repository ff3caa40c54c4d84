"""The normals of a benchmark: all methods are fitted on training and validation normals."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.config import Config
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.detection.kinds import KindSettings
from anomaly.detection.scoring import FeatureTable, fit_heatmap, normal_table
from anomaly.evaluation.benchmark.scans import Evaluator
from anomaly.evaluation.benchmark.splits import split_rows
from anomaly.logs import Public
from anomaly.store.bundle import Bundle
from anomaly.training.detector_fit import ScanObserver, fitting_set

__all__ = ["Normals", "fitted_normals"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Normals:
    """The normals on which detectors are fitted, and the evaluator with their heatmap.

    Attributes
    ----------
    evaluator : Evaluator
    chosen : KindSettings
        Settings of the bundle's detector.
    rule : str
        Sentence that explains the choice.
    table : FeatureTable
    scans : ndarray of int
        Scan of each row of the table, as in `anomaly.detection.scoring.normal_table`.
    train, validation : tuple of ManifestRow
    """

    evaluator: Evaluator
    chosen: KindSettings
    rule: str
    table: FeatureTable
    scans: NDArray[np.intp]
    train: tuple[ManifestRow, ...]
    validation: tuple[ManifestRow, ...]

    @property
    def unaltered(self) -> FeatureTable:
        """Rows of the unaltered scans, which come first."""
        count = len(np.unique(self.scans))
        return replace(self.table, values=self.table.values[:count])


def fitted_normals(
    bundle: Bundle, manifest: Manifest, config: Config, device: torch.device
) -> Normals:
    """Observe the normals and fit the heatmap that all comparisons share."""
    observer = ScanObserver(bundle.network, bundle.levels, config, bundle.reference, device)
    train, validation = (
        split_rows(manifest, s, config.data.normal) for s in ("train", "validation")
    )
    rows = [*(train if "train" in config.detector.fit_on else ()), *validation]
    observed, scans = fitting_set(observer, rows)
    table = normal_table(observed, config.features, config.heatmap, scans)
    heatmap = fit_heatmap(observed, config.features, config.heatmap)
    chosen, rule = _choice(bundle)
    log.info("%s", Public(rule))
    return Normals(
        Evaluator(observer, bundle, heatmap), chosen, rule, table, scans, train, validation
    )


def _choice(bundle: Bundle) -> tuple[KindSettings, str]:
    """Return the settings of the bundle's detector and a sentence that explains the choice."""
    candidates = {str(candidate): candidate for candidate in bundle.config.detector.candidates}
    name = bundle.chosen
    if name not in bundle.margins:
        return candidates[name], f"{name}: the only candidate, there was nothing to choose"
    return candidates[name], (
        f"{name}: margin {bundle.margins[name]:.3f} between synthetic perturbations and nuisance "
        f"on validation normals, within one standard error of the widest "
        f"({max(bundle.margins.values()):.3f}) of {len(bundle.margins)} candidates, and of those "
        "named first; no abnormal scan took part"
    )
