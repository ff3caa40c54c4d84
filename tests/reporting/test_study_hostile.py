"""Text from outside on paper: shown as it is, cut where a page ends, and never obeyed."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from anomaly.reporting.html.page import ReportData, SkippedCase
from anomaly.types import NOTICE
from tests.reporting.html_pages import make_data
from tests.reporting.study_papers import (
    IMAGE,
    REGION,
    Written,
    flagged,
    height_of,
    texts,
    with_features,
)

CANARY = "<script>alert(1)</script>'\"&amp;</title></style><img src=http://127.0.0.1/x>"


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
