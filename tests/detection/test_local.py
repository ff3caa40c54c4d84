"""Residual maps by place and by octave: tiny arrays by hand, waves, sums that must hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from anomaly.detection.local import OCTAVES, cell_energies, cell_means, octave_energies
from anomaly.errors import ConfigError

FLOOR = 1e-7  # added to every energy before its logarithm


def residuals(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one(map_: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(map_, dtype=np.float32)[None, None]


def test_cells_by_hand() -> None:
    # 0 1 | 2 3      means 2.5, 4.5, 10.5, 12.5; mean squares
    # 4 5 | 6 7      (0 + 1 + 16 + 25) / 4 = 10.5, 24.5, 114.5, 160.5
    # ----+----
    # 8 9 | ...
    values = one(np.arange(16.0).reshape(4, 4))
    assert_allclose(cell_means(values, 2, 0), [[[2.5, 4.5, 10.5, 12.5]]])
    log = np.log([10.5, 24.5, 114.5, 160.5])
    assert_allclose(cell_energies(values, 2, 0)[0, 0], log - log.mean(), atol=1e-6)


def test_cells_of_a_frame_that_is_not_square() -> None:
    # 2 x 6 pixels in 2 x 2 cells of 1 x 3.
    values = one(np.array([[1, 2, 3, 4, 5, 6], [0, 0, 3, -1, -2, -3]]))
    assert_allclose(cell_means(values, 2, 0), [[[2, 5, 1, -2]]])


def test_the_border_is_left_out() -> None:
    values = residuals(2, 3, 8, 12)
    whole = cell_means(values, 4, 0).reshape(2, 3, 4, 4)
    inner = cell_means(values, 4, 1)
    assert_allclose(inner, whole[:, :, 1:3, 1:3].reshape(2, 3, 4))
    loud = values.copy()
    loud[..., :2, :] = loud[..., -2:, :] = loud[..., :3] = loud[..., -3:] = 1e3
    assert_allclose(cell_means(loud, 4, 1), inner)
    assert_allclose(cell_energies(loud, 4, 1), cell_energies(values, 4, 1))


def test_images_and_levels_are_apart() -> None:
    values = residuals(3, 4, 6, 6)
    for function in (cell_means, cell_energies):
        whole = function(values, 3, 0)
        assert whole.shape == (3, 4, 9)
        assert whole.dtype == np.float64
        assert_allclose(function(values[1:2, 2:3], 3, 0)[0, 0], whole[1, 2])


@pytest.mark.parametrize("grid", [3, 4, 8])
def test_a_grid_that_does_not_divide_the_frame_is_refused(grid: int) -> None:
    for function in (cell_means, cell_energies):
        with pytest.raises(ConfigError, match=f"features.grid is {grid}: .* 4x6 pixels"):
            function(residuals(1, 1, 4, 6), grid, 0)


def test_energies_sum_to_zero_over_the_cells() -> None:
    energy = cell_energies(residuals(5, 3, 16, 16), 8, 1)
    assert_allclose(energy.sum(-1), 0, atol=1e-12)
    assert np.abs(energy).max() > 0.1


def test_contrast_does_not_move_energies() -> None:
    # Below the floor of 1e-7 a change would show; residuals of 1 are far above it.
    values = residuals(2, 3, 16, 16)
    factor = np.array([0.5, 1.0, 7.0], dtype=np.float32)[:, None, None]
    assert_allclose(cell_energies(values * factor, 4, 0), cell_energies(values, 4, 0), atol=1e-5)
    assert_allclose(
        cell_means(values * factor, 4, 0), cell_means(values, 4, 0) * factor[..., 0], rtol=1e-5
    )


def test_one_louder_cell_moves_itself_up_and_the_others_down() -> None:
    # Twice the residual is log 4 more energy, and the mean over 16 cells log 4 / 16.
    values = residuals(1, 2, 16, 16)
    louder = values.copy()
    louder[0, 1, 4:8, 8:12] *= 2  # second row, third column: cell 1 * 4 + 2
    moved = cell_energies(louder, 4, 0) - cell_energies(values, 4, 0)
    expected = np.zeros((1, 2, 16))
    expected[0, 1] = -np.log(4) / 16
    expected[0, 1, 6] += np.log(4)
    assert_allclose(moved, expected, atol=1e-5)


def test_an_empty_residual_has_finite_energies() -> None:
    empty = np.zeros((1, 1, 4, 4), dtype=np.float32)
    assert_allclose(cell_energies(empty, 2, 0), 0, atol=1e-12)
    assert_allclose(octave_energies(empty), np.log(FLOOR))


@pytest.mark.parametrize(
    ("rows", "columns", "octave"),
    [
        (0, 8, 0),  # 8 / 32 = 1/4
        (16, 0, 0),  # the finest there is
        (6, 6, 0),  # |f| = 6 sqrt(2) / 32 = 0.265
        (7, 0, 1),
        (0, 4, 1),  # 1/8
        (3, 3, 1),  # 0.133
        (3, 0, 2),
        (0, 2, 2),  # 1/16
        (1, 0, 3),
        (1, 1, 3),  # 0.044
    ],
)
def test_a_wave_lies_in_its_octave_with_its_power(rows: int, columns: int, octave: int) -> None:
    phase = 2 * np.pi * np.add.outer(rows * np.arange(32), columns * np.arange(32)) / 32
    energy = np.exp(octave_energies(one(0.3 * np.cos(phase)))[0, 0]) - FLOOR
    expected = np.zeros(OCTAVES)
    # Half of the squared amplitude; all of it where the wave is 1, -1, 1, -1 ...
    expected[octave] = 0.09 if 16 in (rows, columns) else 0.045
    assert_allclose(energy, expected, atol=1e-6)


def test_a_constant_is_below_all_octaves() -> None:
    energy = np.exp(octave_energies(one(np.full((9, 12), 0.2)))[0, 0]) - FLOOR
    assert_allclose(energy, [0, 0, 0, 0.04], atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (15, 16), (16, 15), (17, 33), (1, 8), (8, 1)])
def test_octaves_share_out_the_mean_square(size: tuple[int, int]) -> None:
    values = residuals(3, 2, *size)
    energy = np.exp(octave_energies(values)) - FLOOR
    assert energy.shape == (3, 2, OCTAVES)
    assert_allclose(energy.sum(-1), np.square(values).mean((2, 3)), rtol=1e-5)


def test_octaves_know_no_place_and_no_side() -> None:
    values = residuals(2, 2, 16, 16)
    whole = octave_energies(values)
    assert_allclose(octave_energies(np.roll(values, (3, 5), (2, 3))), whole, atol=1e-4)
    assert_allclose(octave_energies(values.swapaxes(2, 3).copy()), whole, atol=1e-4)
    assert_allclose(octave_energies(-values[..., ::-1, :].copy()), whole, atol=1e-4)
