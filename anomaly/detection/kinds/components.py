"""Principal components of unit variance, over which two kinds of density are fitted."""

from __future__ import annotations

import numpy as np

from anomaly.detection.kinds.base import Array

__all__ = ["whitening"]


def whitening(z: Array, components: int) -> Array:
    """Matrix (F, P): ``z @ matrix`` are principal components of unit variance."""
    from sklearn.decomposition import PCA  # a second to import, for fitting alone

    pca = PCA(min(components, z.shape[1], len(z) - 1), svd_solver="full").fit(z)
    # A feature that follows from others leaves a component of rounding errors.
    spread = pca.explained_variance_
    real = spread > 1e-10 * spread[0]
    return np.asarray(pca.components_[real].T / np.sqrt(spread[real]))
