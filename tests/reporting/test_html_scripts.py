"""The scripts of the page: put into one, checked for types and style, and of the rows' fields."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from anomaly.errors import ConfigError
from anomaly.reporting.html import rows
from anomaly.reporting.html.panels import PAGE, PANELS, SHARED_SCRIPTS
from anomaly.reporting.html.scripts import bundle_scripts

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "node_modules" / ".bin"
DATACLASSES = [
    *(rows.Fact, rows.FeatureColumn, rows.Figure, rows.PageData, rows.ScanRow),
    *(rows.SkippedRow, rows.Status),
]


# --- one script -------------------------------------------------------------------------------


def test_a_module_runs_after_those_that_it_imports() -> None:
    first = 'import * as second from "./second.js";\nsecond.hello();\n'
    script = bundle_scripts(
        {"first": first, "second": "export function hello() {}\nconst own = 1;\n"}
    )
    assert script == (
        '(() => {\n"use strict";\n'
        "const second = (() => {\nfunction hello() {}\nconst own = 1;\nreturn { hello };\n})();\n"
        "const first = (() => {\nsecond.hello();\nreturn {  };\n})();\n})();\n"
    )


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"a": 'import * as b from "./b.js";\n'}, "the script 'a' imports 'b': expected one of a"),
        (
            {"a": 'import * as b from "./b.js";\n', "b": 'import * as a from "./a.js";\n'},
            "scripts import each other: a -> b -> a",
        ),
        ({"a": 'import * as c from "./b.js";\n', "b": ""}, "imports 'b' as 'c': keep its name"),
        ({"a": 'import { x } from "./b.js";\n', "b": ""}, "the script 'a' has 'import { x }"),
        ({"a": "export let x = 1;\n"}, "the script 'a' has 'export let x = 1;'"),
        ({"a": "export default 1;\n"}, "the script 'a' has 'export default 1;'"),
    ],
)
def test_what_cannot_be_put_into_one_is_refused(modules: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        bundle_scripts(modules)


def test_every_script_of_the_page_belongs_to_a_panel_or_is_shared() -> None:
    own = {panel.script.name for panel in PANELS.values() if isinstance(panel.script, Path)}
    shared = {f"{name}.js" for name in SHARED_SCRIPTS}
    assert {path.name for path in PAGE.glob("*.js")} == own | shared | {"rows.js"}


# --- types ------------------------------------------------------------------------------------


def typedefs() -> dict[str, list[str]]:
    """Names of the fields of each type in ``rows.js``, in order."""
    text = (PAGE / "rows.js").read_text(encoding="utf-8")
    types: dict[str, list[str]] = {}
    for block in text.split("@typedef")[1:]:
        if opening := re.match(r" \{object\} (\w+)", block):
            types[opening[1]] = re.findall(r"@property \{.*\} (\w+)", block)
        elif array := re.match(r" \{\[(.*)\]\} (\w+)", block):
            types[array[2]] = re.findall(r"(\w+):", array[1])
    return types


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_scripts_know_the_fields_of_a_row(kind: type) -> None:
    assert typedefs()[kind.__name__] == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("kind", [rows.RegionRow, rows.FeatureValue], ids=lambda k: k.__name__)
def test_scripts_know_the_entries_of_an_array(kind: type[tuple[object, ...]]) -> None:
    assert typedefs()[kind.__name__] == list(kind._fields)  # type: ignore[attr-defined]


def test_scripts_know_no_other_type() -> None:
    arrays = {"RegionRow", "FeatureValue"}
    assert set(typedefs()) == arrays | {kind.__name__ for kind in DATACLASSES}


# --- tools ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [("tsc", "--project", "."), ("biome", "check", "--error-on-warnings")],
    ids=["types", "lint"],
)
def test_tools_find_nothing(command: tuple[str, ...]) -> None:
    program, *options = command
    if not (PROGRAMS / program).exists():
        pytest.skip(f"there is no {program} in {PROGRAMS}: `npm install` fetches it")
    done = subprocess.run(
        [PROGRAMS / program, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
