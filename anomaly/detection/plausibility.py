r"""Detection of images that the detector cannot score, such as negatives.

A file with a wrong PhotometricInterpretation displays its scan as a negative. That is an error in
the file, not a finding, so the scan is not scored. A scan counts as a negative if its correlation
with the mean of the normal scans is negative:

.. math:: \mathrm{corr}(x, \bar x_\mathrm{normal}) \le -0.3

For 800 paediatric chest X-rays the smallest correlation is 0.43 for normals and 0.21 for pneumonia
(exploratory; ``docs/decisions/0011-dicom.md``), so positives are far from this limit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEGATIVE", "are_negatives"]

NEGATIVE = -0.3
"""Correlation with the mean normal scan up to which an image counts as a negative."""


def are_negatives(images: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which images look like negatives of normal scans.

    Parameters
    ----------
    images : ndarray (N, ...) float32
    reference : ndarray (...) float32
        Mean of the normal scans.

    Returns
    -------
    ndarray (N,) bool
        False if image or reference is constant, since there is no correlation then.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    mean = reference.reshape(-1).astype(np.float64)
    flat, mean = flat - flat.mean(1, keepdims=True), mean - mean.mean()
    size = np.linalg.norm(flat, axis=1) * np.linalg.norm(mean)
    negative: NDArray[np.bool_] = (flat @ mean <= NEGATIVE * size) & (size > 0)
    return negative
