"""Random changes of framed training images, by MONAI; scoring does without, and starts sooner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, RandAdjustContrast, RandAffine, Transform
from torch import Tensor

from anomaly.data.transforms import SUPERSAMPLING, Augmentation, Preprocessing, network_image

__all__ = ["augment"]


class _Finish(Transform):
    """`network_image` as the last step of a MONAI chain."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, framed: Tensor) -> Tensor:
        # Plain: a MetaTensor would drag MONAI's bookkeeping through every operation of training.
        plain = torch.as_tensor(framed).as_subclass(Tensor)
        return network_image(plain, self.preprocessing)


def augment(augmentation: Augmentation, preprocessing: Preprocessing) -> Compose:
    """MONAI chain from a framed scan (1, 2 size, 2 size) to an augmented network image.

    Its randomness is set by ``set_random_state`` alone.
    """
    pixels = augmentation.shift * SUPERSAMPLING * preprocessing.size
    steps: list[Any] = []
    if augmentation.rotate or augmentation.zoom or augmentation.shift:
        steps.append(
            RandAffine(
                prob=1.0,
                rotate_range=np.deg2rad(augmentation.rotate),
                scale_range=(augmentation.zoom, augmentation.zoom),
                translate_range=(pixels, pixels),
                padding_mode="border",
                mode="bilinear",
            )
        )
    if augmentation.gamma:
        gamma = 1 + augmentation.gamma
        steps.append(RandAdjustContrast(prob=1.0, gamma=(1 / gamma, gamma)))
    return Compose([*steps, _Finish(preprocessing)])
