"""Reports to open in a browser, and what is to be seen of them there."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly.reporting.html.page import ReportCase, ReportData, SkippedCase
from anomaly.types import JudgedScan, Region, ScanScore

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="browser tests need the playwright package"
)
Tab: TypeAlias = Any  # playwright's Browser and Page: the package is optional
Open: TypeAlias = Callable[..., Tab]
GREY, HEALTHY = 0.4, 0.8  # of the image, and of what was expected there: 102 and 204 of 255


FILM = np.full((64, 48), GREY, dtype=np.float32)


def make_case(
    key: str,
    p_value: float,
    score: float,
    image: NDArray[np.float32] | None = FILM,
    **more: Any,
) -> ReportCase:
    evidence = np.zeros((64, 48), dtype=np.float32)
    evidence[20:30, 10:25] = 8.0
    verdict = JudgedScan(
        scan=ScanScore(key, score, {"nll": 3.0, "edge": 9.0, "odd": 1.0}, evidence),
        p_value=p_value,
        alpha=0.05,
        threshold=0.95,
        flagged=p_value <= 0.05,
        regions=(Region(24.5, 17.0, 150, 314.16, 8.0),),
    )
    return ReportCase(verdict, image, **{"view": "PA", "note": "<b>bold</b>", **more})


def make_data() -> ReportData:
    expected = np.full((64, 48), HEALTHY, dtype=np.float32)
    return ReportData(
        title="Night list",
        cases=[
            make_case("a", 0.01, 0.25, expected=expected, site="north"),
            make_case("b", 0.02, 9.0, site="south", view="AP"),
            make_case("c", 0.5, 0.5, site="south"),
        ],
        skipped=[SkippedCase("gone", "truncated"), SkippedCase("lost", "rgb", site="south")],
        calibration_scores=np.linspace(0.0, 1.0, 99),
        alpha=0.05,
        threshold=0.95,
        evidence_threshold=3.0,
        evidence_ceiling=12.0,
        provenance={},
        # nll: in the middle of its range; edge: 4 widths above; odd: no range
        feature_ranges={"nll": (2.0, 4.0), "edge": (0.0, 1.8)},
    )


def keys(page: Tab) -> list[str]:
    found: list[str] = page.locator("#worklist tbody th").all_inner_texts()
    return found


def selected(page: Tab) -> str:
    shown: str = page.locator("#case-key").inner_text()
    assert page.locator("tr[aria-current=true] th").all_inner_texts() == [shown]
    return shown


def shot(page: Tab, selector: str) -> NDArray[np.uint8]:
    # the slider's fade is over, and what is next to the pointer is not drawn
    png = page.locator(selector).first.screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def middle(page: Tab, selector: str = ".frame") -> int:
    """Grey value on the screen at the centre of a pane."""
    pixels = shot(page, selector)
    red, green, blue = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    assert red == green == blue
    return int(red)
