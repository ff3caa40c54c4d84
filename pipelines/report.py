"""report: scores, evidence and scans -> an HTML page and its pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

import anomaly
from anomaly.bundle import Calibrated, read_bundle
from anomaly.config import Config
from anomaly.data.manifest import Manifest, ManifestRow
from anomaly.data.readers import read_scan
from anomaly.errors import ScanError
from anomaly.reporting.html import ReportCase, ReportData, SkippedCase, write_report
from anomaly.results import ScoreRow
from pipelines.companions import Companions
from pipelines.drift import drift_warnings
from pipelines.run import RunFolder
from pipelines.verdicts import Norm, matching_scores

__all__ = ["report"]

log = logging.getLogger(__name__)


def report(
    run: RunFolder,
    config: Config,
    *,
    images: bool = True,
    max_images: int = 500,
    single_file: bool = False,
) -> Path:
    """Write the page and return its path.

    Parameters
    ----------
    run : RunFolder
    config : Config
    images : bool
        False leaves all pixels out: chest X-rays can be recognised.
    max_images : int
        Scans whose image is shown, most unusual first; the others say why they have none.
    single_file : bool
        The pictures go into the page.

    Raises
    ------
    NotCalibrated
        If the bundle is not calibrated: a page of scores without meaning helps nobody.
    """
    bundle = read_bundle(run.bundle)
    calibrated = bundle.calibration()
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    rows, provenance = matching_scores(run, manifest, bundle)
    # The flags were raised at this rate, whatever the configuration says now.
    norm = Norm.of(bundle, provenance.alpha)
    by_key = {row.key: row for row in manifest.select()}
    scored = [row for row in rows if row.status == "scored"]
    scored.sort(key=lambda row: (row.p_value, -(row.score or 0)))
    companions = Companions(bundle, norm.evidence_threshold)
    shown = max_images if images else 0
    # One at a time: the page needs no image twice, and memory holds few.
    cases = (
        _case(run, config, norm, companions, row, by_key[row.key], shown=place < shown, most=shown)
        for place, row in enumerate(scored)
    )
    data = ReportData(
        title=config.name,
        cases=cases,
        skipped=[
            SkippedCase(r.key, r.reason, view=r.view, site=r.site, study=r.study)
            for r in rows
            if r.status != "scored"
        ],
        calibration_scores=calibrated.scores.scores,
        alpha=norm.alpha,
        threshold=norm.threshold,
        evidence_threshold=norm.evidence_threshold,
        evidence_ceiling=norm.evidence_ceiling,
        provenance={
            "bundle": provenance.bundle,
            "manifest": provenance.manifest,
            "settings": provenance.settings,
            "alpha": repr(provenance.alpha),
            "calibrated on": str(calibrated),
            "anomaly": anomaly.__version__,
            "torch": torch.__version__.split("+")[0],
        },
        feature_ranges=_usual(calibrated),
        warnings=drift_warnings(rows, calibrated.features),
    )
    run.report.parent.mkdir(exist_ok=True)
    write_report(data, run.report, single_file=single_file)
    log.info("report written, %d scans shown", len(scored))
    run.record("report", {"cases": len(scored)})
    return run.report


def _usual(calibrated: Calibrated) -> dict[str, tuple[float, float]]:
    """Where the middle 90 % of normal scans lie; nothing of a feature that hardly varies there."""
    ranges = {}
    for name, values in calibrated.features.items():
        low, high = np.quantile(values.scores, (0.05, 0.95)).tolist()
        if low < high:
            ranges[name] = (low, high)
    return ranges


def _case(
    run: RunFolder,
    config: Config,
    norm: Norm,
    companions: Companions,
    row: ScoreRow,
    scan: ManifestRow,
    *,
    shown: bool,
    most: int,
) -> ReportCase:
    verdict = norm.verdict(row, scan, run.results.evidence(row))
    pixels, expected, look_alike, note = None, None, None, ""
    if verdict.scan.evidence is None:
        note = (
            f"No evidence map of this scan is kept; {row.regions} regions were beyond the limit "
            "when it was scored."
        )
    elif not shown and most:
        note = f"The image is not shown: this report holds those of the {most} most unusual scans."
    elif shown and scan.burned_in:
        note = "The source says that text is burned into this image, so it is not shown."
    elif shown:
        try:
            source = read_scan(config.data.root / scan.path, scan.frame, config.intensity)
            pixels = np.asarray(source.pixels)
            look_alike = companions.look_alike(source, verdict.scan.evidence)
            if row.flagged:
                expected = companions.expected(source, verdict.scan.evidence)
        except ScanError as error:
            note = f"The image can no longer be read ({error.reason}), so it is not shown."
    return ReportCase(
        verdict,
        pixels,
        view=scan.view,
        note=note,
        site=row.site,
        expected=expected,
        study=row.study,
        look_alike=look_alike,
    )
