"""Panels of a user's own: registered, escaped, allowed by the content policy, drawn."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest

from anomaly.errors import ConfigError
from anomaly.reporting.html.page import ReportCase, ReportData, SkippedCase
from anomaly.reporting.html.panels import PANELS, Fact, Panel, register_panel
from tests.reporting.html_pages import Render, make_case, make_data

CANARY = "<b>bold</b> & <script>document.title = 'harmed'</script>"


@pytest.fixture(autouse=True)
def _panels_as_before() -> Iterator[None]:
    before = dict(PANELS)
    yield
    PANELS.clear()
    PANELS.update(before)


def facts_of(case: ReportCase) -> tuple[Fact, ...]:
    return (Fact("Key", case.verdict.scan.key), Fact(CANARY, f"{CANARY} {case.view}"))


def two_scans() -> ReportData:
    cases = (make_case("a", 0.01, 2.0, view="PA"), make_case("b", 0.5, 0.5, view="AP"))
    return make_data(*cases, skipped=(SkippedCase("gone", "truncated"),))


# --- the registry -----------------------------------------------------------------------------


def test_panels_come_in_the_order_of_the_page() -> None:
    areas = list(dict.fromkeys(panel.area for panel in PANELS.values()))
    assert areas == ["head", "list", "case", "facts", "after"]
    for name, panel in PANELS.items():
        assert panel.name == name
        panel.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "score"}, "there is a panel 'score' already"),
        ({"name": "scans"}, "there is a panel 'scans' already"),  # a script that panels share
        ({"name": "My panel"}, "the name of a panel is a word such as 'age'; got 'My panel'"),
        ({"title": ""}, "the panel 'age' has no title"),
        ({"template": ""}, "the panel 'age' shows nothing"),
        ({"framed": False, "scan": facts_of}, "the panel 'age' has no frame"),
        ({"script": "const a = '</SCRIPT>';"}, "the script of the panel 'age' holds '</SCRIPT'"),
        ({"style": "p::after { content: '</style>' }"}, "the style of the panel 'age' holds"),
    ],
)
def test_what_would_show_nothing_or_break_the_page_is_refused(
    change: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"name": "age", "title": "Age", "template": "<p>40</p>", **change}
    with pytest.raises(ConfigError, match=message):
        register_panel(Panel(**settings))
    assert "age" not in PANELS


# --- the file ---------------------------------------------------------------------------------


def test_templates_escape_and_come_from_a_file_too(render: Render, tmp_path: Path) -> None:
    file = tmp_path / "mine.html.j2"
    file.write_text("<p>{{ run }} of {{ page.counts.scored }} in {{ page.title }}</p>")
    register_panel(Panel(name="mine", title=CANARY, template=file, run=lambda _: CANARY))
    register_panel(Panel(name="last", title="Last", template="<p>end</p>", area="after"))

    page = render(two_scans())

    assert f"{CANARY} of 2 in Night list" in page.text
    assert page.text.count(CANARY) == 2  # the title, too
    assert len(page.scripts) == 2
    (mine,) = page.attributes("div", id="panel-mine")
    (last,) = page.attributes("section", id="panel-last")
    assert page.text.index("Your reading") < page.text.index("2 in Night list")
    assert page.text.index("About this run") < page.text.index("end")
    assert mine["aria-labelledby"] == "panel-mine-title"
    assert last["class"] == "panel"


def test_a_template_that_asks_for_what_is_not_there_is_an_error(render: Render) -> None:
    register_panel(Panel(name="mine", title="Mine", template="{{ pages }}"))
    with pytest.raises(jinja2.UndefinedError):
        render(two_scans())


def test_rows_hold_what_a_panel_says_of_their_scans(render: Render) -> None:
    register_panel(Panel(name="mine", title="Mine", scan=facts_of))
    page = render(two_scans())
    assert [row["facts"]["mine"][0] for row in page.cases] == [
        {"label": "Key", "value": "a"},
        {"label": "Key", "value": "b"},
    ]
    assert "facts" not in page.data["rows"][2]  # it was not scored


def test_the_policy_allows_scripts_and_styles_of_panels_by_hash_alone(render: Render) -> None:
    register_panel(
        Panel(
            name="mine",
            title="Mine",
            template="<script>document.title = 'harmed'</script>",
            script='import * as dom from "./dom.js";\ndom.box("panel-mine").hidden = false;\n',
            style="#panel-mine { color: red; }",
        )
    )
    page = render(two_scans())
    (policy,) = page.attributes("meta", **{"http-equiv": "Content-Security-Policy"})
    content = policy["content"] or ""
    allowed, inside = page.scripts[-1], page.scripts[0]
    assert "harmed" in inside  # it stands there, and may not run
    assert 'dom.box("panel-mine").hidden = false;' in allowed
    assert "#panel-mine { color: red; }" in page.styles[0]
    for text, is_allowed in ((allowed, True), (page.styles[0], True), (inside, False)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert (f"'sha256-{digest}'" in content) is is_allowed
    assert content.count("sha256-") == 2
    assert "unsafe" not in content


# --- in a browser -----------------------------------------------------------------------------


def test_facts_follow_the_scan_that_is_shown(opened: Callable[..., Any]) -> None:
    register_panel(Panel(name="mine", title="Mine", scan=facts_of))
    register_panel(
        Panel(
            name="some",
            title="Some",
            scan=lambda case: facts_of(case)[:1] if case.verdict.flagged else (),
        )
    )
    page = opened(two_scans())
    mine, some = page.locator("#panel-mine"), page.locator("#panel-some")
    assert mine.get_by_role("heading", name="Mine").is_visible()
    assert mine.locator("th").all_text_contents() == ["Key", CANARY]
    assert mine.locator("td").all_text_contents() == ["a", f"{CANARY} PA"]
    assert some.is_visible()
    page.keyboard.press("j")
    assert mine.locator("td").all_text_contents() == ["b", f"{CANARY} AP"]
    assert some.is_hidden()
    page.keyboard.press("j")
    assert page.locator("#case-key").inner_text() == "gone"
    assert mine.is_hidden()
    assert page.title() == "Night list"


def test_a_script_hears_of_the_scan_and_a_style_acts(opened: Callable[..., Any]) -> None:
    script = """import * as dom from "./dom.js";
import * as scans from "./scans.js";

scans.onShow((row, index) => {
  dom.box("mine-text").textContent = `${index}: ${row.key}`;
});
"""
    register_panel(
        Panel(
            name="mine",
            title="Mine",
            area="case",
            template='<p id="mine-text"></p>',
            script=script,
            style="#mine-text { color: rgb(1, 2, 3); }",
        )
    )
    page = opened(two_scans())
    text = page.locator("#mine-text")
    assert text.inner_text() == "0: a"  # the first scan was shown before the script ran
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert text.inner_text() == "2: gone"
    assert text.evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
