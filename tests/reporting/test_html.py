"""The page as a file: parsed, never looked at. `test_html_browser.py` runs it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly.errors import NotCalibrated
from anomaly.reporting.html.page import ReportCase, SkippedCase, odds_in_words, write_report
from anomaly.types import Region
from tests.reporting.html_pages import Render, make_case, make_data

CANARY = "<script>alert(1)</script>'\"&amp;</title>"


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
    said = [(c["status"], c["p_text"], c["odds"], c["score_text"]) for c in page.cases]
    assert said[0] == ("flagged", "0.0100", "fewer than 1 in 100", "7")
    assert said[3] == ("normal", "0.5000", "50 in 100", "0.5")
    assert page.cases[0]["words"] == "fewer than 1 in 100 normal scans looks at least this unusual"
    assert page.cases[3]["words"] == "50 in 100 normal scans look at least this unusual"


def test_of_equal_scores_the_highest_peak_comes_first(render: Render) -> None:
    def region(peak: float) -> Region:
        return Region(1.0, 1.0, 4, None, peak)

    page = render(
        make_data(
            make_case("a", 0.01, 25.0),
            make_case("b", 0.01, 25.0, regions=(region(7.0), region(4.0))),
            make_case("c", 0.01, 25.0, regions=(region(11.0),)),
            make_case("d", 0.01, 26.0),
        )
    )
    assert [case["key"] for case in page.cases] == ["d", "c", "b", "a"]


@pytest.mark.parametrize("column", [0, 20, 40, 60, 63])
@pytest.mark.parametrize("row", [0, 32, 63])
def test_the_number_of_a_region_stands_within_the_picture(
    render: Render, row: int, column: int
) -> None:
    image = np.zeros((64, 64), np.float32)
    region = Region(float(row), float(column), 9, None, 5.0)
    case = make_case("a", 0.01, 9.0, image, image, regions=(region,))
    ((x, y),) = render(make_data(case)).cases[0]["figure"]["labels"]
    assert 0 <= x <= 64 - 64 / 20
    assert 64 / 40 <= y <= 64 - 64 / 40


@pytest.mark.parametrize(
    ("flagged", "scans", "said"),
    [
        (1, 1, "1 flagged against 0.05 expected if every scan were normal."),
        (3, 20, "3 flagged against 1.0 expected if every scan were normal: 3 times as many."),
        (400, 600, "400 flagged against 30 expected if every scan were normal: 13 times as many."),
    ],
)
def test_observed_against_expected(render: Render, flagged: int, scans: int, said: str) -> None:
    cases = [make_case(f"k{i}", 0.01 if i < flagged else 0.5, 1.0) for i in range(scans)]
    assert said in render(make_data(*cases)).text


def test_readings_stay_with_the_scores_whatever_is_shown_of_them(render: Render) -> None:
    def run_id(first: float, second: float) -> str:
        peaks = {"a": first, "b": second}
        cases = [
            make_case(key, 0.01, 25.0, regions=(Region(1.0, 1.0, 4, None, peak),))
            for key, peak in peaks.items()
        ]
        return str(render(make_data(*cases)).data["id"])

    assert run_id(7.0, 4.0) == run_id(4.0, 7.0)


def test_summary_counts(render: Render) -> None:
    cases = [make_case(f"k{i}", 0.02 if i < 3 else 0.5, 1.0) for i in range(30)]
    skipped = (
        SkippedCase("x", "truncated"),
        SkippedCase("y", "truncated"),
        SkippedCase("z", "rgb"),
    )

    page = render(make_data(*cases, skipped=skipped))

    text = re.sub(r"\s+", " ", page.text)
    assert "scanned33" in text
    assert "flagged3" in text
    assert "at 5 %1.5" in text  # 0.05 * 30
    assert "not scored: 2 truncated, 1 rgb 3" in text
    assert "3 flagged against 1.5 expected if every scan were normal: 2 times as many." in text


def test_banner_opens_the_page(render: Render) -> None:
    page = render(make_data(make_case("a", 0.5, 0.5)))

    assert page.text.split("Night list", 1)[1].split("Night list")[0].strip() == (
        "Research use only. Not a diagnosis."
    )


def test_skipped_scans_are_rows_with_their_reason_and_never_normal(render: Render) -> None:
    skipped = (SkippedCase("gone", "truncated", view="PA", site="north"),)
    page = render(make_data(make_case("a", 0.5, 0.5), skipped=skipped))

    assert page.data["rows"][1] == {
        "key": "gone",
        "study": None,
        "status": "not scored",
        "site": "north",
        "view": "PA",
        "reason": "truncated",
    }


def test_a_page_without_a_scored_scan(render: Render) -> None:
    page = render(make_data(skipped=(SkippedCase("gone", "truncated"),)))

    assert page.cases == []
    assert "No scan was scored." in page.text
    assert [row["reason"] for row in page.data["rows"]] == ["truncated"]
    assert "times as many" not in page.text


def test_text_from_data_is_never_markup(render: Render) -> None:
    case = make_case(CANARY, 0.01, 2.0, view=CANARY, note=CANARY, study=CANARY)
    scan = dataclasses.replace(case.verdict.scan, features={CANARY: 1.0})
    case = dataclasses.replace(case, verdict=dataclasses.replace(case.verdict, scan=scan))
    data = dataclasses.replace(
        make_data(case, skipped=(SkippedCase(CANARY, CANARY, study=CANARY),)),
        title=CANARY,
        warnings=[CANARY],
        provenance={CANARY: CANARY},
    )

    page = render(data)

    assert "<script>alert" not in page.source
    assert "alert(1)</script>" not in page.source
    assert len(page.scripts) == 2  # the data and the page's own
    assert page.cases[0]["note"] == CANARY  # and nothing is lost
    assert page.data["features"][0]["name"] == CANARY
    assert page.data["studies"] == [CANARY]
    assert page.text.count(CANARY) >= 3  # the title, the warning and the provenance
    assert page.data["rows"][1]["reason"] == CANARY
    assert [row.count(CANARY) for row in page.rows if CANARY in row] == [2]  # provenance


def test_nothing_is_fetched_and_only_the_own_script_may_run(render: Render) -> None:
    image = np.zeros((8, 8), dtype=np.float32)
    page = render(make_data(make_case("a", 0.01, 2.0, image, image)))

    assert set(re.findall(r"https?:[^\s\"'<]*", page.source)) <= {"http://www.w3.org/2000/svg"}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert re.match(r"data:|$", attributes.get(name) or ""), (tag, attributes)
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]

    (policy,) = page.attributes("meta", **{"http-equiv": "Content-Security-Policy"})
    content = policy["content"]
    assert content is not None
    assert content.startswith("default-src 'none'; img-src 'self' data:;")
    assert "unsafe" not in content
    for directive, text in (("script-src", page.scripts[1]), ("style-src", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in content


def test_a_region_of_known_spacing_says_how_far_it_reaches(render: Render) -> None:
    # a circle of 314.16 mm2 is 20 mm across
    region = Region(row=4.0, column=9.0, area=40, area_mm2=100 * np.pi, peak=14.0)
    page = render(make_data(make_case("a", 0.01, 2.0, regions=(region,))))

    assert page.cases[0]["regions"] == [["4, 9", "40", "314", "20", "14"]]


def test_a_flagged_scan_without_a_region_says_that_it_is_all_of_it(render: Render) -> None:
    blank = np.zeros((8, 8), dtype=np.float32)
    region = Region(row=1.0, column=1.0, area=1, area_mm2=None, peak=4.0)
    page = render(
        make_data(
            make_case("all", 0.01, 2.0, blank, blank),
            make_case("place", 0.02, 2.0, blank, blank, (region,)),
            make_case("unknown", 0.03, 2.0, blank),
            make_case("normal", 0.5, 2.0, blank, blank),
        )
    )

    whole = "The whole image is unusual, no single place stands out."
    assert [c["note"] for c in page.cases] == [whole, "", "No map was computed for this scan.", ""]


def test_features_stand_in_one_order_and_what_is_missing_or_no_number_is_left_out(
    render: Render,
) -> None:
    first, second = make_case("a", 0.01, 2.0), make_case("b", 0.02, 2.0)
    scan = dataclasses.replace(second.verdict.scan, features={"edge": np.inf, "nll": 1.23456})
    second = dataclasses.replace(second, verdict=dataclasses.replace(second.verdict, scan=scan))
    data = dataclasses.replace(make_data(first, second), feature_ranges={"nll": (1.0, 2.0)})

    page = render(data)

    assert page.data["features"] == [
        {"name": "nll", "unit": "bits/dim", "range": [1.0, 2.0], "range_text": "1.00 to 2.00"},
        {"name": "edge", "unit": "", "range": None, "range_text": ""},
    ]
    # 3.25 is more than a width of the range above; (1 + 0.235) / 3 = 0.411667
    assert [c["features"] for c in page.cases] == [[[0, 3.25, 1.0, 1]], [[0, 1.235, 0.411667, 0]]]


@pytest.mark.parametrize("span", [(2.0, 2.0), (3.0, 2.0), (0.0, np.inf), (np.nan, 1.0)])
def test_an_empty_range_is_refused(tmp_path: Path, span: tuple[float, float]) -> None:
    data = dataclasses.replace(make_data(), feature_ranges={"nll": span})
    with pytest.raises(ValueError, match="nll: a range is two finite numbers"):
        write_report(data, tmp_path / "r.html")


def test_cases_may_come_one_by_one(render: Render) -> None:
    cases = (make_case(f"k{i}", 0.9 - 0.2 * i, 1.0) for i in range(4))
    page = render(dataclasses.replace(make_data(), cases=cases))

    assert [c["key"] for c in page.cases] == ["k3", "k2", "k1", "k0"]


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


def told(whole: float, explanation: str, *, flagged: bool = True) -> ReportCase:
    """A scan whose score comes from the image as a whole, or not."""
    image = np.full((8, 8), 0.5, np.float32)
    spread = np.zeros((8, 8), np.float32)
    spread[2:4, 2:4] = whole / 4
    case = make_case("ab12", 0.01 if flagged else 0.5, 1.5, image, np.ones((8, 8), np.float32))
    features = {**case.verdict.scan.features, "part_whole": whole}
    scan = replace(case.verdict.scan, features=features, spread=spread, explanation=explanation)
    return replace(case, verdict=replace(case.verdict, scan=scan))


def test_a_flag_is_explained_by_a_sentence_and_a_layer(render: Render) -> None:
    sentence = "Less texture than in normal scans, mostly lower left in the picture."
    (row,) = render(make_data(told(1.2, sentence))).cases
    assert row["note"].startswith(sentence)
    assert row["figure"]["spread"]
    # The whole alone would not be flagged: no layer. And none on a scan within the normal range.
    (row,) = render(make_data(told(0.5, "One place is darker than in normal scans."))).cases
    assert row["note"].startswith("One place is darker")
    assert row["figure"]["spread"] is None
    (row,) = render(make_data(told(1.2, sentence, flagged=False))).cases
    assert sentence not in row["note"]
    assert row["figure"]["spread"] is None
