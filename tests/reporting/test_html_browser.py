"""The page in a browser: worklist, readings, safety. Skipped where there is no Chromium."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from anomaly.reporting.html.page import SkippedCase
from anomaly.store.readings import Feedback
from tests.reporting.html_tabs import (
    FILM,
    Open,
    Tab,
    keys,
    make_case,
    make_data,
    selected,
    sync_api,
)

# --- worklist ---------------------------------------------------------------------------------


def test_first_case_is_shown_with_its_map(page: Tab) -> None:
    assert selected(page) == "a"
    assert "Flagged" in page.locator("#verdict").inner_text()
    assert page.locator("#overlay").is_visible()
    assert page.evaluate("document.getElementById('overlay').naturalWidth") == 48
    assert page.locator("#note").inner_text() == "<b>bold</b>"
    banner = page.locator(".banner").first
    page.mouse.wheel(0, 5000)
    sync_api.expect(banner).to_be_in_viewport()


def test_header_click_sorts_and_says_so(page: Tab) -> None:
    assert keys(page) == ["a", "b", "c", "gone", "lost"]
    score = page.locator("th", has_text="Score").first
    score.get_by_role("button").click()
    # 0.25, 0.5, 9: as numbers, not as text; what has no score stays last
    assert keys(page) == ["a", "c", "b", "gone", "lost"]
    assert score.get_attribute("aria-sort") == "ascending"
    score.get_by_role("button").click()
    assert keys(page) == ["b", "c", "a", "gone", "lost"]
    assert score.get_attribute("aria-sort") == "descending"
    assert page.locator("[aria-sort=ascending]").count() == 0


@pytest.mark.parametrize(("down", "up"), [("j", "k"), ("ArrowDown", "ArrowUp")])
def test_keys_walk_the_list_as_it_is_sorted(page: Tab, down: str, up: str) -> None:
    page.keyboard.press(down)
    assert selected(page) == "b"
    assert page.evaluate("document.activeElement.innerText") == "b"
    for _ in range(5):
        page.keyboard.press(down)  # stays on the last
    assert selected(page) == "lost"
    page.keyboard.press(up)
    assert selected(page) == "gone"


def test_letters_typed_into_a_text_do_not_walk(page: Tab) -> None:
    page.get_by_label("Comment").press_sequentially("jjk +0")
    assert page.get_by_label("Comment").input_value() == "jjk +0"
    assert selected(page) == "a"
    assert page.locator("#zoom-value").inner_text() == "100 %"


def test_filters_of_status_site_view_and_reason(page: Tab) -> None:
    page.locator("tr", has_text="0.5000").click()
    assert selected(page) == "c"
    page.get_by_role("button", name="Flagged 2").click()
    assert keys(page) == ["a", "b"]
    assert selected(page) == "a"  # c is no longer listed
    page.get_by_label("View").select_option("AP")
    assert keys(page) == ["b"]
    page.get_by_label("Site").select_option("north")
    assert keys(page) == []
    assert page.locator("#listed").inner_text() == "No such scan."  # two are flagged
    page.get_by_role("button", name="All 5").click()
    page.get_by_label("View").select_option("")
    page.get_by_label("Site").select_option("south")
    assert keys(page) == ["b", "c", "lost"]
    page.get_by_label("Not scored").select_option("rgb")
    assert keys(page) == ["lost"]
    assert page.locator("#listed").inner_text() == "1 of 5 scans listed."


def test_search_finds_part_of_a_key(page: Tab) -> None:
    page.get_by_label("Key").fill(" OS")
    assert keys(page) == ["lost"]
    page.get_by_label("Key").fill("")
    assert len(keys(page)) == 5


def test_a_scan_that_was_not_scored_is_not_called_normal(page: Tab) -> None:
    page.locator("tr", has_text="gone").click()
    said = page.locator("#case").inner_text() + page.locator("tr", has_text="gone").inner_text()
    assert "Not scored: truncated" in said
    assert "ormal" not in said
    for hidden in ("#films", "#controls", "#facts", "#words"):
        sync_api.expect(page.locator(hidden)).to_be_hidden()


def test_ten_thousand_rows_of_which_those_in_sight_are_drawn(opened: Open) -> None:
    count = 10_000
    cases = (
        make_case(f"{i:016x}", (i + 1) / count, float(count - i), image=None) for i in range(count)
    )
    page = opened(dataclasses.replace(make_data(), cases=cases, skipped=[]))

    table = page.locator("#worklist")
    assert table.get_attribute("aria-rowcount") == "10001"
    assert table.locator("thead tr").get_attribute("aria-rowindex") == "1"
    assert page.locator("tr[data-index]").count() < 60
    page.locator("#scroll").evaluate("scroll => { scroll.scrollTop = 30 * 5000; }")
    row = page.locator("tr[aria-rowindex='5002']")  # the header is 1, row 0 is 2
    sync_api.expect(row).to_be_in_viewport()
    assert row.locator("th").inner_text() == f"{5000:016x}"
    row.click()
    for key in ("j", "j", "k"):
        page.keyboard.press(key)
    assert selected(page) == f"{5001:016x}"
    sync_api.expect(page.locator("tr[aria-current]")).to_be_in_viewport()
    page.locator("thead button", has_text="Score").click()
    assert keys(page)[0] == f"{count - 1:016x}"
    heights = set(
        page.evaluate("[...document.querySelectorAll('tr[data-index]')].map(r => r.offsetHeight)")
    )
    assert heights == {30}
    # 16 digits stand in one line, and no number is cut
    cells = "[...document.querySelectorAll('#worklist :is(tbody th, .number)')]"
    assert page.evaluate(f"{cells}.every(cell => cell.scrollWidth <= cell.clientWidth)")


# --- readings ---------------------------------------------------------------------------------


def test_readings_are_kept_and_downloaded(page: Tab) -> None:
    download = page.get_by_role("button", name="Download readings")
    assert download.is_disabled()
    page.get_by_label("Comment").fill('a "shadow"\n<b>left</b>')
    assert download.is_disabled()  # a comment alone is no opinion
    page.get_by_label("Disagree", exact=True).check()
    page.get_by_label("Reader").fill("R1")
    page.locator("tr", has_text="0.0200").click()
    assert page.get_by_label("Comment").input_value() == ""
    assert page.get_by_label("None", exact=True).is_checked()
    page.get_by_label("Agree with the result").check()
    page.reload()

    assert selected(page) == "b"  # the address says so
    assert page.get_by_label("Agree with the result").is_checked()
    page.keyboard.press("k")
    assert page.get_by_label("Disagree", exact=True).is_checked()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download readings (2)").click()
    assert waiting.value.suggested_filename == "readings.json"
    readings = Feedback.parse(Path(waiting.value.path()))
    assert [dataclasses.replace(reading, at="") for reading in readings] == [
        Feedback("a", "disagree", "R1", 'a "shadow"\n<b>left</b>'),
        Feedback("b", "agree", "R1"),
    ]


def readings(page: Tab) -> list[dict[str, str]]:
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download readings").click()
    found: list[dict[str, str]] = json.loads(Path(waiting.value.path()).read_text())
    return found


def test_a_reading_says_when_it_was_given(page: Tab) -> None:
    page.clock.set_fixed_time("2026-03-14T09:26:53.589Z")
    page.get_by_label("Agree with the result").check()
    page.clock.set_fixed_time("2026-03-14T10:00:00Z")
    page.get_by_label("Reader").fill("R1")  # the name is put to it later: no other reading
    (reading,) = readings(page)
    assert list(reading) == ["key", "opinion", "comment", "reader", "at"]
    assert (reading["reader"], reading["at"]) == ("R1", "2026-03-14T09:26:53.589Z")
    page.get_by_label("Comment").fill("a shadow")
    assert readings(page)[0]["at"] == "2026-03-14T10:00:00.000Z"
    page.reload()
    assert readings(page)[0]["at"] == "2026-03-14T10:00:00.000Z"


def test_a_browser_that_keeps_nothing_still_holds_readings(page: Tab) -> None:
    refusing = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    page.add_init_script(refusing)
    page.reload()
    assert "download before you close" in page.locator("#kept").inner_text()
    page.get_by_label("Agree with the result").check()
    page.keyboard.press("Escape")
    page.locator("tr", has_text="0.0200").click()
    page.locator("tr", has_text="0.0100").click()
    assert page.get_by_label("Agree with the result").is_checked()
    assert page.get_by_role("button", name="Download readings (1)").is_enabled()


# --- safety -----------------------------------------------------------------------------------

HOSTILE = [
    "<script>document.title='harmed'</script><img src=x onerror=\"document.title='harmed'\">",
    "\"'`</script></textarea></title>${1}{{1}}&lt;",
    "\u202egpj.exe\u2066\u200f",
    "long " * 2_000,
    "long" * 2_500,
]


@pytest.mark.parametrize("text", HOSTILE, ids=["script", "quotes", "bidi", "words", "word"])
def test_no_text_does_harm(opened: Open, text: str) -> None:
    texts: dict[str, Any] = {"view": text, "site": text, "note": text, "study": text}
    case = make_case(text, 0.01, 2.0, **texts, look_alike=FILM)
    scan = dataclasses.replace(case.verdict.scan, features={text: 9.0})
    case = dataclasses.replace(case, verdict=dataclasses.replace(case.verdict, scan=scan))
    data = dataclasses.replace(
        make_data(),
        title=text,
        cases=[case, make_case("b", 0.02, 1.0, site="north")],
        skipped=[SkippedCase("skipped", text, view=text, site=text, study=text)],
        provenance={text: text},
        warnings=[text, text],
        feature_ranges={text: (0.0, 1.0)},
    )
    page = opened(data, viewport={"width": 1280, "height": 1024})

    assert page.locator("#case-key").text_content() == text
    assert page.locator("#feature-rows th").text_content() == text
    assert page.title() != "harmed"
    assert page.locator("#study-title bdi").text_content() == text
    assert page.locator(".warnings li").all_text_contents() == [text, text]
    assert page.evaluate("document.images.length") == 8  # one of them in the strip of the study
    assert page.locator("script").count() == 2
    # an isolate ends what a direction mark began; long text neither widens the page nor hides it
    for bdi in page.locator("bdi").all():
        assert bdi.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sync_api.expect(page.locator("tr[aria-current]")).to_be_in_viewport()
    sync_api.expect(page.locator("#original")).to_be_in_viewport()
    page.keyboard.press("j")
    assert selected(page) == "b"
    page.keyboard.press("j")
    assert page.locator("#case-key").text_content() == "skipped"
    assert page.locator("#note bdi").text_content() == text
    assert page.locator("#case-view bdi").all_text_contents() == [text, text]
    assert page.locator("#study-scans [aria-current] bdi").all_text_contents() == [text, text]
    page.keyboard.press("[")
    assert page.locator("#case-key").text_content() == text
    page.reload()  # the address names it
    assert page.locator("#case-key").text_content() == text
    page.get_by_label("Site").select_option(text)
    assert page.locator("tr[data-index]").count() == 2


def test_the_first_features_are_shown_and_the_rest_on_request(opened: Open) -> None:
    features = {f"f{i:02}": float(i) for i in range(12)}
    case = make_case("a", 0.01, 9.0)
    scan = dataclasses.replace(case.verdict.scan, features=features)
    shown = dataclasses.replace(case, verdict=dataclasses.replace(case.verdict, scan=scan))
    few = make_case("b", 0.02, 8.0)
    page = opened(dataclasses.replace(make_data(), cases=[shown, few], skipped=[]))
    rows, more = page.locator("#feature-rows tr:visible"), page.locator("#more-features")
    assert rows.count() == 8
    assert more.inner_text().startswith("All 12 features")
    more.press("Enter")
    assert more.get_attribute("aria-expanded") == "true"
    assert rows.count() == 12
    page.keyboard.press("j")  # this one has three: there is nothing more to show
    assert rows.count() == 3
    assert more.is_hidden()
    page.keyboard.press("k")
    assert rows.count() == 12
    more.click()
    assert rows.count() == 8


def test_where_nothing_is_flagged_the_list_says_so(opened: Open) -> None:
    page = opened(dataclasses.replace(make_data(), cases=[make_case("c", 0.5, 0.5)]))
    page.get_by_role("button", name="Flagged 0").click()
    assert page.locator("#listed").inner_text() == "No scan is flagged."


OTHER_TAB = """() => {
  const place = Object.keys(localStorage).find((key) => key.includes("readings"));
  const kept = JSON.parse(localStorage.getItem(place));
  const given = {opinion: "disagree", comment: "", reader: "R2", at: "2026-03-14T09:00:00Z"};
  kept.said.push(["b", given]);
  localStorage.setItem(place, JSON.stringify(kept));
}"""


def test_readings_of_another_tab_are_kept_as_well(page: Tab) -> None:
    page.get_by_label("Agree with the result").check()
    page.evaluate(OTHER_TAB)
    page.get_by_label("Comment").fill("a shadow")
    page.reload()
    assert [(r["key"], r["comment"], r["reader"]) for r in readings(page)] == [
        ("a", "a shadow", ""),
        ("b", "", "R2"),
    ]


def test_a_reading_is_of_who_gave_it(page: Tab) -> None:
    page.get_by_label("Reader").fill("R1")
    page.get_by_label("Agree with the result").check()
    page.get_by_label("Reader").fill("R2")
    page.keyboard.press("Tab")
    page.locator("tr", has_text="0.0200").click()
    page.get_by_label("Disagree", exact=True).check()
    assert [(r["key"], r["reader"]) for r in readings(page)] == [("a", "R1"), ("b", "R2")]


def test_a_page_that_holds_identifiers_keeps_nothing(opened: Open) -> None:
    page = opened(dataclasses.replace(make_data(), holds_identifiers=True))
    page.get_by_label("Agree with the result").check()
    assert page.locator("#kept").inner_text().startswith("Nothing is kept here")
    assert len(readings(page)) == 1
    assert page.evaluate("Object.keys(localStorage).filter((k) => k.includes('readings'))") == []


def test_what_is_printed_says_on_every_sheet_what_it_is(opened: Open, tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    cases = [make_case(f"k{i:04}", 0.01, 9.0 - i / 1000) for i in range(1000)]
    page = opened(dataclasses.replace(make_data(), cases=cases, skipped=[]))
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    sheets = pypdf.PdfReader(tmp_path / "page.pdf").pages
    assert 1 <= len(sheets) <= 4  # the list of a screen is not printed
    for sheet in sheets:
        assert "Research use only. Not a diagnosis." in sheet.extract_text()
    assert "Flagged" in sheets[0].extract_text()
