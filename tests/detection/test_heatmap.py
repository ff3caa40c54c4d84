"""Evidence maps and regions: level of normals, an inserted lesion, geometry by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from anomaly.detection.heatmap import (
    HeatmapModel,
    HeatmapSettings,
    find_regions,
    local_features,
)
from anomaly.errors import CalibrationError, ConfigError
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


@pytest.mark.parametrize("smoothing", [0.0, 1.5])
def test_evidence_of_normals_is_about_one_everywhere(smoothing: float) -> None:
    model = HeatmapModel.fit(normals(300, 0), HeatmapSettings(smoothing))
    evidence = model.evidence(normals(300, 1))
    assert evidence.shape == (300, SIDE, SIDE)
    assert evidence.dtype == np.float32
    # e^2 is the mean of 3 squared z scores, each of expectation 1. Within 7 pixels of an edge the
    # repeated border and the shared spread (2 pixels) shift that by up to a third.
    square = np.square(evidence)
    assert square[:, 7:-7, 7:-7].mean() == pytest.approx(1, abs=0.03)
    assert np.abs(square[:, 7:-7, 7:-7].mean((0, 2)) - 1).max() < 0.06
    assert np.abs(square.mean((0, 2)) - 1).max() < 0.35


def test_evidence_by_hand_without_smoothing() -> None:
    model = HeatmapModel(
        np.array([[[1.0, 0.0]], [[0.0, 0.0]]], dtype=np.float32),
        np.array([[[2.0, 1.0]], [[0.5, 1.0]]], dtype=np.float32),
        0.0,
    )
    residual = np.array([[[[7.0, 0.0]], [[-2.0, 0.0]]]], dtype=np.float32)
    # z = (7 - 1) / 2 = 3 and -2 / 0.5 = -4: sqrt((9 + 16) / 2).
    assert_allclose(model.evidence(residual), [[[np.sqrt(12.5), 0]]])


@pytest.mark.parametrize("sign", [1, -1])
def test_an_inserted_lesion_is_found_at_its_place_and_size(sign: int) -> None:
    model = HeatmapModel.fit(normals(200, 0), HeatmapSettings(1.0))
    scan = normals(1, 5)
    clean = scan.copy()
    # 6 x 8 pixels, 4 deviations of one sign at every level.
    spread = ROWS[9:15] * np.array([1.0, 0.1, 10.0])[:, None, None]
    scan[0, :, 9:15, 4:12] += (sign * 4 * spread).astype(np.float32)
    evidence = model.evidence(scan)[0]
    first, *others = find_regions(evidence, 4.0, (0.5, 0.5))
    assert not others
    assert first.row == pytest.approx(11.5, abs=0.5)
    assert first.column == pytest.approx(7.5, abs=0.5)
    assert 30 <= first.area <= 80  # 48 pixels, with a soft edge
    assert first.area_mm2 == pytest.approx(first.area / 4)
    assert first.peak == pytest.approx(float(evidence.max()))
    # Elsewhere nothing changed: 5 pixels off is 5 standard deviations of the smoothing.
    untouched = model.evidence(clean)[0]
    assert_allclose(evidence[:, 17:], untouched[:, 17:], atol=1e-4)
    assert find_regions(untouched, 4.0, None) == ()


def test_a_lesion_at_a_variable_place_needs_to_be_larger() -> None:
    model = HeatmapModel.fit(normals(200, 0), HeatmapSettings(0.0))
    quiet, loud = (np.zeros((1, 3, SIDE, SIDE), np.float32) + model.mean for _ in range(2))
    quiet[0, 0, 2, 10] += 5
    loud[0, 0, 21, 10] += 5
    assert model.evidence(quiet).max() > 1.2 * model.evidence(loud).max()


def test_a_constant_border_does_not_blow_up() -> None:
    residuals = normals(100, 0)
    residuals[..., :4] = 0.25
    model = HeatmapModel.fit(residuals, HeatmapSettings(1.5))
    assert (model.scale > 0).all()
    new = normals(20, 1)
    new[..., :4] = 0.25
    evidence = model.evidence(new)
    assert np.isfinite(evidence).all()
    assert evidence[..., :4].max() < 5
    # Rounding there must not glow: a change of 1e-4, 1/1000 of the smallest spread nearby.
    new[..., :4] += 1e-4
    assert np.abs(model.evidence(new)[..., :4] - evidence[..., :4]).max() < 0.1


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_a_level_that_never_varies_is_refused(value: float) -> None:
    residuals = normals(50, 0)
    residuals[:, 1] = value
    with pytest.raises(CalibrationError, match=r"maps \[1\] are the same on all 50"):
        HeatmapModel.fit(residuals, HeatmapSettings(1.5))


def test_one_scan_has_no_spread() -> None:
    with pytest.raises(CalibrationError, match="all 1 normal scans"):
        HeatmapModel.fit(normals(1, 0), HeatmapSettings(1.5))


def test_maps_do_not_depend_on_their_batch() -> None:
    model = HeatmapModel.fit(normals(50, 0), HeatmapSettings(1.5))
    new = normals(6, 1)
    alone = np.concatenate([model.evidence(new[i : i + 1]) for i in range(6)])
    assert_array_equal(model.evidence(new), alone)


def test_arrays_round_trip() -> None:
    settings = HeatmapSettings(0.7)
    model = HeatmapModel.fit(normals(50, 0), settings)
    again = HeatmapModel.from_arrays(settings, {k: v.copy() for k, v in model.arrays().items()})
    assert_array_equal(again.evidence(normals(3, 1)), model.evidence(normals(3, 1)))


def test_negative_smoothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"heatmap.smoothing is -0.5"):
        HeatmapSettings(-0.5)


def test_local_features_by_hand() -> None:
    # 100 places: 97 of 1, then 2, 4, 8. Mean 111 / 100, top 2 % (4 + 8) / 2, peak 8.
    evidence = np.ones((1, 10, 10), dtype=np.float32)
    evidence[0, 3, 3:6] = [2, 8, 4]
    assert_allclose(local_features(evidence), np.log([[1.11, 6, 8]]), rtol=1e-7)


def test_local_features_of_a_tiny_map_use_at_least_one_place() -> None:
    evidence = np.array([[[1.0, 3.0]]], dtype=np.float32)
    assert_allclose(local_features(evidence), np.log([[2, 3, 3]]))


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
