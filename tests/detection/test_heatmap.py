"""Evidence maps and regions: sums and scales by hand, an inserted lesion, geometry by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from anomaly.detection.heatmap import (
    RARE,
    HeatmapModel,
    HeatmapSettings,
    MapChannel,
    local_features,
)
from anomaly.detection.placement import Placement
from anomaly.errors import CalibrationError, ConfigError
from anomaly.regions import find_regions
from anomaly.types import Region

SIDE = 24
ROWS = np.linspace(1, 1.5, SIDE)[:, None]
RATIOS = (0.1, 0.2, 0.4)
INNER = slice(2, -2)  # without the rim


def normals(count: int, seed: int, levels: int = 3) -> NDArray[np.float32]:
    """White residuals whose mean and spread differ from place to place and level to level."""
    rng = np.random.default_rng(seed)
    spread = ROWS * np.array([1.0, 0.1, 10.0])[:levels, None, None]
    mean = np.sin(np.arange(SIDE))[None] * spread
    noise = rng.normal(size=(count, levels, SIDE, SIDE))
    return np.asarray(mean + spread * noise, dtype=np.float32)


def channels(*smoothing: float, levels: tuple[float, float] = (0.1, 0.4)) -> HeatmapSettings:
    return HeatmapSettings(tuple(MapChannel(levels, scale) for scale in smoothing))


def fit(residuals: NDArray[np.float32], settings: HeatmapSettings) -> HeatmapModel:
    ratios = RATIOS[: residuals.shape[1]]
    unmoved = Placement.unmoved(len(residuals))
    return HeatmapModel.fit(residuals, unmoved, nowhere(residuals), settings, ratios)


def look(model: HeatmapModel, residuals: NDArray[np.float32]) -> NDArray[np.float32]:
    return model.evidence(residuals, Placement.unmoved(len(residuals)), nowhere(residuals))


def signed(model: HeatmapModel, residuals: NDArray[np.float32]) -> NDArray[np.float32]:
    return model.signed_evidence(residuals, Placement.unmoved(len(residuals)), nowhere(residuals))


def nowhere(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """No pixel is blank: (N, H, W) of maps (N, ..., H, W)."""
    return np.zeros((len(maps), *maps.shape[-2:]), dtype=np.bool_)


@pytest.mark.parametrize("smoothing", [(0.0,), (1.5,), (0.0, 0.7, 1.5)])
def test_evidence_of_normals_is_the_same_everywhere(smoothing: tuple[float, ...]) -> None:
    model = fit(normals(900, 0), channels(*smoothing))
    evidence = look(model, normals(900, 1))
    assert evidence.shape == (900, SIDE, SIDE)
    assert evidence.dtype == np.float32
    # Near an edge the repeated border and the shared spread (2 pixels) shift it a little.
    mean = evidence[:, INNER, INNER].mean((0, 2))
    assert_allclose(mean, mean.mean(), rtol=0.12)


@pytest.mark.parametrize("smoothing", [(0.0,), (1.0, 2.0)])
def test_one_normal_scan_in_a_hundred_exceeds_1_in_a_channel_and_sign(
    smoothing: tuple[float, ...],
) -> None:
    model = fit(normals(2000, 0), channels(*smoothing))
    evidence = signed(model, normals(2000, 1))
    most = 2 * len(smoothing) * RARE
    beyond = np.mean((np.abs(evidence) > 1).any((1, 2)))
    # Extremes of channels of one scan are not independent: at most the sum of their rates.
    assert 0.004 < beyond < most + 3 * np.sqrt(most / 2000)
    for side in (evidence, -evidence):
        rate = np.mean((side > 1).any((1, 2)))
        assert rate < len(smoothing) * RARE + 3 * np.sqrt(most / 2000)


def model_of(
    weights: object, mean: object, scale: object, smoothing: tuple[float, ...]
) -> HeatmapModel:
    first, second, third = (np.array(x, dtype=np.float32) for x in (weights, mean, scale))
    return HeatmapModel(first, second, third, np.ones((len(second), 2), np.float32), smoothing, 0.1)


def test_evidence_by_hand_without_smoothing() -> None:
    # Nine places in a row, no rim in a frame this low; the surroundings have a sigma of 4 pixels.
    model = model_of([[0.5, 2.0]], [[[1.0] + [0.0] * 8]], [[[2.0] + [0.5] * 8]], (0.0,))
    residual = np.zeros((1, 2, 1, 9), dtype=np.float32)
    residual[0, :, 0] = np.array([[6.0, 2.0]] + [[3.0, -1.0]] * 8).T
    # u = 6 / 2 + 2 * 2 = 7 and 3 / 2 - 1 * 2 = -0.5; z = (7 - 1) / 2 = 3 and -0.5 / 0.5 = -1, of
    # which the median size is 1. The mean square of the surroundings is that of a blur.
    y = np.array([3.0] + [-1.0] * 8)
    offsets = np.arange(-12, 13)
    kernel = np.exp(-(offsets**2) / 32)
    power = np.array(
        [
            sum(k * y[i + o] ** 2 for o, k in zip(offsets, kernel, strict=True) if 0 <= i + o < 9)
            for i in range(9)
        ]
    ) / np.array(
        [sum(k for o, k in zip(offsets, kernel, strict=True) if 0 <= i + o < 9) for i in range(9)]
    )
    expected = y / np.sqrt(0.5 + 0.5 * power)
    assert_allclose(signed(model, residual)[0, 0], expected, rtol=1e-3)


def test_signs_have_limits_of_their_own() -> None:
    model = model_of([[1.0]], np.zeros((1, 9, 9)), np.ones((1, 9, 9)), (0.0,))
    scan = np.random.default_rng(0).normal(size=(1, 1, 9, 9)).astype(np.float32)
    halved = replace(model, limits=np.array([[1, 2]], np.float32))
    before, after = signed(model, scan), signed(halved, scan)
    assert_allclose(after[before > 0], before[before > 0])
    assert_allclose(after[before < 0], before[before < 0] / 2)


def test_a_scan_that_departs_everywhere_is_judged_against_itself() -> None:
    model = model_of([[1.0]], np.zeros((1, 9, 9)), np.full((1, 9, 9), 0.2), (0.0,))
    scan = np.random.default_rng(0).normal(size=(1, 1, 9, 9)).astype(np.float32)
    assert_allclose(look(model, 5 * scan), look(model, scan), rtol=1e-5)


def test_a_lesion_leaves_the_evidence_elsewhere() -> None:
    # A median that a bright device would move would hide a nodule beside it.
    model = fit(normals(200, 0), channels(0.0))
    scan = normals(1, 5)
    with_device = scan.copy()
    with_device[:, 0, 3:6, 3:6] += 100
    before, after = look(model, scan)[0], look(model, with_device)[0]
    # Three times as far away as the surroundings reach (4 pixels).
    seen = before[18:] > 0
    assert np.median(after[18:][seen] / before[18:][seen]) == pytest.approx(1, abs=0.1)
    assert after[3:6, 3:6].min() > after[18:].max()


def test_a_small_lesion_counts_more_in_quiet_surroundings() -> None:
    model = model_of([[1.0]], np.zeros((1, 24, 24)), np.ones((1, 24, 24)), (0.0,))
    scan = np.random.default_rng(0).normal(size=(1, 1, 24, 24)).astype(np.float32)
    scan[0, 0, :, 12:] *= 4
    scan[0, 0, 12, 5] = scan[0, 0, 12, 19] = 6
    evidence = look(model, scan)[0]
    assert evidence[12, 5] > 1.5 * evidence[12, 19]


def test_a_scan_equal_to_the_mean_has_finite_evidence() -> None:
    model = model_of([[1.0]], np.ones((1, 3, 3)), np.ones((1, 3, 3)), (0.0,))
    assert_array_equal(look(model, np.ones((1, 1, 3, 3), dtype=np.float32)), np.zeros((1, 3, 3)))


def test_normals_at_other_places_are_one_population() -> None:
    # Scans that lie up to three pixels off, and say so: the same statistics and maps, moved.
    rng = np.random.default_rng(2)
    settings = channels(1.0, 2.0)
    centred, new = normals(300, 0), normals(40, 1)
    shifts = [rng.integers(-3, 4, (n, 2)) for n in (300, 40)]
    moved = [
        np.stack([np.roll(m, s, (1, 2)) for m, s in zip(maps, d, strict=True)])
        for maps, d in zip((centred, new), shifts, strict=True)
    ]
    placements = [
        Placement(np.column_stack([d / SIDE, np.zeros((len(d), 3))]), np.ones(len(d)))
        for d in shifts
    ]
    still = fit(centred, settings)
    placed = HeatmapModel.fit(moved[0], placements[0], nowhere(moved[0]), settings, RATIOS)
    inner = slice(10, 14)  # as far from the wrapped border as the smoothing and the shift reach
    assert_allclose(placed.mean[:, inner, inner], still.mean[:, inner, inner], atol=0.03)
    assert_allclose(placed.scale[:, inner, inner], still.scale[:, inner, inner], rtol=0.05)
    evidence = placed.evidence(moved[1], placements[1], nowhere(moved[1]))
    for found, expected, shift in zip(evidence, look(still, new), shifts[1], strict=True):
        back = np.roll(found, -shift, (0, 1))[inner, inner]
        # The wrapped border is no anatomy, and moves the median.
        usual = np.median(back / expected[inner, inner])
        assert 0.6 < usual < 1.5
        assert_allclose(back / usual, expected[inner, inner], atol=0.1)
    unplaced = look(placed, moved[1])
    assert np.abs(unplaced - evidence).mean() > 0.02


def test_one_sign_over_the_levels_is_more_evidence_than_signs_that_alternate() -> None:
    model = model_of([[1.0, 0.5, 0.25]], np.zeros((1, 9, 9)), np.ones((1, 9, 9)), (0.0,))
    blob = np.zeros((2, 3, 9, 9), dtype=np.float32)
    blob[:, 0] = 0.1  # what is usual elsewhere
    blob[0, :, 3:6, 3:6] = np.array([1.0, 2.0, 4.0])[:, None, None]
    blob[1, :, 3:6, 3:6] = np.array([1.0, -2.0, 4.0])[:, None, None]
    one, alternating = look(model, blob)
    # The same energy at every level: 1 + 1 + 1 against 1 - 1 + 1.
    assert one[4, 4] / one[0, 0] > 1.5 * alternating[4, 4] / alternating[0, 0]


def test_a_channel_sees_its_own_levels_alone() -> None:
    residuals = normals(60, 0)
    model = fit(residuals, channels(0.0, levels=(0.15, 0.5)))
    assert_array_equal(model.weights[0] > 0, [False, True, True])
    louder = residuals * np.array([9, 1, 1], np.float32)[:, None, None]
    assert_array_equal(look(model, louder[:3]), look(model, residuals[:3]))


def test_the_unit_of_a_level_does_not_matter() -> None:
    normal, new = normals(100, 0), normals(3, 1)
    settings = channels(0.0, 1.5)
    model = fit(normal, settings)
    size = np.sqrt(np.square(normal).mean((0, 2, 3)))
    assert_allclose(model.weights, np.stack([1 / size] * 2), rtol=1e-5)
    units = np.array([100.0, 1.0, 1e-3], dtype=np.float32)[:, None, None]
    other = fit(normal * units, settings)
    assert_allclose(look(other, new * units), look(model, new), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_inserted_lesion_is_found_at_its_place_and_size(sign: int) -> None:
    model = fit(normals(200, 0), channels(1.0))
    scan = normals(1, 5)
    # 6 x 8 pixels, 4 / sqrt(3) deviations of one sign at each level: 4 in their sum.
    spread = ROWS[9:15] * np.array([1.0, 0.1, 10.0])[:, None, None]
    scan[0, :, 9:15, 4:12] += (sign * 4 / np.sqrt(3) * spread).astype(np.float32)
    evidence = look(model, scan)[0]
    first, *others = find_regions(evidence, 0.6, (0.5, 0.5))
    assert not others
    assert first.row == pytest.approx(11.5, abs=1)
    assert first.column == pytest.approx(7.5, abs=1)
    assert 20 <= first.area <= 80  # 48 pixels, with a soft edge
    assert first.area_mm2 == pytest.approx(first.area / 4)
    assert first.peak == pytest.approx(float(evidence.max()))
    assert np.sign(signed(model, scan)[0, 11, 7]) == sign


def test_a_lesion_at_a_variable_place_needs_to_be_larger() -> None:
    model = fit(normals(200, 0), channels(0.0))
    quiet, loud = (normals(1, 9) for _ in range(2))
    for scan, row in ((quiet, 3), (loud, 20)):
        scan[0, :, row, 10] += 3 / model.weights[0]
    before = normals(1, 9)
    gains = [
        signed(model, scan)[0, row, 10] - signed(model, before)[0, row, 10]
        for scan, row in ((quiet, 3), (loud, 20))
    ]
    # The deviation is 1.07 at the one place and 1.43 at the other; surroundings level some of it.
    assert gains[0] > 1.02 * gains[1] > 0


def test_a_constant_border_does_not_blow_up() -> None:
    residuals = normals(100, 0)
    residuals[..., :6] = 0.25
    model = fit(residuals, channels(1.5))
    assert (model.scale > 0).all()
    new = normals(20, 1)
    new[..., :6] = 0.25
    evidence = look(model, new)
    assert np.isfinite(evidence).all()
    # Rounding there must not glow: a change of 1e-4, 1/1000 of the smallest spread nearby.
    new[..., :6] += 1e-4
    assert np.abs(look(model, new)[..., :6] - evidence[..., :6]).max() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_level_that_never_varies_is_refused(value: float) -> None:
    residuals = normals(50, 0)
    residuals[:, 1] = value
    with pytest.raises(CalibrationError, match=r"maps \[1\] are the same on all 50"):
        fit(residuals, channels(1.5))


def test_one_scan_has_no_spread() -> None:
    with pytest.raises(CalibrationError, match="all 1 normal scans"):
        fit(normals(1, 0), channels(1.5))


def test_maps_do_not_depend_on_their_batch() -> None:
    model = fit(normals(50, 0), channels(1.5))
    new = normals(6, 1)
    alone = np.concatenate([look(model, new[i : i + 1]) for i in range(6)])
    assert_allclose(look(model, new), alone, rtol=1e-5)


def test_arrays_round_trip() -> None:
    settings = channels(0.7, 2.0)
    model = fit(normals(50, 0), settings)
    again = HeatmapModel.from_arrays(settings, {k: v.copy() for k, v in model.arrays().items()})
    assert_array_equal(look(again, normals(3, 1)), look(model, normals(3, 1)))
    assert all(v.dtype == np.float32 for v in model.arrays().values())
    assert model.mean.shape == model.scale.shape == (2, SIDE, SIDE)
    assert model.limits.shape == (2, 2)


def test_channels_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heatmap.channels is empty"):
        HeatmapSettings(())
    with pytest.raises(ConfigError, match=r"smoothing is -0.5: expected 0 pixels or more"):
        MapChannel((0.1, 0.2), -0.5)
    with pytest.raises(
        ConfigError, match=r"levels are \(0.5, 0.2\): expected 0 < lowest <= highest"
    ):
        MapChannel((0.5, 0.2), 1.0)
    with pytest.raises(
        ConfigError, match=r"levels are \(3, 4\): expected a range that holds one of"
    ):
        HeatmapSettings((MapChannel((3, 4), 1.0),)).check_levels(RATIOS)


def test_the_rim_has_no_evidence() -> None:
    model = fit(normals(60, 0), channels(0.0))
    evidence = look(model, normals(3, 1))
    assert not evidence[:, :2].any()
    assert not evidence[..., -2:].any()
    assert (evidence[:, 2:-2, 2:-2] > 0).all()
    whole = look(replace(model, rim=0.0), normals(3, 1))
    assert (whole > 0).all()
    with pytest.raises(ConfigError, match=r"rim is 0.5: expected a share"):
        HeatmapSettings(rim=0.5)


def test_local_features_by_hand() -> None:
    # 100 places: 97 of 1, then 2, -4, 8. Mean 111 / 100, top 2 % (4 + 8) / 2, peak 8.
    evidence = np.ones((1, 10, 10), dtype=np.float32)
    evidence[0, 3, 3:6] = [2, 8, -4]
    found = local_features(evidence, nowhere(evidence))
    assert_allclose(found, np.log([[1.11, 6, 8, 8, 4]]), rtol=1e-7)


def test_local_features_of_a_tiny_map_use_at_least_one_place() -> None:
    evidence = np.array([[[1.0, 3.0]]], dtype=np.float32)
    # No place is darker than expected: a thousandth stands for nothing.
    expected = np.log([[2, 3, 3, 3, 1e-3]])
    assert_allclose(local_features(evidence, nowhere(evidence)), expected)


def test_blank_places_have_no_evidence_and_no_say_in_the_median() -> None:
    model = fit(normals(60, 0), channels(1.5))
    new = normals(5, 1)
    blank = nowhere(new)
    blank[:, :8] = True
    blank[3] = True  # a scan of which nothing is seen
    unmoved = Placement.unmoved(5)
    found = model.evidence(new, unmoved, blank)
    assert not found[blank].any()
    # What blank places show changes nothing, out of reach of the smoothing (four sigmas).
    loud = new.copy()
    loud[:, :, 0] = 50
    assert_allclose(model.evidence(loud, unmoved, blank), found, atol=1e-5)
    assert found[0].max() > 0.3


def test_local_features_leave_blank_places_out() -> None:
    evidence = np.ones((1, 10, 10), dtype=np.float32)
    evidence[0, 3, 3:6] = [2, 8, 4]
    padded = np.zeros((1, 16, 10), dtype=np.float32)
    padded[:, 3:13] = evidence
    assert_array_equal(
        local_features(padded, padded == 0), local_features(evidence, nowhere(evidence))
    )
    nothing = local_features(np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.bool_))
    assert_array_equal(nothing, [[-np.inf] * 5])


def test_regions_by_hand() -> None:
    evidence = np.array(
        [
            [5, 5, 0, 0, 0, 2],
            [0, 0, 0, 0, 0, 2],
            [0, 0, 9, 0, 0, 2],
            [0, 0, 0, 3, 0, 0],
        ],
        dtype=np.float32,
    )
    # The diagonal pair 9, 3 is one region; a pixel is 2 x 0.5 = 1 mm2; largest peak first.
    assert find_regions(evidence, 2.0, (2.0, 0.5)) == (
        Region(2.5, 2.5, 2, 2.0, 9.0),
        Region(0.0, 0.5, 2, 2.0, 5.0),
        Region(1.0, 5.0, 3, 3.0, 2.0),
    )


@pytest.mark.parametrize(
    ("threshold", "areas"), [(2.0, [3]), (np.nextafter(2.0, 3), [2]), (5.5, [1, 1])]
)
def test_a_region_is_at_or_above_the_threshold(threshold: float, areas: list[int]) -> None:
    evidence = np.array([[6, 2, 6]] if threshold > 5 else [[3, 4, 2]], dtype=np.float64)
    found = find_regions(evidence.astype(np.float32), threshold, None)
    assert [region.area for region in found] == areas


def test_centroid_is_of_the_area_not_of_the_evidence() -> None:
    (region,) = find_regions(np.array([[2, 2, 90]], dtype=np.float32), 1.0, None)
    assert (region.row, region.column, region.area, region.peak) == (0, 1, 3, 90)


def test_area_without_spacing_is_unknown() -> None:
    (region,) = find_regions(np.ones((2, 2), dtype=np.float32), 1.0, None)
    assert region.area_mm2 is None


@pytest.mark.parametrize("spacing", [None, (0.1, 0.1)])
def test_nothing_above_the_threshold_gives_no_region(spacing: tuple[float, float] | None) -> None:
    assert find_regions(np.ones((4, 5), dtype=np.float32), 1.5, spacing) == ()
