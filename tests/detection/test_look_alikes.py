"""Look-alikes: known answers, and what must not change the choice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.detection.look_alikes import LookAlikes
from anomaly.errors import BundleError

NOWHERE = np.zeros((24, 24), bool)


def anatomies(count: int, seed: int) -> NDArray[np.float32]:
    """Smooth images (count, 1, 24, 24) in [-1, 1]."""
    noise = np.random.default_rng(seed).standard_normal((count, 1, 24, 24))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3))
    return (0.9 * smooth / np.abs(smooth).max()).astype(np.float32)


def test_images_are_kept_as_grey_values() -> None:
    image = np.array([[[[-1.0, 0.0], [1.0, 0.5]]]], np.float32)
    np.testing.assert_array_equal(LookAlikes.of(image).images, [[[0, 128], [255, 191]]])


def test_each_image_is_most_like_itself_whatever_its_exposure() -> None:
    images = anatomies(12, 0)
    known = LookAlikes.of(images)
    for index, image in enumerate(images):
        np.testing.assert_array_equal(known.nearest(image, NOWHERE), known.images[index])
        np.testing.assert_array_equal(
            known.nearest(0.4 * image - 0.3, NOWHERE), known.images[index]
        )


def test_suspect_places_have_no_say() -> None:
    images = anatomies(12, 1)
    known = LookAlikes.of(images)
    suspect = NOWHERE.copy()
    suspect[:, :12] = True
    # The left half of one, the right half of another: where the left is suspect, the other wins.
    patchwork = images[3].copy()
    patchwork[:, :, 8:] = images[7][:, :, 8:]
    np.testing.assert_array_equal(known.nearest(patchwork, suspect), known.images[7])
    np.testing.assert_array_equal(known.nearest(patchwork, suspect[:, ::-1]), known.images[3])


def test_where_all_is_suspect_all_has_a_say() -> None:
    images = anatomies(4, 2)
    known = LookAlikes.of(images)
    np.testing.assert_array_equal(known.nearest(images[2], ~NOWHERE), known.images[2])


def test_a_blank_normal_is_never_chosen_over_one_that_is_alike() -> None:
    images = anatomies(2, 3)
    images[0] = 0
    known = LookAlikes.of(images)
    np.testing.assert_array_equal(known.nearest(images[1], NOWHERE), known.images[1])


@pytest.mark.parametrize(
    "images", [np.zeros((0, 4, 4), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4))]
)
def test_what_is_no_stack_of_pictures_is_refused(images: NDArray[np.generic]) -> None:
    with pytest.raises(BundleError, match="expected uint8"):
        LookAlikes(images)  # type: ignore[arg-type]
