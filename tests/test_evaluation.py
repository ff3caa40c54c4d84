"""Figures of merit: by hand, against scikit-learn, and the intervals against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.detection.calibration import Calibration, false_alarm_interval
from anomaly.errors import CalibrationError
from anomaly.evaluation.metrics import (
    BINS,
    auroc,
    average_precision,
    exact_rate,
    image_metrics,
    patient_mean,
    pixel_average_precision,
    pixel_metrics,
    pointing_hits,
    realised_false_alarms,
)


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


# --- average precision ------------------------------------------------------------------------


def test_average_precision_by_hand() -> None:
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    abnormal = np.array([True, False, True, False])
    # found at ranks 1 and 3: (1/1 + 2/3) / 2
    assert average_precision(scores, abnormal, names(4)).value == pytest.approx(5 / 6)


def test_average_precision_is_bounded_seeded_and_blind_to_scale() -> None:
    rng = np.random.default_rng(0)
    scores, abnormal = rng.normal(size=40), np.arange(40) % 3 == 0
    first = average_precision(scores, abnormal, names(40))
    assert 0 <= first.low <= first.value <= first.high <= 1
    assert average_precision(scores, abnormal, names(40)) == first
    assert average_precision(np.exp(scores), abnormal, names(40)) == first


def test_average_precision_of_a_bootstrap_sample_is_that_of_the_repeated_scans() -> None:
    """One draw of the bootstrap, made by hand: scans repeated as often as their patient is."""
    rng = np.random.default_rng(3)
    scores, abnormal = rng.integers(0, 8, 24).astype(float), rng.random(24) < 0.4
    patients = [f"p{i:02d}" for i in np.arange(24) // 2]
    drawn = average_precision(scores, abnormal, patients, draws=1, seed=5)
    times = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12))[np.arange(24) // 2]
    expected = average_precision_score(np.repeat(abnormal, times), np.repeat(scores, times))
    assert drawn.low == drawn.high == pytest.approx(expected)


@pytest.mark.parametrize("abnormal", [[False, False], [True, True]])
def test_average_precision_needs_both_kinds(abnormal: list[bool]) -> None:
    with pytest.raises(CalibrationError, match=f"{sum(abnormal)} of 2 scans are abnormal"):
        average_precision(np.array([1.0, 2.0]), np.array(abnormal), names(2))


def test_pixel_average_precision_counts_patients_and_tells_enough_values_apart() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((40, 50)) < 0.05 for _ in range(12)]
    evidence = [(rng.normal(size=(40, 50)) + 2 * mask).astype(np.float32) for mask in masks]
    assert BINS < 12 * 40 * 50
    found = pixel_average_precision(evidence, masks, names(12))
    assert found.value == pytest.approx(pixel_metrics(evidence, masks).average_precision)
    assert found.low < found.value < found.high
    # every bootstrap sample of one patient is that patient: what is left is the binning
    alone = pixel_average_precision(evidence, masks, ["p"] * 12)
    assert alone.low == alone.high == pytest.approx(alone.value, abs=0.003)


# --- hits -------------------------------------------------------------------------------------


def test_pointing_hits_by_hand() -> None:
    mask = np.array([[True, False], [False, False]])
    maps = [[[9, 1], [0, 0]], [[1, 9], [0, 0]], [[5, 5], [0, 0]], [[0, 5], [5, 0]]]
    evidence = [np.array(values, dtype=np.float32) for values in maps]
    assert pointing_hits(evidence, [mask] * 4).tolist() == [True, False, True, False]


def test_a_map_and_a_mask_of_different_shapes_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"map 0 is \(2, 2\) and its mask \(2, 3\)"):
        pointing_hits([np.zeros((2, 2), dtype=np.float32)], [np.zeros((2, 3), dtype=bool)])


def test_the_mean_over_patients_has_the_spread_of_patients() -> None:
    hits = np.repeat(np.arange(40) % 4 == 0, 5)
    by_patient = patient_mean(hits, [f"p{i}" for i in np.arange(200) // 5])
    by_scan = patient_mean(hits, names(200))
    assert by_patient.value == by_scan.value == 0.25
    # 1.96 sqrt(0.25 * 0.75 / 40), 40 patients of equal scans
    assert by_patient.high - by_patient.low == pytest.approx(2 * 0.134, abs=0.03)
    assert by_scan.high - by_scan.low == pytest.approx(2 * 0.060, abs=0.02)
    with pytest.raises(CalibrationError, match="no scans"):
        patient_mean(np.zeros(0), [])


# --- the false-alarm law ----------------------------------------------------------------------


def above_nine_tenths(
    calibration: NDArray[np.float64], scores: NDArray[np.float64]
) -> NDArray[np.bool_]:
    return Calibration.from_scores(calibration).p_values(scores) <= 0.1


def test_realised_false_alarms_follow_their_law() -> None:
    """Distinct scores of one scan a patient: exactly beta-binomial, whatever the scores are."""
    scores = np.exp(np.random.default_rng(0).normal(size=400))
    found = realised_false_alarms(scores, scores, names(400), above_nine_tenths, splits=600)
    assert len(found.rates) == 600
    assert set(found.calibration) == set(found.counted) == {200}
    law = stats.betabinom(200, 20, 181)  # l = floor(201 * 0.1) = 20
    # the mean of 600 rates has a standard deviation of law.std() / 200 / sqrt(600) = 0.0012
    assert found.rates.mean() == pytest.approx(law.mean() / 200, abs=0.004)
    assert found.rates.std() == pytest.approx(law.std() / 200, rel=0.1)
    low, high = false_alarm_interval(200, 0.1, 0.95, 200)
    inside = ((low <= found.rates) & (found.rates <= high)).mean()
    assert 0.93 <= inside <= 0.985


def test_a_patient_is_never_on_both_sides() -> None:
    """The score is the patient: if one were on both sides, a flag would meet its own score."""
    index = np.repeat(np.arange(20), 3)
    scores = index.astype(float)

    def apart(calibration: NDArray[np.float64], judged: NDArray[np.float64]) -> NDArray[np.bool_]:
        assert not set(calibration) & set(judged)
        assert len(calibration) + len(judged) == 60
        return np.zeros(len(judged), dtype=bool)

    patients = [f"p{i}" for i in index]
    assert not realised_false_alarms(scores, scores, patients, apart, splits=20).rates.any()


def test_altered_scans_are_counted_where_there_are_any() -> None:
    scores = np.arange(40.0)
    altered = np.where(np.arange(40) < 20, np.nan, 100.0)
    found = realised_false_alarms(scores, altered, names(40), above_nine_tenths, splits=50)
    assert (found.rates == 1).all()
    assert (found.calibration == 20).all()
    assert (found.counted <= 20).all()
    same = realised_false_alarms(scores, altered, names(40), above_nine_tenths, splits=50)
    assert (same.counted == found.counted).all()
    other = realised_false_alarms(scores, altered, names(40), above_nine_tenths, splits=50, seed=1)
    assert (other.counted != found.counted).any()


def test_one_patient_cannot_be_halved() -> None:
    with pytest.raises(CalibrationError, match="1 patients with normal scans cannot be split"):
        realised_false_alarms(np.ones(3), np.ones(3), ["p"] * 3, above_nine_tenths)
