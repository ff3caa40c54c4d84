"""Random augmentation of framed training images, in its own module so that scoring loads faster."""

from __future__ import annotations

import math

import torch
from monai.transforms import Randomizable, Transform
from torch import Tensor
from torch.nn import functional

from anomaly.data.images.transforms import Augmentation, Preprocessing, network_image

__all__ = ["RandomAugmentation"]


class RandomAugmentation(Randomizable, Transform):
    """MONAI transform from a framed scan to an augmented network image.

    ``(1, 2 size, 2 size)`` in [0, 1] -> ``(1, size, size)`` in [-1, 1]: rotation, zoom per axis,
    shift and gamma, then `network_image`. Its randomness depends only on ``set_random_state``.

    Resampling uses PyTorch: the grids and metadata of MONAI's `RandAffine` take several
    times as long as the interpolation (docs/benchmarks.md).
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        self.augmentation = augmentation
        self.preprocessing = preprocessing

    def __call__(self, framed: Tensor) -> Tensor:
        """Augment one framed scan with the next random draw."""
        # A plain tensor: with a MetaTensor every operation of training would update metadata.
        image = torch.as_tensor(framed).as_subclass(Tensor)
        changes = self.augmentation
        if changes.rotate or changes.zoom or changes.shift:
            image = self._moved(image)
        if changes.gamma:
            image = self._brightened(image)
        return network_image(image, self.preprocessing)

    def _moved(self, image: Tensor) -> Tensor:
        """Rotate, zoom and shift; padding repeats the border."""
        changes = self.augmentation
        angle = math.radians(changes.rotate) * self.R.uniform(-1, 1)
        rows, columns = 1 + changes.zoom * self.R.uniform(-1, 1, 2)
        down, right = 2 * changes.shift * self.R.uniform(-1, 1, 2)  # the grid's side has length 2
        cos, sin = math.cos(angle), math.sin(angle)
        affine = [[columns * cos, -rows * sin, right], [columns * sin, rows * cos, down]]
        grid = functional.affine_grid(
            torch.tensor([affine], dtype=image.dtype), [1, *image.shape], align_corners=False
        )
        return functional.grid_sample(
            image[None], grid, mode="bilinear", padding_mode="border", align_corners=False
        )[0]

    def _brightened(self, image: Tensor) -> Tensor:
        """Apply a gamma within the image's own range."""
        largest = 1 + self.augmentation.gamma
        gamma = self.R.uniform(1 / largest, largest)
        low, high = image.min(), image.max()
        extent = (high - low).clamp_min(1e-7)
        return ((image - low) / extent) ** gamma * extent + low
