"""The page as a file: parsed, never looked at. `test_html_browser.py` runs it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly.errors import NotCalibrated
from anomaly.reporting.figures import overlay_rgba
from anomaly.reporting.html import (
    ReportCase,
    ReportData,
    SkippedCase,
    odds_in_words,
    write_report,
)
from anomaly.types import Region, ScanScore, Verdict

CALIBRATION = np.arange(99) / 98
CANARY = "<script>alert(1)</script>'\"&amp;</title>"


def make_case(
    key: str,
    p_value: float,
    score: float,
    image: NDArray[np.float32] | None = None,
    evidence: NDArray[np.float32] | None = None,
    regions: tuple[Region, ...] = (),
    **texts: str,
) -> ReportCase:
    scan = ScanScore(key, score, {"nll": 3.25}, evidence)
    return ReportCase(Verdict(scan, p_value, 0.05, 0.95, p_value <= 0.05, regions), image, **texts)


def make_data(*cases: ReportCase, skipped: tuple[SkippedCase, ...] = ()) -> ReportData:
    return ReportData(
        title="Night list",
        cases=cases,
        skipped=skipped,
        calibration_scores=CALIBRATION,
        alpha=0.05,
        threshold=0.95,
        evidence_threshold=3.0,
        evidence_ceiling=12.0,
        provenance={"bundle": "sha256 abc"},
    )


class Page(HTMLParser):
    """What a browser would make of the file: tags, table rows, visible text, scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._open = ""
        self._in_cell = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        if tag == "script":
            self.scripts.append("")
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open == "style":
            self.styles[-1] += data
        else:
            self.text += data
            if self._in_cell:
                self.rows[-1][-1] += data.strip()

    @property
    def cases(self) -> list[dict[str, Any]]:
        loaded: list[dict[str, Any]] = json.loads(self.scripts[0])
        return loaded

    def attributes(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]

    def row(self, key: str) -> list[str]:
        (found,) = [r for r in self.rows if r and r[0] == key]
        return found


Render = Callable[..., Page]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    def _render(data: ReportData, **options: int) -> Page:
        path = tmp_path / "report.html"
        write_report(data, path, **options)
        return Page(path.read_text(encoding="utf-8"))

    return _render


def decode(uri: str) -> NDArray[np.uint8]:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    png = base64.b64decode(body)
    for chunk in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"):
        assert chunk not in png
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(
    ("p_value", "n", "words"),
    [
        (1 / 80, 399, "1 in 80"),  # 5 of 400
        (2 / 400, 399, "1 in 200"),
        (1 / 400, 399, "fewer than 1 in 400"),  # the floor: none of 399 scored as high
        (1 / 2000, 1999, "fewer than 1 in 2,000"),
        (0.05, 99, "1 in 20"),
        (0.1, 99, "1 in 10"),
        (0.37, 99, "37 in 100"),
        (1.0, 99, "100 in 100"),
        (0.5, 1, "fewer than 1 in 2"),
    ],
)
def test_p_value_in_words(p_value: float, n: int, words: str) -> None:
    assert odds_in_words(p_value, n) == words


def test_rows_run_from_the_smallest_p_value_then_the_highest_score(render: Render) -> None:
    page = render(
        make_data(
            make_case("c", 0.50, 0.5),
            make_case("b", 0.01, 2.0),
            make_case("a", 0.01, 7.0),
            make_case("d", 0.03, 9.0),
        )
    )

    assert [c["key"] for c in page.cases] == ["a", "b", "d", "c"]
    keys = [r[0] for r in page.rows if r and r[0] in "abcd"]
    assert keys == ["a", "b", "d", "c"]
    assert page.row("a")[1:5] == ["▲flagged", "0.0100", "< 1 in 100", "7"]
    assert page.row("c")[1:5] == ["○within normal range", "0.5000", "50 in 100", "0.5"]
    assert page.cases[0]["words"] == "fewer than 1 in 100 normal scans looks at least this unusual"
    assert page.cases[3]["words"] == "50 in 100 normal scans look at least this unusual"


def test_summary_counts(render: Render) -> None:
    cases = [make_case(f"k{i}", 0.02 if i < 3 else 0.5, 1.0) for i in range(30)]
    skipped = (
        SkippedCase("x", "truncated"),
        SkippedCase("y", "truncated"),
        SkippedCase("z", "rgb"),
    )

    page = render(make_data(*cases, skipped=skipped))

    text = re.sub(r"\s+", " ", page.text)
    assert "scored30" in text
    assert "flagged3" in text
    assert "at 5 %1.5" in text  # 0.05 * 30
    assert "not scored: 2 truncated, 1 rgb 3" in text


def test_banner_opens_the_page(render: Render) -> None:
    page = render(make_data(make_case("a", 0.5, 0.5)))

    assert page.text.split("Night list", 1)[1].split("Night list")[0].strip() == (
        "Research use only. Not a diagnosis."
    )


def test_skipped_scans_are_listed_with_their_reason_and_never_as_normal(render: Render) -> None:
    page = render(make_data(make_case("a", 0.5, 0.5), skipped=(SkippedCase("gone", "truncated"),)))

    row = page.row("gone")
    assert row == ["gone", "□not scored", "truncated"]
    assert "normal" not in " ".join(row)
    assert "gone" not in [c["key"] for c in page.cases]


def test_a_page_without_a_scored_scan(render: Render) -> None:
    page = render(make_data(skipped=(SkippedCase("gone", "truncated"),)))

    assert page.cases == []
    assert "No scan was scored." in page.text
    assert page.row("gone")[2] == "truncated"
    assert not [row for row in page.rows if "normal" in " ".join(row)]


def test_text_from_data_is_never_markup(render: Render) -> None:
    case = make_case(CANARY, 0.01, 2.0, view=CANARY, note=CANARY)
    scan = dataclasses.replace(case.verdict.scan, features={CANARY: 1.0})
    case = dataclasses.replace(case, verdict=dataclasses.replace(case.verdict, scan=scan))
    data = dataclasses.replace(
        make_data(case, skipped=(SkippedCase(CANARY, CANARY),)),
        title=CANARY,
        provenance={CANARY: CANARY},
    )

    page = render(data)

    assert "<script>alert" not in page.source
    assert "alert(1)</script>" not in page.source
    assert len(page.scripts) == 2  # the data and the page's own
    assert page.cases[0]["note"] == CANARY  # and nothing is lost
    assert page.cases[0]["features"][0][0] == CANARY
    assert [row.count(CANARY) for row in page.rows if CANARY in row] == [2, 2, 2]


def test_nothing_is_fetched_and_only_the_own_script_may_run(render: Render) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    page = render(make_data(make_case("a", 0.01, 2.0, image, image)))

    assert set(re.findall(r"https?:[^\s\"'<]*", page.source)) <= {"http://www.w3.org/2000/svg"}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert re.match(r"data:|#|$", attributes.get(name) or ""), (tag, attributes)
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]

    (policy,) = page.attributes("meta", **{"http-equiv": "Content-Security-Policy"})
    content = policy["content"]
    assert content is not None
    assert content.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in content
    for directive, text in (("script-src", page.scripts[1]), ("style-src", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in content


def test_embedded_pictures_are_the_pixels(render: Render) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30)).astype(np.float32) / np.float32(255)
    evidence = rng.random((20, 30), dtype=np.float32) * 15
    region = Region(row=4.0, column=9.0, area=40, area_mm2=None, peak=14.0)

    page = render(make_data(make_case("a", 0.01, 2.0, image, evidence, (region,))))

    figure = page.cases[0]["figure"]
    assert (figure["height"], figure["width"]) == (20, 30)
    assert (decode(figure["image"]) == np.rint(image * 255)).all()
    assert (decode(figure["overlay"]) == overlay_rgba(evidence, 3.0, 12.0)).all()
    assert figure["contour"].startswith("M")
    assert page.cases[0]["regions"] == [["4, 9", "40", "unknown", "14"]]


def test_large_pictures_are_shrunk_and_keep_a_single_pixel_of_evidence(render: Render) -> None:
    evidence = np.zeros((1536, 1024), dtype=np.float32)
    evidence[300, 600] = 12.0

    page = render(make_data(make_case("a", 0.01, 2.0, np.ones_like(evidence), evidence)))

    figure = page.cases[0]["figure"]
    assert decode(figure["image"]).shape == (512, 341)
    overlay = decode(figure["overlay"])
    assert np.argwhere(overlay[..., 3]).tolist() == [[100, 200]]  # a third of (300, 600)
    assert overlay[100, 200, 3] == 255


def test_no_image_means_no_map(render: Render) -> None:
    evidence = np.full((8, 8), 9.0, dtype=np.float32)

    page = render(make_data(make_case("a", 0.01, 2.0, None, evidence, note="Burned-in text.")))

    assert page.cases[0]["figure"] is None
    assert page.cases[0]["note"] == "Burned-in text."
    assert page.source.count("data:image/png") == 1  # the colour bar


def test_images_go_to_the_most_unusual_scans_first(render: Render) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    cases = [make_case(f"k{i}", 0.9 - 0.2 * i, 1.0, image) for i in range(4)]

    page = render(make_data(*cases), max_images=2)

    assert [(c["key"], c["figure"] is not None) for c in page.cases] == [
        ("k3", True),
        ("k2", True),
        ("k1", False),
        ("k0", False),
    ]
    assert "2 most unusual scans" in page.cases[2]["note"]
    assert "No map was computed" in page.cases[0]["note"]


def test_marker_lies_where_the_score_does(render: Render) -> None:
    # calibration 0/98 .. 98/98: the axis runs from -0.1 to 1.4, 280 units of drawing per score
    page = render(
        make_data(
            make_case("in", 0.5, 0.5), make_case("out", 0.01, 50.0), make_case("low", 1.0, -3.0)
        )
    )

    places = {c["key"]: (c["place"], c["off_scale"]) for c in page.cases}
    assert places == {"in": (168.0, False), "out": (420.0, True), "low": (0.0, True)}
    (limit,) = page.attributes("line", id="limit")
    assert float(limit["x1"] or "nan") == 294.0  # (0.95 + 0.1) * 280
    assert {c["key"]: c["as_high"] for c in page.cases} == {
        "in": "50 of 99",  # 49/98 .. 98/98
        "out": "none",
        "low": "99 of 99",
    }


@pytest.mark.parametrize("holds", [True, False])
def test_page_says_whether_it_holds_identifiers(render: Render, holds: bool) -> None:
    data = dataclasses.replace(make_data(make_case("a", 0.5, 0.5)), holds_identifiers=holds)

    text = render(data).text

    assert ("This page holds patient identifiers." in text) is holds
    assert ("No patient identifiers" in text) is not holds


def test_equal_calibration_scores_still_make_a_page(render: Render) -> None:
    data = dataclasses.replace(
        make_data(make_case("a", 1.0, 2.0)), calibration_scores=np.full(5, 2.0), threshold=2.0
    )

    assert render(data).cases[0]["off_scale"] is False


def test_a_page_without_calibration_is_refused(tmp_path: Path) -> None:
    data = make_data(make_case("a", 0.5, 0.5))
    for change in ({"calibration_scores": np.empty(0)}, {"threshold": np.inf}):
        with pytest.raises(NotCalibrated):
            write_report(dataclasses.replace(data, **change), tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (make_case("a", 0.5, float("nan")), "cannot be ranked"),
        (make_case("a", float("nan"), 0.5), "p-value"),
        (make_case("a", 0.0, 0.5), "p-value"),
        (
            make_case("a", 0.5, 0.5, np.zeros((4, 5), np.float32), np.zeros((5, 4), np.float32)),
            "differ in shape",
        ),
    ],
)
def test_unusable_cases_are_refused(tmp_path: Path, case: ReportCase, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_report(make_data(case), tmp_path / "r.html")
