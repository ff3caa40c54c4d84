"""Reports to write, and a written one as a parser sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.reporting.html.page import ReportCase, ReportData, SkippedCase
from anomaly.types import JudgedScan, Region, ScanScore

CALIBRATION = np.arange(99) / 98


def make_case(
    key: str,
    p_value: float,
    score: float,
    image: NDArray[np.float32] | None = None,
    evidence: NDArray[np.float32] | None = None,
    regions: tuple[Region, ...] = (),
    **texts: Any,
) -> ReportCase:
    scan = ScanScore(key, score, {"nll": 3.25}, evidence)
    return ReportCase(
        JudgedScan(scan, p_value, 0.05, 0.95, p_value <= 0.05, regions), image, **texts
    )


def make_data(*cases: ReportCase, skipped: tuple[SkippedCase, ...] = ()) -> ReportData:
    return ReportData(
        title="Night list",
        cases=cases,
        skipped=skipped,
        calibration_scores=CALIBRATION,
        alpha=0.05,
        threshold=0.95,
        evidence_threshold=3.0,
        evidence_ceiling=12.0,
        provenance={"bundle": "sha256 abc"},
    )


class Page(HTMLParser):
    """What a browser would make of the file: tags, table rows, visible text, scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._open = ""
        self._in_cell = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        if tag == "script":
            self.scripts.append("")
        if tag == "style":
            self.styles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open == "style":
            self.styles[-1] += data
        else:
            self.text += data
            if self._in_cell:
                self.rows[-1][-1] += data.strip()

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.scripts[0])
        return loaded

    def picture(self, address: str) -> str:
        """Data address of a picture inside the page, which names it ``#picture-N``."""
        (block,) = [
            place
            for place, attributes in enumerate(self.attributes("script"))
            if attributes.get("id") == address.removeprefix("#")
        ]
        return self.scripts[block]

    @property
    def cases(self) -> list[dict[str, Any]]:
        return [row for row in self.data["rows"] if row["status"] != "not scored"]

    def attributes(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]


Render: TypeAlias = Callable[..., Page]
