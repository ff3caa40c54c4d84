"""Maps by place and by octave: closed forms of a blurred box, waves, sums that must hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.special import ndtr

from anomaly.detection.local import (
    OCTAVES,
    Cells,
    cell_energies,
    image_bands,
    octave_energies,
)
from anomaly.detection.placement import Placement

FLOOR = 1e-7  # added to every energy of an octave before its logarithm
CELL_FLOOR = 1e-4  # and to every energy of a cell


def residuals(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one(map_: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(map_, dtype=np.float32)[None, None]


def cells(
    maps: NDArray[np.floating],
    grid: int,
    border: int = 0,
    shifts: tuple[tuple[float, float], ...] | None = None,
) -> Cells:
    """Weights of a grid that is shifted by pixels, and otherwise lies as in the reference."""
    height, width = maps.shape[-2:]
    placement = Placement.unmoved(len(maps))
    if shifts is not None:
        placement.parameters[:, :2] = np.array(shifts) / (height, width)
    return Cells.of(placement, (height, width), grid, border)


def cell_means(maps: NDArray[np.floating], grid: Cells) -> NDArray[np.float64]:
    return grid.means(maps)


def test_the_weight_of_a_pixel_is_a_blurred_box_by_hand() -> None:
    # 64 pixels in 8 cells of 8, blurred by half a cell: the fourth cell is 24 ... 32, and the
    # centre of pixel p, at p + 0.5, weighs Phi((p + 0.5 - 24) / 4) - Phi((p + 0.5 - 32) / 4). All
    # weights together come to the cell's 8 pixels.
    map_ = np.zeros((64, 64))
    map_[27, 21] = 1
    means = cells(one(map_), 8).means(one(map_)).reshape(8, 8)
    row = (ndtr(3.5 / 4) - ndtr(-4.5 / 4)) / 8
    column = (ndtr(-2.5 / 4) - ndtr(-10.5 / 4)) / 8
    assert means[3, 3] == pytest.approx(row * column, rel=1e-4)
    # The pixel is in the third column of cells, which sees more of it.
    own = (ndtr(5.5 / 4) - ndtr(-2.5 / 4)) / 8
    assert means[3, 2] == pytest.approx(row * own, rel=1e-4)
    assert means.argmax() == 3 * 8 + 2


def test_a_constant_is_its_own_mean_wherever_the_grid_lies() -> None:
    map_ = np.full((2, 3, 16, 24), 0.7, dtype=np.float32)
    weights = cells(map_, 4, 0, ((0.0, 0.0), (-3.0, 20.0)))
    assert_allclose(weights.means(map_), 0.7, rtol=1e-6)


def test_inner_cells_of_a_slope_have_the_value_at_their_centre() -> None:
    # A blurred box is symmetric; cells 2 ... 5 of 8 are two deviations and more from any border.
    rows, columns = np.arange(64) + 0.5, 2 * (np.arange(32) + 0.5)
    slope = one(np.add.outer(rows, columns))
    means = cells(slope, 8, 3).means(slope)
    centres = np.add.outer([28, 36], [28, 36])
    assert_allclose(means[0, 0], centres.ravel(), rtol=1e-4)


def test_the_grid_moves_with_the_anatomy() -> None:
    still_map = residuals(1, 2, 64, 64)
    moved = np.roll(still_map, (3, -5), (2, 3))
    pair = np.concatenate([still_map, moved])
    for function in (cell_means, cell_energies):
        inner = function(pair, cells(pair, 8, 3, ((0.0, 0.0), (3.0, -5.0))))
        assert_allclose(inner[1], inner[0], atol=5e-4)
        unmoved = function(moved, cells(moved, 8, 3))
        assert np.abs(unmoved - inner[0]).max() > 0.01


def test_where_a_cell_leaves_the_frame_the_part_inside_counts() -> None:
    map_ = np.zeros((16, 16))
    map_[:4] = 1  # the first row of cells
    away = cell_means(one(map_), cells(one(map_), 4, 0, ((-4.0, 0.0),))).reshape(4, 4)
    # The first cell lies one cell above the frame: of it only its lower tail, in the first row.
    assert away[0].min() > 0.95
    # The second lies where the first was; its upper tail is cut off, as that of the first would be.
    first = cells(one(map_), 4).means(one(map_)).reshape(4, 4)
    assert_allclose(away[1], first[0])


def test_the_border_is_left_out() -> None:
    values = residuals(2, 3, 16, 24)
    whole = cells(values, 4).means(values).reshape(2, 3, 4, 4)
    inner = cells(values, 4, 1).means(values)
    assert_allclose(inner, whole[:, :, 1:3, 1:3].reshape(2, 3, 4), atol=1e-7)


def test_images_and_levels_are_apart() -> None:
    values = residuals(3, 4, 6, 6)
    for function in (cell_means, cell_energies):
        whole = function(values, cells(values, 3))
        assert whole.shape == (3, 4, 9)
        assert whole.dtype == np.float64
        assert_allclose(
            function(values[1:2, 2:3], cells(values[1:2], 3))[0, 0], whole[1, 2], rtol=1e-5
        )


def test_energies_sum_to_zero_over_the_cells() -> None:
    values = residuals(5, 3, 16, 16)
    energy = cell_energies(values, cells(values, 8, 1))
    assert_allclose(energy.sum(-1), 0, atol=1e-12)
    assert np.abs(energy).max() > 0.1


def test_contrast_does_not_move_energies_far_above_the_floor() -> None:
    values = residuals(2, 3, 16, 16)
    factor = np.array([0.5, 1.0, 7.0], dtype=np.float32)[:, None, None]
    energy, means = (f(values, cells(values, 4)) for f in (cell_energies, cell_means))
    assert_allclose(cell_energies(values * factor, cells(values, 4)), energy, atol=2e-3)
    assert_allclose(
        cells(values, 4).means(values * factor), means * factor[..., 0], rtol=1e-4, atol=1e-6
    )


def test_a_louder_place_moves_its_cell_up_and_the_others_down() -> None:
    # With e the mean squares of the cells and e' those of the louder map, each from `cell_means`.
    values = residuals(1, 2, 32, 32)
    louder = values.copy()
    louder[0, 1, 8:16, 16:24] *= 2  # second row, third column: cell 1 * 4 + 2
    grid = cells(values, 4)
    log = [np.log(grid.means(np.square(v)) + CELL_FLOOR) for v in (values, louder)]
    moved = cell_energies(louder, grid) - cell_energies(values, grid)
    gain = log[1] - log[0]
    assert_allclose(moved, gain - gain.mean(-1, keepdims=True), atol=1e-6)
    assert moved[0, 1].argmax() == 6
    assert moved[0, 1, 15] < 0
    assert_allclose(moved[0, 0], 0, atol=1e-12)


def test_an_empty_map_has_finite_energies() -> None:
    empty = np.zeros((1, 1, 4, 4), dtype=np.float32)
    assert_allclose(cell_energies(empty, cells(empty, 2)), 0, atol=1e-12)
    assert_allclose(octave_energies(empty), np.log(FLOOR))


def test_bands_of_a_wave_are_differences_of_gaussian_gains() -> None:
    # A blur of sigma multiplies a wave of f cycles a pixel by exp(-2 (pi f sigma)^2), away from
    # the borders. The sigmas are 0.75, 1.5 and 3; scipy cuts a blur off at four sigmas, which is
    # worth 1e-3.
    frequency = 4 / 64
    wave = np.cos(2 * np.pi * frequency * np.arange(64))[None, None, :].repeat(64, 1)
    bands = image_bands(wave.astype(np.float32), 3)
    assert bands.shape == (1, 3, 64, 64)
    gains = [1, *(np.exp(-2 * (np.pi * frequency * sigma) ** 2) for sigma in (0.75, 1.5, 3))]
    for k in range(3):
        inner = slice(16, 48)
        expected = (gains[k] - gains[k + 1]) * wave[0, inner, inner]
        assert_allclose(bands[0, k, inner, inner], expected, atol=2e-3)


def test_bands_and_what_is_left_add_up_to_the_image() -> None:
    images = residuals(2, 16, 16)
    # What is left below k bands is what the (k + 1)-th takes from, less that band and what follows.
    four, five = image_bands(images, 4), image_bands(images, 5)
    assert_allclose(five[:, :4], four)
    constant = np.full((1, 8, 8), 0.3, dtype=np.float32)
    assert_allclose(image_bands(constant, 4), 0, atol=1e-6)
    assert_allclose(images - four.sum(1), images - five.sum(1) + five[:, 4], atol=1e-5)


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


def test_weights_follow_scale_and_rotation() -> None:
    # A blob at a place of the reference, and where T takes that place: the same cell sees it best.
    # Scales 1.2 and 0.8 and a quarter turn counter-clockwise: (r, c) -> (-0.8 c, 1.2 r).
    placement = Placement(np.array([[0.0, 0.0, np.log(1.2), np.log(0.8), np.pi / 2]]), np.ones(1))
    map_ = np.zeros((64, 64))
    row, column = 0.5 - 0.8 * (0.3125 - 0.5), 0.5 + 1.2 * (0.6875 - 0.5)
    map_[int(row * 64), int(column * 64)] = 1
    means = cell_means(one(map_), Cells.of(placement, (64, 64), 8, 0)).reshape(8, 8)
    assert means.argmax() == 5 * 8 + 2  # (0.6875, 0.3125) is the middle of cell 5, 2


def test_weights_far_outside_the_frame_are_finite() -> None:
    placement = Placement(np.array([[0.15, -0.15, 0.3, 0.3, 0.25]]), np.ones(1))
    grid = Cells.of(placement, (64, 64), 16, 0)
    flat = np.full((1, 1, 64, 64), 0.3, dtype=np.float32)
    assert_allclose(grid.means(flat), 0.3, rtol=1e-5)
    values = np.random.default_rng(0).normal(size=(1, 256))
    assert grid.spread(values).sum() == pytest.approx(values.sum(), abs=1e-6)
