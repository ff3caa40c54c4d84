"""report: scores, evidence and scans -> an HTML page and its pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.config import Config
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import ScanError
from anomaly.files import make_results_folder, writing
from anomaly.pipelines.drift import drift_warnings
from anomaly.pipelines.run import RunFolder
from anomaly.reporting.html.page import ReportCase, ReportData, SkippedCase, write_report
from anomaly.scoring.companions import Companions
from anomaly.scoring.verdicts import OperatingPoint, matching_scores, scan_again
from anomaly.store.bundle import Bundle, Calibrated, read_bundle
from anomaly.store.results import Provenance, ScoreRow
from anomaly.types import Scan
from anomaly.version import __version__

__all__ = ["ScoredRun", "report"]

log = logging.getLogger(__name__)

SEEN = "This scan took part in training or calibration: its score is too low, and counts nowhere."


def report(
    run: RunFolder,
    config: Config,
    *,
    images: bool = True,
    max_images: int = 500,
    single_file: bool = False,
) -> Path:
    """Write the report page and return its path.

    Parameters
    ----------
    run : RunFolder
    config : Config
    images : bool
        False leaves out all pixels, since a patient can be recognised by a chest X-ray.
    max_images : int
        Number of scans shown with their image, most unusual first; the others state why they have
        none.
    single_file : bool
        Embed the pictures in the page.

    Raises
    ------
    NotCalibrated
        The bundle is not calibrated, so its scores could not be interpreted.
    """
    source = ScoredRun.open(run, config)
    with writing(run.report):
        make_results_folder(run.report.parent)
    data = source.report_data(source.rows, max_images=max_images if images else 0)
    with writing(run.report):
        write_report(data, run.report, single_file=single_file)
    scored = sum(row.status == "scored" for row in source.rows)
    log.info("report written, %d scans shown", scored)
    run.record("report", {"cases": scored}, [run.report.parent])
    return run.report


@dataclass(frozen=True)
class ScoredRun:
    """A run with its matching scores, table of scans and bundle.

    Attributes
    ----------
    run : RunFolder
    config : Config
    bundle : Bundle
    rows : list of ScoreRow
    provenance : Provenance
    scans : dict of str to ManifestRow
        By pseudonym.
    """

    run: RunFolder
    config: Config
    bundle: Bundle
    rows: list[ScoreRow]
    provenance: Provenance
    scans: dict[str, ManifestRow]

    @classmethod
    def open(cls, run: RunFolder, config: Config) -> ScoredRun:
        """Read the inputs of a report.

        Raises
        ------
        AnomalyError
            The run is not scored, or its scores belong to another manifest or bundle.
        """
        bundle = read_bundle(run.bundle)
        manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
        rows, provenance = matching_scores(run.results, manifest, bundle)
        scans = {row.key: row for row in manifest.select()}
        return cls(run, config, bundle, rows, provenance, scans)

    def report_data(self, rows: Sequence[ScoreRow], *, max_images: int) -> ReportData:
        """Return the data of a report on all rows or some of them.

        Parameters
        ----------
        rows : sequence of ScoreRow
        max_images : int
            Number of scans shown with their image, most unusual first.

        Raises
        ------
        NotCalibrated
            The bundle is not calibrated.
        """
        calibrated = self.bundle.calibration()
        # The scans were flagged at this rate; the current configuration may state another.
        point = OperatingPoint.of(self.bundle, self.provenance.alpha)
        scored = [row for row in rows if row.status == "scored"]
        scored.sort(
            key=lambda row: (row.p_value, -(row.score or 0), -(row.evidence_peak or 0), row.key)
        )
        # Lazy: the page needs each image once, and memory is limited.
        companions = Companions(self.bundle, point.evidence_threshold)
        cases = (
            _case(self, point, companions, row, shown=place < max_images, most=max_images)
            for place, row in enumerate(scored)
        )
        return ReportData(
            title=self.config.name,
            cases=cases,
            skipped=[
                SkippedCase(r.key, r.reason, view=r.view, site=r.site, study=r.study)
                for r in rows
                if r.status != "scored"
            ],
            calibration_scores=calibrated.scores.scores,
            alpha=point.alpha,
            threshold=point.threshold,
            evidence_threshold=point.evidence_threshold,
            evidence_ceiling=point.evidence_ceiling,
            provenance={
                "bundle": self.provenance.bundle,
                "manifest": self.provenance.manifest,
                "settings": self.provenance.settings,
                "alpha": repr(self.provenance.alpha),
                "calibrated on": str(calibrated),
                "anomaly": __version__,
                "torch": torch.__version__.split("+")[0],
            },
            feature_ranges=_usual(calibrated),
            warnings=drift_warnings(self.rows, calibrated),
        )


def _usual(calibrated: Calibrated) -> dict[str, tuple[float, float]]:
    """5th and 95th percentile of each feature over normal scans; left out if they are equal."""
    ranges = {}
    for name, values in calibrated.features.items():
        low, high = values.percentile(5), values.percentile(95)
        if low < high:
            ranges[name] = (low, high)
    return ranges


def _case(
    source: ScoredRun,
    point: OperatingPoint,
    companions: Companions,
    row: ScoreRow,
    *,
    shown: bool,
    most: int,
) -> ReportCase:
    scan = source.scans[row.key]
    evidence, spread, note = _maps(source.run, row)
    verdict = point.verdict(row, scan, evidence, spread)
    pictures = _Pictures()
    if row.map_part is None:
        shown = False  # without a kept map, the image is not shown either
        note += " Its image is not shown either."
    elif not shown and most:
        note += (
            f" The image is not shown: this report holds those of the {most} most unusual scans."
        )
    elif shown and scan.burned_in:
        shown = False
        note += " The source says that text is burned into this image, so it is not shown."
    if row.seen:
        note = f"{note} {SEEN}".strip()
    if shown:
        try:
            image = scan_again(source.config, scan)
            place = verdict.scan.evidence
            pictures = _pictures(companions, image, place, flagged=bool(row.flagged))
            note = " ".join([note, *(f"{remark}." for remark in image.notes)])
        except ScanError as error:
            note += f" The image can no longer be read ({error.reason}), so it is not shown."
    return ReportCase(
        verdict,
        pictures.pixels,
        view=scan.view,
        note=note.strip(),
        site=row.site,
        expected=pictures.expected,
        study=row.study,
        look_alike=pictures.look_alike,
        grey=pictures.grey,
        used_to_fit=row.seen,
    )


class _Pictures(NamedTuple):
    """Pictures of a scan: as displayed, as the model expected it, and a normal look-alike."""

    pixels: NDArray[np.float32] | None = None
    expected: NDArray[np.float32] | None = None
    look_alike: NDArray[np.float32] | None = None
    grey: str = ""


def _pictures(
    companions: Companions, image: Scan, evidence: NDArray[np.float32] | None, *, flagged: bool
) -> _Pictures:
    display = image.display
    expected = None
    look_alike = companions.look_alike(image, evidence)
    if flagged and evidence is not None:
        healthy = companions.expected(image, evidence)
        expected = None if healthy is None else display(healthy)
    return _Pictures(display(image.pixels), expected, look_alike, display.source)


_Map: TypeAlias = NDArray[np.float32] | None


def _maps(run: RunFolder, row: ScoreRow) -> tuple[_Map, _Map, str]:
    """Kept evidence and spread of a row, and a note if there are none."""
    counted = f"{row.regions} regions were beyond the limit when it was scored."
    try:
        evidence, spread = run.results.evidence(row), run.results.spread(row)
    except ScanError as error:
        lost = f"The evidence map of this scan cannot be read ({error.reason}); {counted}"
        return None, None, lost
    kept = "" if evidence is not None else f"No evidence map of this scan is kept; {counted}"
    return evidence, spread, kept
