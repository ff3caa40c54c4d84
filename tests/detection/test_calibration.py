"""Conformal calibration: hand numbers, an independent implementation, the guarantee itself."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from crepes import ConformalClassifier  # type: ignore[import-untyped]
from hypothesis import example, given
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import stats

from anomaly.detection.calibration import Calibration, allowed_rank, false_alarm_interval
from anomaly.errors import CalibrationError, TooFewCalibrationScans
from anomaly.regions import find_regions

alphas = st.one_of(
    st.floats(0.02, 0.98),
    # Rates as people write and compute them: 0.29, 0.1 + 0.2, 7 / 100 and their float neighbours.
    st.tuples(st.integers(1, 97), st.integers(-2, 2)).map(
        lambda pair: pair[0] / 100 + pair[1] * math.ulp(pair[0] / 100)
    ),
)
few_values = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 1.0, math.nextafter(1.0, 2.0), 7.0])
any_score = st.one_of(few_values, st.floats(-1e300, 1e300, allow_subnormal=False))
score_lists = st.one_of(
    st.lists(few_values, min_size=1, max_size=130),
    st.lists(any_score, min_size=1, max_size=40),
)


def calibration(*scores: float) -> Calibration:
    return Calibration.from_scores(np.array(scores, dtype=np.float64))


def test_p_values_by_hand_with_ties() -> None:
    made = calibration(3, 1, 2, 2)
    # (1 + number of 1, 2, 2, 3 at or above the score) / 5
    scores = np.array([0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    assert_array_equal(made.p_values(scores), np.array([5, 5, 4, 4, 2, 2, 1]) / 5)


def test_threshold_by_hand() -> None:
    made = calibration(*range(1, 20))  # n = 19
    # alpha 5 %: l = 1, so only scores above all 19; 10 %: l = 2, above the second largest.
    assert made.threshold(0.05) == np.nextafter(19.0, np.inf)
    assert made.threshold(0.1) == np.nextafter(18.0, np.inf)
    # With ties at the top nothing but more than all of them will do.
    assert calibration(*[1.0] * 17, 5, 5).threshold(0.1) == np.nextafter(5.0, np.inf)


@pytest.mark.parametrize("seed", range(5))
def test_p_values_equal_those_of_crepes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    held = rng.normal(size=57).round(1)  # rounded: many ties
    new = np.concatenate([rng.normal(size=200).round(1), held])
    other: Any = ConformalClassifier()
    other.fit(held)
    expected = other.predict_p(new[:, None], smoothing=False)[:, 0]
    assert_allclose(Calibration.from_scores(held).p_values(new), expected, rtol=1e-12)


@given(held=score_lists, new=st.lists(any_score, min_size=1, max_size=20), alpha=alphas)
@example(held=[0.0] * 99, new=[0.0, 5e-324], alpha=0.29)
@example(held=[float(i) for i in range(9)], new=[1.5, 0.5], alpha=0.7999999999999999)
@example(held=[0.0] * 5, new=[0.0, 1.0], alpha=0.9999999999999999)
def test_flag_by_p_value_is_flag_by_threshold(
    held: list[float], new: list[float], alpha: float
) -> None:
    made = calibration(*held)
    scores = np.array(new + held)
    scores = np.concatenate([scores, np.nextafter(scores, np.inf), np.nextafter(scores, -np.inf)])
    by_p = made.p_values(scores) <= alpha
    try:
        threshold = made.threshold(alpha)
    except TooFewCalibrationScans:
        assert 1 / (len(held) + 1) > alpha
        assert not by_p.any()
        return
    assert_array_equal(by_p, scores >= threshold)


@pytest.mark.parametrize("flush", [False, True])
def test_flags_near_zero_do_not_depend_on_what_the_processor_flushes(flush: bool) -> None:
    """Evidence of 0 is common; the float above it is one that a flushing processor takes for 0."""
    tiny = float(np.finfo(np.float32).tiny)
    scores = np.array([-1.0, -tiny, -5e-324, 0.0, 5e-324, tiny, 1.0])
    try:
        torch.set_flush_denormal(flush)
        zeros, below = calibration(*[0.0] * 9), calibration(*[-tiny] * 9)
        assert zeros.threshold(0.1) == tiny
        for made, flagged in ((zeros, 2), (below, 5)):
            expected = [False] * (len(scores) - flagged) + [True] * flagged
            assert_array_equal(made.p_values(scores) <= 0.1, expected)
            assert_array_equal(scores >= made.threshold(0.1), expected)
        nothing = np.zeros((4, 4), np.float32)
        assert find_regions(nothing, zeros.threshold(0.1), None) == ()
    finally:
        torch.set_flush_denormal(True)


@given(n=st.integers(1, 2000), alpha=alphas)
def test_rank_is_the_largest_whose_p_value_is_allowed(n: int, alpha: float) -> None:
    if 1 / (n + 1) > alpha:
        with pytest.raises(TooFewCalibrationScans):
            allowed_rank(n, alpha)
        return
    rank = allowed_rank(n, alpha)
    assert 1 <= rank <= n
    assert rank / (n + 1) <= alpha < (rank + 1) / (n + 1)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [
        (19, 0.05, 1),
        (38, 0.05, 1),
        (39, 0.05, 2),
        (99, 0.29, 29),
        (250, 0.05, 12),
        (1000, 0.05, 50),
    ],
)
def test_rank_by_hand(n: int, alpha: float, rank: int) -> None:
    assert allowed_rank(n, alpha) == rank


@pytest.mark.parametrize("n", [1, 4, 19])
def test_p_values_of_normals_are_uniform_on_their_grid(n: int) -> None:
    # By exchangeability the rank of a new normal among n + 1 is uniform: P(p = k/(n+1)) = 1/(n+1).
    rng = np.random.default_rng(0)
    scores = rng.gumbel(size=(4000, n + 1))
    p = np.array([Calibration.from_scores(row[1:]).p_values(row[:1])[0] for row in scores])
    seen = np.bincount((p * (n + 1)).round().astype(int), minlength=n + 2)[1:]
    assert stats.chisquare(seen).pvalue > 0.01


@pytest.mark.parametrize("values", [2, 5])
def test_p_values_of_normals_are_super_uniform_with_ties(values: int) -> None:
    rng = np.random.default_rng(1)
    n, count = 19, 4000
    scores = rng.integers(values, size=(count, n + 1)).astype(float)
    p = np.array([Calibration.from_scores(row[1:]).p_values(row[:1])[0] for row in scores])
    for alpha in np.arange(1, 20) / 20:
        # Never more than alpha, but for 4 standard errors of the simulation.
        assert (p <= alpha).mean() <= alpha + 4 * math.sqrt(alpha * (1 - alpha) / count)
    assert (p <= 0.05).mean() < 0.04  # conservative, not exact


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (99, 0.1), (250, 0.05)])
def test_realised_false_alarm_rate_follows_its_beta(n: int, alpha: float) -> None:
    # Uniform scores: the rate at a threshold h is 1 - h exactly, so each simulated calibration
    # gives one draw of the realised rate, which must be Beta(l, n + 1 - l).
    rng = np.random.default_rng(0)
    rates = [1 - Calibration.from_scores(rng.random(n)).threshold(alpha) for _ in range(2000)]
    rank = math.floor(round((n + 1) * alpha, 9))
    assert stats.kstest(rates, stats.beta(rank, n + 1 - rank).cdf).pvalue > 0.01
    # On average over calibrations: l / (n + 1), at most alpha.
    assert np.mean(rates) == pytest.approx(rank / (n + 1), rel=0.05)


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # The published figures for alpha = 5 %: central 95 % of calibration sets.
    [(250, 0.025, 0.077), (1000, 0.037, 0.064)],
)
def test_long_run_interval_of_known_sizes(n: int, low: float, high: float) -> None:
    interval = false_alarm_interval(n, 0.05, 0.95)
    assert interval == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (300, 0.02)])
def test_interval_holds_the_stated_share_of_the_beta(
    n: int, alpha: float, confidence: float
) -> None:
    rank = allowed_rank(n, alpha)
    low, high = false_alarm_interval(n, alpha, confidence)
    law = stats.beta(rank, n + 1 - rank)
    assert law.cdf(low) == pytest.approx((1 - confidence) / 2, abs=1e-9)
    assert law.sf(high) == pytest.approx((1 - confidence) / 2, abs=1e-9)


def test_interval_of_a_finite_test_set_covers_simulated_rates() -> None:
    n, m, alpha = 99, 200, 0.1
    low, high = false_alarm_interval(n, alpha, 0.9, m=m)
    rng = np.random.default_rng(0)
    thresholds = np.array(
        [Calibration.from_scores(rng.random(n)).threshold(alpha) for _ in range(3000)]
    )
    rates = (rng.random((3000, m)) >= thresholds[:, None]).mean(1)
    inside = ((rates >= low) & (rates <= high)).mean()
    # Counts are whole, so a little more than 90 % (one count more at each end: some 2 %).
    assert 0.9 - 4 * math.sqrt(0.09 / 3000) < inside < 0.94
    # A finite count is wider than the long run, and tends to it.
    short = false_alarm_interval(n, alpha, 0.9)
    assert low < short[0] < short[1] < high
    assert false_alarm_interval(n, alpha, 0.9, m=20_000) == pytest.approx(short, abs=1e-3)


def test_eighteen_scans_cannot_support_five_per_cent_and_nineteen_can() -> None:
    with pytest.raises(TooFewCalibrationScans, match=r"18 calibration.*0.05: expected at least 19"):
        calibration(*range(18)).threshold(0.05)
    assert calibration(*range(19)).threshold(0.05) > 18
    with pytest.raises(TooFewCalibrationScans):
        false_alarm_interval(18, 0.05, 0.95)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_rates_that_are_none_are_refused(alpha: float) -> None:
    with pytest.raises(CalibrationError, match="expected a rate between 0 and 1"):
        calibration(*range(100)).threshold(alpha)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf, 2.0]])
def test_scores_that_are_missing_or_not_finite_are_refused(scores: list[float]) -> None:
    with pytest.raises(CalibrationError, match=f"{len(scores)} calibration scores"):
        calibration(*scores)


def test_scores_are_sorted_and_the_input_is_left_alone() -> None:
    given_scores: NDArray[np.float64] = np.array([3.0, 1.0, 2.0])
    made = Calibration.from_scores(given_scores)
    assert_array_equal(made.scores, [1, 2, 3])
    assert_array_equal(given_scores, [3, 1, 2])
