"""A study on paper, read back: what it says, what it shows, and that it does nothing else."""

from __future__ import annotations

import dataclasses
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly.errors import ConfigError, NotCalibrated
from anomaly.reporting.html.page import SkippedCase
from anomaly.reporting.pdf.study import write_study
from anomaly.types import NOTICE
from tests.reporting.html_pages import make_case, make_data
from tests.reporting.study_papers import (
    EVIDENCE,
    IMAGE,
    REGION,
    STUDY,
    Written,
    elements,
    flagged,
    pictures,
    texts,
    with_features,
)

# --- what it says -----------------------------------------------------------------------------


def test_a_scan_a_page_with_the_most_unusual_first(written: Written) -> None:
    data = make_data(
        make_case("c0c0", 0.37, 0.5, IMAGE, EVIDENCE),
        flagged("a0a0", 7.0, site="north", note="Look at the apex."),
        make_case("b0b0", 0.03, 1.5),
    )
    reader = written(data)
    pages = texts(reader)
    assert len(pages) == 3
    assert all(page.count(NOTICE) == 1 for page in pages)
    for number, (key, page) in enumerate(zip(("a0a0", "b0b0", "c0c0"), pages, strict=True), 1):
        assert f"Study {STUDY} · scan {number} of 3" in page
        assert "2 flagged · 1 within normal range" in page
        assert f"Scan {key}" in page
        assert f"page {number} of 3" in page
        assert not any(f"Scan {other}" in page for other in {"a0a0", "b0b0", "c0c0"} - {key})
    assert "▲ Flagged Fewer than 1 in 100 normal scans looks at least this unusual." in pages[0]
    assert "p = 0.0100 (flagged at 0.05 and below) · score 7 (threshold 0.95)" in pages[0]
    assert "Scan a0a0 · view PA · north" in pages[0]
    assert "Look at the apex." in pages[0]
    assert "threshold 0.95" in pages[0]
    assert "this scan 7 (off the scale)" in pages[0]
    assert "None of them scored this high." in pages[0]
    assert "1 6, 8 30 314 20 8" in pages[0]  # a circle of 314 mm2 is 20 mm across
    assert "○ Within normal range 37 in 100 normal scans look at least" in pages[2]
    assert "bundle: sha256 abc." in pages[2]
    assert "Night list." in pages[2]
    assert {tuple(map(round, page.mediabox[2:])) for page in reader.pages} == {(595, 842)}  # A4


def test_what_was_not_scored_is_listed_after_the_scans(written: Written) -> None:
    skipped = tuple(SkippedCase(f"{i:04x}", "truncated", view="LL", site="s") for i in range(120))
    pages = texts(written(make_data(flagged("a0a0"), skipped=skipped)))
    assert "1 flagged · 120 not scored" in pages[0]
    assert len(pages) > 2  # more than a page of them
    listed = " ".join(pages[1:])
    assert all(f"{case.key} LL s truncated" in listed for case in skipped)
    assert "Nothing is known of these scans: they need the usual reading." in listed
    assert all(NOTICE in page and f"Study {STUDY}" in page for page in pages)
    assert all("Scan View Site Why" in page for page in pages[1:])


def test_a_study_of_which_nothing_was_scored(written: Written) -> None:
    (page,) = texts(written(make_data(skipped=(SkippedCase("0b", "no pixel data"),))))
    assert "□ Not scored" in page
    assert "0b no pixel data" in page
    assert "flagged ·" not in page
    assert "No patient identifiers and no images." in page


def test_features_outside_the_range_of_normals_come_first(written: Written) -> None:
    values = {f"inside_{i}": 1.5 for i in range(11)} | {"low": -1.0, "high": 9.0, "bare": 4.0}
    data = dataclasses.replace(
        make_data(with_features(flagged("a0"), values)),
        feature_ranges={name: (1.0, 2.0) for name in values if name != "bare"},
    )
    (page,) = texts(written(data))
    rows = [
        "Features, the most unusual first",
        "high 9 above 1 to 2",  # seven widths of the range outside of it
        "low -1 below 1 to 2",  # two
        "inside_0 1.5 1 to 2 inside_1 1.5",
    ]
    places = [page.index(row) for row in rows[1:]]
    assert rows[0] in page
    assert places == sorted(places)
    assert page.count("inside_") == 6
    assert "6 further features are on the page of the run." in page


def test_features_without_ranges_are_numbers_alone(written: Written) -> None:
    reader = written(make_data(with_features(flagged("a0"), {"nll": 3.25, "gone": np.nan})))
    (page,) = texts(reader)
    assert "Feature Value nll (bits/dim) 3.25" in page
    assert "gone" not in page
    assert "Normals, 5 to 95 %" not in page


def test_more_regions_than_fit_are_counted(written: Written) -> None:
    case = flagged("a0")
    verdict = dataclasses.replace(case.verdict, regions=(REGION,) * 9)
    (page,) = texts(written(make_data(dataclasses.replace(case, verdict=verdict))))
    assert page.count("6, 8 30 314 20 8") == 5
    assert "4 further regions are on the page of the run." in page


def test_warnings_stand_on_every_page(written: Written) -> None:
    sentences = ["The flagged share is 37 %.", "The exposure is unlike.", "Third.", "Fourth."]
    data = dataclasses.replace(make_data(flagged("a0"), flagged("b0")), warnings=sentences)
    for page in texts(written(data)):
        assert "Read with care. The flagged share is 37 %. The exposure is unlike. Third." in page
        assert "Fourth." not in page
        assert "1 further warnings are on the page of the run." in page


@pytest.mark.parametrize("holds", [True, False])
def test_every_page_says_what_may_identify(written: Written, holds: bool) -> None:
    data = dataclasses.replace(make_data(flagged("a0"), flagged("b0")), holds_identifiers=holds)
    for page in texts(written(data)):
        assert ("This page holds patient identifiers." in page) is holds
        assert ("Images can still identify a person." in page) is not holds


# --- what it shows ----------------------------------------------------------------------------


def test_pictures_are_those_of_the_page(written: Written) -> None:
    plain = flagged("a0", 9.0)
    compared = flagged("b0", 8.0, expected=IMAGE[::-1], look_alike=IMAGE**2)
    normal = make_case("c0", 0.5, 0.5, IMAGE, EVIDENCE)
    bare = make_case("d0", 0.6, 0.5, note="The image is not shown.")
    reader = written(make_data(plain, compared, normal, bare))
    scan, scale = (20, 24), (1, 256)
    assert pictures(reader.pages[0]) == [scan, scan, scan, scale]  # the second with evidence over
    assert pictures(reader.pages[1]) == [scan, scan, scan, scale, scan, scan]
    assert pictures(reader.pages[2]) == [scan]
    assert pictures(reader.pages[3]) == []
    pages = texts(reader)
    captions = ("Expected by the model (synthetic)", "A normal scan like it")
    assert [[caption in page for caption in captions] for page in pages] == [
        [False, False],
        [True, True],
        [False, False],
        [False, False],
    ]
    assert "No map is drawn: within normal range." in pages[2]
    assert "The image is not shown." in pages[3]
    for tick in ("≥ 12", "9.75", "7.5", "5.25", "3"):
        assert tick in pages[0]


def test_a_normal_scan_is_compared_too(written: Written) -> None:
    case = dataclasses.replace(make_case("c0", 0.5, 0.5, IMAGE, EVIDENCE), look_alike=IMAGE**2)
    reader = written(make_data(case))
    assert "A normal scan like it" in texts(reader)[0]
    assert pictures(reader.pages[0]) == [(20, 24), (20, 24)]


# --- the file ---------------------------------------------------------------------------------


def test_the_same_study_gives_the_same_bytes(written: Written, tmp_path: Path) -> None:
    files = []
    for _ in range(2):
        reader = written(make_data(flagged("a0", expected=IMAGE), make_case("b0", 0.5, 0.5)))
        files.append((tmp_path / "study.pdf").read_bytes())
    assert files[0] == files[1]
    assert set(reader.metadata) == {"/Title", "/Producer"}  # no time, no author


def test_the_file_is_tagged_for_who_does_not_see_it(written: Written) -> None:
    data = dataclasses.replace(
        make_data(flagged("a0", expected=IMAGE, look_alike=IMAGE)),
        feature_ranges={"nll": (1.0, 2.0)},
    )
    reader = written(data)
    root = reader.root_object
    assert root["/Lang"] == "en"
    assert root["/MarkInfo"]["/Marked"] is not False
    assert reader.metadata.title == f"Study {STUDY}. {NOTICE}"
    assert 'pdfuaid:part="1"' in root["/Metadata"].get_data().decode()
    tags = elements(reader)
    described = [tag["/Alt"] for tag in tags if tag["/S"] == "/Figure"]
    assert described == [
        "Scan a0, no overlay",
        "Scan a0 with the evidence map, its contour and 1 numbered regions",
        "Colour scale of the evidence, from 3 at the bottom to 12 at the top",
        "Histogram of the scores of normal scans, the threshold at 0.95 and this scan at 2",
        "Synthetic: what the model expected of scan a0",
        "The normal scan most like scan a0",
        "above",
    ]
    names = [tag["/S"] for tag in tags]
    assert names.count("/H1") == 1
    assert names.count("/H2") == 3
    assert names.count("/Table") == 2
    assert names.index("/H1") < names.index("/H2")


def test_its_fonts_are_inside(written: Written) -> None:
    reader = written(make_data(flagged("a0")))
    fonts = reader.pages[0]["/Resources"]["/Font"].values()
    for font in fonts:
        font = font.get_object()
        described = font["/DescendantFonts"][0].get_object()["/FontDescriptor"].get_object()
        assert "Report" in font["/BaseFont"]
        assert {"/FontFile2", "/FontFile3"} & set(described)


@pytest.mark.parametrize("address", ["http://127.0.0.1/a", "file:///etc/passwd", "ftp://x/y"])
def test_no_address_but_data_is_opened(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where a template would name one."""
    import weasyprint

    made = weasyprint.HTML

    def planted(string: str, **options: Any) -> Any:
        return made(string=string.replace("</body>", f"<img src='{address}'></body>"), **options)

    monkeypatch.setattr(weasyprint, "HTML", planted)
    with pytest.raises(weasyprint.urls.FatalURLFetchingError) as caught:
        write_study(make_data(flagged("a0")), STUDY, tmp_path / "study.pdf")
    assert "disallowed protocol" in str(caught.value.__cause__)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_calibrated_gets_no_pdf(tmp_path: Path) -> None:
    data = dataclasses.replace(make_data(flagged("a0")), threshold=np.inf)
    with pytest.raises(NotCalibrated):
        write_study(data, STUDY, tmp_path / "study.pdf")
    assert list(tmp_path.iterdir()) == []


class _Broken(MetaPathFinder):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, name: str, *_: object) -> None:
        if name == "weasyprint":
            raise self.error


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (ImportError("no"), r"pip install weasyprint"),
        (OSError("cannot load library 'libpango-1.0-0'"), "libpango-1.0-0.*apt install libpango"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Exception, said: str
) -> None:
    monkeypatch.delitem(sys.modules, "weasyprint")
    monkeypatch.setattr(sys, "meta_path", [_Broken(broken), *sys.meta_path])
    with pytest.raises(ConfigError, match=said):
        write_study(make_data(flagged("a0")), STUDY, tmp_path / "study.pdf")
