"""The page for everyone: what axe-core finds, and WCAG 2.1 AA where axe-core cannot look.

Skipped where there is no Chromium; the first part also where there is no axe-core, which `npm
install` fetches in the version that ``package.json`` names.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly.reporting.html.page import ReportData, SkippedCase
from tests.reporting.html_tabs import FILM, Open, Tab, make_case, make_data, sync_api

ROOT = Path(__file__).parents[2]
WIDE = {"width": 1280, "height": 2400}  # all of the page is on the screen


def full_data() -> ReportData:
    """A report with everything on it that there can be."""
    alike = FILM / 2
    cases = [
        make_case("a", 0.01, 9.0, study="s1", look_alike=alike, expected=alike, site="north"),
        make_case("b", 0.5, 0.5, study="s1", look_alike=alike, site="south", view="AP"),
        make_case("c", 0.6, 0.4, image=None, note="long " * 500),
    ]
    return dataclasses.replace(
        make_data(),
        cases=cases,
        skipped=[SkippedCase("gone", "truncated", study="s1"), SkippedCase("lost", "rgb")],
        warnings=["Scans of view LL were not calibrated on.", "Half of the scans are flagged."],
        provenance={"bundle": "sha256 " + "ab" * 32},
    )


def go_to(key: str) -> Callable[[Tab], None]:
    return lambda page: page.evaluate(f"location.hash = '{key}'")


def nothing(page: Tab) -> None:
    pass


# --- what axe-core finds ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe() -> str:
    place = Path(os.environ.get("ANOMALY_AXE", ROOT / "node_modules/axe-core/axe.min.js"))
    if not place.is_file():
        pytest.skip(f"there is no axe-core at {place}: `npm install`, or name it in ANOMALY_AXE")
    return place.read_text(encoding="utf-8")


EMPTY = dataclasses.replace(full_data(), cases=[], skipped=[], warnings=[])
NO_IMAGES = dataclasses.replace(
    full_data(),
    cases=[dataclasses.replace(case, image=None, expected=None) for case in full_data().cases],
)


@pytest.mark.parametrize(
    ("data", "state", "options"),
    [
        (full_data(), nothing, {}),
        (full_data(), go_to("b"), {}),
        (full_data(), go_to("c"), {}),
        (full_data(), go_to("gone"), {}),
        (full_data(), lambda page: page.get_by_label("Key").fill("nobody"), {}),
        (EMPTY, nothing, {}),
        (NO_IMAGES, nothing, {}),
        (full_data(), nothing, {"viewport": {"width": 400, "height": 800}}),
        (full_data(), go_to("c"), {"viewport": {"width": 320, "height": 640}}),
        (full_data(), nothing, {"color_scheme": "dark"}),  # the page is dark all the same
        (full_data(), nothing, {"forced_colors": "active"}),
    ],
    ids=[
        *("flagged", "normal", "no image and a long note", "not scored", "nothing listed", "empty"),
        *("no images", "400 pixels", "320 pixels", "dark", "forced colours"),
    ],
)
def test_axe_finds_nothing(
    opened: Open, axe: str, data: ReportData, state: Callable[[Tab], None], options: dict[str, Any]
) -> None:
    page = opened(data, **{"viewport": WIDE, **options})
    state(page)
    page.evaluate(axe)
    # Forced colours are the system's; axe-core reads those of the page.
    rules = {"color-contrast": {"enabled": "forced_colors" not in options}}
    found = page.evaluate("rules => axe.run(document, { rules })", rules)
    assert len(found["passes"]) > 20
    said = [
        (rule["impact"], rule["id"], rule["help"], [node["html"] for node in rule["nodes"]])
        for rule in found["violations"]
    ]
    assert said == []  # of any impact, best practices among them


# --- contrast ---------------------------------------------------------------------------------


def contrast(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Ratio of WCAG 2.1 of sRGB colours (..., 3) of 0 to 255."""

    def luminance(colour: NDArray[Any]) -> NDArray[np.float64]:
        value = np.asarray(colour, dtype=np.float64) / 255
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        light: NDArray[np.float64] = linear @ [0.2126, 0.7152, 0.0722]
        return light

    light, dark = luminance(one), luminance(other)
    ratio: NDArray[np.float64] = (np.maximum(light, dark) + 0.05) / (np.minimum(light, dark) + 0.05)
    return ratio


def test_the_ratio_is_that_of_wcag() -> None:
    black, white = np.zeros(3), np.full(3, 255)
    assert contrast(white, black) == pytest.approx(21.0)
    assert contrast(white, white) == pytest.approx(1.0)
    assert contrast(np.full(3, 0x76), white) == pytest.approx(4.54, abs=0.005)  # #767676


COLOURS = """(wanted) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === undefined) return colour;
    }
  };
  const found = [];
  for (const [selector, property, around] of wanted) {
    for (const e of document.querySelectorAll(selector)) {
      const written = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
      if (!e.checkVisibility() || e.closest('script, option, [disabled]')) continue;
      if (property === 'color' && (!written || e.closest('svg'))) continue;
      const colour = parse(getComputedStyle(e)[property]);
      const behind = ground(around ? e.parentElement : e);
      found.push([e.outerHTML.slice(0, 90), colour.slice(0, 3), behind]);
    }
  }
  return found;
}"""


def faint(page: Tab, wanted: list[list[str | bool]], least: float) -> tuple[int, list[str]]:
    """How many were looked at, and which of them do not stand out."""
    found = page.evaluate(COLOURS, wanted)
    weak = [
        f"{said}: {float(ratio):.2f}"
        for said, colour, ground in found
        if (ratio := contrast(np.array(colour), np.array(ground))) < least
    ]
    return len(found), weak


@pytest.mark.parametrize("key", ["a", "b", "c", "gone"])
def test_text_stands_out_from_its_ground(opened: Open, key: str) -> None:
    page = opened(full_data(), viewport=WIDE)
    go_to(key)(page)
    seen, weak = faint(page, [["body *", "color", False]], 4.5)  # 1.4.3
    assert seen > 50
    assert weak == []


def test_controls_and_drawings_stand_out_from_their_ground(opened: Open) -> None:
    page = opened(full_data(), viewport=WIDE)
    edges = (
        "input[type=search], input[type=text], select, textarea, .button, .choice, .study button"
    )
    drawn: list[list[str | bool]] = [
        [edges, "borderTopColor", True],
        [".warnings", "borderTopColor", True],
        [".plot .bars, .range .bars, .range .value", "fill", True],
        [".plot text", "fill", True],
        [".plot line, .range line", "stroke", True],
        ["tr[aria-current] button", "outlineColor", True],
    ]
    page.locator("tr[aria-current] button").focus()
    page.keyboard.press("Shift")  # by the keyboard: the outline is drawn
    seen, weak = faint(page, drawn, 3.0)  # 1.4.11
    assert seen > 25
    assert weak == []


# --- by the keyboard --------------------------------------------------------------------------

# What has the focus: its place in the document and on the screen, or null at the end of the page.
FOCUSED = """() => {
  const e = document.activeElement;
  if (e === document.body) return null;
  const { x, y, width, height } = e.getBoundingClientRect();
  return [e.id || e.innerText || e.value || e.tagName, x, y, width, height];
}"""


def screen(page: Tab, **part: Any) -> NDArray[np.uint8]:
    png = page.screenshot(animations="disabled", **part)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_every_stop_of_the_tabulator_is_seen(opened: Open) -> None:
    page = opened(full_data(), viewport=WIDE)
    page.locator(".banner").first.click()
    before = screen(page)
    stops = []
    while True:
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None:
            break
        name, x, y, width, height = focused
        left, top = max(0, int(x) - 6), max(0, int(y) - 6)
        right, bottom = int(x + width) + 6, int(y + height) + 6
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        now = screen(page, clip=clip)
        changed = (contrast(now, before[top:bottom, left:right]) >= 3).sum()
        # as much as a line of one pixel around it (WCAG 2.2, 2.4.13)
        stops.append((name, bool(changed >= 0.9 * 2 * (width + height))))
        assert len(stops) < 100
    assert [name for name, is_seen in stops if not is_seen] == []
    assert len(stops) > 25


def test_the_tabulator_goes_down_the_page(opened: Open) -> None:
    page = opened(full_data())
    page.locator(".banner").first.click()
    visited = []
    while True:
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused is None:
            break
        visited.append(focused[0])
    filters = visited.index("search")
    assert visited[filters : filters + 4] == ["search", "site", "view", "reason"]
    assert visited.count("a") == 1  # one stop in the list of scans, the current one
    assert "b" not in visited
    order = ["search", "a", "opacity", "window", "blink", "comment", "reader"]
    places = [visited.index(name) for name in order]
    assert places == sorted(places)
    study = [name for name in visited if "Scan " in name]
    assert len(study) == 3
    assert visited.index("a") < visited.index(study[0]) < visited.index("opacity")


def test_a_list_that_was_scrolled_keeps_a_stop(opened: Open) -> None:
    cases = [make_case(f"k{i}", 0.5, float(-i), None) for i in range(500)]
    page = opened(dataclasses.replace(make_data(), cases=cases))
    page.locator("#scroll").evaluate("scroll => { scroll.scrollTop = 30 * 250; }")
    page.locator("tr[aria-rowindex='255']").wait_for()
    (stop,) = page.locator("#worklist tbody [tabindex='0']").all()
    assert stop.inner_text() != "k0"  # which is out of sight
    stop.focus()
    page.keyboard.press("Enter")
    assert page.locator("#case-key").inner_text() == stop.inner_text()


def test_what_scrolls_by_itself_can_be_reached(opened: Open) -> None:
    page = opened(full_data())
    go_to("c")(page)
    note = page.get_by_role("note", name="Note")
    assert note.evaluate("note => note.scrollHeight > note.clientHeight")
    assert note.get_attribute("tabindex") == "0"
    go_to("a")(page)
    assert page.locator("#note").get_attribute("tabindex") == "-1"


def test_everything_that_a_drag_does_has_a_control(opened: Open) -> None:
    page = opened(full_data(), viewport=WIDE)
    page.get_by_label("Window", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_label("Window", exact=True).input_value() == "99"
    page.get_by_label("Level").focus()
    page.keyboard.press("ArrowUp")
    assert page.get_by_label("Level").input_value() == "51"
    page.get_by_role("button", name="Zoom in").focus()
    page.keyboard.press("Enter")
    assert page.locator("#zoom-value").inner_text() == "150 %"
    before = page.locator("#original").bounding_box()
    towards = {"left": (1, 0), "up": (0, 1), "down": (0, -1), "right": (-1, 0)}
    for name, moved in [(f"Look {side}", moved) for side, moved in towards.items()]:
        page.get_by_role("button", name=name).press("Enter")
        after = page.locator("#original").bounding_box()
        assert (np.sign(after["x"] - before["x"]), np.sign(after["y"] - before["y"])) == moved
        before = after


# --- any size, any spacing --------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", "b", "c", "gone"])
def test_a_page_of_320_pixels_scrolls_in_one_direction(opened: Open, key: str) -> None:
    page = opened(full_data(), viewport={"width": 320, "height": 640})
    go_to(key)(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320  # 1.4.10
    # Tables of data may scroll by themselves; nothing else does, or is cut off at the side.
    assert page.evaluate(CUT, ["#scroll", ".stage"]) == []


# Elements with text of which a part cannot be seen, but for those inside of some.
CUT = """(except) => [...document.body.querySelectorAll('*')]
  .filter((e) => e.checkVisibility() && e.clientWidth && e.textContent.trim()
    && !e.closest('svg, script, select, textarea, .unseen, .scrolls')
    && !except.some((selector) => e.closest(selector))
    && (e.scrollWidth > e.clientWidth + 1
      || (e.scrollHeight > e.clientHeight + 2 && getComputedStyle(e).overflowY === 'hidden')))
  .map((e) => e.outerHTML.slice(0, 90))"""

SPACED = """* { line-height: 1.5 !important; letter-spacing: .12em !important;
  word-spacing: .16em !important; } p { margin-bottom: 2em !important; }"""


@pytest.mark.parametrize("width", [1280, 400])
def test_wider_spacing_of_text_hides_none(opened: Open, width: int) -> None:
    page = opened(full_data(), viewport={"width": width, "height": 2400}, bypass_csp=True)
    page.add_style_tag(content=SPACED)  # 1.4.12
    # A row of the list is of one height; what is cut there is told of the scan that is chosen.
    assert page.evaluate(CUT, ["#scroll", "#study-scans", ".stage"]) == []


def test_targets_can_be_hit(opened: Open) -> None:
    page = opened(full_data(), viewport=WIDE)
    small = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea')]
          .filter((e) => e.checkVisibility())
          .map((e) => [e, (e.closest('label') ?? e).getBoundingClientRect()])
          .filter(([, { width, height }]) => width < 24 || height < 24)
          .map(([e]) => e.outerHTML.slice(0, 90))"""
    )
    assert small == []  # WCAG 2.2, 2.5.8


# --- names and messages -----------------------------------------------------------------------


def test_the_page_and_its_controls_have_names(opened: Open) -> None:
    page = opened(full_data(), viewport=WIDE)
    assert page.title() == "Night list"
    assert page.locator("html").get_attribute("lang") == "en"
    assert [h.inner_text() for h in page.get_by_role("heading", level=1).all()] == ["Night list"]
    for control in page.locator("input, select, textarea, button").all():
        if control.is_visible():
            said = control.evaluate(
                "e => e.ariaLabel || e.innerText || [...e.labels].map(l => l.innerText).join()"
            )
            assert said.strip()


def test_changes_are_told_and_a_blink_is_not_told_again_and_again(opened: Open) -> None:
    page = opened(full_data())
    for name in ("listed", "zoom-value"):
        assert page.locator(f"#{name}").get_attribute("role") == "status"  # 4.1.3
    assert page.locator(".case-head").get_attribute("aria-live") == "polite"
    page.get_by_role("button", name="Blink").click()
    assert page.locator("#original-caption").get_attribute("aria-live") == "off"
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="Blink").click()
    page.get_by_role("button", name="Blink").click()
    assert page.locator("#original-caption").get_attribute("aria-live") == "polite"


def test_what_is_chosen_is_told_apart_where_colours_are_forced(opened: Open) -> None:
    page = opened(full_data(), forced_colors="active")
    for current, other in [
        ("tr[aria-current] th", "tr[data-index]:not([aria-current]) th"),
        ("#study-scans [aria-current]", "#study-scans button:not([aria-current])"),
    ]:
        grounds = [
            page.locator(each).first.evaluate("e => getComputedStyle(e).backgroundColor")
            for each in (current, other)
        ]
        assert grounds[0] != grounds[1]
    for pressed, line in (("true", "underline"), ("false", "none")):
        for button in page.locator(f"[aria-pressed={pressed}]").all():
            sync_api.expect(button).to_have_css("text-decoration-line", line)
