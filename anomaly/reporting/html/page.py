"""The report of one run as data: what the page says of each scan, and of all of them.

::

    case -> row = key, status, p-value in words, score and its place, features, regions, pictures

The page lists every scan, the most unusual first, and shows one at a time: the image, the evidence
over it, and where its score lies among those of normal scans. A scan that could not be scored is a
row with its reason and never counts as normal. Rows are text and numbers only: the page writes them
as text, never as markup (`anomaly.reporting.html.files`).

Display images are shrunk to at most 512 pixels on the long side: the image by area averaging, the
evidence by block maxima, so that a small peak survives. Where no image may be shown, no map is
drawn either: evidence around burned-in letters can be legible.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.reporting.html.cases import ReportCase, ReportData, SkippedCase
from anomaly.reporting.html.files import Pictures, inlined, write_page
from anomaly.reporting.plots.figures import (
    colour_bar,
    contour_path,
    histogram_path,
    overlay_rgba,
    shrink_max,
    shrink_mean,
)
from anomaly.types import Region

__all__ = [
    "ReportCase",
    "ReportData",
    "SkippedCase",
    "odds_in_words",
    "report_content",
    "write_report",
]

_LONGEST_SIDE = 512
_PLOT_WIDTH, _PLOT_HEIGHT = 420, 64
_UNITS = {"nll": "bits/dim"}

Row: TypeAlias = dict[str, Any]
"""What the page knows of one scan: values that JSON can hold."""


def write_report(data: ReportData, page: Path, *, single_file: bool = False) -> None:
    """Write the report: a page, and its pictures in the folder ``images`` beside it.

    Parameters
    ----------
    data : ReportData
    page : Path
        The HTML file to write; its folder exists. A page that is there stays, with its pictures,
        until this one is whole.
    single_file : bool
        The pictures go into the page, which can then be copied alone.

    Raises
    ------
    NotCalibrated
        There are no calibration scores, or the threshold is not finite.
    ValueError
        A score is not finite, a p-value is not in (0, 1], pictures of a scan differ in shape, a
        feature's range or the colour scale is empty.
    """
    data.check()
    with Pictures.beside(page, single_file=single_file) as pictures:
        write_page(page, report_content(data, pictures), pictures)


def report_content(data: ReportData, pictures: Pictures) -> dict[str, Any]:
    """Return everything that a template reads, its rows with the most unusual scan first.

    Raises
    ------
    NotCalibrated, ValueError
        As `write_report`.
    """
    data.check()
    axis = _Axis.around(data)
    scored = [_row(case, data, axis, pictures) for case in data.cases]
    scored.sort(key=lambda row: (row["p"], -row["score"], -_peak(row), row["key"]))
    return _page(data, axis, scored)


def odds_in_words(p_value: float, calibration_size: int) -> str:
    """Say a p-value as a share of normal scans.

    Parameters
    ----------
    p_value : float in (0, 1]
    calibration_size : int
        Number n of calibration scans; no p-value below ``1 / (n + 1)`` can be measured.

    Returns
    -------
    str
        ``"1 in 80"``; ``"37 in 100"`` for shares above a tenth; ``"fewer than 1 in n+1"`` where no
        calibration scan scored as high.
    """
    scans = calibration_size + 1
    if p_value * scans < 1.5:  # p is a whole number of (n + 1)-ths, so this is 1 of them
        return f"fewer than 1 in {scans:,}"
    if p_value <= 0.1:
        return f"1 in {round(1 / p_value):,}"
    return f"{round(100 * p_value)} in 100"


def _sentence(odds: str) -> str:
    look = "looks" if odds.removeprefix("fewer than ").startswith("1 in ") else "look"
    return f"{odds} normal scans {look} at least this unusual"


def _page(data: ReportData, axis: _Axis, scored: list[Row]) -> dict[str, Any]:
    """Everything a template reads."""
    flagged = sum(row["status"] == "flagged" for row in scored)
    counted = [row for row in scored if not row.pop("seen")]
    alarms = sum(row["status"] == "flagged" for row in counted)
    names = list(dict.fromkeys(name for row in scored for name in row["features"]))
    for row in scored:  # the names stand once in the page, not once a scan
        row["features"] = [row["features"].get(name) for name in names]
    rows = scored + [_skipped_row(case) for case in data.skipped]
    figures = [row["figure"] for row in scored if row["figure"] is not None]
    return {
        "title": data.title,
        "warnings": list(data.warnings),
        "run_id": _run_id(scored),
        "rows": rows,
        "studies": _numbered_studies(rows),
        "features": [_feature(name, data.feature_ranges.get(name)) for name in names],
        "scored": len(scored),
        "skipped": len(data.skipped),
        "reasons": Counter(case.reason for case in data.skipped).most_common(),
        "flagged": flagged,
        "against": _against(alarms, data.alpha * len(counted), len(scored) - len(counted)),
        "alpha": f"{data.alpha:g}",
        "alpha_percent": f"{100 * data.alpha:g}",
        "expected": _expected(data.alpha * len(counted)),
        "threshold": _number(data.threshold),
        "calibration_size": data.calibration_scores.size,
        "bars": histogram_path(
            data.calibration_scores, axis.low, axis.high, _PLOT_WIDTH, _PLOT_HEIGHT
        ),
        "plot_width": _PLOT_WIDTH,
        "threshold_x": axis.place(data.threshold),
        "score_ticks": axis.ticks(),
        "bar_image": inlined(colour_bar(data.evidence_threshold, data.evidence_ceiling)),
        "bar_ticks": [
            _number(v) for v in np.linspace(data.evidence_ceiling, data.evidence_threshold, 5)
        ],
        "provenance": data.provenance,
        "holds_identifiers": data.holds_identifiers,
        "shows_images": bool(figures),
        "compares": any(figure["look_alike"] for figure in figures),
    }


@dataclass(frozen=True)
class _Axis:
    """The score axis of the histogram, one for the run."""

    low: float
    high: float

    @classmethod
    def around(cls, data: ReportData) -> _Axis:
        """Calibration scores and threshold with a margin; scans beyond are drawn at the edge."""
        low = min(float(data.calibration_scores.min()), data.threshold)
        high = max(float(data.calibration_scores.max()), data.threshold)
        span = (high - low) or 1.0
        return cls(low - 0.1 * span, high + 0.4 * span)

    def place(self, score: float) -> float:
        """Horizontal place of a score in the drawing, kept inside it."""
        share = (score - self.low) / (self.high - self.low)
        return round(_PLOT_WIDTH * min(1.0, max(0.0, share)), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels of four round scores inside the axis."""
        span = self.high - self.low
        step = 10.0 ** np.floor(np.log10(span / 3))
        step *= next(m for m in (5, 2, 1) if m * step <= span / 3)
        first = np.ceil(self.low / step) * step
        scores = np.arange(first, self.high, step) + 0.0  # + 0.0: no minus zero
        return [(self.place(s), f"{s:g}") for s in np.round(scores, 12)]


def _row(case: ReportCase, data: ReportData, axis: _Axis, pictures: Pictures) -> Row:
    case.check()
    verdict, scan = case.verdict, case.verdict.scan
    odds = odds_in_words(verdict.p_value, data.calibration_scores.size)
    as_high = int(np.count_nonzero(data.calibration_scores >= scan.score))
    return {
        "key": scan.key,
        "study": case.study,
        "status": "flagged" if verdict.flagged else "normal",
        "site": case.site,
        "view": case.view,
        "p": verdict.p_value,
        "p_text": _p_text(verdict.p_value),
        "odds": odds,
        "words": _sentence(odds),
        "score": scan.score,
        "score_text": _number(scan.score),
        "as_high": f"{as_high:,} of {data.calibration_scores.size:,}" if as_high else "none",
        "place": axis.place(scan.score),
        "off_scale": not axis.low <= scan.score <= axis.high,
        "features": {
            name: float(_number(value)) if math.isfinite(value) else None
            for name, value in scan.features.items()
        },
        "regions": [_region(region) for region in verdict.regions],
        "note": _note(case),
        "seen": case.seen,
        "figure": None if case.image is None else _figure(case, case.image, data, pictures),
    }


def _skipped_row(case: SkippedCase) -> Row:
    return {
        "key": case.key,
        "study": case.study,
        "status": "not scored",
        "site": case.site,
        "view": case.view,
        "reason": case.reason,
    }


def _numbered_studies(rows: list[Row]) -> list[str]:
    """Name every study once and leave its number in its rows, or None where a row names none.

    Nothing is named, and no row holds a number, where no study has two scans.
    """
    named = [row.pop("study") for row in rows]
    counts = Counter(filter(None, named))
    if max(counts.values(), default=0) < 2:
        return []
    numbers = {study: number for number, study in enumerate(counts)}
    for row, study in zip(rows, named, strict=True):
        row["study"] = numbers.get(study)
    return list(counts)


def _run_id(scored: list[Row]) -> str:
    """Name these scores, whatever is shown of them: a reader's verdicts are kept under it."""
    content = json.dumps(sorted([row["key"], row["score"]] for row in scored))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _feature(name: str, span: tuple[float, float] | None) -> Row:
    return {"name": name, "unit": _UNITS.get(name, ""), "range": span}


def _peak(row: Row) -> float:
    """Highest peak of a row's regions: a detector may give its largest score to many."""
    return max((float(region[-1]) for region in row["regions"]), default=0.0)


def _region(region: Region) -> tuple[str, str, str, str, str]:
    known = region.area_mm2 is not None
    return (
        f"{region.row:.0f}, {region.column:.0f}",
        f"{region.area:,}",
        f"{region.area_mm2:,.0f}" if known else "unknown",
        # the diameter of the circle of the same area
        f"{2 * math.sqrt((region.area_mm2 or 0.0) / math.pi):,.0f}" if known else "unknown",
        _number(region.peak),
    )


def _note(case: ReportCase) -> str:
    """Join the case's own note with what a reader would otherwise miss."""
    verdict = case.verdict
    sentences = [case.note] if case.note else []
    if verdict.flagged and verdict.scan.evidence is not None and not verdict.regions:
        sentences.append("The whole image is unusual, no single place stands out.")
    if case.image is None and not case.note:
        sentences.append("This scan's image is not shown in this report.")
    elif case.image is not None and verdict.scan.evidence is None and not case.note:
        sentences.append("No map was computed for this scan.")
    return " ".join(sentences)


def _figure(
    case: ReportCase, source: NDArray[np.float32], data: ReportData, pictures: Pictures
) -> Row:
    """Pictures of a case: the image, the evidence over it, its outline and labels."""
    verdict, key = case.verdict, case.verdict.scan.key
    image = shrink_mean(source, _LONGEST_SIDE)
    height, width = image.shape
    figure: Row = {
        "width": width,
        "height": height,
        "image": pictures.place(key, "image", _grey(image)),
        "grey": case.grey,
        "expected": None,
        "look_alike": None,
        "overlay": None,
        "contour": "",
        "labels": [],
    }
    for what, beside in (("expected", case.expected), ("look_alike", case.look_alike)):
        if beside is not None:
            small = _grey(shrink_mean(beside, _LONGEST_SIDE))
            figure[what] = pictures.place(key, what.replace("_", "-"), small)
    if verdict.scan.evidence is not None:
        evidence = shrink_max(verdict.scan.evidence, _LONGEST_SIDE)
        rgba = overlay_rgba(evidence, data.evidence_threshold, data.evidence_ceiling)
        figure["overlay"] = pictures.place(key, "evidence", rgba)
        figure["contour"] = contour_path(evidence >= data.evidence_threshold)
        figure["labels"] = [
            _label(region, source.shape, width, height) for region in verdict.regions
        ]
    return figure


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(255 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _label(region: Region, source: tuple[int, ...], width: int, height: int) -> tuple[float, float]:
    """Where the number of a region stands: beside it, so that it hides nothing of a small one.

    In display pixels, from the left and from the top.
    """
    rows, columns = source
    radius = (region.area / np.pi) ** 0.5
    number = max(width, height) / 20  # room for two digits, as large as the page draws them
    right = (region.column + 1.2 * radius + 0.5) * width / columns + 6
    left = (region.column - 1.2 * radius + 0.5) * width / columns - 6 - number
    down = (region.row + 0.5) * height / rows
    return (
        round(right if right + number <= width else max(0.0, left), 1),
        round(min(max(down, number / 2), height - number / 2), 1),
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


def _p_text(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value >= 0.001 else f"{p_value:.2g}"


def _expected(count: float) -> str:
    if count >= 10:
        return f"{count:,.0f}"
    return f"{count:.1f}" if count >= 1 else f"{count:.2g}"


def _against(flagged: int, expected: float, seen: int) -> str:
    """Say how many were flagged against how many would be if every scan were normal."""
    left_out = f" Not counted: {seen:,} that took part in training or calibration." if seen else ""
    return f"{_rate(flagged, expected)}{left_out}".strip()


def _rate(flagged: int, expected: float) -> str:
    if not expected:
        return ""
    text = f"{flagged:,} flagged against {_expected(expected)} expected if every scan were normal"
    if expected < 1:  # a ratio of so few says nothing
        return f"{text}."
    ratio = flagged / expected
    return f"{text}: {f'{ratio:,.0f}' if ratio >= 10 else f'{ratio:.2g}'} times as many."
