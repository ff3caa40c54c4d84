"""The content of a report, for each scan and for the run.

::

    ReportCase -> ScanRow = key, status, p-value in words, score, features, regions, pictures, ...

Every scan has a row. Rows are sorted by p-value, then by score, then by the highest peak of the
regions, the most anomalous first. A scan that could not be scored has a row with the reason and
never counts as normal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomaly.reporting.html.cases import ReportCase, ReportData, SkippedCase
from anomaly.reporting.html.features import feature_columns, feature_values
from anomaly.reporting.html.figure import figure_of
from anomaly.reporting.html.panels import scan_facts
from anomaly.reporting.html.pictures import Pictures, data_address
from anomaly.reporting.html.rows import (
    ColourBar,
    Counts,
    RegionRow,
    ReportContent,
    ScanRow,
    SkippedRow,
)
from anomaly.reporting.html.scores import ScoreAxis
from anomaly.reporting.html.words import (
    count_text,
    flagged_against_expected,
    number_text,
    odds_in_words,
    odds_sentence,
    p_value_text,
)
from anomaly.reporting.plots.figures import colour_bar
from anomaly.types import Region

__all__ = ["report_content"]


@dataclass(frozen=True)
class _ScoredCase:
    """A case with stored images, and the data that complete its row once all cases are known."""

    row: ScanRow
    features: Mapping[str, float]
    study: str
    peak: float
    used_to_fit: bool


def report_content(data: ReportData, pictures: Pictures) -> ReportContent:
    """Return the data of all templates, with the rows sorted by decreasing anomaly.

    Raises
    ------
    NotCalibrated
        There are no calibration scores, or the threshold is not finite.
    ValueError
        A score is not finite, a p-value is not in (0, 1], pictures of a scan differ in shape, or
        the range of a feature or the colour scale is empty.
    """
    data.check()
    axis = ScoreAxis.around(data)
    cases = [_prepare(case, data, axis, pictures) for case in data.cases]
    cases.sort(key=lambda case: (case.row.p, -case.row.score, -case.peak, case.row.key))
    names = dict.fromkeys(name for case in cases for name in case.features)
    columns = feature_columns(names, data.feature_ranges)
    studies = _shown_studies([*cases, *data.skipped])
    rows = [
        replace(
            case.row,
            study=studies.get(case.study),
            features=feature_values(case.features, columns),
        )
        for case in cases
    ]
    return ReportContent(
        title=data.title,
        run_id=_run_id(rows),
        warnings=tuple(data.warnings),
        rows=(*rows, *(_skipped_row(case, studies.get(case.study)) for case in data.skipped)),
        studies=tuple(studies),
        features=columns,
        counts=_counts(cases, data),
        alpha=f"{data.alpha:g}",
        alpha_percent=f"{100 * data.alpha:g}",
        threshold=number_text(data.threshold),
        calibration_size=data.calibration_scores.size,
        histogram=axis.histogram(data),
        colour_bar=_colour_bar(data),
        provenance=data.provenance,
        holds_identifiers=data.holds_identifiers,
        shows_images=any(row.figure for row in rows),
        compares=any(row.figure and row.figure.look_alike for row in rows),
    )


def _prepare(
    case: ReportCase, data: ReportData, axis: ScoreAxis, pictures: Pictures
) -> _ScoredCase:
    case.check()
    return _ScoredCase(
        row=_row(case, data, axis, pictures),
        features=case.verdict.scan.features,
        study=case.study,
        # many scans may share the largest score of a detector
        peak=max((region.peak for region in case.verdict.regions), default=0.0),
        used_to_fit=case.used_to_fit,
    )


def _row(case: ReportCase, data: ReportData, axis: ScoreAxis, pictures: Pictures) -> ScanRow:
    """Return a row without its study and features, which depend on all rows."""
    verdict, scan = case.verdict, case.verdict.scan
    calibration = data.calibration_scores
    odds = odds_in_words(verdict.p_value, calibration.size)
    as_high = int(np.count_nonzero(calibration >= scan.score))
    return ScanRow(
        key=scan.key,
        study=None,
        status="flagged" if verdict.flagged else "normal",
        site=case.site,
        view=case.view,
        p=verdict.p_value,
        p_text=p_value_text(verdict.p_value),
        odds=odds,
        words=odds_sentence(odds),
        score=scan.score,
        score_text=number_text(scan.score),
        as_high=f"{as_high:,} of {calibration.size:,}" if as_high else "none",
        place=axis.place(scan.score),
        off_scale=not axis.holds(scan.score),
        features=(),
        regions=tuple(_region(region) for region in verdict.regions),
        note=_note(case),
        figure=figure_of(case, data, pictures),
        facts=scan_facts(case),
    )


def _skipped_row(case: SkippedCase, study: int | None) -> SkippedRow:
    return SkippedRow(case.key, study, "not scored", case.site, case.view, case.reason)


def _counts(cases: Sequence[_ScoredCase], data: ReportData) -> Counts:
    """Count scans; those used to fit the bundle are excluded from rates."""
    flagged = [case for case in cases if case.row.status == "flagged"]
    counted = sum(not case.used_to_fit for case in cases)
    alarms = sum(not case.used_to_fit for case in flagged)
    expected = data.alpha * counted
    return Counts(
        scored=len(cases),
        skipped=len(data.skipped),
        flagged=len(flagged),
        reasons=tuple(Counter(case.reason for case in data.skipped).most_common()),
        expected=count_text(expected),
        against=flagged_against_expected(alarms, expected, len(cases) - counted),
    )


def _shown_studies(cases: Sequence[_ScoredCase | SkippedCase]) -> dict[str, int]:
    """Return the number of each study, in order; empty if no study has two scans."""
    sizes = Counter(case.study for case in cases if case.study)
    if max(sizes.values(), default=0) < 2:
        return {}
    return {study: number for number, study in enumerate(sizes)}


def _run_id(scored: Sequence[ScanRow]) -> str:
    """Return an id of the scores; the browser stores readings under it."""
    content = json.dumps(sorted([row.key, row.score] for row in scored))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _colour_bar(data: ReportData) -> ColourBar:
    low, high = data.evidence_threshold, data.evidence_ceiling
    ticks = tuple(number_text(value) for value in np.linspace(high, low, 5))
    return ColourBar(data_address(colour_bar(low, high)), ticks)


def _region(region: Region) -> RegionRow:
    known = region.area_mm2 is not None
    return RegionRow(
        place=f"{region.row:.0f}, {region.column:.0f}",
        area=f"{region.area:,}",
        area_mm2=f"{region.area_mm2:,.0f}" if known else "unknown",
        # the diameter of the circle of the same area
        across=f"{2 * math.sqrt((region.area_mm2 or 0.0) / math.pi):,.0f}" if known else "unknown",
        peak=number_text(region.peak),
    )


def _note(case: ReportCase) -> str:
    """Join the explanation, the note of the case and remarks on missing images or maps."""
    verdict = case.verdict
    sentences = [case.note] if case.note else []
    if verdict.flagged and verdict.scan.explanation:
        sentences.insert(0, verdict.scan.explanation)
    elif verdict.flagged and verdict.scan.evidence is not None and not verdict.regions:
        sentences.append("The whole image is unusual, no single place stands out.")
    if case.image is None and not case.note:
        sentences.append("This scan's image is not shown in this report.")
    elif case.image is not None and verdict.scan.evidence is None and not case.note:
        sentences.append("No map was computed for this scan.")
    return " ".join(sentences)
