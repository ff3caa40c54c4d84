"""From observations to scores: columns by name, and models that have not seen what they judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from anomaly.detection.extractor import Observation
from anomaly.detection.features import GROUPS, FeatureSettings, feature_groups, reported_names
from anomaly.detection.heatmap import (
    HeatmapModel,
    HeatmapSettings,
    MapChannel,
    local_features,
)
from anomaly.detection.kinds import (
    ConformalSettings,
    LedoitWolfSettings,
)
from anomaly.detection.placement import Placement
from anomaly.detection.scoring import (
    FeatureTable,
    fit_heatmap,
    fit_scoring,
    normal_table,
    score_observation,
)

SETTINGS = FeatureSettings(noise_to_signal=(0.25, 1.0), grid=4)
HEATMAP = HeatmapSettings((MapChannel((0.1, 2.0), 0.0), MapChannel((0.1, 2.0), 1.0)))
SIDE = 8


def observed(count: int, seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    groups = {
        group: rng.normal(size=(count, len(names)))
        for group, names in feature_groups(SETTINGS).items()
        if group != "evidence"
    }
    residuals = rng.normal(size=(count, 2, SIDE, SIDE)).astype(np.float32)
    placement = Placement(rng.normal(size=(count, 5)) * 0.03, rng.random(count))
    return Observation(groups, residuals, placement, rng.random((count, SIDE, SIDE)) < 0.1)


def table(count: int = 3) -> FeatureTable:
    """Every value is the number of its column."""
    columns = len([name for names in feature_groups(SETTINGS).values() for name in names])
    values = np.broadcast_to(np.arange(float(columns)), (count, columns))
    groups: dict[str, NDArray[np.float64]] = {}
    start = 0
    for group, names in feature_groups(SETTINGS).items():
        groups[group] = values[:, start : start + len(names)]
        start += len(names)
    local = groups.pop("evidence")
    maps = np.zeros((count, 2, SIDE, SIDE), dtype=np.float32)
    blank = np.zeros((count, SIDE, SIDE), dtype=np.bool_)
    seen = Observation(groups, maps, Placement.unmoved(count), blank)
    return FeatureTable.assemble(seen, {"evidence": local}, SETTINGS)


def local(model: HeatmapModel, seen: Observation) -> NDArray[np.float64]:
    signed = model.signed_evidence(seen.residuals, seen.placement, seen.blank)
    return local_features(signed, seen.blank)


def test_a_column_has_its_name_and_its_group() -> None:
    made = table()
    expected = [(g, name) for g in GROUPS for name in feature_groups(SETTINGS)[g]]
    assert list(zip(made.groups, made.names, strict=True)) == expected
    assert_array_equal(made.values[0], np.arange(len(expected)))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["profile_1"], ["profile_1"]),  # and not profile_10 ... profile_15
        (["score_norm_1"], ["score_norm_1"]),
        (["energy_1_1", "residual_0.25"], ["residual_0.25", "energy_1_1"]),
        (["nll"], ["nll"]),  # and not nll_excess
        (["posterior"], ["posterior_mean", "posterior_clean"]),
        (["residual", "nll_excess"], ["nll_excess", "residual_0.25", "residual_1"]),
        (
            ["evidence", "evidence_top"],
            ["evidence_mean", "evidence_top", "evidence_peak", "evidence_bright", "evidence_dark"],
        ),
        (["score", "energy_0.25_", "1"], []),  # parts of names are no names
    ],
)
def test_features_are_used_by_whole_name_or_by_group(
    wanted: list[str], expected: list[str]
) -> None:
    whole = table()
    part = whole.use(wanted)
    assert list(part.names) == expected
    assert_array_equal(part.values, whole.values[:, [whole.names.index(n) for n in expected]])
    assert list(part.groups) == [whole.groups[whole.names.index(n)] for n in expected]


def test_a_group_is_as_long_as_its_names() -> None:
    for group, names in feature_groups(SETTINGS).items():
        assert table().use([group]).names == names


def evidence(seen: Observation, scans: NDArray[np.intp]) -> NDArray[np.float64]:
    return normal_table(seen, SETTINGS, HEATMAP, scans).use(["evidence"]).values


def test_normal_evidence_is_of_models_without_the_scan_and_its_copies() -> None:
    # 12 scans, each with a copy. In five folds 0, 5, 10 | 1, 6, 11 | 2, 7 | 3, 8 | 4, 9.
    scans = np.tile(np.arange(12), 2)
    seen = observed(24, 0)
    before = evidence(seen, scans)
    changed = seen.residuals.copy()
    changed[5] *= 3
    after = evidence(replace(seen, residuals=changed), scans)
    moved = (after != before).any(1)
    assert moved[5]
    # Neither its copy nor others of the fold are judged by a model that knows it; the rest are.
    fold = np.isin(scans, (0, 5, 10))
    assert_array_equal(np.flatnonzero(moved & fold), [5])
    assert moved[~fold].all()


def test_normal_evidence_is_that_of_a_model_of_the_other_folds() -> None:
    scans = np.arange(10)
    seen = observed(10, 0)
    found = evidence(seen, scans)
    for first in range(5):
        out = np.isin(scans, (first, first + 5))
        model = fit_heatmap(seen.select(~out), SETTINGS, HEATMAP)
        assert_allclose(found[out], local(model, seen.select(out)))


def test_normal_evidence_is_like_that_of_new_normals() -> None:
    # What normals are judged by when a detector is fitted is what new normals are judged by later.
    seen, new = observed(20, 0), observed(400, 1)
    model = fit_heatmap(seen, SETTINGS, HEATMAP)
    fresh = local(model, new)
    held_out = evidence(seen, np.arange(20))
    error = fresh.std(0) / np.sqrt(20)
    assert (np.abs(held_out.mean(0) - fresh.mean(0)) < 3 * error).all()


@pytest.mark.parametrize("use", [("nll", "profile_1"), ("evidence",), ("energy", "nll_excess")])
def test_the_detector_scores_the_features_it_was_fitted_on(use: tuple[str, ...]) -> None:
    seen, new = observed(40, 0), observed(6, 1)
    detector, heatmap = fit_scoring(seen, SETTINGS, HEATMAP, LedoitWolfSettings(use=use))
    said = score_observation(new, SETTINGS, detector, heatmap)
    assert said.evidence.shape == (6, SIDE, SIDE)
    signed = heatmap.signed_evidence(new.residuals, new.placement, new.blank)
    assert_array_equal(said.evidence, np.abs(signed))
    of_evidence = {"evidence": local_features(signed, new.blank)}
    whole = FeatureTable.assemble(new, of_evidence, SETTINGS)
    assert detector.names == whole.use(use).names
    assert_array_equal(said.scores, detector.score(whole.use(use).values))
    names = reported_names(SETTINGS)
    assert said.features.shape == (6, len(names))
    assert_array_equal(said.features[:, names.index("nll")], new.groups["nll"][:, 0])
    assert_array_equal(said.features[:, names.index("evidence_peak")], whole.values[:, -3])
    # Features that it does not use change nothing.
    others = {
        k: v if k in {n.split("_")[0] for n in use} | set(use) else v + 1
        for k, v in new.groups.items()
    }
    again = score_observation(replace(new, groups=others), SETTINGS, detector, heatmap)
    assert_array_equal(again.scores, said.scores)


def test_every_image_is_its_own_scan_by_default() -> None:
    seen, new = observed(40, 0), observed(6, 1)
    settings = ConformalSettings(use=("evidence", "nll"))
    one, two = (
        score_observation(new, SETTINGS, *fit_scoring(seen, SETTINGS, HEATMAP, settings, scans))
        for scans in (None, np.arange(40))
    )
    assert_array_equal(one.scores, two.scores)
