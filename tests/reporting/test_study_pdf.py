"""A study on paper, read back: what it says, what it shows, and that it does nothing else."""

from __future__ import annotations

import dataclasses
import re
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from html_pages import make_case, make_data

from anomaly.errors import ConfigError, NotCalibrated
from anomaly.reporting.html import ReportCase, ReportData, SkippedCase
from anomaly.reporting.study_pdf import write_study
from anomaly.types import NOTICE, Region

try:
    import weasyprint
except (ImportError, OSError) as error:
    pytest.skip(f"WeasyPrint cannot be used here: {error}", allow_module_level=True)
pypdf = pytest.importorskip("pypdf")

STUDY = "9d4411aa22ff0011"
IMAGE = np.linspace(0, 1, 24 * 20, dtype=np.float32).reshape(24, 20)
EVIDENCE = np.zeros((24, 20), np.float32)
EVIDENCE[4:9, 6:12] = 8.0
REGION = Region(row=6.0, column=8.5, area=30, area_mm2=100 * np.pi, peak=8.0)
CANARY = "<script>alert(1)</script>'\"&amp;</title></style><img src=http://127.0.0.1/x>"

Written: TypeAlias = Callable[..., Any]  # pypdf's reader: the package is optional


@pytest.fixture
def written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Written]:
    """Write a study and read it; what WeasyPrint complains of fails the test."""

    def _written(data: ReportData, study: str = STUDY) -> Any:
        write_study(data, study, tmp_path / "study.pdf")
        return pypdf.PdfReader(tmp_path / "study.pdf")

    yield _written
    assert [record.getMessage() for record in caplog.records] == []


def texts(reader: Any) -> list[str]:
    """Text of each page, its lines joined."""
    return [re.sub(r"\s+", " ", page.extract_text()) for page in reader.pages]


def height_of(page: Any, wanted: str) -> float:
    """Where the line that holds a text stands, in points from the foot of the page."""
    found: list[float] = []

    def visit(said: str, drawing: list[float], text: list[float], *_: object) -> None:
        if wanted in said:  # a text is told with the matrices that it was drawn with
            found.append(text[4] * drawing[1] + text[5] * drawing[3] + drawing[5])

    page.extract_text(visitor_text=visit)
    (height,) = found
    return height


def pictures(page: Any) -> list[tuple[int, int]]:
    """Width and height of each picture that is drawn, in order."""
    found: list[tuple[int, int]] = []

    def walk(stream: Any, resources: Any) -> None:
        for operands, operator in pypdf.generic.ContentStream(stream, page.pdf).operations:
            if operator == b"Do":
                drawn = resources["/XObject"][operands[0]].get_object()
                if drawn["/Subtype"] == "/Image":
                    found.append((drawn["/Width"], drawn["/Height"]))
                else:
                    walk(drawn, drawn["/Resources"])

    walk(page.get_contents(), page["/Resources"])
    return found


def flagged(key: str, score: float = 2.0, **changes: Any) -> ReportCase:
    case = make_case(key, 0.01, score, IMAGE, EVIDENCE, (REGION,), view="PA")
    return dataclasses.replace(case, **changes)


def with_features(case: ReportCase, features: dict[str, float]) -> ReportCase:
    scan = dataclasses.replace(case.verdict.scan, features=features)
    return dataclasses.replace(case, verdict=dataclasses.replace(case.verdict, scan=scan))


def elements(reader: Any) -> list[dict[str, Any]]:
    """Every element of the tag tree, in order."""
    found: list[dict[str, Any]] = []

    def walk(kids: Any) -> None:
        for kid in kids.get_object() if isinstance(kids.get_object(), list) else [kids]:
            kid = kid.get_object()
            if isinstance(kid, dict) and "/S" in kid:
                found.append(kid)
                walk(kid["/K"])

    walk(reader.root_object["/StructTreeRoot"]["/K"])
    return found


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
        "high 9 1 to 2 above",  # seven widths of the range outside of it
        "low -1 1 to 2 below",  # two
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


# --- text from outside ------------------------------------------------------------------------


def hostile(text: str) -> ReportData:
    case = flagged(text, view=text, site=text, note=text, expected=IMAGE, look_alike=IMAGE)
    case = with_features(case, {f"{i}{text}": float(i) for i in range(14)})
    case = dataclasses.replace(
        case, verdict=dataclasses.replace(case.verdict, regions=(REGION,) * 9)
    )
    return dataclasses.replace(
        make_data(case, skipped=(SkippedCase(text, text, view=text, site=text),)),
        title=text,
        provenance={f"{i}{text}": text for i in range(7)},
        warnings=[text] * 5,
        feature_ranges={f"{i}{text}": (0.0, 1.0) for i in range(14)},
    )


def test_text_from_data_is_shown_and_never_obeyed(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    reader = written(hostile(CANARY), CANARY)
    pages = texts(reader)
    assert len(pages) == 2
    shown = "".join(pages).replace(" ", "")
    assert f"Study{CANARY[:35]}…" in shown
    assert shown.count(CANARY.replace(" ", "")) >= 6  # notes, warnings, facts: whole
    assert reader.metadata.title == f"Study {CANARY[:35]}…. {NOTICE}"
    assert all("/Annots" not in page for page in reader.pages)
    assert not {"/OpenAction", "/AA", "/Names", "/AcroForm"} & set(reader.root_object)
    assert b"/JavaScript" not in (tmp_path / "study.pdf").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000,
        "long words " * 1_000,
        "\u202egnp.exe\u202c " * 20,  # turns what follows about, where it is not isolated
        "\u05d0\u05d1\u05d2 \u0627\u0644\u0639" * 30,
        "line\nbreak\t\x00\x1b\x7f" * 20,
        "{{ 7 * 7 }}{% for %}" * 20,
        "* { display: none } @page { size: 1mm }",
    ],
)
def test_a_scan_stays_on_its_page_whatever_it_says(written: Written, text: str) -> None:
    reader = written(hostile(text), text)
    assert len(reader.pages) == 2
    first, last = texts(reader)
    assert NOTICE in first
    assert "scan 1 of 1" in first
    assert "4 further regions" in first
    assert "6 further features" in first
    assert "2 further warnings" in first
    assert "□ Not scored" in last
    # The last of what is above stands above the small print, and that above the foot.
    heights = [height_of(reader.pages[0], said) for said in ("further f", "patient id", "page 1")]
    assert heights[0] > heights[1] + 5 > heights[2] + 10 > 10


def test_a_turned_text_turns_nothing_else(written: Written) -> None:
    """An override that is not closed ends with its own text."""
    case = flagged("a0", view="\u202eAP", site="north")
    (page,) = texts(written(make_data(case)))
    assert "· north" in page
    assert "htron" not in page


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
        (ImportError("no"), r"pip install 'anomaly\[pdf\]'"),
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
