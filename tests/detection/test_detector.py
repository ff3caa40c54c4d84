"""The detector: the law of every kind on Gaussian features, two sides, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from anomaly.detection.detector import FeatureDetector
from anomaly.detection.kinds import GuardedSettings, KindSettings, kind_of
from anomaly.detection.kinds.base import FOLDS, fold_of
from anomaly.errors import CalibrationError, ConfigError

NAMES = ("a", "b", "c", "d", "e")
MIX = np.random.default_rng(9).normal(size=(5, 5)) * np.array([1, 10, 0.1, 1000, 3])
CENTRE = np.array([0, 5, -1, 1e4, 0.5])
GROUPS = ("x", "x", "y", "y", "y")
SHIPPED = ("ledoit_wolf", "mixture", "neighbours", "conformal", "guarded")
ALL = pytest.mark.parametrize("kind", SHIPPED)


def features(count: int, seed: int) -> NDArray[np.float64]:
    z = np.random.default_rng(seed).normal(size=(count, 5))
    return np.asarray(z @ MIX + CENTRE, dtype=np.float64)


def independent(count: int, seed: int, columns: int = 5) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, columns))


def settings_of(kind: str = "ledoit_wolf", **fields: Any) -> KindSettings:
    return kind_of(kind).settings(**fields)


def fit(
    normal: NDArray[np.float64],
    names: Sequence[str] = NAMES,
    groups: Sequence[str] | None = None,
    scans: NDArray[np.intp] | None = None,
    **settings: Any,
) -> FeatureDetector:
    if settings.get("kind") == "guarded":
        settings = {"guard": ("c", "d", "e"), **settings}
    chosen = settings_of(**{"use": ("the columns given",), **settings})
    one_sided = np.array([name.startswith("evidence") for name in names])
    return FeatureDetector.fit(normal, names, chosen, groups, scans, one_sided)


def test_scores_of_gaussian_normals_follow_chi_squared() -> None:
    detector = fit(features(20_000, 0), NAMES)
    score = detector.score(features(2000, 1))
    # s^2 F is the squared Mahalanobis length of 5 normal features; 20 000 scans fit it to 1 %.
    assert stats.kstest(score**2 * 5, stats.chi2(5).cdf).pvalue > 0.01
    assert np.mean(score**2) == pytest.approx(1, abs=0.06)


def test_too_likely_is_as_far_as_too_unlikely() -> None:
    detector = fit(features(500, 0), NAMES)
    away = np.random.default_rng(2).normal(size=(20, 5)) * detector.scale * 3
    above, below = detector.score(detector.mean + away), detector.score(detector.mean - away)
    assert_allclose(above, below, rtol=1e-9)
    assert detector.score(detector.mean[None]) == 0
    # Further along the same way is worse, in proportion.
    assert_allclose(detector.score(detector.mean + 2 * away), 2 * above, rtol=1e-9)


def test_one_feature_by_hand() -> None:
    # Mean 5, deviation 1 over 10 values; one feature has nothing to shrink: s = |x - 5|.
    detector = fit(np.array([[4.0], [6.0]] * 5), ["nll"])
    assert_allclose(detector.score(np.array([[5.0], [8.0], [2.0], [5.5]])), [0, 3, 3, 0.5])


@ALL
def test_units_of_a_feature_do_not_matter(kind: str) -> None:
    normal, new = features(300, 0), features(50, 1)
    stretch, shift = np.array([1e-3, 1, 50, 1, 7]), np.array([0, 3, 0, -2, 1e3])
    one = fit(normal, groups=GROUPS, kind=kind).score(new)
    other = fit(normal * stretch + shift, groups=GROUPS, kind=kind).score(new * stretch + shift)
    assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    assert one.std() > 0.1


@ALL
def test_order_of_features_does_not_matter(kind: str) -> None:
    normal, new = features(300, 0), features(50, 1)
    one = fit(normal, groups=GROUPS, kind=kind).score(new)
    turned = [3, 0, 4, 2, 1]
    names, groups = ([of[i] for i in turned] for of in (NAMES, GROUPS))
    other = fit(normal[:, turned], names, groups, kind=kind).score(new[:, turned])
    assert_allclose(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["ledoit_wolf", "neighbours"])
def test_order_of_scans_does_not_matter(kind: str) -> None:
    normal, new = features(300, 0), features(50, 1)
    assert_allclose(
        fit(normal, kind=kind).score(new), fit(normal[::-1], kind=kind).score(new), rtol=1e-9
    )


@ALL
def test_a_score_does_not_depend_on_its_batch(kind: str) -> None:
    detector = fit(features(300, 0), groups=GROUPS, kind=kind)
    new = features(6, 1)
    alone = np.concatenate([detector.score(new[i : i + 1]) for i in range(6)])
    assert_allclose(alone, detector.score(new), rtol=1e-12)


@ALL
def test_far_away_is_higher_than_nearly_all_normals(kind: str) -> None:
    detector = fit(features(300, 0), groups=GROUPS, kind=kind)
    far = detector.mean + 8 * detector.scale * (2 * np.eye(5) - 1)
    limit = np.quantile(detector.score(features(300, 1)), 0.99)
    assert detector.score(far).min() > limit


def test_a_break_of_correlation_is_seen_where_each_feature_alone_is_normal() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=2000)
    normal = np.stack([shared, shared + 0.1 * rng.normal(size=2000)], 1)
    detector = fit(normal, ["a", "b"])
    agreeing, opposed = detector.score(np.array([[1.5, 1.5], [1.5, -1.5]]))
    assert agreeing < 1.5
    assert opposed > 10


def test_more_features_than_scans_still_give_a_finite_score() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(12, 40))
    score = fit(normal, [str(i) for i in range(40)]).score(rng.normal(size=(5, 40)))
    assert np.isfinite(score).all()
    assert (score > 0.5).all()
    own: dict[str, dict[str, Any]] = {"guarded": {"guard": ("y",)}, "mixture": {"clusters": 2}}
    for kind in SHIPPED:
        names, groups = [str(i) for i in range(40)], ["x", "y"] * 20
        detector = fit(normal, names, groups, kind=kind, **own.get(kind, {}))
        assert np.isfinite(detector.score(rng.normal(size=(5, 40)))).all(), kind


@pytest.mark.parametrize("count", [0, 1, 9])
def test_fewer_than_ten_scans_are_refused(count: int) -> None:
    with pytest.raises(CalibrationError, match=f"{count} normal scans.*at least 10"):
        fit(features(count, 0), NAMES)


@pytest.mark.parametrize("value", [0.0, 3.7, 0.1, -1e6])
@pytest.mark.parametrize("count", [10, 37])
def test_a_constant_feature_is_refused_by_name(value: float, count: int) -> None:
    # The deviation of equal floats is often not 0 but a rounding error.
    broken = features(count, 0)
    broken[:, 2] = value
    with pytest.raises(CalibrationError, match=r"features \['c'\] are constant or not finite"):
        fit(broken, NAMES)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf - inf
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_is_refused_by_name(value: float) -> None:
    broken = features(20, 0)
    broken[7, 3] = value
    with pytest.raises(CalibrationError, match=r"features \['d'\]"):
        fit(broken, NAMES)


def test_names_must_match_the_columns() -> None:
    with pytest.raises(ValueError, match="zip"):
        fit(features(20, 0), NAMES[:4])


@ALL
def test_arrays_round_trip(kind: str) -> None:
    names = ("a", "b", "evidence_top", "d", "e")
    detector = fit(features(50, 0), names, GROUPS, kind=kind)
    arrays = {k: v.copy() for k, v in detector.arrays().items()}
    again = FeatureDetector.from_arrays(names, kind, arrays)
    assert again.names == names
    assert again.kind == kind
    assert_array_equal(again.one_sided, [False, False, True, False, False])
    assert_array_equal(again.score(features(9, 1)), detector.score(features(9, 1)))
    assert all(v.dtype == np.float64 for v in arrays.values())
    assert_array_equal(arrays["one_sided"], [0, 0, 1, 0, 0])


def unit(names: Sequence[str]) -> FeatureDetector:
    """Mean 0, deviation 1, precision 1: z is the feature itself."""
    count = len(names)
    arrays = {
        "mean": np.zeros(count),
        "scale": np.ones(count),
        "one_sided": np.array([float(name.startswith("evidence")) for name in names]),
        "density.precision": np.eye(count),
    }
    return FeatureDetector.from_arrays(names, "ledoit_wolf", arrays)


def test_evidence_counts_in_one_direction() -> None:
    detector = unit(("nll", "evidence_peak"))
    # sqrt((3^2 + 4^2) / 2); evidence of -4 counts as 0: sqrt(3^2 / 2), whatever the sign of nll.
    features = np.array([[3.0, 4.0], [3.0, -4.0], [-3.0, -4.0]])
    expected = [np.sqrt(12.5), np.sqrt(4.5), np.sqrt(4.5)]
    np.testing.assert_allclose(detector.score(features), expected)


def test_evidence_alone_is_scored_in_order() -> None:
    detector = unit(("evidence_top", "evidence_peak"))
    features = np.array([[-3.0, -2.0], [-1.0, -0.5], [-1.0, 2.0], [2.0, 2.0]])
    np.testing.assert_allclose(detector.score(features), [-2.0, -0.5, np.sqrt(2), 2.0])


@ALL
def test_little_evidence_is_as_good_as_none(kind: str) -> None:
    names = ("a", "b", "c", "d", "evidence_peak")
    detector = fit(independent(200, 0), names, GROUPS, kind=kind)
    new = independent(20, 1)
    new[:, 4] = detector.mean[4]
    below = new.copy()
    below[:, 4] -= 5 * detector.scale[4]
    assert_array_equal(detector.score(below), detector.score(new))


# --- kinds ------------------------------------------------------------------------------------


def test_mixture_is_that_of_scikit_learn_on_whitened_data() -> None:
    normal, new = features(400, 0), features(30, 1)
    detector = fit(normal, kind="mixture", components=4, clusters=2)
    z, z_new = ((x - normal.mean(0)) / normal.std(0) for x in (normal, new))
    pca = PCA(4, whiten=True, svd_solver="full").fit(z)
    mixture = GaussianMixture(2, reg_covar=0.05, random_state=0).fit(pca.transform(z))
    expected = -mixture.score_samples(pca.transform(z_new))
    assert_allclose(detector.score(new), expected, rtol=1e-6)


def test_a_mixture_sees_the_gap_between_two_clusters() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(300, 2)) * 0.3
    normal[:150, 0] += 5
    between = np.array([[2.5, 0.0]])
    ends = np.array([[0.0, 0.0], [5.0, 0.0]])
    two = fit(normal, ["a", "b"], kind="mixture", clusters=2)
    assert two.score(between) > np.quantile(two.score(normal), 0.99)
    assert two.score(ends).max() < np.median(two.score(normal))
    # One Gaussian has its centre there.
    one = fit(normal, ["a", "b"], kind="mixture", clusters=1)
    assert one.score(between) < one.score(normal).min()


@pytest.mark.parametrize("k", [1, 3, 40])
def test_neighbours_of_one_feature_by_hand(k: int) -> None:
    normal, new = independent(20, 0, 1), np.linspace(-3, 3, 11)[:, None]
    detector = fit(normal, ["a"], kind="neighbours", neighbours=k)
    # The unit is the sample deviation; of 20 scans the 40th neighbour is the 20th.
    away = np.sort(np.abs(new - normal.T), axis=1)[:, min(k, 20) - 1]
    assert_allclose(detector.score(new), away / normal.std(ddof=1), rtol=1e-9)


@pytest.mark.parametrize("kind", ["mixture", "neighbours"])
def test_a_feature_that_follows_from_others_adds_nothing(kind: str) -> None:
    # Energies sum to zero over the cells: such features leave components without any variance,
    # which must not be whitened. Distances among whitened scans do not depend on the axes.
    normal, new = features(200, 0), features(20, 1)
    weights = np.array([1, 0.1, 10, 1e-3, 0.5])
    both = [np.column_stack([x, x @ weights]) for x in (normal, new)]
    own: dict[str, Any] = {"clusters": 1} if kind == "mixture" else {}
    expected = fit(normal, kind=kind, **own).score(new)
    score = fit(both[0], [*NAMES, "sum"], kind=kind, **own).score(both[1])
    assert_allclose(score, expected, rtol=1e-6)


def test_fisher_of_two_independent_groups_follows_chi_squared() -> None:
    detector = fit(independent(4000, 0), groups=GROUPS, kind="conformal")
    # Two uniform p-values: -2 sum log p has 4 degrees of freedom.
    score = detector.score(independent(500, 1))
    assert stats.kstest(score, stats.chi2(4).cdf).pvalue > 0.01
    assert score.mean() == pytest.approx(4, abs=4 * np.sqrt(8 / 500))


def test_conformal_p_values_by_hand() -> None:
    count = 50
    detector = fit(independent(count, 0), groups=GROUPS, kind="conformal")
    near = np.repeat(detector.mean[None], 4, axis=0)
    near[1:3, :2] += 1e3  # the group x
    near[2:4, 2:] += 1e3  # the group y
    # The centre is nearer than all: p = 1, which adds nothing. Far off p = 1 / (count + 1).
    least = 2 * np.log(count + 1)
    assert_allclose(detector.score(near), [0, least, 2 * least, least], atol=1e-12)


@pytest.mark.parametrize("group", ["x", "y"])
@pytest.mark.parametrize("kind", ["conformal", "guarded"])
def test_any_group_that_is_far_raises_the_score(kind: str, group: str) -> None:
    guard: dict[str, Any] = {"guard": ("y",)} if kind == "guarded" else {}
    detector = fit(independent(200, 0), groups=GROUPS, kind=kind, **guard)
    new = independent(30, 1)
    far = new + 50 * (np.array(GROUPS) == group)
    before, after = detector.score(new), detector.score(far)
    # A p-value cannot fall below 1 / (200 + 1), where a few of the new normals are already.
    assert (after >= before).all()
    assert np.mean(after > before) > 0.9
    assert after.min() > np.median(before)


def held_out(normal: NDArray[np.float64], scans: NDArray[np.intp]) -> NDArray[np.float64]:
    """Distances of one group's normals, each from a covariance fitted without its fold."""
    z = (normal - normal.mean(0)) / normal.std(0)
    distance = np.empty(len(z))
    for fold in range(FOLDS):
        out = fold_of(scans) == fold
        squared = LedoitWolf(assume_centered=True).fit(z[~out]).mahalanobis(z[out])
        distance[out] = np.sqrt(squared / z.shape[1])
    return distance


def distance_from(normal: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
    z, z_new = ((x - normal.mean(0)) / normal.std(0) for x in (normal, new))
    squared = LedoitWolf(assume_centered=True).fit(z).mahalanobis(z_new)
    return np.asarray(np.sqrt(squared / z.shape[1]))


@pytest.mark.parametrize(("on_guard", "main"), [("y", slice(0, 2)), ("x", slice(2, 5))])
def test_a_guarded_score_is_that_of_the_other_group_where_the_guard_is_silent(
    on_guard: str, main: slice
) -> None:
    normal, new = features(200, 0), features(300, 1)
    guard = slice(2, 5) if main == slice(0, 2) else slice(0, 2)
    detector = fit(normal, groups=GROUPS, kind="guarded", guard=(on_guard,))
    scans = np.arange(200)
    log = np.log(held_out(normal[:, main], scans))
    alone = np.log(distance_from(normal[:, main], new[:, main]))
    expected = (alone - np.quantile(log, 0.99)) / log.std()
    silence = np.quantile(held_out(normal[:, guard], scans), 0.99)
    silent = distance_from(normal[:, guard], new[:, guard]) <= silence
    # A guard is silent on 99 % of normals, and those keep the score of the main group.
    assert 0.95 < silent.mean() < 1
    assert_allclose(detector.score(new)[silent], expected[silent], rtol=1e-7, atol=1e-9)
    assert (detector.score(new) >= expected - 1e-9).all()


def test_the_guard_may_be_named_by_its_features() -> None:
    normal, new = features(200, 0)[:, 1:4], features(300, 1)[:, 1:4]
    names, groups = NAMES[1:4], GROUPS[1:4]
    named = fit(normal, names, groups, kind="guarded", guard=("b",))
    grouped = fit(normal, names, groups, kind="guarded", guard=("x",))
    assert_array_equal(named.score(new), grouped.score(new))
    other = fit(normal, names, groups, kind="guarded", guard=("c", "d"))
    assert (grouped.score(new) != other.score(new)).any()


def test_groups_in_use_and_groups_on_guard_are_judged_together() -> None:
    # Two groups make one distance, correlations between them included.
    normal, new = features(200, 0), features(300, 1)
    groups = ("x", "x", "y", "z", "z")
    detector = fit(normal, groups=groups, kind="guarded", guard=("z",))
    merged = fit(normal, groups=("m", "m", "m", "z", "z"), kind="guarded", guard=("z",))
    assert_array_equal(detector.score(new), merged.score(new))
    apart = fit(normal, groups=groups, kind="guarded", guard=("y", "z"))
    assert (apart.score(new) != detector.score(new)).any()
    both = fit(normal, groups=("x", "x", "m", "m", "m"), kind="guarded", guard=("m",))
    assert_array_equal(apart.score(new), both.score(new))


def test_a_guard_off_the_charts_is_above_all_normals() -> None:
    normal = independent(300, 0)
    detector = fit(normal, groups=GROUPS, kind="guarded", guard=("y",))
    ordinary = independent(300, 1)
    off = np.repeat(detector.mean[None], 3, axis=0)
    off[:, 2:] += 30 * np.eye(3)  # the main group at its very centre
    assert detector.score(off).min() > detector.score(ordinary).max()
    # Beyond its own limit: a number above 0, in deviations of the normals' log distances.
    guard, log = normal[:, 2:], np.log(held_out(normal[:, 2:], np.arange(300)))
    expected = (np.log(distance_from(guard, off[:, 2:])) - np.quantile(log, 0.99)) / log.std()
    assert_allclose(detector.score(off), expected, rtol=1e-7)
    assert expected.min() > 0


def test_the_centre_of_all_normals_has_a_finite_score() -> None:
    detector = fit(independent(50, 0), groups=GROUPS, kind="guarded", guard=("y",))
    centre, near = detector.score(np.stack([detector.mean, detector.mean + 1e-3]))
    assert np.isfinite(centre)
    assert centre < near


def test_copies_of_a_scan_share_a_fold() -> None:
    scans = np.array([7, 7, 3, 100, 3, 8, 9, 9, 11, 7, 12])
    fold = fold_of(scans)
    # 3, 7, 8, 9, 11 | 12, 100 in five folds, one by one.
    assert_array_equal(fold, [1, 1, 0, 1, 0, 2, 3, 3, 4, 1, 0])
    assert fold.max() == FOLDS - 1


def test_a_scan_is_not_judged_by_its_copies() -> None:
    normal = features(62, 0)
    scans = np.tile(np.arange(62), 3)
    copies = np.concatenate([normal, normal * 1.001, normal * 0.999])
    detector = fit(copies, groups=["x"] * 5, scans=scans, kind="conformal")
    expected = np.sort(held_out(copies, scans))
    assert_allclose(detector.arrays()["density.normal"][0], expected, rtol=1e-7)
    # With its copies among the fitted a scan would look nearer than a new one does.
    apart = fit(copies, groups=["x"] * 5, kind="conformal").arrays()["density.normal"][0]
    assert apart.mean() < expected.mean()


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use": ()}, "use is empty: expected groups or names"),
        ({"kind": "guarded"}, "guard is empty with kind guarded: expected groups"),
        ({"kind": "mixture", "components": 0}, "components is 0: expected 1 or more"),
        ({"kind": "mixture", "clusters": 0}, "clusters is 0"),
        ({"kind": "neighbours", "neighbours": -1}, "neighbours is -1"),
        ({"kind": "forest"}, "kind is 'forest': expected one of ledoit_wolf, mixture,"),
    ],
)
def test_settings_that_cannot_be_fitted_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(**settings)


def test_a_detector_is_named_by_kind_and_features() -> None:
    settings = GuardedSettings(use=("energy", "nll"), guard=("octave",))
    assert str(settings) == "guarded over energy + nll, guard octave"
    assert settings.features == ("energy", "nll", "octave")
