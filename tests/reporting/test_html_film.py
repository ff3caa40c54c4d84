"""The images of a scan in a browser, and what it means. Skipped where there is no Chromium."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from anomaly.reporting.html.page import ReportCase
from anomaly.types import JudgedScan, ScanScore
from tests.reporting.html_tabs import Open, Tab, make_data, middle, shot, sync_api

# --- images -----------------------------------------------------------------------------------


def test_slider_sets_the_opacity_of_the_map(page: Tab) -> None:
    # the style set, not the computed one, which is animated
    assert page.evaluate("document.getElementById('overlay').style.opacity") == "0.6"
    page.get_by_label("Map opacity").fill("25")
    sync_api.expect(page.locator("#overlay")).to_have_css("opacity", "0.25")


def test_contour_can_be_hidden(page: Tab) -> None:
    outline = page.locator("#outline")
    sync_api.expect(outline).to_be_visible()
    page.get_by_label("Contour").uncheck()
    sync_api.expect(outline).to_be_hidden()


def test_no_map_over_a_scan_within_the_normal_range_unless_asked(page: Tab) -> None:
    page.locator("tr", has_text="0.5000").click()
    assert "Within normal range" in page.locator("#verdict").inner_text()
    sync_api.expect(page.locator("#overlay")).to_be_hidden()
    sync_api.expect(page.locator("#outline")).to_be_hidden()
    page.get_by_label("Map on scans that are not flagged").check()
    sync_api.expect(page.locator("#overlay")).to_be_visible()


@pytest.mark.parametrize("single_file", [False, True])
def test_grey_levels_change_the_pixels_by_slider_and_drag(
    opened: Open, tmp_path: Path, single_file: bool
) -> None:
    page = opened(make_data(), single_file=single_file)
    panes = (".frame >> nth=0", ".frame >> nth=1")
    assert [middle(page, pane) for pane in panes] == [102, 102]
    page.get_by_label("Window", exact=True).fill("50")
    # (0.4 - 0.25) / 0.5 = 0.3 of 255
    assert [middle(page, pane) for pane in panes] == pytest.approx([76.5, 76.5], abs=1.5)
    page.get_by_role("button", name="Invert").click()
    assert middle(page) == pytest.approx(178.5, abs=1.5)
    page.get_by_role("button", name="Reset").click()
    assert middle(page) == 102

    box = page.locator(".frame").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + box["width"] / 4, y + box["height"] / 10, steps=4)
    page.mouse.up()
    # a quarter of a pane: 50 % more window; a tenth down: 10 % more level
    assert page.get_by_label("Window", exact=True).input_value() == pytest.approx("150")
    assert page.get_by_label("Level").input_value() == "60"
    # (0.4 - 0.6) / 1.5 + 0.5 = 0.367 of 255
    assert middle(page) == pytest.approx(93.5, abs=2)


def test_zoom_enlarges_both_panes_about_the_pointer(page: Tab) -> None:
    before = page.locator("#original").bounding_box()
    seen = shot(page, ".frame >> nth=1")
    frame = page.locator(".frame").first.bounding_box()
    page.mouse.move(frame["x"] + 30, frame["y"] + 40)
    page.mouse.wheel(0, -400 * np.log(2))
    for pane in ("original", "under"):
        box = page.locator(f"#{pane}").bounding_box()
        assert box["width"] == pytest.approx(2 * before["width"], rel=1e-3)
    # What was under the pointer still is: the left edge, 29 px from it less the border, is 58.
    # A mouse event counts in whole pixels, a pane need not start at one.
    box = page.locator("#original").bounding_box()
    assert before["x"] - box["x"] == pytest.approx(29, abs=1)
    assert before["y"] - box["y"] == pytest.approx(39, abs=1)
    assert (shot(page, ".frame >> nth=1") != seen).any()
    page.keyboard.press("-")
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.locator("#zoom-value").inner_text() == "300 %"
    page.keyboard.press("0")
    assert page.locator("#original").bounding_box() == before


def test_blink_changes_between_the_image_and_what_was_expected(page: Tab) -> None:
    blink = page.get_by_role("button", name="Blink")
    assert middle(page) == 102
    blink.click()
    assert blink.get_attribute("aria-pressed") == "true"
    caption = page.locator("#original-caption")
    for _ in range(2):
        sync_api.expect(caption).to_have_text("Expected by the model (synthetic)")
        sync_api.expect(caption).to_have_text("Original")
    blink.click()
    assert middle(page) == 102
    page.keyboard.press("j")  # this one has none
    sync_api.expect(blink).to_be_hidden()


def test_less_motion_means_blinking_by_hand(opened: Open) -> None:
    page = opened(make_data(), reduced_motion="reduce")
    blink = page.get_by_role("button", name="Blink")
    blink.click()
    page.evaluate(
        "new MutationObserver(() => { window.changed = true; })"
        ".observe(expected, {attributes: true})"
    )
    page.wait_for_timeout(1500)  # two changes, were it to blink by itself
    assert not page.evaluate("window.changed")
    assert middle(page) == 204
    blink.click()
    assert middle(page) == 102
    assert page.evaluate("getComputedStyle(overlay).transitionDuration") == "0s"


def test_pictures_load_when_their_scan_is_looked_at(opened: Open) -> None:
    page = opened(make_data())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    page.reload()
    page.wait_for_function("document.getElementById('under').complete")
    assert "a-image.png" in asked
    assert not [name for name in asked if name.startswith("b-")]
    page.keyboard.press("j")
    assert page.evaluate("original.decode().then(() => original.naturalWidth)") == 48
    assert page.evaluate("original.currentSrc").endswith("images/b-image.png")


def test_a_single_file_opens_from_anywhere(opened: Open, tmp_path: Path) -> None:
    page = opened(make_data(), single_file=True)
    copied = tmp_path / "elsewhere" / "copy.html"
    copied.parent.mkdir()
    shutil.copy(tmp_path / "index.html", copied)
    page.goto(copied.as_uri())
    assert middle(page) == 102
    assert page.evaluate("overlay.naturalWidth") == 48


def test_a_picture_far_down_a_single_file_is_shown_once_it_is_there(opened: Open) -> None:
    rng = np.random.default_rng(0)
    films = [rng.random((512, 512), dtype=np.float32) for _ in range(12)]  # 4 MB of page
    cases = [
        ReportCase(JudgedScan(ScanScore(f"k{i}", -i, {}, None), 0.5, 0.05, 0.95, False, ()), film)
        for i, film in enumerate(films)
    ]
    page = opened(dataclasses.replace(make_data(), cases=cases, skipped=[]), single_file=True)
    address = page.url.partition("#")[0]
    page.goto("about:blank")
    page.goto(f"{address}#k11", wait_until="commit")  # read as far as its first bytes
    sync_api.expect(page.locator("#original")).to_have_js_property("naturalWidth", 512)
    last = page.evaluate("document.getElementById('picture-11').textContent")
    assert page.evaluate("original.src") == last


# --- meaning ----------------------------------------------------------------------------------


def test_the_feature_farthest_from_the_normals_comes_first(page: Tab) -> None:
    rows = page.locator("#feature-rows tr")
    assert rows.locator("th").all_inner_texts() == ["edge", "nll (bits/dim)", "odd"]
    assert rows.locator("td.number").all_inner_texts() == ["9", "3", "1"]
    # the middle third of 2 .. 178 is the range: 3 of (2, 4) is its middle; 9 of (0, 1.8) is outside
    places = [float(c.get_attribute("cx")) for c in rows.locator("circle").all()]
    assert places == [178, 90]
    said = [s.get_attribute("aria-label") for s in rows.locator("svg").all()]
    assert said == ["above the range 0.00 to 1.80", "within 2.00 to 4.00"]


def test_regions_say_their_size_in_millimetres(page: Tab) -> None:
    said = page.locator("#region-rows td").all_inner_texts()
    assert said == ["1", "24, 17", "150", "314", "20", "8"]  # rounded half to even


def test_the_frame_has_the_shape_of_the_narrowest_image_of_the_run(opened: Open) -> None:
    page = opened(make_data())  # 64 rows of 48 pixels
    box = page.locator(".frame").first.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(48 / 64, rel=0.02)
    bar = page.locator(".bar div").bounding_box()
    assert bar["height"] == pytest.approx(box["height"], abs=2)
    page.keyboard.press("j")
    assert page.locator(".frame").first.bounding_box() == box


NEXT = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'j', bubbles: true}))"


def test_no_picture_of_one_scan_is_shown_under_the_name_of_another(page: Tab) -> None:
    assert middle(page) == 102
    # Before the browser has had time to read anything, as with a slow disk.
    shown = page.evaluate(
        f"() => {{ {NEXT}; return [original, under, overlay].map((i) => i.naturalWidth) }}"
    )
    assert page.locator("#case-key").text_content() == "b"
    assert shown == [0, 0, 0]
    sync_api.expect(page.locator("#original")).to_have_js_property("naturalWidth", 48)


def test_a_contour_over_a_picture_that_is_not_there_is_not_drawn(page: Tab) -> None:
    assert page.locator("#outline").is_visible()
    folder = Path(unquote(urlsplit(page.url).path)).parent / "images"
    for file in folder.glob("b-*.png"):
        file.write_bytes(b"no picture")
    page.keyboard.press("j")
    sync_api.expect(page.locator("#map-caption")).to_have_text(
        "The picture cannot be read: is the folder images beside this page?"
    )
    assert page.locator("#outline").is_hidden()


def test_the_wheel_scrolls_the_page_where_there_is_nothing_to_zoom_out(page: Tab) -> None:
    page.set_viewport_size({"width": 1100, "height": 500})
    page.locator("#original").hover()
    page.mouse.wheel(0, 200)
    page.wait_for_function("scrollY > 0")
    assert page.locator("#zoom-value").inner_text() == "100 %"
