"""One study on paper: a PDF for its chart, from the same rows and drawings as the page of a run.

::

    banner                  on every page
    a page a scan           the most unusual first: verdict, image, evidence, score, regions, ...
    not scored              which scans, and why

A page takes what fits and says how much it leaves to the page of the run. Nothing is fetched: fonts
and pictures are embedded, and every other address is refused. The file is tagged (PDF/UA-1) and
holds no time, so the same study gives the same bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anomaly.errors import ConfigError
from anomaly.files import whole
from anomaly.reporting.html.cases import ReportData
from anomaly.reporting.html.files import Pictures, joined, templates
from anomaly.reporting.html.page import report_content
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
        Of the scans of one study.
    study : str
        Its pseudonym.
    path : Path
        The file to write, whole or not at all; its folder exists.

    Raises
    ------
    ConfigError
        WeasyPrint or a library that it needs is not installed.
    NotCalibrated, ValueError
        As `anomaly.reporting.html.page.write_report`.
    """
    weasyprint = _weasyprint()
    content = report_content(data, Pictures(None))
    scored = [row for row in content["rows"] if row["status"] != "not scored"]
    environment = templates()
    environment.filters["cut"] = _cut
    page = environment.get_template("study.html.j2").render(
        **content,
        study=study,
        notice=NOTICE,
        counts=_counts(content),
        ranges=[_feature_ranges(row["features"], content["features"]) for row in scored],
        most_regions=_MOST_REGIONS,
        made_of="; ".join(f"{name}: {value}" for name, value in data.provenance.items()),
        faces=_faces(),
        style=joined(("study.css",)),
        drawing_style=joined(("study-drawing.css",)),
    )
    # Fonts and pictures are in the page; whatever else it names is an error, not a request.
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
    """Shorten a text so that a page holds it; no font has a shape for what it replaces."""
    plain = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def _counts(content: dict[str, Any]) -> str:
    counted = {
        "flagged": content["flagged"],
        "within normal range": content["scored"] - content["flagged"],
        "not scored": content["skipped"],
    }
    return " · ".join(f"{count:,} {status}" for status, count in counted.items() if count)


@dataclass(frozen=True)
class _FeatureRanges:
    """Features of a scan as the table shows them.

    Attributes
    ----------
    shown : list of dict
        Those furthest outside the normals' range first.
    ranged : bool
        Some range is known.
    left : int
        How many more there are.
    """

    shown: list[dict[str, Any]]
    ranged: bool
    left: int


def _feature_ranges(
    values: Sequence[float | None], features: Sequence[dict[str, Any]]
) -> _FeatureRanges:
    known = [
        (value, feature)
        for value, feature in zip(values, features, strict=True)
        if value is not None
    ]
    known.sort(key=lambda pair: -_distance(pair[0], pair[1]["range"]))
    shown = [_feature(value, feature) for value, feature in known[:_MOST_FEATURES]]
    ranged = any(feature["range"] for feature in features)
    return _FeatureRanges(shown, ranged, len(known) - len(shown))


def _distance(value: float, span: tuple[float, float] | None) -> float:
    """How many widths of its range a value lies outside of it; -1 where none is known."""
    if span is None:
        return -1.0
    low, high = span
    return max(0.0, low - value, value - high) / (high - low)


def _feature(value: float, feature: dict[str, Any]) -> dict[str, Any]:
    """One row: its place in a drawing of 90 units, of which the range is the middle third."""
    row = {**feature, "value": f"{value:.4g}", "range": "", "place": None, "side": ""}
    if feature["range"] is not None:
        low, high = feature["range"]
        share = (1 + (value - low) / (high - low)) / 3
        row["range"] = f"{low:.3g} to {high:.3g}"
        row["place"] = round(3 + 84 * min(1.0, max(0.0, share)), 1)
        row["side"] = "below" if value < low else "above" if value > high else ""
    return row


def _faces() -> Markup:
    """Embed the fonts, the same on every machine."""
    faces = [
        f'@font-face {{ font-family: Report; font-weight: {weight}; src: url("data:font/ttf;base64,'
        f'{base64.b64encode(path.read_bytes()).decode("ascii")}"); }}'
        for weight, path in FONTS.items()
    ]
    return Markup("\n".join(faces))  # noqa: S704 - ours alone
