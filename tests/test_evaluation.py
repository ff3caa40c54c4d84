"""Figures of merit: by hand, against scikit-learn, and the intervals against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from anomaly.errors import CalibrationError
from anomaly.evaluation import auroc, exact_rate, image_metrics, pixel_metrics


def names(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def test_auroc_by_hand_with_a_tie() -> None:
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    abnormal = np.array([True, True, False, False])
    # pairs (abnormal, normal): 3>2, 3>1, 2=2, 2>1 -> 1 + 1 + 1/2 + 1 = 3.5 of 4
    assert auroc(scores, abnormal, names(4)).value == 3.5 / 4


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: 0 < sum(a for _, a in rows) < len(rows)
    )
)
def test_auroc_equals_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([s for s, _ in rows], dtype=np.float64)
    abnormal = np.array([a for _, a in rows])
    found = auroc(scores, abnormal, names(len(rows)), draws=50)
    assert found.value == pytest.approx(roc_auc_score(abnormal, scores), abs=1e-12)
    mirrored = auroc(-scores, abnormal, names(len(rows)), draws=50)
    assert mirrored.value == pytest.approx(1 - found.value, abs=1e-12)
    assert 0 <= found.low <= found.high <= 1


def test_auroc_is_seeded_and_blind_to_order_and_scale() -> None:
    rng = np.random.default_rng(0)
    scores, abnormal = rng.normal(size=30), np.arange(30) % 3 == 0
    first = auroc(scores, abnormal, names(30))
    assert auroc(scores, abnormal, names(30)) == first
    assert auroc(np.exp(scores), abnormal, names(30)) == first  # ranks alone count
    order = rng.permutation(30)
    moved = auroc(scores[order], abnormal[order], [names(30)[i] for i in order])
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (first.value, first.low, first.high)
    )


def test_perfect_separation_has_no_spread() -> None:
    found = auroc(np.array([0.0, 1, 2, 3]), np.array([False, False, True, True]), names(4))
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("abnormal", [[False, False], [True, True]])
def test_auroc_needs_both_kinds(abnormal: list[bool]) -> None:
    with pytest.raises(CalibrationError, match=f"{sum(abnormal)} of 2 scans are abnormal"):
        auroc(np.array([1.0, 2.0]), np.array(abnormal), names(2))


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normals N(0, 1), abnormals N(1, 1): P(abnormal > normal) = Phi(1 / sqrt 2) = 0.760."""
    truth = stats.norm.cdf(1 / math.sqrt(2))
    rng = np.random.default_rng(0)
    abnormal = np.arange(100) < 40
    covered = 0
    for trial in range(300):
        scores = rng.normal(size=100) + abnormal
        found = auroc(scores, abnormal, names(100), draws=300, seed=trial)
        covered += found.low <= truth <= found.high
    # 300 trials at 95 % have a standard deviation of 1.3 %; a percentile bootstrap of 300 draws
    # falls about a percent short.
    assert 0.90 <= covered / 300 <= 0.985


def test_scans_of_one_patient_widen_the_interval() -> None:
    """Eight identical scans a patient carry the information of one: sqrt(8) = 2.8 times wider."""
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(30), 8)
    abnormal = patient < 15
    scores = (rng.normal(size=30) + (np.arange(30) < 15))[patient]
    by_patient = auroc(scores, abnormal, [f"p{i}" for i in patient])
    by_scan = auroc(scores, abnormal, names(240))
    assert by_patient.value == by_scan.value
    ratio = (by_patient.high - by_patient.low) / (by_scan.high - by_scan.low)
    assert 2.2 < ratio < 3.6
    # ... and equals that of one scan a patient
    once = auroc(scores[::8], abnormal[::8], [f"p{i}" for i in range(30)])
    assert by_patient.high - by_patient.low == pytest.approx(once.high - once.low, abs=0.03)


@pytest.mark.parametrize("n", [1, 10, 59])
def test_exact_rate_at_the_ends(n: int) -> None:
    # Clopper-Pearson: 0 of n is compatible with r as long as (1 - r)**n >= 0.025
    none = exact_rate(np.zeros(n, dtype=bool))
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / n))
    every = exact_rate(np.ones(n, dtype=bool))
    assert (every.value, every.high) == (1, 1)
    assert every.low == pytest.approx(0.025 ** (1 / n))


def test_exact_rate_of_three_in_ten() -> None:
    rate = exact_rate(np.arange(10) < 3)
    assert (rate.count, rate.total, rate.value) == (3, 10, 0.3)
    # the ends are where 3 or more, and 3 or fewer, have a chance of 2.5 %
    assert stats.binom.sf(2, 10, rate.low) == pytest.approx(0.025)
    assert stats.binom.cdf(3, 10, rate.high) == pytest.approx(0.025)
    assert str(rate) == "0.300 [0.067, 0.652] (3 of 10)"


def test_a_rate_over_nothing_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no scans"):
        exact_rate(np.zeros(0, dtype=bool))


def test_image_metrics_count_each_kind_on_its_own() -> None:
    scores = np.array([5.0, 4, 3, 2, 1])
    flagged = np.array([True, False, True, False, False])
    abnormal = np.array([True, True, False, False, False])
    found = image_metrics(scores, flagged, abnormal, names(5))
    assert found["auroc"]["value"] == 1
    assert found["average_precision"] == {"value": 1.0, "prevalence": 0.4}
    assert (found["sensitivity"]["count"], found["sensitivity"]["total"]) == (1, 2)
    assert (found["false_alarms"]["count"], found["false_alarms"]["total"]) == (1, 3)


def test_pixel_metrics_by_hand() -> None:
    evidence = [
        np.array([[0.9, 0.8]], dtype=np.float32),
        np.array([[0.7], [0.1]], dtype=np.float32),
    ]
    masks = [np.array([[True, False]]), np.array([[True], [False]])]
    found = pixel_metrics(evidence, masks)
    # falling: 0.9 lesion (precision 1/1), 0.8 not, 0.7 lesion (2/3), 0.1 not; recall 1/2 each
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert found.prevalence == 0.5
    assert found.ratio == pytest.approx(5 / 3)
    assert found.scans == 2


def test_a_map_that_knows_nothing_has_the_prevalence() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[:2, :5] = True
    found = pixel_metrics([np.ones((10, 10), dtype=np.float32)], [mask])
    assert found.average_precision == pytest.approx(0.1)
    assert found.ratio == pytest.approx(1)
