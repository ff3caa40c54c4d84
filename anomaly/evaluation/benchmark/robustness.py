"""The benchmark's tables of altered normals: nuisances, gross errors, lesions, false-alarm law.

Each row is a dictionary that can be written as JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic.alterations import Alteration, alter
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection.baselines import Baseline
from anomaly.detection.calibration import false_alarm_interval
from anomaly.errors import CalibrationError, ConfigError
from anomaly.evaluation.benchmark.scans import (
    Array,
    Bench,
    EvaluationSet,
    Evaluator,
    Row,
    ScoredSet,
)
from anomaly.evaluation.metrics import (
    auroc,
    exact_rate,
    patient_mean,
    pixel_average_precision,
    pointing_hits,
    realised_false_alarms,
)
from anomaly.logs import Public
from anomaly.training.detector_fit import calibration_change

__all__ = [
    "ALTERATION_SEED",
    "altered_by",
    "false_alarm_table",
    "lesion_tables",
    "nuisance_table",
]

log = logging.getLogger(__name__)

ALTERATION_SEED = 0
SPLITS, SPLITS_SEED = 200, 0

SHOWN_SIDE = 112
"""Approximate number of source pixels per side of the grid for pixel precision."""

MAPS = {"autoencoder_reconstruction": "auto-encoder", "denoiser_msma": "plain denoiser"}
"""Baselines whose maps are compared, with the names of their maps."""


def nuisance_table(
    bench: Bench, evaluator: Evaluator, nuisances: Sequence[Alteration]
) -> tuple[list[Row], dict[str, Array]]:
    """Measure the effect of nuisances on held-out normals.

    Returns
    -------
    list of dict
        ``auroc``: altered against unaltered normals, 0.5 = no difference; ``false_alarms`` on the
        altered normals; ``abnormal_auroc``: abnormal scans against altered normals, by set.
    dict of str to ndarray (N,)
        Scores of the held-out normals under each nuisance.
    """
    rows, scores = [], {}
    for nuisance in nuisances:
        altered = _look_altered(bench, evaluator, nuisance)
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
    bench: Bench,
    evaluator: Evaluator,
    alterations: Sequence[Alteration],
    baselines: Sequence[Baseline],
) -> tuple[list[Row], list[Row]]:
    """Measure the detection of gross errors and inserted lesions, and the localisation of lesions.

    Returns
    -------
    list of dict
        ``sensitivity`` at alpha; ``auroc``: altered against unaltered normals.
    list of dict
        For each lesion and map: ``average_precision`` of pixels with their ``prevalence``, and
        ``hit_rate``: how often the largest value is inside the mask; on source pixels.
    """
    rows: list[Row] = []
    places: list[Row] = []
    for alteration in alterations:
        lesion = alteration.family == "lesion"
        altered = _look_altered(bench, evaluator, alteration, maps=lesion)
        rows.append(
            {
                "name": alteration.name,
                "family": alteration.family,
                "sensitivity": asdict(exact_rate(_bundle_flags(bench, altered))),
                "auroc": _against_unaltered(bench, altered),
            }
        )
        if lesion:
            places.extend(_localisation(evaluator, alteration, altered, baselines))
    return rows, places


def _look_altered(
    bench: Bench, evaluator: Evaluator, alteration: Alteration, *, maps: bool = False
) -> ScoredSet:
    return evaluator.look(
        bench.held_out.rows, alteration.name, partial(altered_by, alteration), maps=maps
    )


def altered_by(
    alteration: Alteration, pixels: NDArray[np.float32], row: ManifestRow
) -> NDArray[np.float32]:
    """Alter a scan's source pixels; the random draw depends on the scan's content."""
    return alter(pixels, alteration, row.sha256, ALTERATION_SEED).pixels


def _bundle_flags(bench: Bench, scans: ScoredSet) -> NDArray[np.bool_]:
    return bench.flags(bench.calibration.scores, scans.scores)


def _against_unaltered(bench: Bench, altered: ScoredSet) -> Row:
    return _auroc_between(bench.held_out, altered)


def _auroc_between(normal: ScoredSet, abnormal: ScoredSet) -> Row:
    item = EvaluationSet("", normal, abnormal)
    scores = np.concatenate([normal.scores, abnormal.scores])
    return asdict(auroc(scores, item.is_abnormal, item.patients))


def _localisation(
    evaluator: Evaluator, lesion: Alteration, altered: ScoredSet, baselines: Sequence[Baseline]
) -> Iterator[Row]:
    maps = dict(altered.maps)
    for baseline in baselines:
        evidence_maps = baseline.score(altered.seen.images).maps if baseline.name in MAPS else None
        if evidence_maps is not None:
            maps[MAPS[baseline.name]] = np.where(altered.seen.blank, 0, evidence_maps)
    places = list(_places(evaluator, lesion, altered.rows, maps))
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
    """One lesion: hits of the maps, and mask and maps at every n-th source pixel."""

    mask: NDArray[np.bool_]
    values: dict[str, NDArray[np.float32]]
    hits: dict[str, bool]


def _places(
    evaluator: Evaluator,
    lesion: Alteration,
    rows: Sequence[ManifestRow],
    maps: Mapping[str, NDArray[np.float32]],
) -> Iterator[_Place]:
    """Resample maps to source pixels, scan by scan, with the mask of the same random draw."""
    reader = evaluator.observer.reader()
    for index, row in enumerate(rows):
        scan, _, frame = reader.framed(row)  # already read once for its score
        mask = alter(scan.pixels, lesion, row.sha256, ALTERATION_SEED).mask
        if mask is None:
            raise ConfigError(f"{lesion.name} is called a lesion and draws no mask")
        step = max(1, max(mask.shape) // SHOWN_SIDE)
        full = {name: frame.to_source(map_[index]) for name, map_ in maps.items()}
        yield _Place(
            mask[::step, ::step],
            {name: values[::step, ::step] for name, values in full.items()},
            {name: bool(pointing_hits([values], [mask])[0]) for name, values in full.items()},
        )


# --- false alarms -----------------------------------------------------------------------------


def false_alarm_table(
    bench: Bench, evaluator: Evaluator, altered: Mapping[str, Array]
) -> list[Row]:
    """Compare false-alarm rates over random splits by patient with their theoretical distribution.

    Parameters
    ----------
    bench : Bench
    evaluator : Evaluator
    altered : dict of str to ndarray (N,)
        Scores of ``bench.held_out`` under nuisances, for which there is no guarantee.

    Returns
    -------
    list of dict
        ``mean_rate``; ``inside``: share of splits within the 95 % band of
        `anomaly.detection.calibration.false_alarm_interval`.
    """
    # Calibration scans are observed only with the calibration change, so other counts exclude them.
    kept = np.full(len(bench.calibration.rows), np.nan)
    change, plain = calibration_change(evaluator.observer.config), bench.held_out
    alike = plain if change is None else evaluator.look(plain.rows, "as calibrated", change)
    scores = np.concatenate([bench.calibration.scores, alike.scores])
    counted = {"as calibrated": scores}
    others = {**({} if change is None else {"unaltered": plain.scores}), **altered}
    counted |= {name: np.concatenate([kept, values]) for name, values in others.items()}
    patients = bench.calibration.patients + bench.held_out.patients
    return [_law(bench, name, scores, values, patients) for name, values in counted.items()]


def _law(bench: Bench, name: str, scores: Array, counted: Array, patients: Sequence[str]) -> Row:
    try:
        rates = realised_false_alarms(
            scores, counted, patients, bench.flags, splits=SPLITS, seed=SPLITS_SEED
        )
        sizes = zip(rates.calibration.tolist(), rates.counted.tolist(), strict=True)
        bands = [_band(n, bench.alpha, m) for n, m in sizes]
    except CalibrationError as error:
        log.warning("no false-alarm law for %s: %s", Public(name), Public(error))
        return {"name": name, "problem": str(error)}
    low, high = np.array(bands).T
    return {
        "name": name,
        "splits": len(rates.rates),
        "mean_rate": float(rates.rates.mean()),
        "inside": float(((low <= rates.rates) & (rates.rates <= high)).mean()),
        "rate_low": float(np.quantile(rates.rates, 0.025)),
        "rate_high": float(np.quantile(rates.rates, 0.975)),
        "calibration_scans": float(rates.calibration.mean()),
        "counted_scans": float(rates.counted.mean()),
    }


@cache  # 2,600 splits share a few dozen sizes
def _band(n: int, alpha: float, m: int) -> tuple[float, float]:
    return false_alarm_interval(n, alpha, 0.95, m)
