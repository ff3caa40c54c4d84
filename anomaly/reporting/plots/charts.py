"""Figures for papers: overlay sheet, ROC, score histogram, p-value uniformity, training curves.

A figure is a matplotlib `Figure` of the size for a paper: one column (88 mm) wide, or two columns
(180 mm) for the overlay sheet. `write_figure` saves it as a vector PDF with embedded fonts and as a
PNG of 300 dpi. Neither contains a time or a machine name, so the same run gives the same bytes.
Colours are those of Okabe and Ito, which colour-blind readers can distinguish; line styles
distinguish the same groups.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomaly.errors import AnomalyError
from anomaly.files import whole
from anomaly.regions import label_regions
from anomaly.reporting.outlines import outlines
from anomaly.reporting.plots.figures import colour_bar, overlay_rgba, shrink_max, shrink_mean
from anomaly.types import FIGURE_PNG, NOTICE, JudgedScan

__all__ = [
    "overlay_sheet",
    "roc_plot",
    "score_histogram",
    "training_plot",
    "uniformity_plot",
    "write_figure",
]
_COLUMN, _PAGE = 3.46, 7.09  # inches: one and two columns
_DPI = 300
_LONGEST = 480  # pixels of a panel's longer side: a quarter of the page at _DPI

_BLACK, _GREY = "#000000", "#8c8c8c"
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_GROUPS = ((_BLUE, "-"), (_ORANGE, (0, (4, 1.5))), (_GREEN, (0, (1, 1))))
"""Colour and line style of each group of scans, in order."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # included in matplotlib, so the same on every machine
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # TrueType, which journals require
}


def overlay_sheet(
    flagged: Sequence[tuple[JudgedScan, NDArray[np.float32]]],
    others: Sequence[tuple[JudgedScan, NDArray[np.float32]]],
    threshold: float,
    ceiling: float,
    note: str,
) -> Figure:
    """Draw scans next to their evidence: flagged scans on the left, others on the right.

    Parameters
    ----------
    flagged, others : sequences of (JudgedScan, ndarray (H, W) float32 in [0, 1])
        Scans with their pixels; the evidence of each verdict has the same shape.
    threshold, ceiling : float
        Ends of the common colour scale, ``threshold < ceiling``.
    note : str
        How the scans were selected.

    Raises
    ------
    ValueError
        There are no scans, a verdict has no evidence, or shapes differ.
    """
    rows = max(len(flagged), len(others))
    if not rows:
        raise ValueError("a sheet of no scans: expected at least one")
    with matplotlib.rc_context(_STYLE):
        figure = _figure(_PAGE, 0.9 + 1.85 * rows, note)
        pairs, bar = figure.subfigures(1, 2, squeeze=False, width_ratios=[14, 1.3])[0]
        axes = pairs.subplots(rows, 5, squeeze=False, width_ratios=[8, 8, 0.4, 8, 8])
        for panel in axes.ravel():
            panel.set_axis_off()
        for first, kind, scans in ((0, "flagged", flagged), (3, "not flagged", others)):
            for row, (verdict, pixels) in enumerate(scans):
                title = f"{verdict.scan.key}\n{kind}, p = {verdict.p_value:.3g}"
                _pair(axes[row, first : first + 2], verdict, pixels, threshold, ceiling, title)
        _scale(bar.subplots(), threshold, ceiling)
    return figure


def _pair(
    axes: NDArray[Any],
    verdict: JudgedScan,
    pixels: NDArray[np.float32],
    threshold: float,
    ceiling: float,
    title: str,
) -> None:
    evidence = verdict.scan.evidence
    if evidence is None or evidence.shape != pixels.shape:
        shape = None if evidence is None else evidence.shape
        raise ValueError(
            f"the evidence of scan {verdict.scan.key} is {shape}, its image {pixels.shape}: "
            "expected the same shape"
        )
    image, evidence = shrink_mean(pixels, _LONGEST), shrink_max(evidence, _LONGEST)
    extent = (0, image.shape[1], image.shape[0], 0)
    for panel in axes:
        panel.imshow(image, "gray", vmin=0, vmax=1, extent=extent, interpolation="none")
    axes[0].set_title(title, loc="left", linespacing=1.25)
    overlay = overlay_rgba(evidence, threshold, ceiling)
    axes[1].imshow(overlay, extent=extent, interpolation="none")
    labels, count = label_regions(evidence, threshold)
    edges = [loop for place in range(count) for loop in outlines(labels == place + 1)]
    # A bright line on a dark one: visible on bone and on lung.
    for colour, width in (("black", 1.5), ("white", 0.6)):
        axes[1].add_collection(LineCollection(edges, colors=colour, linewidths=width))


def _scale(axes: Axes, threshold: float, ceiling: float) -> None:
    span = (0.0, 1.0, threshold, ceiling)
    axes.imshow([[0.5]], "gray", vmin=0, vmax=1, extent=span, aspect="auto")  # grey, like tissue
    axes.imshow(colour_bar(threshold, ceiling), extent=span, aspect="auto")
    axes.set_box_aspect(12)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    ticks = np.linspace(threshold, ceiling, 5)
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.spines[:].set_visible(True)
    axes.set_title("evidence", pad=4)
    axes.set_xlabel("none\nbelow")


def roc_plot(
    curve: tuple[NDArray[np.float64], NDArray[np.float64]],
    band: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    area: str,
    operating: tuple[float, float, float],
    note: str,
) -> Figure:
    """Draw a ROC curve with its band, the chance line and the operating point.

    Parameters
    ----------
    curve : false alarms and sensitivity, each (k,) in [0, 1]
    band : rates, low and high, each (g,) in [0, 1]
    area : str
        The area under the curve with its interval, as text.
    operating : tuple of float
        ``(alpha, false alarms, sensitivity)`` at the preset threshold.
    note : str
        What was compared, and how the band was computed.
    """
    alpha, false_alarms, sensitivity = operating
    with matplotlib.rc_context(_STYLE):
        figure = _figure(_COLUMN, _COLUMN + 0.35, note)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="chance")
        axes.fill_between(*band, color=_BLUE, alpha=0.2, linewidth=0, label="95 % band")
        axes.plot(*curve, color=_BLUE, label=f"AUROC {area}")
        axes.plot(
            [false_alarms],
            [sensitivity],
            color=_ORANGE,
            marker="D",
            markersize=5,
            linestyle="none",
            clip_on=False,
            label=f"flags at α = {alpha:g}",
        )
        axes.set(xlabel="false-alarm rate (1 − specificity)", ylabel="sensitivity")
        _unit_square(axes)
        axes.legend(loc="lower right")
    return figure


def score_histogram(
    calibration: NDArray[np.float64],
    groups: Mapping[str, NDArray[np.float64]],
    threshold: float,
    alpha: float,
    note: str,
) -> Figure:
    """Draw histograms of the run's scores and of the calibration normals.

    Parameters
    ----------
    calibration : ndarray (n,) float64
        Scores of held-out normal scans, not empty.
    groups : mapping of str to ndarray
        Scores of the run's scans by group name; at most three groups, none empty.
    threshold : float
        Score at and above which a scan is flagged.
    alpha : float
    note : str
    """
    edges = _bars(calibration, threshold, min(map(len, (calibration, *groups.values()))))
    beyond = sum(int(((s < edges[0]) | (s > edges[-1])).sum()) for s in groups.values())
    if beyond:
        note += f"\n{beyond} scans beyond the axis are counted in its first and last bars."
    with matplotlib.rc_context(_STYLE):
        figure = _figure(_COLUMN, 2.75, note)
        axes = figure.add_subplot()
        of_normals = f"calibration normals (n = {len(calibration)})"
        axes.stairs(
            _shares(calibration, edges), edges, fill=True, color="#c9c9c9", label=of_normals
        )
        for (name, scores), (colour, line) in zip(groups.items(), _GROUPS, strict=False):
            label = f"{name} (n = {len(scores)})"
            shares = _shares(scores, edges)
            axes.stairs(shares, edges, color=colour, linestyle=line, linewidth=1.2, label=label)
        limit = f"flagged from {threshold:.3g} on (α = {alpha:g})"
        axes.axvline(threshold, color=_BLACK, linestyle="-.", linewidth=0.9, label=limit)
        axes.set(xlabel="anomaly score", ylabel="share of scans in a bar", xlim=edges[[0, -1]])
        axes.set_ylim(0, axes.get_ylim()[1])
        figure.legend(loc="outside upper left", ncols=1)
    return figure


def _bars(calibration: NDArray[np.float64], threshold: float, fewest: int) -> NDArray[np.float64]:
    """Bin edges around the calibration scores; one is the threshold, so that no bin spans it."""
    low = min(float(calibration.min()), threshold)
    high = max(float(calibration.max()), threshold)
    # A threshold is the next float after a score, so the span can be too small to draw.
    span = high - low if high - low > 1e-9 * abs(high) else 1.0
    width = span / min(20, max(6, math.isqrt(fewest)))
    below, above = (threshold - low) / width + 1, (high + span - threshold) / width
    places = np.arange(-math.ceil(below), math.ceil(above) + 1, dtype=np.float64)
    return np.asarray(threshold + width * places, dtype=np.float64)


def _shares(scores: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
    return np.asarray(counts / len(scores), dtype=np.float64)


def uniformity_plot(
    p_values: NDArray[np.float64],
    band: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    what: str,
    alpha: float,
    note: str,
) -> Figure:
    """Draw the distribution function of p-values, which is the diagonal if they are valid.

    Parameters
    ----------
    p_values : ndarray (m,) float64 in (0, 1]
    band : alphas, low and high, each (g,)
        Range of shares due to calibration and chance, from each stated rate to the next, 95 %
        pointwise.
    what : str
        Name of the scans, such as ``"held-out normals"``.
    alpha : float
        The false-alarm rate of the flags.
    note : str
    """
    ordered = np.sort(p_values)
    share = np.arange(1, len(ordered) + 1) / len(ordered)
    with matplotlib.rc_context(_STYLE):
        figure = _figure(_COLUMN, _COLUMN + 0.5, note)
        axes = figure.add_subplot()
        axes.fill_between(
            *band,
            step="post",
            color=_BLACK,
            alpha=0.13,
            linewidth=0,
            label="conformal band, 95 % pointwise",
        )
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="as stated")
        x, y = np.concatenate([[0], ordered, [1]]), np.concatenate([[0], share, [1]])
        label = f"{what} (m = {len(ordered)})"
        axes.step(x, y, where="post", color=_BLUE, label=label)
        axes.axvline(
            alpha, color=_ORANGE, linestyle="-.", linewidth=0.9, label=f"flags at α = {alpha:g}"
        )
        axes.set(xlabel="stated false-alarm rate α", ylabel="share of scans with p ≤ α")
        _unit_square(axes)
        figure.legend(loc="outside upper left")
    return figure


def training_plot(records: Sequence[Mapping[str, Any]], note: str) -> Figure:
    """Draw training curves on held-out normals: bits/dim, cross-entropy, denoising error.

    Parameters
    ----------
    records : sequence of mapping
        Records with a ``step``; each quantity is drawn over the records that contain it.
    note : str

    Raises
    ------
    AnomalyError
        No record contains any of the three quantities.
    """
    names = {
        "bits_per_dim": "bits/dim",
        "bits_per_dim_bound": "bits/dim, bound",
        "cross_entropy": "cross-entropy (nats)",
        "denoising": "denoising error",
    }
    held = {
        label: [(r["step"], r[name]) for r in records if name in r and "step" in r]
        for name, label in names.items()
    }
    drawn = {label: points for label, points in held.items() if points}
    if not drawn:
        raise AnomalyError(
            f"none of {len(records)} records of the training holds {', '.join(names)}: expected one"
        )
    with matplotlib.rc_context(_STYLE):
        figure = _figure(_COLUMN, 0.7 + 1.15 * len(drawn), note)
        panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, points), (colour, _) in zip(panels, drawn.items(), _GROUPS, strict=False):
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=2)
            axes.set_ylabel(label)
        panels[-1].set_xlabel("training step")
        figure.align_ylabels()
    return figure


def _figure(width: float, height: float, note: str) -> Figure:
    """Create a figure with a note below it, which has its own space in the layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.supxlabel(f"{note}\n{NOTICE}".lstrip("\n"), fontsize=6, color="#404040")
    return figure


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    axes.set_aspect("equal")


def write_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as ``name.pdf`` and ``name.png``, each atomically.

    Parameters
    ----------
    figure : Figure
    folder : Path
        Must exist.
    name : str

    Raises
    ------
    OSError
        If writing fails.
    """
    paths = []
    same = {"Creator": "anomaly", "Producer": None}
    dated = {**same, "CreationDate": datetime(2000, 1, 1, tzinfo=UTC)}
    for ending, metadata in (("pdf", dated), ("png", FIGURE_PNG)):
        page = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            figure.savefig(page, format=ending, dpi=_DPI, metadata=metadata)
        path = folder / f"{name}.{ending}"
        with whole(path) as file:
            file.write(page.getbuffer())
        paths.append(path)
    return paths
