"""Drift in sentences: which groups are looked at, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.detection.calibration import Calibration
from anomaly.detection.drift import FEWEST
from anomaly.results import ScoreRow
from pipelines.drift import drift_warnings

NORMAL = {"nll": Calibration(np.arange(101.0)), "energy": Calibration(np.arange(101.0) / 10)}


def row(
    index: int, *, nll: float, flagged: bool = False, site: str = "", view: str = ""
) -> ScoreRow:
    return ScoreRow(
        f"{index:016x}",
        "scored",
        score=1.0,
        p_value=0.5,
        flagged=flagged,
        site=site,
        view=view,
        features={"nll": nll, "energy": 5.0},
    )


def test_each_site_is_looked_at_by_itself() -> None:
    rows = [row(i, nll=50, site="north", view="PA") for i in range(60)]
    rows += [row(i, nll=90, site="south", view="PA") for i in range(60, 115)]
    rows += [ScoreRow("f" * 16, "not scored", reason="truncated", site="south")]
    (warning,) = drift_warnings(rows, NORMAL)
    assert warning == (
        "Site south (55): typical values are not those of normal scans. nll is 90 in the middle "
        "here, and 25 to 75 for half of the normal scans. P-values may not hold for them."
    )


def test_more_than_half_flagged_is_said() -> None:
    rows = [row(i, nll=50, flagged=i < 40) for i in range(70)]
    (warning,) = drift_warnings(rows, NORMAL)
    assert warning.startswith("All scans (70): 40 are flagged, more than half.")
    assert drift_warnings([row(i, nll=50, flagged=i < 35) for i in range(70)], NORMAL) == []


@pytest.mark.parametrize("count", [0, FEWEST - 1])
def test_of_few_scans_nothing_is_said(count: int) -> None:
    assert drift_warnings([row(i, nll=1e9, flagged=True) for i in range(count)], NORMAL) == []
