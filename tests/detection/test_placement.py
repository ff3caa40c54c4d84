"""Placement: shifts that are known because the images were shifted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anomaly.detection.placement import displaced, displacements
from anomaly.errors import ConfigError


def scene(side: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Draw blobs as large as a rib is wide."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    return np.asarray(gaussian_filter(noise, 2, mode="wrap") * 5, dtype=np.float32)


SHIFTS = [(0, 0), (3, 0), (0, -4), (-8, 8), (8, -8), (5, 2)]


@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_shift_is_found_to_the_pixel(side: int) -> None:
    reference = scene(side)
    reach = side // 8
    shifts = [(r * reach // 8, c * reach // 8) for r, c in SHIFTS]
    images = np.stack([np.roll(reference, shift, (0, 1)) for shift in shifts])
    assert_array_equal(displacements(images, reference), shifts)


def test_exposure_contrast_and_slow_shading_do_not_move_it() -> None:
    reference = scene()
    moved = np.roll(reference, (4, -3), (0, 1))
    shading = np.linspace(-3, 3, 64, dtype=np.float32)
    images = np.stack([moved, 0.2 * moved + 0.5, moved + shading, moved + shading[:, None] ** 2])
    assert_array_equal(displacements(images, reference), [[4, -3]] * 4)


def test_noise_and_another_patient_leave_the_shift_of_what_is_shared() -> None:
    reference = scene()
    rng = np.random.default_rng(1)
    images = np.stack([np.roll(reference, (-6, 5), (0, 1)) for _ in range(20)])
    others = images + scene(seed=2) * 0.7 + rng.normal(size=images.shape) * 0.3
    found = displacements(others.astype(np.float32), reference)
    assert_array_equal(found, [[-6, 5]] * 20)


def test_a_frame_that_is_not_square() -> None:
    reference = scene()[:, :32]
    image = np.roll(reference, (7, -3), (0, 1))[None]
    assert_array_equal(displacements(image, reference), [[7, -3]])


def test_a_blank_image_has_some_finite_shift_within_reach() -> None:
    found = displacements(np.zeros((1, 64, 64), dtype=np.float32), scene())
    assert found.shape == (1, 2)
    assert np.abs(found).max() <= 8


def test_an_image_does_not_depend_on_its_batch() -> None:
    reference = scene()
    images = np.stack([scene(seed=k) for k in range(5)])
    whole = displacements(images, reference)
    assert_array_equal(whole, np.concatenate([displacements(i[None], reference) for i in images]))


def test_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images are \(32, 32\) and the reference \(64, 64\)"):
        displacements(np.zeros((1, 32, 32), dtype=np.float32), scene())


def test_maps_are_read_where_the_anatomy_lies_and_brought_back() -> None:
    map_ = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    # Rows 0 ... 3 are read at 1 ... 4, of which the last repeats; columns at -2 ... 2.
    expected = map_[0][[1, 2, 3, 3]][:, [0, 0, 0, 1, 2]]
    assert_array_equal(displaced(map_, np.array([[1.0, -2.0]]))[0], expected)
    maps = np.stack([scene(), scene(seed=1)])
    shifts = np.array([[3.0, -5.0], [0.0, 8.0]])
    again = displaced(displaced(maps, shifts), -shifts)
    assert_array_equal(again[:, 8:-8, 8:-8], maps[:, 8:-8, 8:-8])
    assert_array_equal(displaced(maps[:, None], shifts)[:, 0], displaced(maps, shifts))


def test_displaced_images_lie_as_the_reference_does() -> None:
    reference = scene()
    images = np.stack([np.roll(reference, shift, (0, 1)) for shift in ((5, -2), (-7, 0))])
    aligned = displaced(images, displacements(images, reference))
    assert_array_equal(aligned[:, 8:-8, 8:-8], np.stack([reference] * 2)[:, 8:-8, 8:-8])
