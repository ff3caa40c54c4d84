r"""Whether an image can be what the detector has learned at all.

A file whose PhotometricInterpretation is wrong shows its scan as a negative. That is a fault of the
file and no finding, so it is not judged. A scan is taken for a negative where it correlates with
the mean of the normal scans as a negative does:

.. math:: \mathrm{corr}(x, \bar x_\mathrm{normal}) \le -0.3

On 800 paediatric chest X-rays the least correlation is 0.43 of normals and 0.21 of pneumonia
(exploratory; ``docs/decisions/0011-dicom.md``), so no scan that is the right way round comes near.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEGATIVE", "are_negatives"]

NEGATIVE = -0.3
"""Correlation with the mean normal scan, up to which an image is taken for a negative."""


def are_negatives(images: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Say which images look like negatives of normal scans.

    Parameters
    ----------
    images : ndarray (N, ...) float32
    reference : ndarray (...) float32
        Mean of the normal scans.

    Returns
    -------
    ndarray (N,) bool
        False where image or reference is constant, and so correlates with nothing.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = reference.reshape(-1).astype(np.float64)
    flat, mean = flat - flat.mean(1, keepdims=True), mean - mean.mean()
    size = np.linalg.norm(flat, axis=1) * np.linalg.norm(mean)
    negative: NDArray[np.bool_] = (flat @ mean <= NEGATIVE * size) & (size > 0)
    return negative
