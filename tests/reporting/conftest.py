"""A file that was scored, an empty folder to write to; reports in files, in a browser, on paper."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from anomaly.reporting.html.page import ReportData, write_report
from anomaly.reporting.pdf.study import write_study
from tests.reporting.dicom_sources import computed_radiograph, save
from tests.reporting.html_pages import Page, Render

Tab: TypeAlias = Any  # playwright's Browser and Page: the package is optional
Open: TypeAlias = Callable[..., Tab]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(computed_radiograph(), tmp_path / "in.dcm")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    from tests.reporting import html_tabs  # skips without playwright

    chromium = os.environ.get("ANOMALY_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("browser tests need Chromium")
    with html_tabs.sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Tab, tmp_path: Path) -> Iterator[Open]:
    """Open reports; fail the test on a console error or on any request but for files."""
    complaints: list[str] = []
    requests: list[str] = []
    tabs: list[Tab] = []

    def _opened(data: ReportData, *, single_file: bool = False, **options: Any) -> Tab:
        write_report(data, tmp_path / "index.html", single_file=single_file)
        tab = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        tabs.append(tab)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((tmp_path / "index.html").as_uri())
        return tab

    yield _opened
    for tab in tabs:
        tab.close()
    assert complaints == []
    assert requests
    # a blob is the page's own: the download of readings
    assert [u for u in requests if not u.startswith(("file:", "data:", "blob:file:"))] == []


@pytest.fixture
def page(opened: Open) -> Tab:
    from tests.reporting.html_tabs import make_data

    return opened(make_data())


@pytest.fixture
def render(tmp_path: Path) -> Render:
    def _render(data: ReportData, **options: bool) -> Page:
        path = tmp_path / "index.html"
        write_report(data, path, **options)
        return Page(path.read_text(encoding="utf-8"))

    return _render


@pytest.fixture
def written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Any]]:
    """Write a study and read it; what WeasyPrint complains of fails the test."""
    from tests.reporting.study_papers import pypdf  # skips without WeasyPrint

    def _written(data: ReportData, study: str = "9d4411aa22ff0011") -> Any:
        write_study(data, study, tmp_path / "study.pdf")
        return pypdf.PdfReader(tmp_path / "study.pdf")

    yield _written
    assert [record.getMessage() for record in caplog.records] == []
