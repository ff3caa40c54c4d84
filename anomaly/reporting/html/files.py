"""The report on disk: one page that opens offline in any browser, and its pictures.

::

    report/index.html             the page: markup, style, script, and the rows as JSON
    report/images/KEY-image.png   loaded when its scan is looked at; or all inside the page, after
                                  the script: the worklist stands before they are read

The page fetches nothing from a network. Its content policy allows the page's own script and style
by hash, and images from its own folder or embedded, so even text that slipped through escaping
could not run. Text reaches the page through autoescaped markup or as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from numpy.typing import NDArray

from anomaly.errors import AnomalyError
from anomaly.files import temporary_name, whole
from anomaly.reporting.html.panels import PAGE, PANELS, SHARED_SCRIPTS, Panel, text_of
from anomaly.reporting.html.rows import STATUSES, Figure, PageData, ReportContent, Row, ScanRow
from anomaly.reporting.html.scripts import one_script
from anomaly.reporting.plots.figures import png_bytes

__all__ = ["Pictures", "file_stem", "inlined", "packaged", "templates", "write_page"]

_KINDS = ("image", "evidence", "expected", "look-alike")


@dataclass(frozen=True)
class Pictures:
    """Where pictures go, and what the page calls them.

    Attributes
    ----------
    folder : Path or None
        Where they are until the page is written; None puts them into the page.
    place_of : Path or None
        Where they are from then on, and what the page calls them; None where there is no page.
    """

    folder: Path | None
    place_of: Path | None = None

    @classmethod
    @contextmanager
    def beside(cls, page: Path, *, single_file: bool) -> Iterator[Pictures]:
        """Collect the pictures of a new page; `settle` puts them in the place of the earlier ones.

        Until then an earlier page and its pictures stay as they are: a disk that fills up costs
        the new one alone.

        Raises
        ------
        AnomalyError
            The folder of pictures is a link.
        """
        folder = page.parent / "images"
        if folder.is_symlink():
            raise AnomalyError(
                f"{folder} is a link: pictures would be written and removed elsewhere. Remove it"
            )
        new = temporary_name(folder)
        try:
            if not single_file:
                new.mkdir()
            yield cls(None if single_file else new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def settle(self) -> None:
        """Put the pictures where the page will look, and remove those of an earlier page."""
        if self.place_of is None:
            return
        for old in (old for what in _KINDS for old in self.place_of.glob(f"*-{what}.png")):
            old.unlink()
        if self.folder is None:
            if self.place_of.is_dir() and not any(self.place_of.iterdir()):
                self.place_of.rmdir()
            return
        self.place_of.mkdir(exist_ok=True)
        for picture in self.folder.iterdir():
            picture.rename(self.place_of / picture.name)

    def place(self, key: str, what: str, array: NDArray[np.uint8]) -> str:
        """Store a picture and return its address for the page.

        Parameters
        ----------
        key : str
            Pseudonym of the scan, which names the file.
        what : str
            ``"image"``, ``"evidence"``, ``"expected"`` or ``"look-alike"``.
        array : ndarray (H, W) or (H, W, 4) uint8
        """
        if self.folder is None or self.place_of is None:
            return inlined(array)
        name = f"{file_stem(key)}-{what}.png"
        (self.folder / name).write_bytes(png_bytes(array))
        return f"{self.place_of.name}/{name}"


def inlined(array: NDArray[np.uint8]) -> str:
    """Return a picture as a data address, (H, W) or (H, W, 4) uint8."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(array)).decode("ascii")


def write_page(path: Path, content: ReportContent, pictures: Pictures) -> None:
    """Write the page and settle its pictures; before all is on the disk nothing is changed.

    Parameters
    ----------
    path : Path
    content : ReportContent
        What the panels draw.
    pictures : Pictures
        Of the page.
    """
    environment = templates()
    environment.filters["csp_hash"] = _csp_hash
    rows, inline = _apart_from_pictures(content.rows)
    page = environment.get_template("page/page.html.j2").render(
        page=content,
        panels=[(panel, _drawn(panel, content, environment)) for panel in PANELS.values()],
        data=_json(_page_data(content, rows)),
        pictures=inline,
        # Ours and of registered panels, which hold no end of an element: markup as they stand.
        script=Markup(_script()),  # noqa: S704
        style=Markup(_style()),  # noqa: S704
    )
    with whole(path) as file:
        # "\n" on every system: the hashes of the content policy are over these bytes
        file.write(page.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
        pictures.settle()


def _drawn(panel: Panel, content: ReportContent, environment: jinja2.Environment) -> Markup:
    """Return a panel's template with what it is given in it, escaped."""
    run = None if panel.run is None else panel.run(content)
    template = environment.from_string(text_of(panel.template))
    return Markup(template.render(page=content, panel=panel, run=run))  # noqa: S704


def _script() -> str:
    shared = {name: text_of(PAGE / f"{name}.js") for name in SHARED_SCRIPTS}
    own = {panel.name: text_of(panel.script) for panel in PANELS.values() if panel.script}
    return one_script({**shared, **own})


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
    """Return the data as JSON that may stand in a script element: 10,000 rows without a space."""
    return htmlsafe_json_dumps(
        data, separators=(",", ":"), allow_nan=False, default=lambda value: vars(value)
    )


def _apart_from_pictures(rows: tuple[Row, ...]) -> tuple[tuple[Row, ...], list[str]]:
    """Part rows from the pictures in them, which a browser need not read to list the scans.

    Returns
    -------
    rows : tuple of Row
        A picture that was a data address is ``#picture-N``.
    pictures : list of str
        Data addresses, in the order of the rows.
    """
    pictures: list[str] = []

    def reference(address: str) -> str:
        if not address.startswith("data:"):
            return address
        pictures.append(address)
        return f"#picture-{len(pictures) - 1}"

    def referring(figure: Figure) -> Figure:
        return replace(
            figure,
            image=reference(figure.image),
            expected=figure.expected and reference(figure.expected),
            look_alike=figure.look_alike and reference(figure.look_alike),
            overlay=figure.overlay and reference(figure.overlay),
        )

    return tuple(
        replace(row, figure=referring(row.figure))
        if isinstance(row, ScanRow) and row.figure is not None
        else row
        for row in rows
    ), pictures


def packaged(name: str) -> Markup:
    """Return a script or style of the package as it stands."""
    text = (files("anomaly.reporting") / "templates" / name).read_text(encoding="utf-8")
    # Ours, and without "</": it is markup as it stands.
    return Markup(text)  # noqa: S704


def templates() -> jinja2.Environment:
    """Return the templates: text from data is escaped, and a name that is not there an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("anomaly.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def file_stem(key: str) -> str:
    """Name files after a pseudonym; any other text is hashed, it may be no name for a file."""
    if re.fullmatch(r"[0-9a-z]{1,64}", key):
        return key
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _csp_hash(text: str) -> str:
    """Content-policy source that allows exactly this inline script or style."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
