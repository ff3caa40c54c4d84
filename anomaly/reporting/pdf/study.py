"""PDF report of one study, from the same rows and drawings as the HTML page of a run.

::

    banner                  on every page
    one page per scan       the most anomalous first: verdict, image, evidence, score, regions, ...
    not scored              the unscored scans and the reasons

A page shows what fits and states how many regions and features are only on the HTML page. Nothing
is downloaded: fonts and pictures are embedded, and any other address raises an error. The file is
tagged (PDF/UA-1) and contains no time, so the same study gives the same bytes.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anomaly.errors import ConfigError
from anomaly.files import whole
from anomaly.reporting.html.cases import ReportData
from anomaly.reporting.html.content import report_content
from anomaly.reporting.html.files import package_text, templates
from anomaly.reporting.html.pictures import Pictures
from anomaly.reporting.html.rows import STATUSES, Counts
from anomaly.reporting.plots.figures import FONTS
from anomaly.types import NOTICE

__all__ = ["write_study"]

_MOST_REGIONS = 5
_MOST_FEATURES = 8


def write_study(data: ReportData, study: str, path: Path) -> None:
    """Write a study as PDF.

    Parameters
    ----------
    data : ReportData
        Data of the scans of one study.
    study : str
        Pseudonym of the study.
    path : Path
        The file to write atomically; its folder must exist.

    Raises
    ------
    ConfigError
        WeasyPrint or a library that it needs is not installed.
    NotCalibrated, ValueError
        See `anomaly.reporting.html.page.write_report`.
    """
    weasyprint = _weasyprint()
    content = report_content(data, Pictures())
    environment = templates()
    environment.filters["cut"] = _cut
    page = environment.get_template("study.html.j2").render(
        page=content,
        statuses=STATUSES,
        study=study,
        notice=NOTICE,
        counts=_counts(content.counts),
        most_regions=_MOST_REGIONS,
        most_features=_MOST_FEATURES,
        made_of="; ".join(f"{name}: {value}" for name, value in data.provenance.items()),
        faces=_faces(),
        style=package_text("study.css"),
        drawing_style=package_text("study-drawing.css"),
    )
    # Fonts and pictures are embedded; any other address must raise an error, not a request.
    embedded = weasyprint.urls.URLFetcher(allowed_protocols={"data"}, fail_on_errors=True)
    pdf = weasyprint.HTML(string=page, url_fetcher=embedded).write_pdf(pdf_variant="pdf/ua-1")
    with whole(path) as file:
        file.write(pdf)


def _weasyprint() -> Any:
    try:
        import weasyprint
    except ImportError as error:
        raise ConfigError(
            "a PDF needs WeasyPrint, which is not installed: pip install weasyprint"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"a PDF needs libraries of the system that WeasyPrint does not find ({error}): on "
            "Debian, apt install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
        ) from error
    return weasyprint


def _cut(text: str, most: int) -> str:
    """Shorten a text to fit a page, and replace control characters, which fonts lack."""
    plain = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def _counts(counts: Counts) -> str:
    counted = {
        "flagged": counts.flagged,
        "within normal range": counts.scored - counts.flagged,
        "not scored": counts.skipped,
    }
    return " · ".join(f"{count:,} {status}" for status, count in counted.items() if count)


def _faces() -> Markup:
    """CSS with the embedded fonts, the same on every machine."""
    faces = [
        f'@font-face {{ font-family: Report; font-weight: {weight}; src: url("data:font/ttf;base64,'
        f'{base64.b64encode(path.read_bytes()).decode("ascii")}"); }}'
        for weight, path in FONTS.items()
    ]
    return Markup("\n".join(faces))  # noqa: S704 - no data from outside
