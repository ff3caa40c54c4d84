"""Data of a report, from which the page's panels and the PDF of a study are drawn.

::

    ReportContent                  the run: counts, scales, calibration
      rows: ScanRow | SkippedRow   one per scan, the most anomalous first, unscored scans last
    PageData                       the part that the page contains as JSON

Rows contain text and numbers that are computed in Python; the browser only draws them.
``templates/page/rows.js`` declares the same fields. A dataclass becomes a JSON object; a named
tuple becomes an array, which is shorter, because there are thousands of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "STATUSES",
    "ColourBar",
    "Counts",
    "Fact",
    "FeatureColumn",
    "FeatureValue",
    "Figure",
    "Histogram",
    "PageData",
    "RegionRow",
    "ReportContent",
    "Row",
    "ScanRow",
    "SkippedRow",
    "Status",
]


@dataclass(frozen=True)
class Status:
    """Presentation of a status: an icon, a title, and a short text for lists."""

    icon: str
    title: str
    short: str


STATUSES: Mapping[str, Status] = {
    "flagged": Status("▲", "Flagged", "flagged"),
    "normal": Status("○", "Within normal range", "normal range"),
    "not scored": Status("□", "Not scored", "not scored"),
}
"""Statuses in the sort order of lists."""


class RegionRow(NamedTuple):
    """A region, as text for a table.

    Attributes
    ----------
    place : str
        Row and column of its centre.
    area, area_mm2 : str
        Area in pixels and in mm²; the latter is ``"unknown"`` without a spacing.
    across : str
        Diameter in mm of the circle of the same area, or ``"unknown"``.
    peak : str
        Its largest evidence.
    """

    place: str
    area: str
    area_mm2: str
    across: str
    peak: str


class FeatureValue(NamedTuple):
    """A feature of a scan and its position relative to normal scans.

    Attributes
    ----------
    feature : int
        Index into `ReportContent.features`.
    value : float
        Rounded to four digits.
    share : float or None
        Position in the drawing, from 0 to 1: the range of normal scans is the middle third, and a
        value farther away than the width of the range is drawn at the edge. None without a range.
    side : int
        -1 below the range, 1 above, 0 within it or without one.
    """

    feature: int
    value: float
    share: float | None
    side: int


@dataclass(frozen=True)
class FeatureColumn:
    """A feature of the run.

    Attributes
    ----------
    name, unit : str
    range : (float, float) or None
        5 % and 95 % quantile of normal scans.
    range_text : str
        The range as text; empty without a range.
    """

    name: str
    unit: str
    range: tuple[float, float] | None
    range_text: str


@dataclass(frozen=True)
class Figure:
    """Pictures of a scan, all of the same size.

    Attributes
    ----------
    width, height : int
        Size in pixels.
    image : str
        Address of the image of the scan.
    grey : str
        Source of its grey levels.
    expected, look_alike, overlay : str or None
        Addresses of the healthy counterfactual, of a similar normal scan, and of the evidence.
    contour : str
        SVG path around the regions above the evidence threshold.
    labels : tuple of (float, float)
        Positions of the region numbers, from the left and from the top.
    """

    width: int
    height: int
    image: str
    grey: str
    expected: str | None
    look_alike: str | None
    overlay: str | None
    spread: str | None
    contour: str
    labels: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Fact:
    """One row of a panel's table for a scan: a label and a value."""

    label: str
    value: str


@dataclass(frozen=True)
class ScanRow:
    """One scored scan.

    Attributes
    ----------
    key : str
    study : int or None
        Index into `ReportContent.studies`.
    status : str
        A key of `STATUSES`.
    site, view : str
    p, score : float
    p_text, score_text : str
        The p-value and the score as text.
    odds, words : str
        The p-value as a share of normal scans, and as a sentence without a full stop.
    as_high : str
        Number of calibration scans with at least this score, such as ``"50 of 99"``, or ``"none"``.
    place : float
        Position of the score in the histogram.
    off_scale : bool
        Whether the score is beyond the axis and is drawn at its edge.
    features : tuple of FeatureValue
        Sorted by distance outside the range of normal scans, the farthest first.
    regions : tuple of RegionRow
    note : str
    figure : Figure or None
        None if no image is shown.
    facts : mapping of str to tuple of Fact
        Table rows by panel name (`anomaly.reporting.html.panels`).
    """

    key: str
    study: int | None
    status: Literal["flagged", "normal"]
    site: str
    view: str
    p: float
    p_text: str
    odds: str
    words: str
    score: float
    score_text: str
    as_high: str
    place: float
    off_scale: bool
    features: tuple[FeatureValue, ...]
    regions: tuple[RegionRow, ...]
    note: str
    figure: Figure | None
    facts: Mapping[str, tuple[Fact, ...]]


@dataclass(frozen=True)
class SkippedRow:
    """One scan that was not scored, with the reason; other fields as in `ScanRow`."""

    key: str
    study: int | None
    status: Literal["not scored"]
    site: str
    view: str
    reason: str


Row: TypeAlias = ScanRow | SkippedRow


@dataclass(frozen=True)
class Counts:
    """Numbers of scans by status.

    Attributes
    ----------
    scored, skipped, flagged : int
    reasons : tuple of (str, int)
        Reasons why scans were skipped and their numbers, the most frequent first.
    expected : str
        Maximum expected number of false alarms if every scan were normal.
    against : str
        Sentences that compare the number of flagged scans with `expected`; may be empty.
    """

    scored: int
    skipped: int
    flagged: int
    reasons: tuple[tuple[str, int], ...]
    expected: str
    against: str


@dataclass(frozen=True)
class Histogram:
    """Histogram of the scores of normal scans, as a drawing.

    Attributes
    ----------
    bars : str
        SVG path.
    width, threshold_x : float
        Width of the drawing; position of the threshold in it.
    ticks : tuple of (float, str)
        Positions and labels of the axis ticks.
    """

    bars: str
    width: int
    threshold_x: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class ColourBar:
    """The colour scale of the evidence: its picture, and its labels from top to bottom."""

    image: str
    ticks: tuple[str, ...]


@dataclass(frozen=True)
class ReportContent:
    """Complete content of a page or a PDF.

    Attributes
    ----------
    title : str
    run_id : str
        Id of the scores, independent of what is shown.
    warnings : tuple of str
    rows : tuple of ScanRow and SkippedRow
        The most anomalous scan first, unscored scans last.
    studies : tuple of str
        Studies of the rows; empty if no study has two scans.
    features : tuple of FeatureColumn
    counts : Counts
    alpha, alpha_percent, threshold : str
    calibration_size : int
        Number of normal scans from which the p-values are computed.
    histogram : Histogram
    colour_bar : ColourBar
    provenance : mapping of str to str
    holds_identifiers : bool
        Whether the content identifies patients.
    shows_images, compares : bool
        Whether any row has a figure; whether any figure has a similar normal scan.
    """

    title: str
    run_id: str
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    studies: tuple[str, ...]
    features: tuple[FeatureColumn, ...]
    counts: Counts
    alpha: str
    alpha_percent: str
    threshold: str
    calibration_size: int
    histogram: Histogram
    colour_bar: ColourBar
    provenance: Mapping[str, str]
    holds_identifiers: bool
    shows_images: bool
    compares: bool


@dataclass(frozen=True)
class PageData:
    """Data for the scripts, stored in the page as JSON.

    Attributes
    ----------
    id, alpha, threshold, features, studies, images, rows
        As in `ReportContent`.
    private : bool
        Whether the page identifies patients; if so, nothing is stored in the browser.
    statuses : mapping of str to Status
    """

    id: str
    private: bool
    alpha: str
    threshold: str
    statuses: Mapping[str, Status]
    features: tuple[FeatureColumn, ...]
    studies: tuple[str, ...]
    images: bool
    rows: tuple[Row, ...]
