"""The report of one run: a page that lists every scan and shows one at a time.

The most unusual scan comes first: its image, the evidence over it, and where its score lies among
those of normal scans. What is on the page is made in `anomaly.reporting.html.content`, drawn by the
panels of `anomaly.reporting.html.panels`, and written by `anomaly.reporting.html.files`.
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
        The HTML file to write; its folder exists. A page that is there stays, with its pictures,
        until this one is whole.
    single_file : bool
        The pictures go into the page, which can then be copied alone.

    Raises
    ------
    NotCalibrated, ValueError
        As `report_content`.
    """
    data.check()
    with Pictures.beside(page, single_file=single_file) as pictures:
        write_page(page, report_content(data, pictures), pictures)
