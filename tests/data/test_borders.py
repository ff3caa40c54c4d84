"""Empty borders, by hand and through the chain that makes network images."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.data.borders import TOLERANCE, empty_border
from anomaly.data.transforms import Preprocessing, frame_scan
from anomaly.types import Scan, ScanIdentity


def framed(pixels: NDArray[np.floating]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(pixels, np.float32))[None]


def test_black_that_touches_the_border_is_empty_and_black_inside_is_not() -> None:
    image = np.full((16, 16), 0.5)
    image[:, :4] = 0.0  # a collimator on the left
    image[6:10, 8:12] = 0.0  # a black lung inside
    expected = np.zeros((8, 8), bool)
    expected[:, :2] = True
    np.testing.assert_array_equal(empty_border(framed(image)), expected)


def test_a_pixel_of_the_network_that_shows_anything_is_not_empty() -> None:
    image = np.zeros((8, 8))
    image[3, 3] = 1.0
    expected = np.ones((4, 4), bool)
    expected[1, 1] = False
    np.testing.assert_array_equal(empty_border(framed(image)), expected)


def test_white_at_the_border_is_an_image() -> None:
    image = np.full((8, 8), 0.3)
    image[:, -2:] = 1.0
    image[4, 4] = 0.0
    assert not empty_border(framed(image)).any()


def test_noise_of_a_lossy_coding_stays_empty_and_anatomy_does_not() -> None:
    rng = np.random.default_rng(0)
    image = np.full((32, 32), 0.4)
    image[:8] = rng.uniform(0, TOLERANCE, (8, 32))
    image[0, 0] = 0.0
    image[8:16] = 0.4
    expected = np.zeros((16, 16), bool)
    expected[:4] = True
    np.testing.assert_array_equal(empty_border(framed(image)), expected)


@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_it_turns_with_the_image(quarters: int, mirrored: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((12, 12)) < 0.6, 0.0, 0.7)

    def turn(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.rot90(array[:, ::-1] if mirrored else array, quarters).copy()

    np.testing.assert_array_equal(
        empty_border(framed(turn(image))), turn(empty_border(framed(image)))
    )


def test_padding_to_a_square_is_empty() -> None:
    pixels = np.random.default_rng(0).uniform(0.2, 1.0, (40, 20)).astype(np.float32)
    scan = Scan(pixels, 256, ScanIdentity("", "", "", ""), "PNG", None, "unknown", "")
    image, frame = frame_scan(scan, Preprocessing(size=16, intensity="full"))
    assert frame.offset == (0, 10)
    expected = np.zeros((16, 16), bool)
    # Columns 3 and 12 are padding that antialiasing mixes with the image beside it.
    expected[:, :3] = expected[:, 13:] = True
    np.testing.assert_array_equal(empty_border(image), expected)
