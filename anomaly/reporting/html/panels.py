"""The registry of report panels: the parts of the page, in its order.

::

    head     above the lists: title and counts, warnings
    list     the worklist
    case     the scan that is shown: its study, verdict, images
    facts    what is known of it, two columns below the images; hidden where it was not scored
    after    below both: about the run

A panel says something of the run by a Jinja template, of the scan that is shown by rows of two
texts or by a script of its own. Templates escape what they are given, texts of scans are written as
text, and the content policy of the page lets the scripts and styles of panels run by their hashes;
a script or style inside of a template does nothing.
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
"""Where templates, scripts and styles of the page are."""

SHARED_SCRIPTS = ("dom", "pictures", "scans", "facts")
"""Scripts that any script of a panel may import."""

Area: TypeAlias = Literal["head", "list", "case", "facts", "after"]
"""Where on the page a panel stands."""

Source: TypeAlias = str | Path
"""A text, or the file that holds it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A part of the page.

    Attributes
    ----------
    name : str
        A word in lower case: names its script, and ``panel-NAME`` is the id of its frame.
    title : str
        Its heading.
    area : str
        Where it stands, behind the other panels there.
    template : str or Path
        Jinja, rendered with ``page`` (`ReportContent`), ``panel`` (this) and ``run``.
    run : callable, optional
        ``run(content)``: what the template knows as ``run``.
    scan : callable, optional
        ``scan(case)``: a sequence of `Fact`, which stand as a table below the template while the
        scan is shown. Called once for each scored scan.
    script : str or Path
        A JavaScript module. ``import * as scans from "./scans.js"`` is how it hears of the scan
        that is shown (``scans.onShow``).
    style : str or Path
        CSS.
    framed : bool
        The page puts a frame with the title around it; otherwise the template is the whole of it,
        and there is no table.
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
        """Refuse what would show nothing, or break the page.

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
    """Return a text, read from its file where it is one."""
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
    """Return a panel of the package, whose files bear its name."""
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
"""Panels by name, in the order of the page."""


def register_panel(panel: Panel) -> None:
    """Add a panel behind the others of its area, to every page that is written from then on.

    Raises
    ------
    ConfigError
        If there is one of that name, or it would show nothing or break the page.
    """
    if panel.name in PANELS or panel.name in SHARED_SCRIPTS:
        raise ConfigError(f"there is a panel {panel.name!r} already: give it another name")
    panel.check()
    PANELS[panel.name] = panel


def scan_facts(case: ReportCase) -> dict[str, tuple[Fact, ...]]:
    """Return what panels say of a scan, by their names."""
    return {
        panel.name: tuple(panel.scan(case)) for panel in PANELS.values() if panel.scan is not None
    }
