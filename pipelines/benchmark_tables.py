"""The benchmark's tables: sets of scans that were looked at once -> rows of figures.

A row is a plain dictionary, ready for JSON. Whatever is compared, a detector, a baseline or a map,
was fitted on normal scans alone; its threshold is the conformal one at the stated alpha, from the
scores that *it* gives the calibration split. Labels count hits here; they set nothing.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor

from anomaly.bundle import Bundle
from anomaly.data.alterations import Alteration, alter
from anomaly.data.loaders import Change, NetworkImage, read_network_images
from anomaly.data.manifest import ManifestRow
from anomaly.detection.baselines import Baseline
from anomaly.detection.calibration import Calibration, false_alarm_interval
from anomaly.detection.detector import DetectorSettings
from anomaly.detection.features import reported_names
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.scoring import FeatureTable, fit_on, new_table, score_observation
from anomaly.errors import AnomalyError, CalibrationError
from anomaly.evaluation import (
    auroc,
    average_precision,
    exact_rate,
    patient_mean,
    pixel_average_precision,
    pointing_hits,
    realised_false_alarms,
)
from pipelines.fit import Watcher

__all__ = [
    "ALTERATION_SEED",
    "Bench",
    "EvaluationSet",
    "Judge",
    "Looked",
    "altered_by",
    "baseline_table",
    "cost",
    "detector_table",
    "false_alarm_table",
    "feature_table",
    "lesion_tables",
    "nuisance_table",
]

log = logging.getLogger(__name__)

Array: TypeAlias = NDArray[np.float64]
Row: TypeAlias = dict[str, Any]
Role: TypeAlias = Literal["candidate", "other density", "single group"]
Scorer: TypeAlias = Callable[[FeatureTable], Array]

ALTERATION_SEED = 0
SPLITS, SPLITS_SEED = 200, 0
COST_SCANS = 64

GRADIENT_LEVEL = 0.25
"""``sigma / alpha`` of the residual map that stands for the raw gradient."""

SHOWN_SIDE = 112
"""Pixel precision is counted on a fixed grid of about so many source pixels a side."""

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
"""Groups of which each is tried alone."""

MAPS = {"autoencoder_reconstruction": "auto-encoder", "denoiser_msma": "plain denoiser"}
"""Baselines whose maps are compared, and what their maps are called."""


@dataclass(frozen=True)
class Looked:
    """N scans, and what was said of them.

    Attributes
    ----------
    rows : tuple of ManifestRow
    images : Tensor (N, 1, S, S) float32 in [-1, 1]
    scores : ndarray (N,) float64; higher = more anomalous
        By the bundle.
    table : FeatureTable
        Features of local evidence from the heatmap that the comparisons share.
    maps : dict of str to ndarray (N, S, S) float32 >= 0
        Bundle's evidence and raw gradient in the network's frame; empty unless asked for.
    """

    rows: tuple[ManifestRow, ...]
    images: Tensor
    scores: Array
    table: FeatureTable
    maps: dict[str, NDArray[np.float32]]

    @property
    def patients(self) -> list[str]:
        """Patient of every scan."""
        return [row.patient for row in self.rows]


@dataclass(frozen=True)
class Judge:
    """A bundle that looks at scans.

    Attributes
    ----------
    watcher : Watcher
    bundle : Bundle
    heatmap : HeatmapModel
        Fitted on the normals that the comparisons are fitted on; the bundle's own where they are
        the ones that it was made from.
    """

    watcher: Watcher
    bundle: Bundle
    heatmap: HeatmapModel

    def look(
        self,
        rows: Sequence[ManifestRow],
        what: str,
        change: Change | None = None,
        *,
        maps: bool = False,
    ) -> Looked:
        """Read scans, changed where asked, and ask the bundle about them; residuals are let go.

        Raises
        ------
        CalibrationError
            If a score is not finite.
        """
        images = self.watcher.images(rows, change)
        features, bundle = self.watcher.config.features, self.bundle
        scores, tables, evidence, gradient = [], [], [], []
        level = int(np.argmin(np.abs(np.log(np.array(features.noise_to_signal) / GRADIENT_LEVEL))))
        for part in self.watcher.parts(images, what):
            said = score_observation(part, features, bundle.detector, bundle.heatmap)
            scores.append(said.scores)
            tables.append(new_table(part, features, self.heatmap))
            if maps:
                evidence.append(said.evidence)
                gradient.append(np.abs(part.residuals[:, level]))
        shown = {}
        if maps:
            shown = {"evidence": np.concatenate(evidence), "gradient": np.concatenate(gradient)}
        values = np.concatenate([table.values for table in tables])
        table = FeatureTable(tables[0].names, tables[0].groups, values)
        return Looked(tuple(rows), images, _finite(np.concatenate(scores), what), table, shown)


@dataclass(frozen=True)
class EvaluationSet:
    """Normal and abnormal scans that nothing was fitted or calibrated on.

    Attributes
    ----------
    name : str
    normal, abnormal : Looked
    """

    name: str
    normal: Looked
    abnormal: Looked

    @property
    def patients(self) -> list[str]:
        """Patient of every scan, normal ones first."""
        return self.normal.patients + self.abnormal.patients

    @property
    def is_abnormal(self) -> NDArray[np.bool_]:
        """Kind of every scan, normal ones first."""
        return np.repeat([False, True], [len(self.normal.rows), len(self.abnormal.rows)])


@dataclass(frozen=True)
class Bench:
    """Everything that figures are computed from.

    Attributes
    ----------
    alpha : float
        Stated false-alarm rate.
    calibration : Looked
        Normals of the calibration split: every threshold comes from their scores.
    held_out : Looked
        Normals of the test split: what is altered.
    sets : tuple of EvaluationSet
    """

    alpha: float
    calibration: Looked
    held_out: Looked
    sets: tuple[EvaluationSet, ...]

    def flags(self, calibration: Array, scores: Array) -> NDArray[np.bool_]:
        """Return which scores are unusual at alpha, given those of the calibration scans."""
        return Calibration.from_scores(calibration).p_values(scores) <= self.alpha

    def figures(self, score: Callable[[Looked], Array]) -> dict[str, Row]:
        """AUROC, average precision, sensitivity and specificity in every set."""
        calibration = _finite(score(self.calibration), "calibration")
        found = {}
        for item in self.sets:
            scores = np.concatenate([score(item.normal), score(item.abnormal)])
            abnormal = item.is_abnormal
            flags = self.flags(calibration, _finite(scores, item.name))
            found[item.name] = {
                "auroc": asdict(auroc(scores, abnormal, item.patients)),
                "average_precision": {
                    **asdict(average_precision(scores, abnormal, item.patients)),
                    "prevalence": float(abnormal.mean()),
                },
                "sensitivity": asdict(exact_rate(flags[abnormal])),
                "specificity": asdict(exact_rate(~flags[~abnormal])),
                "false_alarms": asdict(exact_rate(flags[~abnormal])),
            }
        return found


# --- detectors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rival:
    """A detector to compare with: its name, why it is here, and how it is fitted."""

    name: str
    role: Role
    fit: Callable[[FeatureTable, NDArray[np.intp]], Scorer]


def detector_table(
    bench: Bench,
    candidates: Sequence[DetectorSettings],
    chosen: DetectorSettings,
    margins: Mapping[str, float],
    normals: FeatureTable,
    scans: NDArray[np.intp],
) -> list[Row]:
    """Compare the bundle's detector with others fitted on the same normals.

    Parameters
    ----------
    bench : Bench
    candidates : sequence of DetectorSettings
        Among which the bundle's was chosen.
    chosen : DetectorSettings
        The bundle's.
    margins : mapping of str to float
        By candidate; empty where there was one.
    normals : FeatureTable
    scans : ndarray of int
        As in `anomaly.detection.scoring.normal_table`.

    Returns
    -------
    list of dict
        ``name``, ``role``, ``margin`` and ``sets``, or ``problem`` where it cannot be fitted.
    """
    first = {"name": f"bundle: {chosen}", "role": "default", "margin": margins.get(str(chosen))}
    rows = [{**first, "sets": bench.figures(lambda looked: looked.scores)}]
    for rival in _rivals(candidates, chosen):
        row: Row = {"name": rival.name, "role": rival.role, "margin": margins.get(rival.name)}
        rows.append({**row, **_figures_or_problem(bench, partial(rival.fit, normals, scans))})
    return rows


def _figures_or_problem(bench: Bench, fit: Callable[[], Scorer]) -> Row:
    """Figures of one comparison; one that cannot be fitted does not cost the others."""
    try:
        score = fit()
        return {"sets": bench.figures(lambda looked: score(looked.table))}
    except AnomalyError as error:
        log.warning("not compared: %s", error)
        return {"problem": str(error)}


def _rivals(candidates: Sequence[DetectorSettings], chosen: DetectorSettings) -> Iterator[_Rival]:
    main = chosen.use[0]
    others = (DetectorSettings((main,), "mixture"), DetectorSettings((main,), "neighbours"))
    reasons: tuple[tuple[Role, Sequence[DetectorSettings]], ...] = (
        ("candidate", candidates),
        ("other density", others),
        ("single group", [DetectorSettings((group,)) for group in SINGLE_GROUPS]),
    )
    done = set()
    for role, settings in reasons:
        for detector in settings:
            if str(detector) not in done:  # a candidate may be a single group too
                yield _Rival(str(detector), role, partial(_fit_detector, detector))
            done.add(str(detector))
    svm, forest = OneClassSVM(nu=0.05), IsolationForest(n_estimators=200, random_state=0)
    yield _Rival(f"one-class SVM over {main}", "other density", partial(_fit_outlier, svm, main))
    yield _Rival(f"forest over {main}", "other density", partial(_fit_outlier, forest, main))


def _fit_detector(
    settings: DetectorSettings, normals: FeatureTable, scans: NDArray[np.intp]
) -> Scorer:
    detector = fit_on(normals, settings, scans)
    return lambda table: detector.score(table.use(detector.names).values)


def _fit_outlier(
    model: OneClassSVM | IsolationForest, main: str, normals: FeatureTable, _: NDArray[np.intp]
) -> Scorer:
    """Fit one of scikit-learn's on whitened principal components; never saved, as it is pickled."""
    values = normals.use((main,)).values
    components = PCA(min(100, values.shape[1], len(values) - 1), whiten=True, svd_solver="full")
    fitted = make_pipeline(StandardScaler(), components, model).fit(values)
    return lambda table: -np.asarray(fitted.decision_function(table.use((main,)).values))


def feature_table(bench: Bench, judge: Judge, normals: FeatureTable) -> list[Row]:
    """AUROC of every reported number by itself, higher = more anomalous.

    Parameters
    ----------
    bench, judge
    normals : FeatureTable
        Of unaltered normals that detectors are fitted on, for the two-sided ``nll``.
    """
    names = reported_names(judge.watcher.config.features)
    typical = float(normals.use(("nll",)).values.mean())
    rows = [_feature_row(bench, name, lambda v: v, name) for name in names]
    rows.append(_feature_row(bench, "nll two-sided", lambda v: np.abs(v - typical), "nll"))
    return rows


def _feature_row(bench: Bench, name: str, side: Callable[[Array], Array], column: str) -> Row:
    sets = {}
    for item in bench.sets:
        both = [looked.table.use((column,)).values[:, 0] for looked in (item.normal, item.abnormal)]
        found = auroc(side(np.concatenate(both)), item.is_abnormal, item.patients)
        sets[item.name] = {"auroc": asdict(found), "inverted": found.value < 0.5}
    return {"name": name, "sets": sets}


# --- baselines --------------------------------------------------------------------------------


def baseline_table(
    bench: Bench, baselines: Sequence[Baseline], train: Tensor, validation: Tensor, seed: int
) -> tuple[list[Row], list[Baseline]]:
    """Fit every baseline and score the sets.

    Returns
    -------
    list of dict
        ``name`` and ``sets``, or ``problem`` where it cannot be fitted.
    list of Baseline
        Those that could.
    """
    rows: list[Row] = []
    fitted = []
    for baseline in baselines:
        log.info("fitting %s", baseline.name)
        try:
            baseline.fit(train, validation, seed)
            figures = bench.figures(lambda looked, b=baseline: b.score(looked.images).scores)  # type: ignore[misc]
        except AnomalyError as error:
            log.warning("not compared: %s: %s", baseline.name, error)
            rows.append({"name": baseline.name, "problem": str(error)})
            continue
        rows.append({"name": baseline.name, "sets": figures})
        fitted.append(baseline)
    return rows, fitted


# --- altered normals --------------------------------------------------------------------------


def nuisance_table(
    bench: Bench, judge: Judge, nuisances: Sequence[Alteration]
) -> tuple[list[Row], dict[str, Array]]:
    """Measure what mild acquisition changes do to held-out normals.

    Returns
    -------
    list of dict
        ``auroc``: altered against unaltered normals, 0.5 = no difference; ``false_alarms`` on the
        altered ones; ``abnormal_auroc``: abnormal scans against altered normals, by set.
    dict of str to ndarray (N,)
        Scores of the held-out normals under each.
    """
    rows, scores = [], {}
    for nuisance in nuisances:
        altered = _look_altered(bench, judge, nuisance)
        scores[nuisance.name] = altered.scores
        rows.append(
            {
                "name": nuisance.name,
                "auroc": _against_unaltered(bench, altered),
                "false_alarms": asdict(exact_rate(_bundle_flags(bench, altered))),
                "abnormal_auroc": {
                    item.name: _auroc_between(altered, item.abnormal)
                    for item in bench.sets
                    if item.normal is bench.held_out
                },
            }
        )
    return rows, scores


def lesion_tables(
    bench: Bench, judge: Judge, alterations: Sequence[Alteration], baselines: Sequence[Baseline]
) -> tuple[list[Row], list[Row]]:
    """Measure how gross errors and inserted lesions stand out, and whether lesions are found.

    Returns
    -------
    list of dict
        ``sensitivity`` at alpha; ``auroc``: altered against unaltered normals.
    list of dict
        Of every lesion and map: ``average_precision`` of pixels beside their ``prevalence``, and
        ``hit_rate`` of the largest value within the mask; on source pixels.
    """
    rows: list[Row] = []
    places: list[Row] = []
    for alteration in alterations:
        lesion = alteration.family == "lesion"
        altered = _look_altered(bench, judge, alteration, maps=lesion)
        rows.append(
            {
                "name": alteration.name,
                "family": alteration.family,
                "sensitivity": asdict(exact_rate(_bundle_flags(bench, altered))),
                "auroc": _against_unaltered(bench, altered),
            }
        )
        if lesion:
            places.extend(_localisation(judge, alteration, altered, baselines))
    return rows, places


def _look_altered(
    bench: Bench, judge: Judge, alteration: Alteration, *, maps: bool = False
) -> Looked:
    return judge.look(
        bench.held_out.rows, alteration.name, partial(altered_by, alteration), maps=maps
    )


def altered_by(
    alteration: Alteration, pixels: NDArray[np.float32], row: ManifestRow
) -> NDArray[np.float32]:
    """Alter a scan's source pixels by the draw that is its own, a function of its content."""
    return alter(pixels, alteration, row.sha256, ALTERATION_SEED).pixels


def _bundle_flags(bench: Bench, looked: Looked) -> NDArray[np.bool_]:
    return bench.flags(bench.calibration.scores, looked.scores)


def _against_unaltered(bench: Bench, altered: Looked) -> Row:
    return _auroc_between(bench.held_out, altered)


def _auroc_between(normal: Looked, abnormal: Looked) -> Row:
    item = EvaluationSet("", normal, abnormal)
    scores = np.concatenate([normal.scores, abnormal.scores])
    return asdict(auroc(scores, item.is_abnormal, item.patients))


def _localisation(
    judge: Judge, lesion: Alteration, altered: Looked, baselines: Sequence[Baseline]
) -> Iterator[Row]:
    maps = dict(altered.maps)
    for baseline in baselines:
        found = baseline.score(altered.images).maps if baseline.name in MAPS else None
        if found is not None:
            maps[MAPS[baseline.name]] = found
    places = list(_places(judge, lesion, altered.rows, maps))
    masks = [place.mask for place in places]
    for name in maps:
        evidence = [place.values[name] for place in places]
        hits = np.array([place.hits[name] for place in places])
        yield {
            "lesion": lesion.name,
            "map": name,
            "scans": len(places),
            "prevalence": float(np.concatenate([mask.ravel() for mask in masks]).mean()),
            "average_precision": asdict(pixel_average_precision(evidence, masks, altered.patients)),
            "hit_rate": asdict(patient_mean(hits, altered.patients)),
        }


@dataclass(frozen=True)
class _Place:
    """One lesion: which maps point at it, and mask and maps on every n-th source pixel."""

    mask: NDArray[np.bool_]
    values: dict[str, NDArray[np.float32]]
    hits: dict[str, bool]


def _places(
    judge: Judge,
    lesion: Alteration,
    rows: Sequence[ManifestRow],
    maps: Mapping[str, NDArray[np.float32]],
) -> Iterator[_Place]:
    """Bring maps to the source, scan by scan; the mask is that of the draw they were made from."""
    config = judge.watcher.config
    scans = read_network_images(config.data.root, rows, config.intensity, config.preprocessing)
    for index, item in enumerate(scans):
        if not isinstance(item, NetworkImage):
            raise item[1]  # it was read a moment ago
        mask = alter(item.scan.pixels, lesion, item.row.sha256, ALTERATION_SEED).mask
        assert mask is not None, f"{lesion.name} draws no mask"
        step = max(1, max(mask.shape) // SHOWN_SIDE)
        full = {name: item.frame.to_source(map_[index]) for name, map_ in maps.items()}
        yield _Place(
            mask[::step, ::step],
            {name: values[::step, ::step] for name, values in full.items()},
            {name: bool(pointing_hits([values], [mask])[0]) for name, values in full.items()},
        )


# --- false alarms, cost -----------------------------------------------------------------------


def false_alarm_table(bench: Bench, altered: Mapping[str, Array]) -> list[Row]:
    """Compare false-alarm rates over random splits by patient with the law that they should keep.

    Parameters
    ----------
    bench : Bench
    altered : dict of str to ndarray (N,)
        Scores of ``bench.held_out`` under nuisances, of which the law promises nothing.

    Returns
    -------
    list of dict
        ``mean_rate``; ``inside``: share of splits within the 95 % band of
        `anomaly.detection.calibration.false_alarm_interval`.
    """
    # Calibration scans are not looked at under nuisance: they are not counted there.
    kept = np.full(len(bench.calibration.rows), np.nan)
    scores = np.concatenate([bench.calibration.scores, bench.held_out.scores])
    counted = {"unaltered": scores}
    counted |= {name: np.concatenate([kept, values]) for name, values in altered.items()}
    patients = bench.calibration.patients + bench.held_out.patients
    return [_law(bench, name, scores, values, patients) for name, values in counted.items()]


def _law(bench: Bench, name: str, scores: Array, counted: Array, patients: Sequence[str]) -> Row:
    try:
        found = realised_false_alarms(
            scores, counted, patients, bench.flags, splits=SPLITS, seed=SPLITS_SEED
        )
        sizes = zip(found.calibration.tolist(), found.counted.tolist(), strict=True)
        bands = [_band(n, bench.alpha, m) for n, m in sizes]
    except CalibrationError as error:
        log.warning("no false-alarm law for %s: %s", name, error)
        return {"name": name, "problem": str(error)}
    low, high = np.array(bands).T
    return {
        "name": name,
        "splits": len(found.rates),
        "mean_rate": float(found.rates.mean()),
        "inside": float(((low <= found.rates) & (found.rates <= high)).mean()),
        "rate_low": float(np.quantile(found.rates, 0.025)),
        "rate_high": float(np.quantile(found.rates, 0.975)),
        "calibration_scans": float(found.calibration.mean()),
        "counted_scans": float(found.counted.mean()),
    }


@cache  # 2,600 splits share a few dozen sizes
def _band(n: int, alpha: float, m: int) -> tuple[float, float]:
    return false_alarm_interval(n, alpha, 0.95, m)


def cost(bench: Bench, judge: Judge) -> Row:
    """Seconds and passes a scan, from network image to score, and the largest memory so far."""
    images = bench.held_out.images[:COST_SCANS]
    _score_all(judge, images[:32])  # the first batch pays for what is set up once
    began = time.perf_counter()
    _score_all(judge, images)
    seconds = time.perf_counter() - began
    features = judge.watcher.config.features
    levels = len(features.noise_to_signal)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "scans": len(images),
        "scans_per_second": len(images) / seconds,
        "forward_passes": features.draws * (1 + levels),
        "gradients": features.draws * levels,
        "threads": torch.get_num_threads(),
        # kilobytes on Linux, bytes on macOS
        "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }


def _score_all(judge: Judge, images: Tensor) -> None:
    bundle, features = judge.bundle, judge.watcher.config.features
    for part in judge.watcher.parts(images, "timing"):
        score_observation(part, features, bundle.detector, bundle.heatmap)


def _finite(scores: Array, what: str) -> Array:
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise CalibrationError(
            f"{bad} of {len(scores)} scores ({what}) are not finite: expected numbers, train the "
            "network again"
        )
    return scores
