"""calibrate: held-out normal scans -> a calibrated bundle."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from anomaly.config import Config
from anomaly.data.images.network_images import ImageReader
from anomaly.data.table.manifest import Manifest, ManifestRow, scan_marks
from anomaly.data.table.splits import SPLITS
from anomaly.detection.calibration import allowed_rank, false_alarm_interval
from anomaly.errors import CalibrationError, ConfigError
from anomaly.logs import Public
from anomaly.pipelines.run import RunFolder
from anomaly.progress import progress_bar
from anomaly.scoring.adapting import adapted_bundle, halves
from anomaly.scoring.calibrating import calibration_of
from anomaly.scoring.job import check_same_grey
from anomaly.scoring.scorer import ScoredScan, Scorer
from anomaly.store.bundle import Bundle, read_bundle, write_bundle
from anomaly.store.bundle_files import bundle_hash
from anomaly.training.detector_fit import calibration_change

__all__ = ["at_known_rate", "calibrate"]

log = logging.getLogger(__name__)


def calibrate(
    run: RunFolder,
    config: Config,
    bundle_folder: Path,
    split: str,
    device: torch.device,
    *,
    adapt: bool = False,
) -> Bundle:
    """Score the scans of a split and write the calibrated bundle into the run.

    Parameters
    ----------
    run : RunFolder
    config : Config
    bundle_folder : Path
    split : str
    device : torch.device
    adapt : bool
        Adapt detector and heatmap to one half of the scans, by patient, and calibrate on the other
        (`anomaly.detection.adaptation`). For scans of another site than the bundle was trained on.

    Raises
    ------
    CalibrationError
        A scan is not labelled normal, or was used to train the network or the detector.
    TooFewCalibrationScans
        There are too few scans for the configured alpha.
    """
    if split not in SPLITS:
        raise ConfigError(f"--split is {split!r}: expected one of {', '.join(SPLITS)}")
    bundle = read_bundle(bundle_folder)
    if run.checkpoint.exists() and bundle_folder.resolve() != run.bundle.resolve():
        raise ConfigError(
            f"{run.path} has trained a bundle of its own, which would be lost: prepare a new run "
            "to calibrate another one in"
        )
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    rows = manifest.select(split=split)
    if adapt:
        _refuse_adapted(bundle, bundle_folder)
    _refuse_unfit(rows, bundle, config)
    settings = bundle.config
    check_same_grey(config, settings)
    reader = ImageReader(config.data.root, settings.intensity, settings.preprocessing)
    if adapt:
        first, rows = halves(rows, config.detector.seed)
        allowed_rank(len(rows), config.alpha)
        log.info("adapting to %d normal scans", len(first))
        bundle = adapted_bundle(bundle, reader, first, device, manifest_hash=manifest.hash)
    allowed_rank(len(rows), config.alpha)  # fail before the scans are scored
    marks = frozenset(mark for row in rows for mark in scan_marks(row))
    if _is_calibrated(run, bundle, config, marks):
        log.info("the bundle is calibrated on these scans at this alpha already: nothing to do")
        return bundle
    reader = replace(reader, change=calibration_change(config))
    calibrated = calibration_of(
        _score_all(Scorer(bundle, reader, device), rows),
        config.alpha,
        manifest_hash=manifest.hash,
        under_nuisance=config.detector.calibrate_under_nuisance,
    )
    written = write_bundle(replace(bundle, calibrated=calibrated), run.bundle)
    low, high = false_alarm_interval(len(rows), config.alpha, 0.95)
    log.info(
        "calibrated on %s: at alpha = %g the long-run false-alarm rate lies in [%.3f, %.3f] with "
        "95 %% confidence, and is at most alpha on average",
        Public(calibrated),
        config.alpha,
        low,
        high,
    )
    adapted_on = written.adapted.scans if written.adapted is not None else 0
    details = {"bundle_hash": written.hash, "scans": len(rows), "adapted_on": adapted_on}
    run.record("calibrate", details)
    return written


def _refuse_adapted(bundle: Bundle, folder: Path) -> None:
    if bundle.adapted is not None:
        raise CalibrationError(
            f"the bundle {folder} is adapted to {bundle.adapted.scans} scans already: adapt the "
            "bundle that it came from, with --bundle"
        )


def _score_all(scorer: Scorer, rows: tuple[ManifestRow, ...]) -> list[ScoredScan]:
    """Score all scans; a scan that cannot be read is an error."""
    scored = []
    with progress_bar(len(rows), "calibrating", "scan") as bar:
        for _, item in scorer.score((0, row) for row in rows):
            if not isinstance(item, ScoredScan):
                row, error = item
                raise CalibrationError(
                    f"calibration scan {row.key} could not be read ({error.reason}): a scan left "
                    "out would bend the false-alarm rate. Put it back as it was, or prepare a new "
                    "run"
                )
            scored.append(item)
            bar.update()
    return scored


def at_known_rate(config: Config, bundle_folder: Path) -> Config:
    """Return the configuration with the alpha of the bundle's previous calibration, if any."""
    if not bundle_folder.exists():
        return config
    known = read_bundle(bundle_folder).calibrated
    if known is None or known.alpha == config.alpha:
        return config
    log.info(
        "calibrating at alpha = %g as before; the configuration says %g: --set alpha=%g for that",
        known.alpha,
        config.alpha,
        config.alpha,
    )
    return replace(config, alpha=known.alpha)


def _is_calibrated(run: RunFolder, bundle: Bundle, config: Config, marks: frozenset[str]) -> bool:
    """Whether the run's bundle already has the calibration that would result."""
    known = bundle.calibrated
    if known is None or not run.bundle.exists() or bundle_hash(run.bundle) != bundle.hash:
        return False
    conditions = (config.alpha, config.detector.calibrate_under_nuisance, marks)
    # The calibration does not record its nuisance seed, so compare with the bundle's.
    usual = config.detector.seed == bundle.config.detector.seed
    return (known.alpha, known.under_nuisance, known.seen) == conditions and usual


def _refuse_unfit(rows: tuple[ManifestRow, ...], bundle: Bundle, config: Config) -> None:
    abnormal = [row for row in rows if row.label != config.data.normal]
    if abnormal:
        raise CalibrationError(
            f"{len(abnormal)} of {len(rows)} scans are not labelled {config.data.normal!r} (the "
            f"first is {abnormal[0].key}, {abnormal[0].label!r}): calibrate on normal scans alone"
        )
    seen = [row for row in rows if bundle.has_learned(row)]
    if seen:
        raise CalibrationError(
            f"{len(seen)} of {len(rows)} scans were used to train the network or the detector (the "
            f"first is {seen[0].key}): they score too low. Calibrate on scans it has not seen"
        )
