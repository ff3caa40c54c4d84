"""Drift: closed forms, and how often it is found where there is none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anomaly.detection.calibration import Calibration
from anomaly.detection.drift import FEWEST, Drift, find_drift

NORMAL = {"nll": Calibration(np.arange(101.0)), "energy": Calibration(np.arange(101.0) / 10)}


def scans(nll: NDArray[np.float64], energy: float = 5.0) -> list[dict[str, float]]:
    return [{"nll": float(value), "energy": energy} for value in nll]


def test_the_median_outside_the_middle_half_is_drift() -> None:
    (found,) = find_drift(scans(np.full(FEWEST, 100.0)), NORMAL)
    assert found == Drift("nll", 100.0, 25.0, 75.0)
    assert found.distance == 0.5
    assert find_drift(scans(np.full(FEWEST, 75.0)), NORMAL) == ()
    assert [drift.feature for drift in find_drift(scans(np.zeros(FEWEST), 0.0), NORMAL)] == [
        "nll",
        "energy",
    ]
    assert find_drift(scans(np.full(FEWEST - 1, 100.0)), NORMAL) == ()


def test_the_furthest_comes_first() -> None:
    found = find_drift(scans(np.full(FEWEST, 76.0), 10.0), NORMAL)
    assert [drift.feature for drift in found] == ["energy", "nll"]


def test_findings_on_few_scans_are_no_drift() -> None:
    rng = np.random.default_rng(0)
    nll = rng.uniform(0, 100, 200)
    nll[:40] += 1000
    assert find_drift(scans(nll), NORMAL) == ()


def test_scans_made_alike_are_rarely_called_drifted() -> None:
    """The stated rate, with known quartiles: 2 P(Bin(m, 1/4) >= m/2)."""
    m, times = 9, 4000
    rng = np.random.default_rng(1)
    stated = 2 * stats.binom.sf(m // 2, m, 0.25)
    medians = np.median(rng.uniform(size=(times, m)), axis=1)
    seen = np.mean((medians < 0.25) | (medians > 0.75))
    assert abs(seen - stated) < 4 * np.sqrt(stated / times)
    assert 2 * stats.binom.sf(FEWEST / 2 - 1, FEWEST, 0.25) < 0.0003
