"""Blank places, by hand and through the chain that makes network images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.data.images.blanks import RIM, blank_pixels, empty_border, marks
from anomaly.data.images.transforms import Frame, Preprocessing, frame_scan
from anomaly.types import Scan, ScanIdentity


def framed(pixels: NDArray[np.floating]) -> tuple[torch.Tensor, Frame]:
    """Return pixels that are framed already, with their frame."""
    image = torch.from_numpy(np.asarray(pixels, np.float32))[None]
    return image, Frame(pixels.shape, len(pixels) // 2, "stretch")


def test_black_that_touches_the_border_is_empty_and_black_inside_is_not() -> None:
    image = np.full((16, 16), 0.5)
    image[:, :4] = 0.0  # a collimator on the left
    image[6:10, 8:12] = 0.0  # a black lung inside
    expected = np.zeros((8, 8), bool)
    expected[:, :2] = True
    np.testing.assert_array_equal(empty_border(*framed(image)), expected)


def test_a_pixel_of_the_network_that_shows_anything_is_not_empty() -> None:
    image = np.zeros((8, 8))
    image[3, 3] = 1.0
    expected = np.ones((4, 4), bool)
    expected[1, 1] = False
    np.testing.assert_array_equal(empty_border(*framed(image)), expected)


def test_white_at_the_border_is_an_image() -> None:
    image = np.full((8, 8), 0.3)
    image[:, -2:] = 1.0
    image[4, 4] = 0.0
    assert not empty_border(*framed(image)).any()


def test_noise_of_a_lossy_coding_stays_empty_and_anatomy_does_not() -> None:
    rng = np.random.default_rng(0)
    image = np.full((32, 32), 0.4)
    image[:8] = rng.uniform(0, 2 / 255, (8, 32))
    image[0, 0] = 0.0
    image[8:16] = 0.4
    expected = np.zeros((16, 16), bool)
    expected[:4] = True
    np.testing.assert_array_equal(empty_border(*framed(image)), expected)


@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_it_turns_with_the_image(quarters: int, mirrored: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.where(rng.random((12, 12)) < 0.6, 0.0, 0.7)

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        return np.rot90(array[:, ::-1] if mirrored else array, quarters).copy()

    np.testing.assert_array_equal(
        empty_border(*framed(turn(image))), turn(empty_border(*framed(image)))
    )


def test_padding_to_a_square_is_empty() -> None:
    pixels = np.random.default_rng(0).uniform(0.2, 1.0, (40, 20)).astype(np.float32)
    scan = Scan(pixels, 256, ScanIdentity("", "", "", ""), "PNG", None, "none", "")
    image, frame = frame_scan(scan, Preprocessing(size=16, intensity="full"))
    assert frame.offset == (0, 10)
    expected = np.zeros((16, 16), bool)
    expected[:, :4] = expected[:, 12:] = True
    np.testing.assert_array_equal(empty_border(image, frame), expected)


# ------------------------------------------------------------------ letters and side markers

LETTER_R = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 1], [1, 0, 1]], dtype=bool)


def film(letter_at: tuple[int, int] | None, scale: int = 4) -> NDArray[np.float32]:
    """Return soft anatomy (400, 320) in [0, 1], with a letter of 5 x 3 blocks where asked."""
    noise = np.random.default_rng(0).standard_normal((400, 320))
    soft = ndimage.gaussian_filter(noise, 12)
    image = 0.4 + 0.3 * soft / np.abs(soft).max()
    if letter_at is not None:
        letter = np.kron(LETTER_R, np.ones((scale, scale))) > 0
        row, column = letter_at
        part = image[row : row + letter.shape[0], column : column + letter.shape[1]]
        part[letter] = 1.0
    return np.clip(image, 0, 1).astype(np.float32)


def test_a_letter_near_the_border_is_a_mark_and_its_box_covers_it() -> None:
    found = marks(film((60, 20)))
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert rows[0] <= 60
    assert rows[-1] >= 79
    assert columns[0] <= 20
    assert columns[-1] >= 31
    assert found.sum() <= 24 * 16  # and hardly more
    assert not marks(film(None)).any()


def test_letters_turn_with_the_image_and_do_not_depend_on_exposure() -> None:
    image = film((60, 20))
    np.testing.assert_array_equal(marks(image[:, ::-1].copy()), marks(image)[:, ::-1])
    np.testing.assert_array_equal(marks(0.5 * image + 0.2), marks(image))


def test_what_lies_over_the_anatomy_is_no_mark() -> None:
    """A coin or a clip in the middle of the chest is a finding."""
    assert not marks(film((200, 150))).any()


def test_what_is_soft_or_large_or_a_line_is_no_mark() -> None:
    soft = ndimage.gaussian_filter(film((60, 20)), 4)
    assert not marks(soft.astype(np.float32)).any()
    assert not marks(film((60, 20), scale=12)).any()
    catheter = film(None)
    catheter[60:300, 20:23] = 1.0
    assert not marks(catheter).any()


def blank_of(pixels: NDArray[np.float32], how: Preprocessing) -> NDArray[np.bool_]:
    scan = Scan(pixels, 256, ScanIdentity("", "", "", ""), "PNG", None, "none", "")
    image, frame = frame_scan(scan, how)
    return blank_pixels(pixels, image, frame)


def test_letters_of_larger_images_are_found_as_well() -> None:
    how = Preprocessing(size=40, geometry="stretch")
    image = film((60, 20), scale=5)
    large = np.kron(image, np.ones((4, 4), np.float32))
    found = blank_of(large, how)
    assert found[6:8, 3:4].all()  # rows 60 to 84 and columns 20 to 34, ten by eight a pixel
    assert found[2:38, 2:38].sum() <= 12


@pytest.mark.parametrize("side", [48, 64, 128, 256, 512, 1024])
def test_a_soft_spot_is_no_letter_whatever_the_size_of_the_image(side: int) -> None:
    rows, columns = np.mgrid[:side, :side] / side
    spot = np.exp(-((rows - 0.5) ** 2 + (columns - 0.17) ** 2) / (2 * 0.012**2))
    noise = np.random.default_rng(0).standard_normal((side, side))
    soft = ndimage.gaussian_filter(noise, side / 30)
    plain = (0.4 + 0.3 * soft / np.abs(soft).max()).astype(np.float32)
    how = Preprocessing(size=24, geometry="stretch", intensity="full")
    with_spot = plain + (0.3 * spot).astype(np.float32)
    np.testing.assert_array_equal(blank_of(with_spot, how), blank_of(plain, how))


@pytest.mark.parametrize("shape", [(96, 72), (100, 81), (50, 47), (64, 64), (72, 96)])
def test_the_rim_has_no_evidence_at_the_seam_of_padding(shape: tuple[int, int]) -> None:
    """Whatever the map, the outermost source pixels get half of its height at most."""
    pixels = np.random.default_rng(0).uniform(0.4, 1.0, shape).astype(np.float32)
    how = Preprocessing(size=64, intensity="full")
    frame = Frame(shape, how.size, how.geometry)
    evidence = frame.to_source((~blank_of(pixels, how)).astype(np.float32))
    assert max(evidence[0].max(), evidence[-1].max()) < 0.5
    assert max(evidence[:, 0].max(), evidence[:, -1].max()) < 0.5
    assert evidence[5:-5, 5:-5].min() > 0.999


def test_a_grey_collimator_is_empty_beside_black_padding() -> None:
    pixels = np.full((64, 32), 0.6, np.float32)
    pixels[:16] = 0.05
    pixels[40, 16] = 1.0
    how = Preprocessing(size=32, intensity="full")
    assert blank_of(pixels, how)[:7].all()
    assert not blank_of(pixels, how)[9:30, 9:23].any()


@pytest.mark.parametrize("shape", [(1, 50), (3, 500), (50, 1), (9, 9)])
@pytest.mark.parametrize("geometry", ["pad", "stretch"])
def test_thin_images_have_blank_places_too(shape: tuple[int, int], geometry: str) -> None:
    pixels = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    how = Preprocessing(size=16, geometry=geometry, intensity="full")  # type: ignore[arg-type]
    assert blank_of(pixels, how).shape == (16, 16)


def test_blank_are_rim_marks_and_empty_borders_together() -> None:
    image = film((60, 40))
    image[:, 256:] = 0.0  # a collimator on the right
    # 400 x 320 on 20 x 20: twenty rows and sixteen columns a pixel. The rim is 12 rows and 10
    # columns wide, most of a pixel; column 16 is mixed with the one before by antialiasing.
    assert (round(RIM * 400), round(RIM * 320)) == (12, 10)
    expected = np.zeros((20, 20), bool)
    expected[0] = expected[-1] = True
    expected[:, 0] = expected[:, 17:] = True
    expected[3, 2:4] = True
    np.testing.assert_array_equal(
        blank_of(image, Preprocessing(size=20, geometry="stretch")), expected
    )


def test_a_constant_image_has_no_marks() -> None:
    assert not marks(np.full((40, 30), 0.5, np.float32)).any()
