"""The detector: its law on Gaussian features, two sides, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import stats

from anomaly.detection.detector import Detector
from anomaly.errors import CalibrationError

NAMES = ("a", "b", "c", "d", "e")
MIX = np.random.default_rng(9).normal(size=(5, 5)) * np.array([1, 10, 0.1, 1000, 3])
CENTRE = np.array([0, 5, -1, 1e4, 0.5])


def features(count: int, seed: int) -> NDArray[np.float64]:
    z = np.random.default_rng(seed).normal(size=(count, 5))
    return np.asarray(z @ MIX + CENTRE, dtype=np.float64)


def test_scores_of_gaussian_normals_follow_chi_squared() -> None:
    detector = Detector.fit(features(20_000, 0), NAMES)
    score = detector.score(features(2000, 1))
    # s^2 F is the squared Mahalanobis length of 5 normal features; 20 000 scans fit it to 1 %.
    assert stats.kstest(score**2 * 5, stats.chi2(5).cdf).pvalue > 0.01
    assert np.mean(score**2) == pytest.approx(1, abs=0.06)


def test_too_likely_is_as_far_as_too_unlikely() -> None:
    detector = Detector.fit(features(500, 0), NAMES)
    away = np.random.default_rng(2).normal(size=(20, 5)) * detector.scale * 3
    above, below = detector.score(detector.mean + away), detector.score(detector.mean - away)
    assert_allclose(above, below, rtol=1e-9)
    assert detector.score(detector.mean[None]) == 0
    # Further along the same way is worse, in proportion.
    assert_allclose(detector.score(detector.mean + 2 * away), 2 * above, rtol=1e-9)


def test_one_feature_by_hand() -> None:
    # Mean 5, deviation 1 over 10 values; one feature has nothing to shrink: s = |x - 5|.
    detector = Detector.fit(np.array([[4.0], [6.0]] * 5), ["nll"])
    assert_allclose(detector.score(np.array([[5.0], [8.0], [2.0], [5.5]])), [0, 3, 3, 0.5])


def test_units_of_a_feature_do_not_matter() -> None:
    normal, new = features(300, 0), features(50, 1)
    stretch, shift = np.array([1e-3, 1, 50, 1, 7]), np.array([0, 3, 0, -2, 1e3])
    one = Detector.fit(normal, NAMES).score(new)
    other = Detector.fit(normal * stretch + shift, NAMES).score(new * stretch + shift)
    assert_allclose(one, other, rtol=1e-6)


def test_order_of_features_and_scans_does_not_matter() -> None:
    normal, new = features(300, 0), features(50, 1)
    one = Detector.fit(normal, NAMES).score(new)
    turned = [3, 0, 4, 2, 1]
    other = Detector.fit(normal[::-1, turned], [NAMES[i] for i in turned]).score(new[:, turned])
    assert_allclose(one, other, rtol=1e-9)


def test_a_break_of_correlation_is_seen_where_each_feature_alone_is_normal() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=2000)
    normal = np.stack([shared, shared + 0.1 * rng.normal(size=2000)], 1)
    detector = Detector.fit(normal, ["a", "b"])
    agreeing, opposed = detector.score(np.array([[1.5, 1.5], [1.5, -1.5]]))
    assert agreeing < 1.5
    assert opposed > 10


def test_more_features_than_scans_still_give_a_finite_score() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(12, 40))
    score = Detector.fit(normal, [str(i) for i in range(40)]).score(rng.normal(size=(5, 40)))
    assert np.isfinite(score).all()
    assert (score > 0.5).all()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_fewer_than_ten_scans_are_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match=f"{count} normal scans.*at least 10"):
        Detector.fit(features(count, 0), NAMES)


@pytest.mark.parametrize("value", [0.0, 3.7, 0.1, -1e6])
@pytest.mark.parametrize("count", [10, 37])
def test_a_constant_feature_is_refused_by_name(value: float, count: int) -> None:
    # The deviation of equal floats is often not 0 but a rounding error.
    broken = features(count, 0)
    broken[:, 2] = value
    with pytest.raises(CalibrationError, match=r"features \['c'\] are constant or not finite"):
        Detector.fit(broken, NAMES)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_name(value: float) -> None:
    broken = features(20, 0)
    broken[7, 3] = value
    with pytest.raises(CalibrationError, match=r"features \['d'\]"):
        Detector.fit(broken, NAMES)


def test_names_must_match_the_columns() -> None:
    with pytest.raises(ValueError, match="zip"):
        Detector.fit(features(20, 0), NAMES[:4])


def test_arrays_round_trip() -> None:
    detector = Detector.fit(features(50, 0), NAMES)
    again = Detector.from_arrays(NAMES, {k: v.copy() for k, v in detector.arrays().items()})
    assert again.names == NAMES
    assert_array_equal(again.score(features(9, 1)), detector.score(features(9, 1)))
    assert all(v.dtype == np.float64 for v in detector.arrays().values())


def test_evidence_counts_in_one_direction() -> None:
    """Unit scale and precision: z is the feature itself."""
    detector = Detector(("nll", "evidence_peak"), np.zeros(2), np.ones(2), np.eye(2))
    # sqrt((3^2 + 4^2) / 2); evidence of -4 counts as 0: sqrt(3^2 / 2), whatever the sign of nll.
    features = np.array([[3.0, 4.0], [3.0, -4.0], [-3.0, -4.0]])
    expected = [np.sqrt(12.5), np.sqrt(4.5), np.sqrt(4.5)]
    np.testing.assert_allclose(detector.score(features), expected)


def test_evidence_alone_is_scored_in_order() -> None:
    detector = Detector(("evidence_top", "evidence_peak"), np.zeros(2), np.ones(2), np.eye(2))
    features = np.array([[-3.0, -2.0], [-1.0, -0.5], [-1.0, 2.0], [2.0, 2.0]])
    np.testing.assert_allclose(detector.score(features), [-2.0, -0.5, np.sqrt(2), 2.0])
