r"""Look-alikes: normal scans to hold beside one that is judged.

Of the normal images :math:`y` that a bundle may show, the one most like an image :math:`x` where
nothing is suspect has the largest correlation over the other pixels :math:`A`:

.. math:: \arg\max_y \frac{\langle x - \bar x, y - \bar y \rangle_A}
                            {\| x - \bar x \|_A \, \| y - \bar y \|_A},

both smoothed first, so that bones and not grains of noise decide. Correlation leaves exposure out.
It looks for the same anatomy, not for the same finding: suspect places have no say.
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
        """Refuse what is no stack of pictures.

        Raises
        ------
        BundleError
        """
        if self.images.ndim != 3 or not len(self.images) or self.images.dtype != np.uint8:
            raise BundleError(
                f"look-alikes are {self.images.dtype} of shape {self.images.shape}: expected uint8 "
                "(N, size, size) with N >= 1"
            )

    @classmethod
    def of(cls, images: NDArray[np.float32]) -> LookAlikes:
        """Keep network images (N, 1, size, size) in [-1, 1]."""
        return cls(np.rint(127.5 * (images[:, 0] + 1)).astype(np.uint8))

    def nearest(self, image: NDArray[np.float32], suspect: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the normal (size, size) uint8 most like an image.

        Parameters
        ----------
        image : ndarray (1, size, size) float32 in [-1, 1]
        suspect : ndarray (size, size) bool
            Pixels that have no say; where all are suspect, all have.
        """
        asked = ~suspect if (~suspect).any() else np.ones_like(suspect)
        target = _standardised(ndimage.gaussian_filter(image[0], SMOOTHING)[asked])
        likeness = _standardised(self._smooth[:, asked]) @ target
        nearest: NDArray[np.uint8] = self.images[int(likeness.argmax())]
        return nearest

    @cached_property
    def _smooth(self) -> NDArray[np.float32]:
        widths = (0, SMOOTHING, SMOOTHING)
        return np.asarray(ndimage.gaussian_filter(self.images.astype(np.float32), widths))


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = values - values.mean(-1, keepdims=True)
    # A blank image is like no other: its likeness is 0.
    length = np.linalg.norm(centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.maximum(length, 1e-12), dtype=np.float32)
