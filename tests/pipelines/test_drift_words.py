"""Drift in sentences: which groups are looked at, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anomaly.detection.calibration import Calibration, Spread
from anomaly.detection.drift import FEWEST, FEWEST_NORMAL
from anomaly.pipelines.drift import drift_warnings
from anomaly.store.bundle import Calibrated
from anomaly.store.results import ScoreRow


def calibrated(count: int) -> Calibrated:
    values = np.linspace(0, 100, count)
    features = {"nll": Spread.of(values), "energy": Spread.of(values / 10)}
    return Calibrated(Calibration(values), Calibration(values), 0.05, "", features)


NORMAL = calibrated(FEWEST_NORMAL + 1)


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
        "P-values may not hold for site south (55): nll is 90 in the middle, unlike normal scans, "
        "half of which are at 25 to 75."
    )


def test_more_than_half_flagged_is_said() -> None:
    rows = [row(i, nll=50, flagged=i < 40) for i in range(70)]
    (warning,) = drift_warnings(rows, NORMAL)
    assert warning.startswith(
        "P-values may not hold for all scans (70): 40 are flagged, more than half."
    )
    assert drift_warnings([row(i, nll=50, flagged=i < 35) for i in range(70)], NORMAL) == []


@pytest.mark.parametrize("count", [0, FEWEST - 1])
def test_of_few_scans_nothing_is_said(count: int) -> None:
    assert drift_warnings([row(i, nll=1e9, flagged=True) for i in range(count)], NORMAL) == []


def test_of_few_calibration_scans_nothing_is_said() -> None:
    rows = [row(i, nll=1e9, flagged=i < 40) for i in range(70)]
    assert drift_warnings(rows, NORMAL) != []
    assert drift_warnings(rows, calibrated(FEWEST_NORMAL - 1)) == []


def test_further_features_are_counted() -> None:
    rows = [replace(row(i, nll=90), features={"nll": 90.0, "energy": 10.0}) for i in range(60)]
    (warning,) = drift_warnings(rows, NORMAL)
    assert warning.endswith("half of which are at 2.5 to 7.5. So is one more feature.")


def test_a_site_among_scans_of_unknown_sites_is_looked_at() -> None:
    rows = [row(i, nll=50) for i in range(200)]
    rows += [row(i, nll=90, site="south") for i in range(200, 260)]
    (warning,) = drift_warnings(rows, NORMAL)
    assert warning.startswith("P-values may not hold for site south (60):")
