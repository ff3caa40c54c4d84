r"""Look-alikes: normal scans to show beside a scored one.

Of the normal images :math:`y` that a bundle may show, the one most similar to an image :math:`x`
has the largest correlation over the pixels :math:`A` that are not suspect:

.. math:: \arg\max_y \frac{\langle x - \bar x, y - \bar y \rangle_A}
                            {\| x - \bar x \|_A \, \| y - \bar y \|_A},

both smoothed first, so that anatomy and not noise decides. Correlation ignores exposure.
The aim is the same anatomy, not the same finding, so suspect pixels are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.errors import BundleError

__all__ = ["LookAlikes"]

SMOOTHING = 1.5
"""Standard deviation of the Gaussian before images are compared, network pixels."""


@dataclass(frozen=True)
class LookAlikes:
    """Normal images that may be shown.

    Attributes
    ----------
    images : ndarray (N, size, size) uint8
        In the network's frame, black to white.
    """

    images: NDArray[np.uint8]

    def __post_init__(self) -> None:
        """Refuse anything but a stack of pictures.

        Raises
        ------
        BundleError
            If the array has another type or shape.
        """
        if self.images.ndim != 3 or not len(self.images) or self.images.dtype != np.uint8:
            raise BundleError(
                f"look-alikes are {self.images.dtype} of shape {self.images.shape}: expected uint8 "
                "(N, size, size) with N >= 1"
            )

    @classmethod
    def of(cls, images: NDArray[np.float32]) -> LookAlikes:
        """Build look-alikes from network images (N, 1, size, size) in [-1, 1]."""
        return cls(np.rint(127.5 * (images[:, 0] + 1)).astype(np.uint8))

    def nearest(self, image: NDArray[np.float32], suspect: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the normal image (size, size) uint8 most similar to an image.

        Parameters
        ----------
        image : ndarray (1, size, size) float32 in [-1, 1]
        suspect : ndarray (size, size) bool
            Pixels to ignore; if all are suspect, none is ignored.
        """
        compared = ~suspect if (~suspect).any() else np.ones_like(suspect)
        target = _standardised(ndimage.gaussian_filter(image[0], SMOOTHING)[compared])
        correlation = _standardised(self._smooth[:, compared]) @ target
        nearest: NDArray[np.uint8] = self.images[int(correlation.argmax())]
        return nearest

    @cached_property
    def _smooth(self) -> NDArray[np.float32]:
        widths = (0, SMOOTHING, SMOOTHING)
        return np.asarray(ndimage.gaussian_filter(self.images.astype(np.float32), widths))


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = values - values.mean(-1, keepdims=True)
    # The correlation of a blank image is 0.
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.maximum(length, 1e-12), dtype=np.float32)
