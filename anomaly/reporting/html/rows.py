"""The report as data: what its panels and the PDF of a study draw.

::

    ReportContent                  the run: counts, scales, what it is measured by
      rows: ScanRow | SkippedRow   a scan each, the most unusual first, those not scored last
    PageData                       the part of it that the page holds as JSON

Rows are text and numbers, computed here and only drawn in the browser, where
``templates/page/rows.js`` states the same fields. A dataclass is a JSON object, a named tuple an
array: there are thousands of those.
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
    """How a status is shown: an icon, a title, and a few words for lists."""

    icon: str
    title: str
    short: str


STATUSES: Mapping[str, Status] = {
    "flagged": Status("▲", "Flagged", "flagged"),
    "normal": Status("○", "Within normal range", "normal range"),
    "not scored": Status("□", "Not scored", "not scored"),
}
"""Statuses in the order in which a list sorts them."""


class RegionRow(NamedTuple):
    """A region as a table shows it.

    Attributes
    ----------
    place : str
        Row and column of its centre.
    area, area_mm2 : str
        In pixels and in mm²; the second ``"unknown"`` without a spacing.
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
    """A feature of a scan, and where it lies against normal scans.

    Attributes
    ----------
    feature : int
        Its place among `ReportContent.features`.
    value : float
        To four digits.
    share : float or None
        Where to draw it, from 0 to 1: the range of normal scans is the middle third, and a value
        further than the width of the range away stands at the edge. None without a range.
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
        The same for a reader; empty without a range.
    """

    name: str
    unit: str
    range: tuple[float, float] | None
    range_text: str


@dataclass(frozen=True)
class Figure:
    """Pictures of a scan, all of one size.

    Attributes
    ----------
    width, height : int
        Pixels.
    image : str
        Address of the picture; the same for the others, which may be None.
    grey : str
        Where its grey comes from.
    expected, look_alike, overlay : str or None
        The healthy counterfactual, a normal scan like it, the evidence.
    contour : str
        SVG path around what is beyond the limit.
    labels : tuple of (float, float)
        Where the numbers of the regions stand, from the left and from the top.
    """

    width: int
    height: int
    image: str
    grey: str
    expected: str | None
    look_alike: str | None
    overlay: str | None
    contour: str
    labels: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Fact:
    """What a panel says of one scan, as a row of two texts."""

    label: str
    value: str


@dataclass(frozen=True)
class ScanRow:
    """One scored scan.

    Attributes
    ----------
    key : str
    study : int or None
        Its place among `ReportContent.studies`.
    status : str
        A key of `STATUSES`.
    site, view : str
    p, score : float
    p_text, score_text : str
        The same for a reader.
    odds, words : str
        The p-value as a share of normal scans, and as a sentence without its full stop.
    as_high : str
        How many calibration scans scored as high, such as ``"50 of 99"``, or ``"none"``.
    place : float
        Where the score stands in the histogram.
    off_scale : bool
        It stands at the edge in place of beyond it.
    features : tuple of FeatureValue
        The farthest outside the range of normal scans first.
    regions : tuple of RegionRow
    note : str
    figure : Figure or None
        None where no image is shown.
    facts : mapping of str to tuple of Fact
        What panels say of it, by their names (`anomaly.reporting.html.panels`).
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
    """One scan that was not scored, and why; the other fields as of `ScanRow`."""

    key: str
    study: int | None
    status: Literal["not scored"]
    site: str
    view: str
    reason: str


Row: TypeAlias = ScanRow | SkippedRow


@dataclass(frozen=True)
class Counts:
    """How many scans there are of each kind.

    Attributes
    ----------
    scored, skipped, flagged : int
    reasons : tuple of (str, int)
        Why scans were skipped, the most frequent reason first.
    expected : str
        False alarms to expect at most if every scan were normal.
    against : str
        Sentences that compare the flagged scans with `expected`; may be empty.
    """

    scored: int
    skipped: int
    flagged: int
    reasons: tuple[tuple[str, int], ...]
    expected: str
    against: str


@dataclass(frozen=True)
class Histogram:
    """The scores of normal scans as a drawing.

    Attributes
    ----------
    bars : str
        SVG path.
    width, threshold_x : float
        Of the drawing; where the threshold stands in it.
    ticks : tuple of (float, str)
        Places and labels on its axis.
    """

    bars: str
    width: int
    threshold_x: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class ColourBar:
    """The colour scale of the evidence: its picture, and its labels from the top."""

    image: str
    ticks: tuple[str, ...]


@dataclass(frozen=True)
class ReportContent:
    """Everything that a page or a PDF shows.

    Attributes
    ----------
    title : str
    run_id : str
        Names the scores, whatever is shown of them.
    warnings : tuple of str
    rows : tuple of ScanRow and SkippedRow
        The most unusual scan first, those not scored last.
    studies : tuple of str
        Studies of the rows; none where no study has two scans.
    features : tuple of FeatureColumn
    counts : Counts
    alpha, alpha_percent, threshold : str
    calibration_size : int
        Normal scans that the p-values are measured on.
    histogram : Histogram
    colour_bar : ColourBar
    provenance : mapping of str to str
    holds_identifiers : bool
        Of patients.
    shows_images, compares : bool
        Some row has a figure; some has a normal scan like it.
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
    """What scripts read, as JSON in the page.

    Attributes
    ----------
    id, alpha, threshold, features, studies, images, rows
        As of `ReportContent`.
    private : bool
        The page holds identifiers of patients: nothing is kept in the browser.
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
