"""Adaptation to a site: closed forms, and the false-alarm law on scans that it has not seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from anomaly.detection.adaptation import FEWEST_SITE_SCANS, MEAN_WEIGHT, adapt
from anomaly.detection.calibration import Calibration
from anomaly.detection.detector import FeatureDetector
from anomaly.detection.extractor import Observation
from anomaly.detection.features import FeatureSettings, feature_groups
from anomaly.detection.heatmap import SITE_WEIGHT, HeatmapModel, HeatmapSettings, MapChannel
from anomaly.detection.kinds import CombinedSettings, Density, LedoitWolfSettings
from anomaly.detection.kinds.combined import COVARIANCE_WEIGHT, Combined
from anomaly.detection.placement import Placement
from anomaly.detection.scoring import fit_heatmap, fit_scoring, score_observation
from anomaly.errors import CalibrationError

SETTINGS = FeatureSettings(noise_to_signal=(0.25, 1.0), grid=4)
HEATMAP = HeatmapSettings((MapChannel((0.1, 2.0), 1.0),))
KIND = CombinedSettings(use=("energy", "texture"), guard=("octave",))
SIDE = 12

Fitted: TypeAlias = tuple[FeatureDetector, HeatmapModel]


def observed(count: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> Observation:
    """Normals of a site: features and residuals moved and widened."""
    rng = np.random.default_rng(seed)
    groups = {
        group: shift + spread * rng.normal(size=(count, len(names)))
        for group, names in feature_groups(SETTINGS).items()
        if group != "evidence"
    }
    tilt = shift * np.linspace(-1, 1, SIDE)[:, None]
    residuals = (tilt + spread * rng.normal(size=(count, 2, SIDE, SIDE))).astype(np.float32)
    blank = np.zeros((count, SIDE, SIDE), dtype=np.bool_)
    return Observation(groups, residuals, Placement.unmoved(count), blank)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_scoring(observed(300, 0), SETTINGS, HEATMAP, KIND)


def scores(pair: Fitted, seen: Observation) -> NDArray[np.float64]:
    return score_observation(seen, SETTINGS, *pair).scores


def test_mean_and_covariance_by_hand(fitted: Fitted) -> None:
    site = observed(60, 1, shift=0.5, spread=1.3)
    detector, _ = adapt(*fitted, site, SETTINGS)
    share = 60 / (60 + MEAN_WEIGHT)
    index = detector.names.index("texture_0_1")
    own = site.groups["texture"][:, 1].mean()
    before = fitted[0].mean[index]
    assert detector.mean[index] == pytest.approx(before + share * (own - before))
    # The covariance of the guards, from their precisions.
    guards = [i for i, name in enumerate(detector.names) if name.startswith("octave_")]
    z = (site.groups["octave"] - detector.mean[guards]) / detector.scale[guards]
    old, new = (np.linalg.inv(_guard_precision(d.density)) for d in (fitted[0], detector))
    expected = (COVARIANCE_WEIGHT * old + z.T @ z) / (COVARIANCE_WEIGHT + 60)
    assert_allclose(new, expected, rtol=1e-6, atol=1e-9)


def _guard_precision(density: Density) -> NDArray[np.float64]:
    assert isinstance(density, Combined)
    inner = density.blocks.group == 1
    return density.blocks.precision[np.ix_(inner, inner)]


def test_the_heatmap_moves_towards_the_site(fitted: Fitted) -> None:
    site = observed(100, 1, shift=2.0)
    model = fitted[1].adapted(site.residuals, site.placement, site.blank)
    own = fit_heatmap(site, SETTINGS, HEATMAP)
    # In units of the levels that the model was fitted with.
    target = own.mean * (fitted[1].weights[0, 0] / own.weights[0, 0])
    share = 100 / (100 + SITE_WEIGHT)
    inner = (0, slice(3, -3), slice(3, -3))
    expected = fitted[1].mean[inner] + share * (target[inner] - fitted[1].mean[inner])
    assert_allclose(model.mean[inner], expected, atol=0.15)
    assert np.abs(model.mean - fitted[1].mean).max() > 0.5
    assert_allclose(model.limits, fitted[1].limits)


def test_a_site_like_the_training_changes_little(fitted: Fitted) -> None:
    adapted = adapt(*fitted, observed(100, 5), SETTINGS)
    new = observed(300, 6)
    before, after = scores(fitted, new), scores(adapted, new)
    assert np.corrcoef(before, after)[0, 1] > 0.9
    assert abs(np.median(after) - np.median(before)) < 0.6


def test_the_promise_holds_at_a_shifted_site(fitted: Fitted) -> None:
    # 40 sites of 80 normals: half adapts, half calibrates; other normals of the site are counted.
    rates, ignored = [], []
    shipped = Calibration.from_scores(scores(fitted, observed(200, 9)))
    for seed in range(40):
        first, second, new = (
            observed(n, 100 + 3 * seed + k, shift=0.6, spread=1.15)
            for k, n in enumerate((40, 40, 100))
        )
        adapted = adapt(*fitted, first, SETTINGS)
        calibration = Calibration.from_scores(scores(adapted, second))
        rates.append(np.mean(calibration.p_values(scores(adapted, new)) <= 0.1))
        ignored.append(np.mean(shipped.p_values(scores(fitted, new)) <= 0.1))
    # l = 4 of 41: the mean rate is 4 / 41, with a spread of 0.046 a site (Beta(4, 37)).
    assert np.mean(rates) == pytest.approx(4 / 41, abs=3 * 0.055 / np.sqrt(40))
    assert np.mean(ignored) > 0.3


def test_adapting_finds_more_than_a_new_threshold(fitted: Fitted) -> None:
    site, held = (observed(n, s, shift=0.8) for n, s in ((60, 1), (60, 2)))
    ill = observed(200, 3, shift=0.8)
    # Abnormal in the direction that the site differs from the training: back towards its mean.
    wide = replace(ill, groups={k: v - 1.0 * (k == "texture") for k, v in ill.groups.items()})
    found = []
    for pair in (fitted, adapt(*fitted, site, SETTINGS)):
        calibration = Calibration.from_scores(scores(pair, held))
        found.append(np.mean(calibration.p_values(scores(pair, wide)) <= 0.1))
    assert found[1] > found[0] + 0.1


def test_too_few_scans_and_other_kinds_are_refused(fitted: Fitted) -> None:
    with pytest.raises(CalibrationError, match=f"expected at least {FEWEST_SITE_SCANS}"):
        adapt(*fitted, observed(FEWEST_SITE_SCANS - 1, 0), SETTINGS)
    other = fit_scoring(observed(50, 0), SETTINGS, HEATMAP, LedoitWolfSettings(use=("energy",)))
    with pytest.raises(CalibrationError, match=r"kind ledoit_wolf cannot be adapted"):
        adapt(*other, observed(30, 1), SETTINGS)
