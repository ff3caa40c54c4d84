"""Registry of the report panels, which are the parts of the page, in order.

::

    head     above the lists: title and counts, warnings
    list     the worklist
    case     the scan shown: its study, verdict, images
    facts    details of that scan, in two columns below the images; hidden if it was not scored
    after    below both: about the run

A panel shows data of the run with a Jinja template, and data of the scan shown as a table of two
columns or with its own script. Templates escape all values, texts of scans are inserted as plain
text, and the content security policy allows the scripts and styles of panels by hash. A script or
style inside a template is blocked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from anomaly.errors import ConfigError
from anomaly.reporting.html.cases import ReportCase
from anomaly.reporting.html.rows import Fact, ReportContent

__all__ = ["PANELS", "Area", "Fact", "Panel", "Source", "register_panel", "scan_facts", "text_of"]

PAGE = Path(__file__).parents[1] / "templates" / "page"
"""Folder of the templates, scripts and styles of the page."""

SHARED_SCRIPTS = ("dom", "pictures", "scans", "facts")
"""Scripts that the script of any panel may import."""

Area: TypeAlias = Literal["head", "list", "case", "facts", "after"]
"""Area of the page that contains a panel."""

Source: TypeAlias = str | Path
"""A text, or the file that contains it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A part of the page.

    Attributes
    ----------
    name : str
        A lower-case word: the name of its script; the id of its frame is ``panel-NAME``.
    title : str
        Heading.
    area : str
        Area of the page; the panel comes after the other panels there.
    template : str or Path
        Jinja template, rendered with ``page`` (`ReportContent`), ``panel`` (this) and ``run``.
    run : callable, optional
        ``run(content)`` returns the value of ``run`` in the template.
    scan : callable, optional
        ``scan(case)`` returns a sequence of `Fact`, shown as a table below the template while the
        scan is shown. Called once for each scored scan.
    script : str or Path
        A JavaScript module. It can import ``* as scans from "./scans.js"`` and register a function
        that is called for the scan shown (``scans.onShow``).
    style : str or Path
        CSS.
    framed : bool
        Draw a frame with the title around the panel. Otherwise the panel consists of the template
        only, without a table.
    """

    name: str
    title: str = ""
    area: Area = "facts"
    template: Source = ""
    run: Callable[[ReportContent], object] | None = None
    scan: Callable[[ReportCase], Sequence[Fact]] | None = None
    script: Source = ""
    style: Source = ""
    framed: bool = True

    def check(self) -> None:
        """Raise an error if the panel would show nothing or break the page.

        Raises
        ------
        ConfigError
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ConfigError(f"the name of a panel is a word such as 'age'; got {self.name!r}")
        if self.framed and not self.title:
            raise ConfigError(f"the panel {self.name!r} has no title to put on its frame")
        if self.scan and not self.framed:
            raise ConfigError(f"the panel {self.name!r} has no frame for what it says of scans")
        if not (self.template or self.scan):
            raise ConfigError(
                f"the panel {self.name!r} shows nothing: give it a template or a scan"
            )
        for what, source, ends in (
            ("script", self.script, r"</script|<!--"),
            ("style", self.style, r"</style"),
        ):
            if end := re.search(ends, text_of(source), re.I):
                raise ConfigError(
                    f"the {what} of the panel {self.name!r} holds {end[0]!r}, which ends it early "
                    "in a page: write it in two parts"
                )


def text_of(source: Source) -> str:
    """Return a text, read from a file if the source is a path."""
    return source.read_text(encoding="utf-8") if isinstance(source, Path) else source


def _builtin(
    name: str,
    area: Area,
    title: str = "",
    *,
    script: bool = False,
    style: bool = True,
    run: Callable[[ReportContent], object] | None = None,
) -> Panel:
    """Return a panel of the package; its files are named after it."""
    return Panel(
        name=name,
        title=title,
        area=area,
        template=PAGE / f"{name}.html.j2",
        run=run,
        script=PAGE / f"{name}.js" if script else "",
        style=PAGE / f"{name}.css" if style else "",
        framed=False,
    )


PANELS: dict[str, Panel] = {
    panel.name: panel
    for panel in (
        _builtin("summary", "head", run=lambda content: content.counts),
        _builtin("warnings", "head", "Read with care", run=lambda content: content.warnings),
        _builtin("worklist", "list", "Worklist", script=True, run=lambda content: content.counts),
        _builtin("study", "case", script=True),
        _builtin("verdict", "case", script=True),
        _builtin("films", "case", script=True, run=lambda content: content.colour_bar),
        _builtin("score", "facts", "Score", script=True, run=lambda content: content.histogram),
        _builtin("regions", "facts", "Regions beyond the limit", script=True, style=False),
        _builtin("features", "facts", "Features", script=True),
        _builtin("readings", "facts", "Your reading", script=True),
        _builtin("provenance", "after", "About this run", run=lambda content: content.provenance),
    )
}
"""Panels by name, in page order."""


def register_panel(panel: Panel) -> None:
    """Add a panel after the others of its area, for all pages that are written later.

    Raises
    ------
    ConfigError
        If the name is taken, or the panel would show nothing or break the page.
    """
    if panel.name in PANELS or panel.name in SHARED_SCRIPTS:
        raise ConfigError(f"there is a panel {panel.name!r} already: give it another name")
    panel.check()
    PANELS[panel.name] = panel


def scan_facts(case: ReportCase) -> dict[str, tuple[Fact, ...]]:
    """Return the table rows of a scan by panel name."""
    return {
        panel.name: tuple(panel.scan(case)) for panel in PANELS.values() if panel.scan is not None
    }
