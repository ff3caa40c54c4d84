"""The ROC curve: corners by hand, its area against `auroc`, its band against the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from anomaly.errors import CalibrationError
from anomaly.evaluation.metrics import auroc
from anomaly.evaluation.roc import roc


def names(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def test_corners_by_hand_with_a_tie() -> None:
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    abnormal = np.array([True, True, False, False])
    curve = roc(scores, abnormal, names(4))
    # from 3 on: one abnormal of two; from 2 on: both, and one normal of two; from 1 on: all
    assert curve.false_alarms.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.sensitivity.tolist() == [0.0, 0.5, 1.0, 1.0]


def test_the_area_under_it_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, abnormal = rng.integers(0, 8, 40).astype(float), rng.random(40) < 0.4
        curve = roc(scores, abnormal, names(40), draws=20)
        area = np.trapezoid(curve.sensitivity, curve.false_alarms)
        assert area == pytest.approx(auroc(scores, abnormal, names(40), draws=20).value, abs=1e-12)


def test_one_patient_of_each_kind_leaves_nothing_to_chance() -> None:
    scores = np.array([1.0, 3.0, 2.0, 4.0])
    abnormal = np.array([False, False, True, True])
    curve = roc(scores, abnormal, ["a", "a", "b", "b"])
    # every sample with both kinds is the data itself: 4, then 3 (a false alarm), then 2, then 1
    at = np.searchsorted(curve.rates, [0.0, 0.25, 0.5, 0.75])
    assert curve.low[at].tolist() == curve.high[at].tolist() == [0.5, 0.5, 1.0, 1.0]


def test_the_band_holds_the_true_curve_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    abnormal = np.arange(120) % 2 == 0
    truth = stats.norm.sf(stats.norm.isf(0.3) - 1.0)  # abnormal scores lie one deviation higher
    held = []
    for _ in range(150):
        curve = roc(rng.normal(size=120) + abnormal, abnormal, names(120), draws=200)
        at = np.searchsorted(curve.rates, 0.3)
        held.append(curve.low[at] <= truth <= curve.high[at])
    assert 0.88 <= np.mean(held) <= 0.995


def test_scans_of_one_patient_widen_the_band() -> None:
    rng = np.random.default_rng(2)
    means = rng.normal(size=20)
    scores = np.repeat(means + (np.arange(20) < 10), 10)
    abnormal = np.repeat(np.arange(20) < 10, 10)
    alone, together = (
        roc(scores, abnormal, patients)
        for patients in (names(200), np.repeat(names(20), 10).tolist())
    )
    assert np.mean(together.high - together.low) > 1.5 * np.mean(alone.high - alone.low)


def test_the_same_seed_gives_the_same_band() -> None:
    rng = np.random.default_rng(3)
    scores, abnormal = rng.normal(size=30), np.arange(30) % 3 == 0
    first, same, other = (roc(scores, abnormal, names(30), draws=50, seed=s) for s in (1, 1, 2))
    assert (first.low == same.low).all()
    assert (first.low != other.low).any()


@pytest.mark.parametrize("abnormal", [[True, True], [False, False]])
def test_one_kind_alone_is_refused(abnormal: list[bool]) -> None:
    with pytest.raises(CalibrationError, match="needs both kinds"):
        roc(np.array([1.0, 2.0]), np.array(abnormal), names(2))
