"""Studies to put on paper, and a paper as a reader of PDF sees it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from anomaly.reporting.html.page import ReportCase
from anomaly.types import Region
from tests.reporting.html_pages import make_case

try:
    import weasyprint  # noqa: F401
except (ImportError, OSError) as error:
    pytest.skip(f"WeasyPrint cannot be used here: {error}", allow_module_level=True)
pypdf = pytest.importorskip("pypdf")

STUDY = "9d4411aa22ff0011"
IMAGE = np.linspace(0, 1, 24 * 20, dtype=np.float32).reshape(24, 20)
EVIDENCE = np.zeros((24, 20), np.float32)
EVIDENCE[4:9, 6:12] = 8.0
REGION = Region(row=6.0, column=8.5, area=30, area_mm2=100 * np.pi, peak=8.0)

Written: TypeAlias = Callable[..., Any]  # pypdf's reader: the package is optional


def texts(reader: Any) -> list[str]:
    """Text of each page, its lines joined."""
    return [re.sub(r"\s+", " ", page.extract_text()) for page in reader.pages]


def height_of(page: Any, wanted: str) -> float:
    """Where the line that holds a text stands, in points from the foot of the page."""
    found: list[float] = []

    def visit(said: str, drawing: list[float], text: list[float], *_: object) -> None:
        if wanted in said:  # a text is told with the matrices that it was drawn with
            found.append(text[4] * drawing[1] + text[5] * drawing[3] + drawing[5])

    page.extract_text(visitor_text=visit)
    (height,) = found
    return height


def pictures(page: Any) -> list[tuple[int, int]]:
    """Width and height of each picture that is drawn, in order."""
    found: list[tuple[int, int]] = []

    def walk(stream: Any, resources: Any) -> None:
        for operands, operator in pypdf.generic.ContentStream(stream, page.pdf).operations:
            if operator == b"Do":
                drawn = resources["/XObject"][operands[0]].get_object()
                if drawn["/Subtype"] == "/Image":
                    found.append((drawn["/Width"], drawn["/Height"]))
                else:
                    walk(drawn, drawn["/Resources"])

    walk(page.get_contents(), page["/Resources"])
    return found


def flagged(key: str, score: float = 2.0, **changes: Any) -> ReportCase:
    case = make_case(key, 0.01, score, IMAGE, EVIDENCE, (REGION,), view="PA")
    return dataclasses.replace(case, **changes)


def with_features(case: ReportCase, features: dict[str, float]) -> ReportCase:
    scan = dataclasses.replace(case.verdict.scan, features=features)
    return dataclasses.replace(case, verdict=dataclasses.replace(case.verdict, scan=scan))


def elements(reader: Any) -> list[dict[str, Any]]:
    """Every element of the tag tree, in order."""
    found: list[dict[str, Any]] = []

    def walk(kids: Any) -> None:
        for kid in kids.get_object() if isinstance(kids.get_object(), list) else [kids]:
            kid = kid.get_object()
            if isinstance(kid, dict) and "/S" in kid:
                found.append(kid)
                walk(kid["/K"])

    walk(reader.root_object["/StructTreeRoot"]["/K"])
    return found
