"""Scans in their study, by their address, beside a normal one. Skipped without Chromium."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from anomaly.reporting.html.page import ReportCase, ReportData, SkippedCase
from tests.reporting.html_pages import Render
from tests.reporting.html_tabs import (
    FILM,
    Open,
    Tab,
    make_case,
    make_data,
    middle,
    selected,
    sync_api,
)

ALIKE = np.full_like(FILM, 0.6)  # 153 of 255


def study_data(*more: ReportCase, skipped: Sequence[SkippedCase] = ()) -> ReportData:
    """Study s1: a, c and two not scored. Study s2: b alone. d: of no study."""
    cases = [
        make_case("a", 0.01, 9.0, study="s1", look_alike=ALIKE),
        make_case("b", 0.02, 8.0, study="s2", view="AP", site="north"),
        make_case("c", 0.5, 0.5, study="s1", image=None, look_alike=ALIKE),
        make_case("d", 0.6, 0.4),
        *more,
    ]
    missing = [
        SkippedCase("lost", "rgb", view="LL", study="s1"),
        SkippedCase("gone", "truncated", study="s1"),
        *skipped,
    ]
    return dataclasses.replace(make_data(), cases=cases, skipped=missing)


def strip(page: Tab) -> list[str]:
    """What the buttons of the study say, the pressed one with a star."""
    return [
        ("*" if button.get_attribute("aria-current") == "true" else "")
        + " ".join(button.inner_text().split())
        for button in page.locator("#study-scans button").all()
    ]


def box(page: Tab, selector: str) -> dict[str, float]:
    found: dict[str, float] = page.locator(selector).first.bounding_box()
    return found


# --- the study --------------------------------------------------------------------------------


def test_studies_stand_once_in_the_page_and_rows_hold_their_number(render: Render) -> None:
    data = render(study_data()).data

    assert data["studies"] == ["s1", "s2"]
    numbers = {row["key"]: row["study"] for row in data["rows"]}
    assert numbers == {"a": 0, "b": 1, "c": 0, "d": None, "lost": 0, "gone": 0}


def test_no_study_is_named_where_none_has_two_scans(render: Render) -> None:
    page = render(dataclasses.replace(study_data(), cases=[make_case("a", 0.1, 1.0)], skipped=[]))

    assert page.data["studies"] == []
    assert page.data["rows"][0]["study"] is None
    assert page.attributes("nav") == []


def test_the_study_lists_its_scans_the_most_unusual_first(opened: Open) -> None:
    page = opened(study_data())

    title = "Study s1 · 4 scans, the most unusual first"
    assert page.locator("#study-title").inner_text() == title
    assert strip(page) == [
        "*Scan a: ▲ flagged p 0.0100 · PA",
        "Scan c: ○ normal range p 0.5000 · PA",
        "Scan lost: □ not scored rgb · LL",
        "Scan gone: □ not scored truncated",
    ]
    sync_api.expect(page.get_by_role("navigation", name=title)).to_be_visible()


def test_pictures_of_the_study_are_small_and_wait_to_be_seen(opened: Open) -> None:
    page = opened(study_data())

    (image,) = page.locator("#study-scans img").all()  # c shows no image, the others have none
    assert image.get_attribute("loading") == "lazy"
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    assert (box(page, "#study-scans img")["height"]) == 40
    hidden = opened(
        dataclasses.replace(study_data(), cases=[make_case("a", 0.1, 1.0, None, study="s1")])
    )
    assert hidden.locator("#study-scans button").count() == 3
    assert hidden.locator(".thumbnail").count() == 0  # a report without images has no room for any


def test_click_and_brackets_go_through_the_study(opened: Open) -> None:
    page = opened(study_data())
    page.locator("#study-scans button").nth(1).click()
    assert selected(page) == "c"
    assert strip(page)[1].startswith("*")
    assert page.evaluate("document.activeElement.dataset.index") == "2"
    for key, wanted in [("]", "lost"), ("]", "gone"), ("]", "gone"), ("[", "lost")]:
        page.keyboard.press(key)
        assert selected(page) == wanted
        assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    assert "Not scored: rgb" in page.locator("#note").inner_text()
    page.get_by_label("Key").press_sequentially("[[")
    assert page.locator("#case-key").inner_text() == "lost"  # a bracket in a text belongs to it


def test_the_study_is_gone_through_past_the_filters(opened: Open) -> None:
    page = opened(study_data())
    page.get_by_role("button", name="Flagged 2").click()
    page.keyboard.press("]")
    assert page.locator("#case-key").inner_text() == "c"
    assert page.locator("tr[aria-current]").count() == 0  # it is not listed
    page.keyboard.press("j")
    assert selected(page) == "a"


def test_a_scan_alone_in_its_study_moves_nothing(opened: Open) -> None:
    page = opened(study_data())
    before = box(page, "#original")
    page.locator("tr", has_text="0.0200").click()
    assert page.locator("#study-title").inner_text() == "Study s2 · 1 scan"
    assert box(page, "#original") == before
    page.locator("tr", has_text="0.6000").click()  # of no study
    sync_api.expect(page.locator("#study")).to_be_hidden()
    assert box(page, "#original") == before


def test_a_study_of_thousands_draws_some(opened: Open) -> None:
    count = 3_000
    cases = [make_case(f"k{i}", 0.5, float(count - i), None, study="s") for i in range(count)]
    page = opened(dataclasses.replace(make_data(), cases=cases, skipped=[]))

    assert page.locator("#study-scans button").count() == 24
    assert "3,000 scans, the most unusual first; 1 to 24 are shown" in (
        page.locator("#study-title").inner_text()
    )
    page.locator("#study-scans button").first.focus()
    for _ in range(23):
        page.keyboard.press("]")
    line = box(page, "#study-scans")
    button = box(page, "#study-scans [aria-current]")
    assert button["x"] + button["width"] <= line["x"] + line["width"]
    page.keyboard.press("]")
    assert selected(page) == "k24"
    assert "25 to 48 are shown" in page.locator("#study-title").inner_text()
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"


def test_search_finds_the_scans_of_a_study(opened: Open) -> None:
    page = opened(study_data())
    page.get_by_label("Key").fill("S1")
    assert page.locator("#worklist tbody th").all_inner_texts() == ["a", "c", "lost", "gone"]


def test_shortcuts_can_be_confined_to_the_list(opened: Open) -> None:
    page = opened(study_data())
    page.get_by_label("Shortcuts everywhere").uncheck()
    for key in ("j", "]", "+", "ArrowDown"):
        page.keyboard.press(key)
    assert selected(page) == "a"
    assert page.locator("#zoom-value").inner_text() == "100 %"
    page.reload()  # the choice is kept
    page.locator("#worklist tbody button").first.focus()
    page.keyboard.press("j")
    assert selected(page) == "b"


# --- the address ------------------------------------------------------------------------------


def fresh(page: Tab, fragment: str) -> None:
    address = page.url.partition("#")[0]
    page.goto("about:blank")
    page.goto(f"{address}#{fragment}")


def test_the_address_names_the_scan(opened: Open) -> None:
    page = opened(study_data())
    length = page.evaluate("history.length")
    # The browser tells of an address a moment after it has changed it.
    sync_api.expect(page).to_have_url(re.compile(r"index\.html#a$"))
    page.keyboard.press("j")
    sync_api.expect(page).to_have_url(re.compile(r"index\.html#b$"))
    assert page.evaluate("history.length") == length  # the way back is not through the list

    fresh(page, "c")
    assert selected(page) == "c"
    assert page.locator("tr[data-index]").count() == 6
    page.evaluate("location.hash = 'gone'")
    sync_api.expect(page.locator("#case-key")).to_have_text("gone")


@pytest.mark.parametrize("fragment", ["nobody", "%", "%E0%A4%A", "#", "case"])
def test_an_address_that_names_no_scan_is_told(opened: Open, fragment: str) -> None:
    page = opened(study_data())
    fresh(page, fragment)
    assert selected(page) == "a"
    told = page.get_by_text("No scan has the key that the address names.")
    assert told.is_visible()
    page.keyboard.press("j")
    assert told.is_hidden()


@pytest.mark.parametrize("key", ["a b/#%?", "<b>é</b>", "\u202eabc", "x" * 2_000])
def test_any_key_has_an_address(opened: Open, key: str) -> None:
    page = opened(study_data(make_case(key, 0.9, 0.1)))
    page.locator("tr", has_text="0.9000").click()
    page.reload()
    assert page.locator("#case-key").text_content() == key
    assert page.locator("#verdict-status").inner_text() == "Within normal range"


def test_keys_that_identify_do_not_go_into_the_history(opened: Open) -> None:
    page = opened(dataclasses.replace(study_data(), holds_identifiers=True))
    page.keyboard.press("j")
    assert page.url.endswith("index.html")
    fresh(page, "c")  # a link that was given is followed
    assert selected(page) == "c"


# --- beside a normal scan ---------------------------------------------------------------------


@pytest.mark.parametrize("single_file", [False, True])
def test_a_normal_scan_stands_beside_and_follows(opened: Open, single_file: bool) -> None:
    page = opened(study_data(), single_file=single_file)
    pane = ".frame >> nth=2"
    figure = page.get_by_role("figure", name="A normal scan like it")
    sync_api.expect(figure).to_be_visible()
    assert page.get_by_alt_text("The normal scan most like scan a").count() == 1
    assert middle(page, pane) == 153
    page.get_by_label("Window", exact=True).fill("50")
    # (0.6 - 0.25) / 0.5 = 0.7 of 255
    assert middle(page, pane) == pytest.approx(178.5, abs=1.5)
    width = box(page, "#look-alike")["width"]
    page.get_by_role("button", name="Zoom in").click()
    assert box(page, "#look-alike")["width"] == pytest.approx(1.5 * width)
    assert box(page, "#original")["width"] == pytest.approx(1.5 * width)


@pytest.mark.parametrize("width", [1920, 1280, 400])
def test_a_scan_without_one_keeps_its_places(opened: Open, width: int) -> None:
    cases = [dataclasses.replace(case, study="") for case in study_data().cases]
    data = dataclasses.replace(study_data(), cases=cases, skipped=[])
    page = opened(data, viewport={"width": width, "height": 900})
    places = ("#original", "#under", "#bar", "#opacity")
    before = [box(page, place) for place in places]
    page.locator("tr", has_text="0.0200").click()
    sync_api.expect(page.locator("#alike")).to_be_hidden()
    assert page.locator("#look-alike").get_attribute("src") is None
    assert [box(page, place) for place in places] == before


def test_a_report_without_normal_scans_has_no_room_for_one(render: Render) -> None:
    page = render(make_data())

    assert page.attributes("figure", id="alike") == []
    assert page.attributes("div", id="films")[0]["class"] == "films"


# --- warnings ---------------------------------------------------------------------------------


def test_warnings_stand_in_the_head(opened: Open) -> None:
    said = ["Scans of view LL were not calibrated on.", "Half of the scans are flagged."]
    page = opened(dataclasses.replace(study_data(), warnings=said))

    region = page.get_by_role("banner").get_by_role("region", name="Read with care")
    assert region.get_by_role("listitem").all_inner_texts() == said
    assert region.inner_text().startswith("⚠ ")
    sync_api.expect(region).to_be_in_viewport()
    assert page.evaluate("getComputedStyle(document.querySelector('.warnings li')).color") != (
        page.evaluate("getComputedStyle(document.body).color")
    )


def test_no_warning_no_box(render: Render, tmp_path: Path) -> None:
    assert "Read with care" not in render(study_data()).text
