"""Writer of the report: one page that works offline in any browser, and its pictures.

::

    report/index.html             the page: markup, style, script, and the rows as JSON
    report/images/KEY-image.png   loaded when its scan is shown; or embedded in the page after the
                                  script, so that the worklist appears before they are read

The page loads nothing from a network. Its content security policy allows only its own script and
style, by hash, and images from its own folder or embedded in it. Unescaped text therefore could not
run as a script. Text enters the page through autoescaped templates or as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from anomaly.files import whole
from anomaly.reporting.html.panels import PAGE, PANELS, SHARED_SCRIPTS, Panel, text_of
from anomaly.reporting.html.pictures import Pictures
from anomaly.reporting.html.rows import STATUSES, Figure, PageData, ReportContent, Row, ScanRow
from anomaly.reporting.html.scripts import bundle_scripts

__all__ = ["package_text", "templates", "write_page"]


def write_page(path: Path, content: ReportContent, pictures: Pictures) -> None:
    """Write the page and move its pictures into place; nothing changes before all is on disk.

    Parameters
    ----------
    path : Path
    content : ReportContent
        Content that the panels draw.
    pictures : Pictures
        Pictures of the page.
    """
    environment = templates()
    environment.filters["csp_hash"] = _csp_hash
    rows, inline = _extract_pictures(content.rows)
    page = environment.get_template("page/page.html.j2").render(
        page=content,
        panels=[(panel, _render_panel(panel, content, environment)) for panel in PANELS.values()],
        data=_json(_page_data(content, rows)),
        pictures=inline,
        # Trusted: from the package and from registered panels, checked for closing tags.
        script=Markup(_script()),  # noqa: S704
        style=Markup(_style()),  # noqa: S704
    )
    with whole(path) as file:
        # bytes, so that line ends are "\n": the hashes of the content policy depend on them
        file.write(page.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
        pictures.settle()


def _render_panel(panel: Panel, content: ReportContent, environment: jinja2.Environment) -> Markup:
    """Return the markup of a panel; values in its template are escaped."""
    run = None if panel.run is None else panel.run(content)
    template = environment.from_string(text_of(panel.template))
    return Markup(template.render(page=content, panel=panel, run=run))  # noqa: S704


def _script() -> str:
    shared = {name: text_of(PAGE / f"{name}.js") for name in SHARED_SCRIPTS}
    own = {panel.name: text_of(panel.script) for panel in PANELS.values() if panel.script}
    return bundle_scripts({**shared, **own})


def _style() -> str:
    own = [text_of(panel.style) for panel in PANELS.values() if panel.style]
    return "\n".join([text_of(PAGE / "page.css"), *own])


def _page_data(content: ReportContent, rows: tuple[Row, ...]) -> PageData:
    return PageData(
        id=content.run_id,
        private=content.holds_identifiers,
        alpha=content.alpha,
        threshold=content.threshold,
        statuses=STATUSES,
        features=content.features,
        studies=content.studies,
        images=content.shows_images,
        rows=rows,
    )


def _json(data: PageData) -> Markup:
    """Return the data as compact JSON that is safe in a script element."""
    return htmlsafe_json_dumps(
        data, separators=(",", ":"), allow_nan=False, default=lambda value: vars(value)
    )


def _extract_pictures(rows: tuple[Row, ...]) -> tuple[tuple[Row, ...], list[str]]:
    """Move embedded pictures out of the rows, so that the browser can list the scans without them.

    Returns
    -------
    rows : tuple of Row
        Each data address is replaced by ``#picture-N``.
    pictures : list of str
        Data addresses, in the order of the rows.
    """
    pictures: list[str] = []

    def reference(address: str) -> str:
        if not address.startswith("data:"):
            return address
        pictures.append(address)
        return f"#picture-{len(pictures) - 1}"

    def refer(figure: Figure) -> Figure:
        return replace(
            figure,
            image=reference(figure.image),
            expected=figure.expected and reference(figure.expected),
            look_alike=figure.look_alike and reference(figure.look_alike),
            overlay=figure.overlay and reference(figure.overlay),
        )

    return tuple(
        replace(row, figure=refer(row.figure))
        if isinstance(row, ScanRow) and row.figure is not None
        else row
        for row in rows
    ), pictures


def package_text(name: str) -> Markup:
    """Return a script or style of the package as trusted markup."""
    text = (files("anomaly.reporting") / "templates" / name).read_text(encoding="utf-8")
    # Trusted: from the package, and without "</".
    return Markup(text)  # noqa: S704


def templates() -> jinja2.Environment:
    """Return the template environment: values are escaped, and unknown names raise an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("anomaly.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _csp_hash(text: str) -> str:
    """Content-security-policy source that allows exactly this inline script or style."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
