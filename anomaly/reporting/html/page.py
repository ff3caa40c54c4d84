"""The report of one run: an HTML page that lists every scan and shows one at a time.

The most anomalous scan comes first, with its image, the evidence as an overlay, and the position of
its score among those of normal scans. `anomaly.reporting.html.content` computes the content, the
panels of `anomaly.reporting.html.panels` draw it, and `anomaly.reporting.html.files` writes it.
"""

from __future__ import annotations

from pathlib import Path

from anomaly.reporting.html.cases import ReportCase, ReportData, SkippedCase
from anomaly.reporting.html.content import report_content
from anomaly.reporting.html.files import write_page
from anomaly.reporting.html.pictures import Pictures
from anomaly.reporting.html.words import odds_in_words

__all__ = [
    "ReportCase",
    "ReportData",
    "SkippedCase",
    "odds_in_words",
    "report_content",
    "write_report",
]


def write_report(data: ReportData, page: Path, *, single_file: bool = False) -> None:
    """Write the report: a page, and its pictures in the folder ``images`` beside it.

    Parameters
    ----------
    data : ReportData
    page : Path
        The HTML file to write; its folder must exist. An existing page and its pictures are
        replaced only when the new page is complete.
    single_file : bool
        Embed the pictures in the page, so that it can be copied alone.

    Raises
    ------
    NotCalibrated, ValueError
        See `report_content`.
    """
    data.check()
    with Pictures.beside(page, single_file=single_file) as pictures:
        write_page(page, report_content(data, pictures), pictures)
