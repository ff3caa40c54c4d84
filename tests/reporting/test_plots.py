"""Figures for papers: what is drawn where, by hand; legible, marked and the same every time."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from PIL import Image

from anomaly.errors import AnomalyError
from anomaly.reporting.plots.charts import (
    overlay_sheet,
    roc_plot,
    score_histogram,
    training_plot,
    uniformity_plot,
    write_figure,
)
from anomaly.reporting.plots.figures import overlay_rgba
from anomaly.types import JudgedScan, ScanScore


def case(key: str, p_value: float, evidence: np.ndarray) -> tuple[JudgedScan, np.ndarray]:
    found = JudgedScan(ScanScore(key, 1.0, {}, evidence), p_value, 0.05, 0.5, p_value <= 0.05)
    return found, np.full(evidence.shape, 0.5, dtype=np.float32)


def sheet() -> Figure:
    blank, lit = np.zeros((4, 6), dtype=np.float32), np.zeros((4, 6), dtype=np.float32)
    lit[1:3, 2:5] = 7.0
    normals = [case("0" * 16, 0.5, blank), case("1" * 16, 0.123456, blank)]
    return overlay_sheet([case("f" * 16, 0.0125, lit)], normals, 3.0, 12.0, "drawn at random")


def curve() -> Figure:
    corners = np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0, 1.0])
    rates = np.linspace(0, 1, 5)
    band = rates, np.clip(rates - 0.1, 0, 1), np.clip(rates + 0.4, 0, 1)
    return roc_plot(corners, band, "0.875 [0.700, 1.000]", (0.1, 0.5, 1.0), "2 and 2 scans")


def histogram() -> Figure:
    calibration = np.arange(100) / 10  # 0 to 9.9
    groups = {"normal scans": np.array([1.0, 2.0, 9.6]), "abnormal scans": np.array([9.4, 500.0])}
    return score_histogram(calibration, groups, 9.5, 0.05, "calibrated")


def uniformity() -> Figure:
    band = np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.8, 1.0])
    return uniformity_plot(np.array([0.75, 0.25, 0.25]), band, "held-out normals", 0.05, "n = 1")


def training() -> Figure:
    records = [
        {"step": 0, "bits_per_dim": 5.0, "cross_entropy": 3.0, "denoising": 0.5},
        {"step": 10, "bits_per_dim": 4.0, "denoising": 0.25},
    ]
    return training_plot(records, "validation")


EVERY = [sheet, curve, histogram, uniformity, training]


def texts(figure: Figure) -> list[str]:
    return [found.get_text() for found in figure.findobj(Text)]


def line(axes: Axes, label: str) -> list[list[float]]:
    (found,) = (found for found in axes.lines if str(found.get_label()).startswith(label))
    return [[float(value) for value in row] for row in np.asarray(found.get_xydata())]


def stairs(axes: Axes) -> list[StepPatch]:
    patches = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    assert len(patches) == len(axes.patches)
    return patches


@pytest.mark.parametrize("draw", EVERY)
def test_every_figure_says_what_it_is_for_and_nothing_is_cut_off(
    draw: Callable[[], Figure],
) -> None:
    figure = draw()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert any("Research use only. Not a diagnosis." in said for said in texts(figure))
    held = figure.get_tightbbox(canvas.get_renderer())  # of all that is drawn, in inches
    assert min(held.x0, held.y0) >= 0
    assert held.x1 <= figure.get_figwidth()
    assert held.y1 <= figure.get_figheight()
    assert min(float(t.get_fontsize()) for t in figure.findobj(Text) if t.get_text()) >= 6


@pytest.mark.parametrize("draw", EVERY)
def test_two_drawings_are_the_same_bytes(draw: Callable[[], Figure], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written = write_figure(draw(), tmp_path / name, "figure")
        assert [path.name for path in written] == ["figure.pdf", "figure.png"]
    for ending in ("pdf", "png"):
        first, again = (tmp_path / name / f"figure.{ending}" for name in "ab")
        assert first.read_bytes() == again.read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["figure.pdf", "figure.png"]


def test_files_are_fit_for_a_paper(tmp_path: Path) -> None:
    pdf, png = write_figure(curve(), tmp_path, "roc")
    with Image.open(png) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.width == pytest.approx(3.46 * 300, abs=1)  # one column of 88 mm
        assert set(image.info) == {"dpi", "Software"}
        assert image.info["Software"] == "anomaly"
    content = pdf.read_bytes()
    assert b"/CreationDate (D:20000101000000Z)" in content
    assert b"/FontFile2" in content  # TrueType, embedded
    assert b"/Subtype /Image" not in content  # curves stay curves
    assert b"/Subtype /Image" in write_figure(sheet(), tmp_path, "sheet")[0].read_bytes()


def test_the_vectors_in_the_pdf_are_the_curve(tmp_path: Path) -> None:
    content = write_figure(curve(), tmp_path, "roc")[0].read_bytes()
    pages = []
    for part in content.split(b"stream\n")[1:]:
        try:
            pages.append(zlib.decompress(part.split(b"\nendstream")[0]))
        except zlib.error:
            continue
    # The Okabe-Ito blue of the curve: 0, 114/255, 178/255.
    assert any(b"0 0.447058823" in page and b" l\n" in page for page in pages)


def test_the_sheet_shows_each_scan_beside_its_evidence() -> None:
    figure = sheet()
    axes = {panel.get_title(loc="left"): panel for panel in figure.findobj(Axes)}
    assert {title for title in axes if title} == {
        f"{'f' * 16}\nflagged, p = 0.0125",
        f"{'0' * 16}\nnot flagged, p = 0.5",
        f"{'1' * 16}\nnot flagged, p = 0.123",
    }
    overlays = [
        image.get_array()
        for image in figure.findobj(AxesImage)
        if np.asarray(image.get_array()).shape == (4, 6, 4)
    ]
    lit = np.zeros((4, 6))
    lit[1:3, 2:5] = 7.0
    assert len(overlays) == 3
    assert np.array_equal(np.asarray(overlays[0]), overlay_rgba(lit, 3.0, 12.0))
    assert not np.asarray(overlays[1:]).any()  # blank where nothing is beyond chance


def test_contours_follow_the_edges_of_the_pixels() -> None:
    drawn = [c.get_segments() for c in sheet().findobj(LineCollection)]
    corners = {(2.0, 1.0), (5.0, 1.0), (5.0, 3.0), (2.0, 3.0)}
    flagged = [segments for segments in drawn if segments]
    assert len(flagged) == 2  # dark below, bright above; none on the two others
    for (loop,) in flagged:
        assert {tuple(corner) for corner in loop.tolist()} == corners


def test_the_colour_bar_has_numbers() -> None:
    figure = sheet()
    FigureCanvasAgg(figure).draw()
    assert {"3", "5.25", "7.5", "9.75", "12"} <= set(texts(figure))


def test_a_sheet_needs_evidence_of_the_same_shape() -> None:
    verdict, pixels = case("a", 0.5, np.zeros((4, 6), dtype=np.float32))
    with pytest.raises(ValueError, match="no scans"):
        overlay_sheet([], [], 1.0, 2.0, "")
    with pytest.raises(ValueError, match=r"is \(4, 6\), its image \(6, 4\)"):
        overlay_sheet([(verdict, pixels.T)], [], 1.0, 2.0, "")
    blind = JudgedScan(ScanScore("a", 1.0, {}), 0.5, 0.05, 0.5, flagged=False)
    with pytest.raises(ValueError, match="is None"):
        overlay_sheet([(blind, pixels)], [], 1.0, 2.0, "")


def test_the_roc_plot_holds_curve_area_and_flags() -> None:
    (axes,) = curve().axes
    assert line(axes, "AUROC 0.875") == [[0, 0], [0, 0.5], [0.5, 1], [1, 1]]
    assert line(axes, "flags at α = 0.1") == [[0.5, 1]]


def test_no_bar_holds_scans_on_both_sides_of_the_threshold() -> None:
    figure = histogram()
    (axes,) = figure.axes
    bars = {str(patch.get_label()): patch.get_data() for patch in stairs(axes)}
    for label, shares in (("normal scans (n = 3)", [2 / 3, 1 / 3]), ("abnormal", [1 / 2, 1 / 2])):
        ((values, edges, _),) = (found for name, found in bars.items() if name.startswith(label))
        place = int(np.flatnonzero(np.isclose(edges, 9.5))[0])
        assert [values[:place].sum(), values[place:].sum()] == pytest.approx(shares)
        assert values.sum() == pytest.approx(1)
    assert any("1 scans beyond the axis" in said for said in texts(figure))  # the one at 500
    (limit,) = (found for found in axes.lines if "flagged from 9.5" in str(found.get_label()))
    assert limit.get_xdata() == [9.5, 9.5]


def test_equal_scores_still_make_a_histogram() -> None:
    threshold = float(np.nextafter(1.0, 2.0))
    figure = score_histogram(np.ones(5), {"scans": np.array([1.0, 1.5])}, threshold, 0.5, "")
    (axes,) = figure.axes
    (calibration, *_), (scans, *_) = (patch.get_data() for patch in stairs(axes))
    assert calibration.max() == 1.0
    assert sorted(scans)[-2:] == [0.5, 0.5]


def test_uniformity_counts_p_values_at_most_alpha() -> None:
    figure = uniformity()
    (axes,) = figure.axes
    # two of three at most 1/4, all at most 3/4
    steps = [[0, 0], [0.25, 1 / 3], [0.25, 2 / 3], [0.75, 1], [1, 1]]
    assert line(axes, "held-out normals (m = 3)") == steps
    (band,) = axes.collections
    (path,) = band.get_paths()
    corners = {(round(float(x), 6), round(float(y), 6)) for x, y in np.asarray(path.vertices)}
    # constant from 1/2 to 1, as p-values are multiples of 1 / (n + 1)
    assert {(0.5, 0.2), (1.0, 0.2), (0.5, 0.8), (1.0, 0.8)} <= corners


def test_training_curves_skip_what_was_not_recorded() -> None:
    panels = training().axes
    drawn = {p.get_ylabel(): np.asarray(p.lines[0].get_xydata()).tolist() for p in panels}
    assert drawn == {
        "bits/dim": [[0, 5], [10, 4]],
        "cross-entropy (nats)": [[0, 3]],
        "denoising error": [[0, 0.5], [10, 0.25]],
    }
    with pytest.raises(AnomalyError, match="none of 1 records"):
        training_plot([{"step": 1}], "")
