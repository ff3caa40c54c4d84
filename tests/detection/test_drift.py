"""Drift: closed forms, and how often it is found where there is none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anomaly.detection.calibration import Spread
from anomaly.detection.drift import FEWEST, FEWEST_NORMAL, Drift, find_drift

NORMAL = {"nll": Spread.of(np.arange(101.0)), "energy": Spread.of(np.arange(101.0) / 10)}


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
    """In fewer than 1 % of runs, with quartiles of as few normals as are allowed."""
    rng = np.random.default_rng(1)
    warned = 0
    for _ in range(2000):
        normal = {"nll": Spread.of(rng.standard_normal(FEWEST_NORMAL))}
        warned += bool(find_drift(scans(rng.standard_normal(FEWEST)), normal))
    # 0.02 % with known quartiles; those of 100 normals lie off by 0.04 in probability.
    assert stats.binomtest(warned, 2000).proportion_ci().high < 0.01
    assert 2 * stats.binom.sf(FEWEST / 2 - 1, FEWEST, 0.25) < 0.0003


def test_values_that_are_none_and_features_that_never_vary_say_nothing() -> None:
    broken = [{"nll": float("nan"), "energy": 5.0}, {"energy": 5.0}]
    assert find_drift(scans(np.full(FEWEST, 50.0)) + broken, NORMAL) == ()
    (found,) = find_drift(scans(np.full(FEWEST, 100.0)) + broken, NORMAL)
    assert found.median == 100.0
    assert find_drift(broken * FEWEST, NORMAL) == ()
    constant = {"energy": Spread.of(np.full(200, 0.1))}
    assert find_drift(scans(np.zeros(FEWEST), 0.1), constant) == ()
    assert find_drift(scans(np.zeros(FEWEST), 7.0), constant) == ()
