"""Placement: maps read at registered places, and brought back."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anomaly.detection.placement import PLACEMENT_NAMES, Placement


def scene(side: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Draw blobs as large as a rib is wide."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    return np.asarray(gaussian_filter(noise, 2, mode="wrap") * 5, dtype=np.float32)


def placed(*parameters: float) -> Placement:
    return Placement(np.array([parameters]), np.ones(1))


def test_a_whole_pixel_shift_reads_the_pixels_themselves() -> None:
    map_ = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    # Rows 0 ... 3 are read at 1 ... 4, of which the last repeats; columns at -2 ... 2.
    expected = map_[0][[1, 2, 3, 3]][:, [0, 0, 0, 1, 2]]
    moved = placed(1 / 4, -2 / 5, 0, 0, 0)
    assert_allclose(moved.aligned(map_)[0], expected, atol=1e-5)
    # Brought back, the inner pixels are what they were.
    back = moved.in_images(moved.aligned(map_)[0])[0]
    assert_allclose(back[1:, :3], map_[0][1:, :3], atol=1e-5)


def test_the_unmoved_placement_changes_nothing() -> None:
    maps = np.stack([scene(), scene(seed=1)])[:, None]
    same = Placement.unmoved(2)
    assert same.parameters.shape == (2, len(PLACEMENT_NAMES))
    assert_allclose(same.aligned(maps), maps, atol=1e-5)
    assert_allclose(same.in_images(maps[0]), np.stack([maps[0]] * 2), atol=1e-5)


def test_positions_by_hand() -> None:
    # T(p) = R diag(2, 0.5) p + (0.1, 0), a quarter turn: (r, c) -> (-0.5 c + 0.1, 2 r).
    turned = placed(0.1, 0, np.log(2), np.log(0.5), np.pi / 2)
    positions = turned.reference_positions(2, 2)[0]
    # The pixel (0, 1) has its centre at (-0.25, 0.25): c = -(-0.25 - 0.1) / 0.5, r = 0.25 / 2.
    assert_allclose(positions[1], (0.125, 0.7), atol=1e-12)


def test_a_round_trip_of_all_parameters_is_the_identity() -> None:
    # A smooth map, read at moved places twice, loses a little by interpolation.
    wide = gaussian_filter(scene(), 3)[None]
    moved = placed(0.03, -0.02, 0.1, -0.08, 0.05)
    again = moved.aligned(moved.in_images(wide[0]))
    assert_allclose(again[0, 12:-12, 12:-12], wide[0, 12:-12, 12:-12], atol=0.05)
    assert np.abs(moved.aligned(wide) - wide).max() > 0.2


def test_images_keep_their_own_placements() -> None:
    pair = Placement.join([placed(0.1, 0, 0, 0, 0), placed(0, 0, 0.1, 0, 0)])
    maps = np.stack([scene(), scene(seed=1)])
    whole = pair.aligned(maps)
    for index in range(2):
        rows = np.array([index])
        assert_array_equal(pair.select(rows).aligned(maps[index : index + 1])[0], whole[index])
