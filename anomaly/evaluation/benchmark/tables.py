"""The benchmark's tables of detectors, features and baselines, and the cost of scoring.

Each row is a dictionary that can be written as JSON.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor

from anomaly.data.images.network_images import NetworkImages
from anomaly.detection.baselines import Baseline
from anomaly.detection.features import reported_names
from anomaly.detection.kinds import (
    KindSettings,
    LedoitWolfSettings,
    MixtureSettings,
    NeighboursSettings,
)
from anomaly.detection.scoring import FeatureTable, fit_on, score_observation
from anomaly.errors import AnomalyError
from anomaly.evaluation.benchmark.normals import Normals
from anomaly.evaluation.benchmark.scans import Array, Bench, Evaluator, Row
from anomaly.evaluation.metrics import (
    auroc,
)
from anomaly.logs import Public

__all__ = ["baseline_table", "cost", "detector_table", "feature_table"]

log = logging.getLogger(__name__)

Role: TypeAlias = Literal["candidate", "other density", "single group"]
Scorer: TypeAlias = Callable[[FeatureTable], Array]

COST_SCANS = 64

SINGLE_GROUPS = (
    "energy",
    "texture",
    "signed",
    "octave",
    "score_norm",
    "residual",
    "profile",
    "posterior",
    "evidence",
)
"""Feature groups that are each evaluated alone."""


# --- detectors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rival:
    """A detector for comparison: its name, its role, and the function that fits it."""

    name: str
    role: Role
    fit: Callable[[FeatureTable, NDArray[np.intp]], Scorer]


def detector_table(bench: Bench, normals: Normals) -> list[Row]:
    """Compare the bundle's detector with others fitted on the same normals.

    Parameters
    ----------
    bench : Bench
    normals : Normals

    Returns
    -------
    list of dict
        ``name``, ``role``, ``margin`` and ``sets``, or ``problem`` if it cannot be fitted.
    """
    chosen, margins = normals.chosen, normals.evaluator.bundle.margins
    candidates = normals.evaluator.observer.config.detector.candidates
    first = {"name": f"bundle: {chosen}", "role": "default", "margin": margins.get(str(chosen))}
    rows = [{**first, "sets": bench.figures(lambda scored: scored.scores)}]
    for rival in _rivals(candidates, chosen):
        row: Row = {"name": rival.name, "role": rival.role, "margin": margins.get(rival.name)}
        rows.append(
            {**row, **_figures_or_problem(bench, partial(rival.fit, normals.table, normals.scans))}
        )
    return rows


def _figures_or_problem(bench: Bench, fit: Callable[[], Scorer]) -> Row:
    """Figures of one detector, or the problem if it cannot be fitted; the others continue."""
    try:
        score = fit()
        return {"sets": bench.figures(lambda scans: score(scans.table))}
    except AnomalyError as error:
        log.warning("not compared: %s", Public(error))
        return {"problem": str(error)}


def _rivals(candidates: Sequence[KindSettings], chosen: KindSettings) -> Iterator[_Rival]:
    main = chosen.use[0]
    others = (MixtureSettings((main,)), NeighboursSettings((main,)))
    reasons: tuple[tuple[Role, Sequence[KindSettings]], ...] = (
        ("candidate", candidates),
        ("other density", others),
        ("single group", [LedoitWolfSettings((group,)) for group in SINGLE_GROUPS]),
    )
    done = set()
    for role, settings in reasons:
        for detector in settings:
            if str(detector) not in done:  # a candidate may also use a single group
                yield _Rival(str(detector), role, partial(_fit_detector, detector))
            done.add(str(detector))
    svm, forest = OneClassSVM(nu=0.05), IsolationForest(n_estimators=200, random_state=0)
    yield _Rival(f"one-class SVM over {main}", "other density", partial(_fit_outlier, svm, main))
    yield _Rival(f"forest over {main}", "other density", partial(_fit_outlier, forest, main))


def _fit_detector(settings: KindSettings, normals: FeatureTable, scans: NDArray[np.intp]) -> Scorer:
    detector = fit_on(normals, settings, scans)
    return lambda table: detector.score(table.use(detector.names).values)


def _fit_outlier(
    model: OneClassSVM | IsolationForest, main: str, normals: FeatureTable, _: NDArray[np.intp]
) -> Scorer:
    """Fit a scikit-learn model on whitened principal components; never saved (needs pickle)."""
    values = normals.use((main,)).values
    components = PCA(min(100, values.shape[1], len(values) - 1), whiten=True, svd_solver="full")
    fitted = make_pipeline(StandardScaler(), components, model).fit(values)
    return lambda table: -np.asarray(fitted.decision_function(table.use((main,)).values))


def feature_table(bench: Bench, normals: Normals) -> list[Row]:
    """AUROC of each reported feature by itself, higher = more anomalous.

    Parameters
    ----------
    bench : Bench
    normals : Normals
        The mean of their unaltered scans is the centre of the two-sided ``nll``.
    """
    names = reported_names(normals.evaluator.observer.config.features)
    typical = float(normals.unaltered.use(("nll",)).values.mean())
    rows = [_feature_row(bench, name, lambda v: v, name) for name in names]
    rows.append(_feature_row(bench, "nll two-sided", lambda v: np.abs(v - typical), "nll"))
    return rows


def _feature_row(bench: Bench, name: str, side: Callable[[Array], Array], column: str) -> Row:
    sets = {}
    for item in bench.sets:
        both = [group.table.use((column,)).values[:, 0] for group in (item.normal, item.abnormal)]
        estimate = auroc(side(np.concatenate(both)), item.is_abnormal, item.patients)
        sets[item.name] = {"auroc": asdict(estimate), "inverted": estimate.value < 0.5}
    return {"name": name, "sets": sets}


# --- baselines --------------------------------------------------------------------------------


def baseline_table(
    bench: Bench, baselines: Sequence[Baseline], train: Tensor, validation: Tensor, seed: int
) -> tuple[list[Row], list[Baseline]]:
    """Fit each baseline and score the sets.

    Returns
    -------
    list of dict
        ``name`` and ``sets``, or ``problem`` if it cannot be fitted.
    list of Baseline
        The baselines that were fitted.
    """
    rows: list[Row] = []
    fitted = []
    for baseline in baselines:
        log.info("fitting %s", Public(baseline.name))
        try:
            baseline.fit(train, validation, seed)
            figures = bench.figures(lambda scans, b=baseline: b.score(scans.seen.images).scores)  # type: ignore[misc]
        except AnomalyError as error:
            log.warning("not compared: %s: %s", Public(baseline.name), Public(error))
            rows.append({"name": baseline.name, "problem": str(error)})
            continue
        rows.append({"name": baseline.name, "sets": figures})
        fitted.append(baseline)
    return rows, fitted


# --- cost -------------------------------------------------------------------------------------


def cost(bench: Bench, evaluator: Evaluator) -> Row:
    """Measure speed and passes per scan, from network image to score, and peak memory so far."""
    images = next(bench.held_out.seen.split(COST_SCANS))
    _score_all(evaluator, next(images.split(32)))  # warm-up: one-time setup is not timed
    began = time.perf_counter()
    _score_all(evaluator, images)
    seconds = time.perf_counter() - began
    features = evaluator.observer.config.features
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "scans": len(images),
        "scans_per_second": len(images) / seconds,
        "forward_passes": features.forward_passes,
        "gradients": features.gradients,
        "threads": torch.get_num_threads(),
        # kilobytes on Linux, bytes on macOS
        "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }


def _score_all(evaluator: Evaluator, images: NetworkImages) -> None:
    bundle, features = evaluator.bundle, evaluator.observer.config.features
    for part in evaluator.observer.parts(images, "timing"):
        score_observation(part, features, bundle.detector, bundle.heatmap)
