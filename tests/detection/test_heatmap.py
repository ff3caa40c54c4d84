"""Evidence maps and regions: sums and scales by hand, an inserted lesion, geometry by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from anomaly.detection.heatmap import (
    HeatmapModel,
    HeatmapSettings,
    local_features,
)
from anomaly.errors import CalibrationError, ConfigError
from anomaly.regions import find_regions
from anomaly.types import Region

SIDE = 24
ROWS = np.linspace(1, 1.5, SIDE)[:, None]


def normals(count: int, seed: int, levels: int = 3) -> NDArray[np.float32]:
    """White residuals whose mean and spread differ from place to place and level to level."""
    rng = np.random.default_rng(seed)
    spread = ROWS * np.array([1.0, 0.1, 10.0])[:levels, None, None]
    mean = np.sin(np.arange(SIDE))[None] * spread
    noise = rng.normal(size=(count, levels, SIDE, SIDE))
    return np.asarray(mean + spread * noise, dtype=np.float32)


def fit(residuals: NDArray[np.float32], settings: HeatmapSettings) -> HeatmapModel:
    return HeatmapModel.fit(residuals, np.zeros((len(residuals), 2)), settings)


def look(model: HeatmapModel, residuals: NDArray[np.float32]) -> NDArray[np.float32]:
    return model.evidence(residuals, np.zeros((len(residuals), 2)), nowhere(residuals))


def nowhere(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """No pixel is blank: (N, H, W) of maps (N, ..., H, W)."""
    return np.zeros((len(maps), *maps.shape[-2:]), dtype=np.bool_)


@pytest.mark.parametrize("smoothing", [(0.0,), (1.5,), (0.0, 0.7, 1.5)])
def test_evidence_of_normals_is_the_same_everywhere(smoothing: tuple[float, ...]) -> None:
    model = fit(normals(900, 0), HeatmapSettings(smoothing))
    evidence = look(model, normals(900, 1))
    assert evidence.shape == (900, SIDE, SIDE)
    assert evidence.dtype == np.float32
    # y^2 is the mean over the scales of squared z scores, each of expectation 1; the median of y
    # that divides it is near the same for all. Within 7 pixels of an edge the repeated border and
    # the shared spread (2 pixels) shift that by up to a third.
    assert_allclose(np.median(evidence, axis=(1, 2)), 1, rtol=1e-5)
    square = np.square(evidence)
    square /= square[:, 7:-7, 7:-7].mean()
    assert np.abs(square[:, 7:-7, 7:-7].mean((0, 2)) - 1).max() < 0.06
    assert np.abs(square.mean((0, 2)) - 1).max() < 0.35


def model_of(
    size: list[float], mean: object, scale: object, smoothing: tuple[float, ...]
) -> HeatmapModel:
    first, second, third = (np.array(x, dtype=np.float32) for x in (size, mean, scale))
    return HeatmapModel(first, second, third, smoothing)


def test_evidence_by_hand_without_smoothing() -> None:
    model = model_of([2.0, 0.5], [[[1.0, 0.0]]], [[[2.0, 0.5]]], (0.0,))
    residual = np.array([[[[6.0, 3.0]], [[2.0, -1.0]]]], dtype=np.float32)
    # u = 6 / 2 + 2 / 0.5 = 7 and 3 / 2 - 1 / 0.5 = -0.5; y = |7 - 1| / 2 = 3 and |-0.5| / 0.5 = 1,
    # and the median of the two is 2.
    assert_allclose(look(model, residual), [[[1.5, 0.5]]])


def test_a_scan_that_departs_everywhere_is_judged_against_itself() -> None:
    model = model_of([1.0], np.zeros((1, 9, 9)), np.full((1, 9, 9), 0.2), (0.0,))
    scan = np.random.default_rng(0).normal(size=(1, 1, 9, 9)).astype(np.float32)
    assert_allclose(look(model, 5 * scan), look(model, scan), rtol=1e-5)


def test_a_lesion_leaves_the_evidence_elsewhere() -> None:
    # A median that a bright device would move would hide a nodule beside it.
    model = fit(normals(200, 0), HeatmapSettings((0.0,)))
    scan = normals(1, 5)
    with_device = scan.copy()
    with_device[:, 0, 2:6, 2:6] += 100
    before, after = look(model, scan)[0], look(model, with_device)[0]
    assert_allclose(after[8:], before[8:], rtol=0.05)
    assert after[2:6, 2:6].min() > 10


def test_a_scan_equal_to_the_mean_has_finite_evidence() -> None:
    model = model_of([1.0], np.ones((1, 3, 3)), np.ones((1, 3, 3)), (0.0,))
    assert_array_equal(look(model, np.ones((1, 1, 3, 3), dtype=np.float32)), np.zeros((1, 3, 3)))


def test_normals_at_other_places_are_one_population() -> None:
    # Scans that lie up to three pixels off, and say so: the same statistics and maps, moved.
    rng = np.random.default_rng(2)
    settings = HeatmapSettings((1.0, 2.0))
    centred, new = normals(300, 0), normals(40, 1)
    shifts = [rng.integers(-3, 4, (n, 2)).astype(np.float64) for n in (300, 40)]
    moved = [
        np.stack([np.roll(m, s.astype(int), (1, 2)) for m, s in zip(maps, d, strict=True)])
        for maps, d in zip((centred, new), shifts, strict=True)
    ]
    still, placed = (
        fit(centred, settings),
        HeatmapModel.fit(moved[0], shifts[0], settings),
    )
    inner = slice(10, 14)  # as far from the wrapped border as the smoothing and the shift reach
    assert_allclose(placed.mean[:, inner, inner], still.mean[:, inner, inner], atol=0.02)
    assert_allclose(placed.scale[:, inner, inner], still.scale[:, inner, inner], rtol=0.05)
    evidence = placed.evidence(moved[1], shifts[1], nowhere(moved[1]))
    for found, expected, shift in zip(evidence, look(still, new), shifts[1], strict=True):
        back = np.roll(found, -shift.astype(int), (0, 1))[inner, inner]
        # The wrapped border is no anatomy, and moves the median.
        usual = np.median(back / expected[inner, inner])
        assert 0.6 < usual < 1.5
        assert_allclose(back / usual, expected[inner, inner], atol=0.3)
    unplaced = look(placed, moved[1])
    assert np.abs(unplaced - evidence).mean() > 0.1


def test_scales_are_averaged_by_their_squares() -> None:
    # Smoothing leaves a flat sum of 4 as it is: z = (4 - 1) / 1 = 3 and (4 - 6) / 0.5 = -4.
    mean = np.array([1.0, 6.0])[:, None, None] * np.ones((2, 5, 7))
    scale = np.array([1.0, 0.5])[:, None, None] * np.ones((2, 5, 7))
    model = model_of([1.0], mean, scale, (0.5, 3.0))
    # Half of the places have the mean of the first scale: z = 0 there. The median lies between.
    model.mean[0, :, :4] = 4.0
    residual = np.full((1, 1, 5, 7), 4.0, dtype=np.float32)
    evidence = look(model, residual)[0]
    assert_allclose(evidence[:, :4], 1, rtol=1e-6)  # 20 of 35 places
    assert_allclose(evidence[:, 4:], np.sqrt((9 + 16) / 16), rtol=1e-6)


def test_one_sign_over_the_levels_is_more_evidence_than_signs_that_alternate() -> None:
    model = model_of([1.0, 2.0, 4.0], np.zeros((1, 9, 9)), np.ones((1, 9, 9)), (0.0,))
    blob = np.zeros((2, 3, 9, 9), dtype=np.float32)
    blob[0, :, 3:6, 3:6] = np.array([1.0, 2.0, 4.0])[:, None, None]
    blob[1] = blob[0] * np.array([1, -1, 1])[:, None, None]
    one, alternating = look(model, blob)
    # The same energy at every level: 1 + 1 + 1 against 1 - 1 + 1.
    assert_allclose(one[3:6, 3:6], 3 * alternating[3:6, 3:6])
    assert alternating[4, 4] > 100 * alternating[0, 0]


def test_the_unit_of_a_level_does_not_matter() -> None:
    normal, new = normals(100, 0), normals(3, 1)
    settings = HeatmapSettings((0.0, 1.5))
    model = fit(normal, settings)
    assert_allclose(model.size, np.sqrt(np.square(normal).mean((0, 2, 3))), rtol=1e-5)
    units = np.array([100.0, 1.0, 1e-3], dtype=np.float32)[:, None, None]
    other = fit(normal * units, settings)
    assert_allclose(look(other, new * units), look(model, new), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_inserted_lesion_is_found_at_its_place_and_size(sign: int) -> None:
    model = fit(normals(200, 0), HeatmapSettings((1.0,)))
    scan = normals(1, 5)
    clean = scan.copy()
    # 6 x 8 pixels, 4 / sqrt(3) deviations of one sign at each level: 4 in their sum.
    spread = ROWS[9:15] * np.array([1.0, 0.1, 10.0])[:, None, None]
    scan[0, :, 9:15, 4:12] += (sign * 4 / np.sqrt(3) * spread).astype(np.float32)
    evidence = look(model, scan)[0]
    first, *others = find_regions(evidence, 5.0, (0.5, 0.5))
    assert not others
    assert first.row == pytest.approx(11.5, abs=0.5)
    assert first.column == pytest.approx(7.5, abs=0.5)
    assert 30 <= first.area <= 80  # 48 pixels, with a soft edge
    assert first.area_mm2 == pytest.approx(first.area / 4)
    assert first.peak == pytest.approx(float(evidence.max()))
    # Elsewhere nothing changed: 5 pixels off is 5 standard deviations of the smoothing.
    untouched = look(model, clean)[0]
    # The median grows a little, as 8 % of the places do.
    usual = np.median(untouched[:, 17:] / evidence[:, 17:])
    assert 1 < usual < 1.25
    assert_allclose(evidence[:, 17:] * usual, untouched[:, 17:], atol=1e-4)
    assert find_regions(untouched, 5.0, None) == ()


def test_a_lesion_at_a_variable_place_needs_to_be_larger() -> None:
    model = fit(normals(200, 0), HeatmapSettings((0.0,)))
    quiet, loud = (np.zeros((1, 3, SIDE, SIDE), np.float32) for _ in range(2))
    for scan, row in ((quiet, 2), (loud, 21)):
        scan[0, 0] = model.mean[0] * model.size[0]  # the usual sum, all of it at one level
        scan[0, 0, row, 10] += 5 * model.size[0]
    assert look(model, quiet).max() > 1.2 * look(model, loud).max()
    # Elsewhere there is nothing: the sum is the mean.
    *others, lesion = np.sort(look(model, quiet).ravel())
    assert max(others) < 1e-3 * lesion


def test_a_constant_border_does_not_blow_up() -> None:
    residuals = normals(100, 0)
    residuals[..., :4] = 0.25
    model = fit(residuals, HeatmapSettings((1.5,)))
    assert (model.scale > 0).all()
    new = normals(20, 1)
    new[..., :4] = 0.25
    evidence = look(model, new)
    assert np.isfinite(evidence).all()
    assert evidence[..., :4].max() < 5
    # Rounding there must not glow: a change of 1e-4, 1/1000 of the smallest spread nearby.
    new[..., :4] += 1e-4
    assert np.abs(look(model, new)[..., :4] - evidence[..., :4]).max() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_level_that_never_varies_is_refused(value: float) -> None:
    residuals = normals(50, 0)
    residuals[:, 1] = value
    with pytest.raises(CalibrationError, match=r"maps \[1\] are the same on all 50"):
        fit(residuals, HeatmapSettings((1.5,)))


def test_one_scan_has_no_spread() -> None:
    with pytest.raises(CalibrationError, match="all 1 normal scans"):
        fit(normals(1, 0), HeatmapSettings((1.5,)))


def test_maps_do_not_depend_on_their_batch() -> None:
    model = fit(normals(50, 0), HeatmapSettings((1.5,)))
    new = normals(6, 1)
    alone = np.concatenate([look(model, new[i : i + 1]) for i in range(6)])
    assert_array_equal(look(model, new), alone)


def test_arrays_round_trip() -> None:
    settings = HeatmapSettings((0.7, 2.0))
    model = fit(normals(50, 0), settings)
    again = HeatmapModel.from_arrays(settings, {k: v.copy() for k, v in model.arrays().items()})
    assert_array_equal(look(again, normals(3, 1)), look(model, normals(3, 1)))
    assert all(v.dtype == np.float32 for v in model.arrays().values())
    assert model.mean.shape == model.scale.shape == (2, SIDE, SIDE)


@pytest.mark.parametrize("smoothing", [(), (-0.5,), (1.5, -0.5)])
def test_no_scale_and_a_negative_one_are_refused(smoothing: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"heatmap.smoothing is .*: expected one or more scales"):
        HeatmapSettings(smoothing)


def test_local_features_by_hand() -> None:
    # 100 places: 97 of 1, then 2, 4, 8. Mean 111 / 100, top 2 % (4 + 8) / 2, peak 8.
    evidence = np.ones((1, 10, 10), dtype=np.float32)
    evidence[0, 3, 3:6] = [2, 8, 4]
    assert_allclose(local_features(evidence, nowhere(evidence)), np.log([[1.11, 6, 8]]), rtol=1e-7)


def test_local_features_of_a_tiny_map_use_at_least_one_place() -> None:
    evidence = np.array([[[1.0, 3.0]]], dtype=np.float32)
    assert_allclose(local_features(evidence, nowhere(evidence)), np.log([[2, 3, 3]]))


def test_blank_places_have_no_evidence_and_no_say_in_the_median() -> None:
    model = fit(normals(60, 0), HeatmapSettings((1.5,)))
    new = normals(5, 1)
    blank = nowhere(new)
    blank[:, :6] = True
    blank[3] = True  # a scan of which nothing is seen
    found = model.evidence(new, np.zeros((5, 2)), blank)
    assert not found[blank].any()
    for index in (0, 1, 2, 4):
        seen = ~blank[index]
        assert_allclose(np.median(found[index][seen]), 1, rtol=1e-6)
        # The same map as without, but for what it is divided by.
        ratio = found[index][seen] / look(model, new)[index][seen]
        assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_local_features_leave_blank_places_out() -> None:
    evidence = np.ones((1, 10, 10), dtype=np.float32)
    evidence[0, 3, 3:6] = [2, 8, 4]
    padded = np.zeros((1, 16, 10), dtype=np.float32)
    padded[:, 3:13] = evidence
    assert_array_equal(
        local_features(padded, padded == 0), local_features(evidence, nowhere(evidence))
    )
    nothing = local_features(np.zeros((1, 4, 4), np.float32), np.ones((1, 4, 4), np.bool_))
    assert_array_equal(nothing, [[-np.inf] * 3])


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
