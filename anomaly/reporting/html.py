"""The report of one run: a single HTML file that opens offline in any browser.

The page lists every scan, the most unusual first, and shows one at a time: the image, the evidence
over it, and where its score lies among those of normal scans. A scan that could not be scored is
listed with its reason and never counts as normal.

The file fetches nothing. Its content policy allows the page's own script and style by hash and
embedded images, so even text that slipped through escaping could not run. Text reaches the page
through autoescaped markup or as JSON, which the script writes as text, never as markup.

Display images are shrunk to at most 512 pixels on the long side: the image by area averaging, the
evidence by block maxima, so that a small peak survives. Where no image may be shown, no map is
embedded either: evidence around burned-in letters can be legible.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray

from anomaly.errors import NotCalibrated
from anomaly.reporting.figures import (
    colour_bar,
    contour_path,
    histogram_path,
    overlay_rgba,
    png_bytes,
    shrink_max,
    shrink_mean,
)
from anomaly.types import Region, Verdict

__all__ = ["ReportCase", "ReportData", "SkippedCase", "odds_in_words", "write_report"]

_LONGEST_SIDE = 512
_PLOT_WIDTH, _PLOT_HEIGHT = 420, 64
_UNITS = {"nll": "bits/dim"}


@dataclass(frozen=True)
class ReportCase:
    """One scored image.

    Attributes
    ----------
    verdict : Verdict
        Its ``scan.evidence`` has the shape of `image` where both are given.
    image : ndarray (H, W) float32 in [0, 1], or None
        Source pixels for display; None where the image must not be shown.
    view : str
        Coarse and not identifying, such as ``"PA"``.
    note : str
        A sentence for the reader, such as why no image is shown.
    """

    verdict: Verdict
    image: NDArray[np.float32] | None
    view: str = ""
    note: str = ""


@dataclass(frozen=True)
class SkippedCase:
    """One image that was not scored.

    Attributes
    ----------
    key : str
        Pseudonym of the scan.
    reason : str
        Short stable word, such as ``"truncated"``.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class ReportData:
    """Everything one page shows.

    Attributes
    ----------
    title : str
    cases : sequence of ReportCase
        In any order; the page sorts by p-value, then by score, highest first.
    skipped : sequence of SkippedCase
    calibration_scores : ndarray (n,) float64
        Sorted scores of held-out normal scans, n >= 1.
    alpha : float in (0, 1)
        Stated false-alarm rate.
    threshold : float
        Score at and above which a scan is flagged.
    evidence_threshold : float
        Evidence at and above which a region is drawn, set on normal scans.
    evidence_ceiling : float
        Top of the colour scale, the same for the whole run; above `evidence_threshold`.
    provenance : mapping of str to str
        Bundle hash, versions, ...: shown at the end of the page.
    holds_identifiers : bool
        The keys or notes identify patients; the page says which.
    """

    title: str
    cases: Sequence[ReportCase]
    skipped: Sequence[SkippedCase]
    calibration_scores: NDArray[np.float64]
    alpha: float
    threshold: float
    evidence_threshold: float
    evidence_ceiling: float
    provenance: Mapping[str, str]
    holds_identifiers: bool = False


def write_report(data: ReportData, path: Path, *, max_images: int = 200) -> None:
    """Write the report as one self-contained HTML file.

    Parameters
    ----------
    data : ReportData
    path : Path
        The file to write; its folder exists.
    max_images : int
        Images are embedded for this many cases at most, the most unusual first. The others keep
        their row and say why they have no image.

    Raises
    ------
    NotCalibrated
        There are no calibration scores, or the threshold is not finite.
    ValueError
        A score is not finite, a p-value is not in (0, 1], image and evidence differ in shape, or
        the colour scale is empty.
    """
    _check(data)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anomaly.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    page = environment.get_template("report.html.j2").render(_page(data, max_images))
    # "\n" on every system: the hashes of the content policy are over these bytes
    path.write_text(page, encoding="utf-8", newline="\n")


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


def _check(data: ReportData) -> None:
    if data.calibration_scores.size == 0 or not np.isfinite(data.threshold):
        raise NotCalibrated(
            "a report needs scores of held-out normal scans and a finite threshold; "
            f"got {data.calibration_scores.size} scores and threshold {data.threshold}"
        )
    for case in data.cases:
        scan = case.verdict.scan
        if not np.isfinite(scan.score):
            raise ValueError(f"{scan.key}: score {scan.score} cannot be ranked; list it as skipped")
        if not 0.0 < case.verdict.p_value <= 1.0:
            raise ValueError(f"{scan.key}: a p-value lies in (0, 1]; got {case.verdict.p_value}")
        shapes = {a.shape for a in (case.image, scan.evidence) if a is not None}
        if len(shapes) > 1:
            raise ValueError(f"{scan.key}: image and evidence differ in shape: {shapes}")


def _page(data: ReportData, max_images: int) -> dict[str, object]:
    """Everything the template reads."""
    axis = _Axis.around(data)
    ranked = sorted(
        data.cases, key=lambda c: (c.verdict.p_value, -c.verdict.scan.score, c.verdict.scan.key)
    )
    return {
        "title": data.title,
        "cases": list(_records(ranked, data, axis, max_images)),
        "skipped": data.skipped,
        "reasons": Counter(s.reason for s in data.skipped).most_common(),
        "flagged": sum(c.verdict.flagged for c in data.cases),
        "alpha": f"{data.alpha:g}",
        "alpha_percent": f"{100 * data.alpha:g}",
        "expected": _expected(data.alpha * len(data.cases)),
        "threshold": _number(data.threshold),
        "calibration_size": data.calibration_scores.size,
        "bars": histogram_path(
            data.calibration_scores, axis.low, axis.high, _PLOT_WIDTH, _PLOT_HEIGHT
        ),
        "plot_width": _PLOT_WIDTH,
        "threshold_x": axis.place(data.threshold),
        "score_ticks": axis.ticks(),
        "bar_image": _data_uri(colour_bar(data.evidence_threshold, data.evidence_ceiling)),
        "bar_ticks": [
            _number(v) for v in np.linspace(data.evidence_ceiling, data.evidence_threshold, 5)
        ],
        "provenance": data.provenance,
        "holds_identifiers": data.holds_identifiers,
        "shows_images": any(c.image is not None for c in ranked) and max_images > 0,
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


def _records(
    ranked: Sequence[ReportCase], data: ReportData, axis: _Axis, max_images: int
) -> Iterator[dict[str, object]]:
    """Describe each case to the page: text and numbers only, so it is safe as JSON."""
    shown = 0
    for case in ranked:
        image = case.image if shown < max_images else None
        shown += image is not None
        yield {
            **_numbers(case, data.calibration_scores, axis),
            "note": _note(case, image is not None, max_images),
            "figure": None if image is None else _figure(image, case.verdict, data),
        }


def _numbers(
    case: ReportCase, calibration_scores: NDArray[np.float64], axis: _Axis
) -> dict[str, object]:
    verdict, scan = case.verdict, case.verdict.scan
    odds = odds_in_words(verdict.p_value, calibration_scores.size)
    as_high = int(np.count_nonzero(calibration_scores >= scan.score))
    return {
        "key": scan.key,
        "view": case.view,
        "flagged": verdict.flagged,
        "p_value": verdict.p_value,
        "p_text": _p_text(verdict.p_value),
        "odds": odds,
        "words": _sentence(odds),
        "score": scan.score,
        "score_text": _number(scan.score),
        "threshold_text": _number(verdict.threshold),
        "alpha_text": f"{verdict.alpha:g}",
        "as_high": f"{as_high:,} of {calibration_scores.size:,}" if as_high else "none",
        "place": axis.place(scan.score),
        "off_scale": not axis.low <= scan.score <= axis.high,
        "features": [
            (name, _number(value), _UNITS.get(name, "")) for name, value in scan.features.items()
        ],
        "regions": [_region(region) for region in verdict.regions],
    }


def _region(region: Region) -> tuple[str, str, str, str]:
    return (
        f"{region.row:.0f}, {region.column:.0f}",
        f"{region.area:,}",
        "unknown" if region.area_mm2 is None else f"{region.area_mm2:,.0f}",
        _number(region.peak),
    )


def _note(case: ReportCase, embedded: bool, max_images: int) -> str:
    """Join the case's own note with why there is no image or map, where it did not say."""
    sentences = [case.note] if case.note else []
    if case.image is not None and not embedded:
        sentences.append(
            f"Image not embedded: this page holds images of the {max_images} most unusual scans."
        )
    elif case.image is None and not case.note:
        sentences.append("This scan's image is not shown in this report.")
    elif embedded and case.verdict.scan.evidence is None:
        sentences.append("No map was computed for this scan.")
    return " ".join(sentences)


def _figure(source: NDArray[np.float32], verdict: Verdict, data: ReportData) -> dict[str, object]:
    """Embedded pictures of a case: the image, the evidence over it, its outline and labels."""
    image = shrink_mean(source, _LONGEST_SIDE)
    height, width = image.shape
    figure: dict[str, object] = {
        "width": width,
        "height": height,
        "image": _data_uri(np.rint(255 * np.clip(image, 0.0, 1.0)).astype(np.uint8)),
        "overlay": None,
        "contour": "",
        "labels": [],
    }
    if verdict.scan.evidence is not None:
        evidence = shrink_max(verdict.scan.evidence, _LONGEST_SIDE)
        rgba = overlay_rgba(evidence, data.evidence_threshold, data.evidence_ceiling)
        figure["overlay"] = _data_uri(rgba)
        figure["contour"] = contour_path(evidence >= data.evidence_threshold)
        figure["labels"] = [
            _label(region, source.shape, width, height) for region in verdict.regions
        ]
    return figure


def _label(region: Region, source: tuple[int, ...], width: int, height: int) -> tuple[float, float]:
    """Where the number of a region stands: beside it, so that it hides nothing of a small one.

    In display pixels, from the left and from the top.
    """
    rows, columns = source
    radius = (region.area / np.pi) ** 0.5
    return (
        round((region.column + 1.2 * radius + 0.5) * width / columns + 6, 1),
        round((region.row + 0.5) * height / rows, 1),
    )


def _data_uri(array: NDArray[np.uint8]) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(array)).decode("ascii")


def _csp_hash(text: str) -> str:
    """Content-policy source that allows exactly this inline script or style."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _p_text(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value >= 0.001 else f"{p_value:.2g}"


def _expected(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.1f}"
