"""Registration: moves that are known because the images were moved."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from anomaly.data.synthetic.alterations.image_changes import moved
from anomaly.detection.registration import LARGEST, register, whole_pixel_shifts
from anomaly.errors import ConfigError


def scene(side: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Draw blobs as large as a rib is wide."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    return np.asarray(gaussian_filter(noise, 2, mode="wrap") * 5, dtype=np.float32)


def body(side: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Draw large and small structures, as anatomy has."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    parts = [gaussian_filter(noise, s * side / 64, mode="wrap") * s**2 for s in (2, 4)]
    return np.asarray(sum(parts), dtype=np.float32)


SHIFTS = [(0, 0), (3, 0), (0, -4), (-8, 8), (8, -8), (5, 2)]


@pytest.mark.parametrize("side", [32, 64, 128])
def test_a_whole_pixel_shift_is_found_to_the_pixel(side: int) -> None:
    reference = scene(side)
    reach = side // 8
    shifts = [(r * reach // 8, c * reach // 8) for r, c in SHIFTS]
    images = np.stack([np.roll(reference, shift, (0, 1)) for shift in shifts])
    assert_array_equal(whole_pixel_shifts(images, reference), shifts)


MOVES = [
    ((1.0, 1.0), (0, 0), 0),
    ((1.0, 1.0), (3, -2), 0),
    ((1.1, 1.1), (0, 0), 0),
    ((0.88, 1.0), (0, 0), 0),
    ((1.0, 1.12), (2, 0), 0),
    ((1.0, 1.0), (0, 0), 6),
    ((1.08, 0.92), (-2, 2), -5),
]


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize(("zoom", "shift", "degrees"), MOVES)
def test_a_move_is_found(
    side: int, zoom: tuple[float, float], shift: tuple[int, int], degrees: float
) -> None:
    reference = body(side)
    pixels = (shift[0] * side / 64, shift[1] * side / 64)
    found = register(moved(reference, zoom, pixels, degrees)[None], reference)
    expected = (shift[0] / 64, shift[1] / 64, *np.log(zoom), np.deg2rad(degrees))
    # Unmoved is a little more likely than moved, so that large moves are found a little small.
    assert_allclose(found.parameters[0], expected, atol=0.02)
    assert found.agreement[0] > 0.9


def test_exposure_contrast_and_slow_shading_do_not_move_it() -> None:
    reference = body()
    image = np.roll(reference, (4, -3), (0, 1))
    shading = np.linspace(-3, 3, 64, dtype=np.float32)
    images = np.stack([image, 0.2 * image + 0.5, image + shading])
    found = register(images, reference).parameters
    assert_allclose(found, np.stack([found[0]] * 3), atol=0.01)
    assert_allclose(found[0, :2], (4 / 64, -3 / 64), atol=0.01)


def test_noise_leaves_the_place_of_what_is_shared() -> None:
    reference = body()
    rng = np.random.default_rng(1)
    images = np.stack([moved(reference, (1.1, 1.0), (0, 0), 3)] * 10)
    noisy = (images + rng.normal(size=images.shape) * reference.std()).astype(np.float32)
    found = register(noisy, reference).parameters
    assert_allclose(np.median(found, 0), (0, 0, np.log(1.1), 0, np.deg2rad(3)), atol=0.03)


def test_a_blank_image_stays_within_reach() -> None:
    found = register(np.zeros((1, 64, 64), dtype=np.float32), scene())
    assert np.isfinite(found.parameters).all()
    assert (np.abs(found.parameters[0]) <= LARGEST).all()
    assert found.agreement[0] == 0


def test_an_unlike_image_agrees_less_than_a_like_one() -> None:
    reference = body()
    found = register(np.stack([reference, body(seed=5)]), reference)
    assert found.agreement[0] > 0.999
    assert found.agreement[1] < 0.6


def test_an_image_does_not_depend_on_its_batch() -> None:
    reference = body()
    images = np.stack([moved(body(seed=k), (1.05, 0.95), (1, 1), 2) for k in range(5)])
    whole = register(images, reference)
    for index in range(5):
        alone = register(images[index : index + 1], reference)
        assert_allclose(alone.parameters[0], whole.parameters[index], atol=1e-9)


def test_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"images are \(32, 32\) and the reference \(64, 64\)"):
        register(np.zeros((1, 32, 32), dtype=np.float32), scene())
