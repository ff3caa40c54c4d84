"""The page in a browser: what a reader's clicks and keys do. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from anomaly.reporting.html import ReportCase, ReportData, SkippedCase, write_report
from anomaly.types import Region, ScanScore, Verdict

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need the playwright package"
)
CHROMIUM = os.environ.get("ANOMALY_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium")

Tab: TypeAlias = Any  # playwright's Browser and Page: the package is optional


def make_case(key: str, p_value: float, score: float) -> ReportCase:
    evidence = np.zeros((64, 48), dtype=np.float32)
    evidence[20:30, 10:25] = 8.0
    verdict = Verdict(
        scan=ScanScore(key, score, {"nll": 3.0}, evidence),
        p_value=p_value,
        alpha=0.05,
        threshold=0.95,
        flagged=p_value <= 0.05,
        regions=(Region(24.5, 17.0, 150, 3.0, 8.0),),
    )
    image = np.full((64, 48), 0.4, dtype=np.float32)
    return ReportCase(verdict, image, view="PA", note="<b>bold</b>")


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Tab, tmp_path: Path) -> Iterator[Tab]:
    """Open the report; fail the test on a console error or on any request but the file."""
    data = ReportData(
        title="Night list",
        cases=[make_case("a", 0.01, 0.25), make_case("b", 0.02, 9.0), make_case("c", 0.5, 0.5)],
        skipped=[SkippedCase("gone", "truncated")],
        calibration_scores=np.linspace(0.0, 1.0, 99),
        alpha=0.05,
        threshold=0.95,
        evidence_threshold=3.0,
        evidence_ceiling=12.0,
        provenance={},
    )
    path = tmp_path / "report.html"
    write_report(data, path)
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    yield tab
    tab.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def keys(page: Tab) -> list[str]:
    found: list[str] = page.locator("#worklist tbody tr:visible th").all_inner_texts()
    return found


def opacity(page: Tab) -> float:
    # the style set, not the computed one, which is animated
    return float(page.evaluate("document.getElementById('overlay').style.opacity"))


def test_first_case_is_shown_with_its_map(page: Tab) -> None:
    assert page.locator("#case-key").inner_text() == "Scan a"
    assert "Flagged" in page.locator("#verdict").inner_text()
    assert page.locator("#overlay").is_visible()
    assert page.evaluate("document.getElementById('overlay').naturalWidth") == 48
    assert page.locator("#note").inner_text() == "<b>bold</b>"
    banner = page.locator(".banner").first
    page.mouse.wheel(0, 5000)
    sync_api.expect(banner).to_be_in_viewport()


def test_slider_sets_the_opacity_of_the_map(page: Tab) -> None:
    assert opacity(page) == 0.6
    page.get_by_label("Map opacity").fill("25")
    assert opacity(page) == 0.25
    sync_api.expect(page.locator("#overlay")).to_have_css("opacity", "0.25")


def test_contour_can_be_hidden(page: Tab) -> None:
    outline = page.locator("#outline")
    sync_api.expect(outline).to_be_visible()
    page.get_by_label("Contour").uncheck()
    sync_api.expect(outline).to_be_hidden()


def test_header_click_sorts_and_says_so(page: Tab) -> None:
    assert keys(page) == ["a", "b", "c"]
    score = page.locator("th", has_text="Score").first
    score.get_by_role("button").click()
    assert keys(page) == ["a", "c", "b"]  # 0.25, 0.5, 9: as numbers, not as text
    assert score.get_attribute("aria-sort") == "ascending"
    score.get_by_role("button").click()
    assert keys(page) == ["b", "c", "a"]
    assert score.get_attribute("aria-sort") == "descending"
    assert page.locator("[aria-sort=ascending]").count() == 0


def test_j_and_k_walk_the_list_as_it_is_sorted(page: Tab) -> None:
    selected = page.locator("tr[aria-current=true] th")
    page.keyboard.press("j")
    assert (selected.inner_text(), page.locator("#case-key").inner_text()) == ("b", "Scan b")
    page.keyboard.press("j")
    page.keyboard.press("j")  # stays on the last
    assert selected.inner_text() == "c"
    page.keyboard.press("k")
    assert selected.inner_text() == "b"
    assert selected.count() == 1


def test_filter_keeps_flagged_scans(page: Tab) -> None:
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.get_by_role("button", name="Flagged 2").click()
    assert keys(page) == ["a", "b"]
    assert page.locator("#case-key").inner_text() == "Scan a"  # c is no longer listed
    page.get_by_role("button", name="All 3").click()
    assert keys(page) == ["a", "b", "c"]


def test_no_map_over_a_scan_within_the_normal_range_unless_asked(page: Tab) -> None:
    page.locator("#worklist tbody tr").nth(2).click()
    assert "Within normal range" in page.locator("#verdict").inner_text()
    sync_api.expect(page.locator("#overlay")).to_be_hidden()
    sync_api.expect(page.locator("#outline")).to_be_hidden()
    page.get_by_label("Map on scans that are not flagged").check()
    sync_api.expect(page.locator("#overlay")).to_be_visible()
