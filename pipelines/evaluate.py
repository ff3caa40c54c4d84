"""evaluate: scores and labels -> metrics with intervals, printed and in ``metrics.json``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomaly.config import Config
from anomaly.data.table.manifest import NOT_LISTED, Manifest, ManifestRow
from anomaly.detection.calibration import false_alarm_interval
from anomaly.errors import AnomalyError
from anomaly.evaluation.metrics import (
    Estimate,
    Rate,
    auroc,
    exact_rate,
    image_metrics,
    pixel_metrics,
)
from anomaly.files import strict_json, whole, writing
from anomaly.logs import Public
from anomaly.pipelines.prepare import mask_hash
from anomaly.pipelines.run import NOTICE, RunFolder
from anomaly.scoring.verdicts import matching_scores, on_source
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.results import ScoreRow
from anomaly.types import Orientation

__all__ = ["evaluate", "lesion_mask"]

log = logging.getLogger(__name__)


def evaluate(run: RunFolder, config: Config) -> dict[str, Any]:
    """Compare verdicts with labels; every label except the normal one counts as abnormal.

    Raises
    ------
    AnomalyError
        There are no scores, they belong to another manifest, or normal or abnormal scans are
        missing.
    """
    bundle = read_bundle(run.bundle)
    calibrated = bundle.calibration()
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    rows, provenance = matching_scores(run.results, manifest, bundle)
    alpha = provenance.alpha  # the rate at which the scans were flagged
    by_key = {row.key: row for row in manifest.select()}
    labelled = [(r, by_key[r.key]) for r in rows if r.status == "scored" and by_key[r.key].label]
    pairs = _unseen(labelled)
    abnormal = np.array([scan.label != config.data.normal for _, scan in pairs])
    patients = [scan.patient for _, scan in pairs]
    scores = np.array([row.score for row, _ in pairs], dtype=np.float64)
    flagged = np.array([bool(row.flagged) for row, _ in pairs])
    regions = np.array([bool(row.regions) for row, _ in pairs])
    n = len(calibrated.scores.scores)
    low, high = false_alarm_interval(n, alpha, 0.95, int((~abnormal).sum()))
    metrics: dict[str, Any] = {
        "notice": NOTICE,
        "scans": {"normal": int((~abnormal).sum()), "abnormal": int(abnormal.sum())},
        "seen": len(labelled) - len(pairs),
        "not_scored": sum(row.status != "scored" for row in rows),
        "alpha": alpha,
        "calibration_scans": n,
        **image_metrics(scores, flagged, abnormal, patients),
        "false_alarm_bound": {
            # Calibrated on changed scans, so a low rate on unchanged ones is expected.
            "low": 0.0 if calibrated.under_nuisance else low,
            "high": high,
        },
        "normals_with_any_region": asdict(exact_rate(regions[~abnormal])),
        "normals_flagged_with_a_region": asdict(exact_rate((regions & flagged)[~abnormal])),
        "features": _feature_aurocs(pairs, abnormal, patients),
        "provenance": asdict(provenance),
    }
    if config.data.masks:
        metrics["pixels"] = _pixels(run, config, bundle, pairs)
    text = strict_json(metrics, indent=1)
    with writing(run.metrics), whole(run.metrics) as file:
        file.write(text.encode())
    _say(metrics)
    run.record("evaluate", {"auroc": metrics["auroc"]["value"]}, [run.metrics])
    return metrics


def _unseen(
    labelled: Sequence[tuple[ScoreRow, ManifestRow]],
) -> list[tuple[ScoreRow, ManifestRow]]:
    """Labelled, scored scans that the bundle has not seen.

    Raises
    ------
    AnomalyError
        There are none.
    """
    if not labelled:
        raise AnomalyError("no scored scan has a label: set data.labels and prepare again")
    pairs = [(row, scan) for row, scan in labelled if not row.seen]
    if not pairs:
        raise AnomalyError(
            f"all {len(labelled)} scored scans with a label took part in training or calibration: "
            "figures need scans that the bundle has not seen"
        )
    return pairs


def _feature_aurocs(
    pairs: Sequence[tuple[ScoreRow, ManifestRow]],
    abnormal: NDArray[np.bool_],
    patients: Sequence[str],
) -> dict[str, dict[str, float]]:
    """One-sided AUROC of each feature, "higher = more anomalous"; below 1/2 is inverted."""
    first = pairs[0][0].features or {}
    return {
        name: asdict(
            auroc(np.array([(r.features or {})[name] for r, _ in pairs]), abnormal, patients)
        )
        for name in first
    }


def _pixels(
    run: RunFolder,
    config: Config,
    bundle: Bundle,
    pairs: Sequence[tuple[ScoreRow, ManifestRow]],
) -> dict[str, Any]:
    evidence, masks = [], []
    for row, scan in pairs:
        mask = None if scan.label == config.data.normal else lesion_mask(config, scan)
        if mask is not None and mask.any():
            kept = run.results.evidence(row)
            if kept is None:
                raise AnomalyError(
                    f"no evidence map is kept of {scan.key}, which has a mask: score with "
                    "results.maps=all"
                )
            evidence.append(on_source(kept, scan, bundle.config.preprocessing))
            masks.append(mask)
    if not masks:
        raise AnomalyError(f"data.masks is {config.data.masks!r}, but no abnormal scan has a mask")
    return asdict(pixel_metrics(evidence, masks))


def lesion_mask(config: Config, scan: ManifestRow) -> NDArray[np.bool_] | None:
    """Read the mask of a scan on its pixels as shown, (H, W); None if it has none.

    Raises
    ------
    AnomalyError
        The mask has changed since it was listed, is not a PNG, or differs in size from the image.
    """
    there = mask_hash(config, scan)
    if scan.mask not in (there, NOT_LISTED):
        raise AnomalyError(
            f"the mask of scan {scan.key} is not what it was when the scans were listed: put it "
            "back, or, if it was corrected, list it again by the same `anomaly prepare`"
        )
    if not there:
        return None
    path = config.data.root / str(config.data.masks) / f"{scan.path}.png"
    try:
        with Image.open(path, formats=("PNG",)) as image:
            stored = np.asarray(image.convert("L")) > 127
    except (OSError, ValueError, SyntaxError) as error:
        raise AnomalyError(f"the mask of scan {scan.key} cannot be read as PNG: {error}") from error
    mask = Orientation.parse(scan.orientation).show(stored)
    if mask.shape != (scan.rows, scan.columns):
        raise AnomalyError(
            f"the mask of scan {scan.key} is {mask.shape}, its image "
            f"{(scan.rows, scan.columns)}: they must agree"
        )
    return mask


def _say(metrics: dict[str, Any]) -> None:
    log.info(
        "%d normal and %d abnormal scans, %d not scored",
        metrics["scans"]["normal"],
        metrics["scans"]["abnormal"],
        metrics["not_scored"],
    )
    if metrics["seen"]:
        log.warning(
            "left out of every figure: %d scans that took part in training or calibration",
            metrics["seen"],
        )
    _say_images(metrics)
    if "pixels" in metrics:
        pixels = metrics["pixels"]
        log.info(
            "pixel AP            %.3f, %.1f times the lesion prevalence %.4f (%d scans)",
            pixels["average_precision"],
            pixels["ratio"],
            pixels["prevalence"],
            pixels["scans"],
        )
    log.info("AUROC of every single feature (one-sided; below 0.5 is inverted):")
    for name, estimate in metrics["features"].items():
        log.info("  %-20s %s", Public(name), Public(Estimate(**estimate)))
    log.info("intervals are 95 %%, by patient for AUROC. %s", Public(NOTICE))


def _say_images(metrics: dict[str, Any]) -> None:
    log.info("image AUROC         %s", Public(Estimate(**metrics["auroc"])))
    log.info(
        "average precision   %.3f (prevalence %.3f)",
        metrics["average_precision"]["value"],
        metrics["average_precision"]["prevalence"],
    )
    log.info("at the preset alpha = %g:", metrics["alpha"])
    log.info("  sensitivity       %s", Public(Rate(**metrics["sensitivity"])))
    log.info("  false alarms      %s", Public(Rate(**metrics["false_alarms"])))
    log.info(
        "  conformal bound   [%.3f, %.3f] for this many normals, 95 %%",
        metrics["false_alarm_bound"]["low"],
        metrics["false_alarm_bound"]["high"],
    )
    log.info("normals with any region  %s", Public(Rate(**metrics["normals_with_any_region"])))
    log.info(
        "  flagged too, as drawn  %s", Public(Rate(**metrics["normals_flagged_with_a_region"]))
    )
