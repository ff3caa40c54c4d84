"""Principal components of unit variance, over which two kinds of density are fitted."""

from __future__ import annotations

import numpy as np

from anomaly.detection.kinds.base import Array

__all__ = ["whitening"]


def whitening(z: Array, components: int) -> Array:
    """Matrix (F, P): ``z @ matrix`` are principal components of unit variance."""
    from sklearn.decomposition import PCA  # takes a second to import; needed only for fitting

    pca = PCA(min(components, z.shape[1], len(z) - 1), svd_solver="full").fit(z)
    # A feature that depends on others leaves a component of rounding errors.
    variances = pca.explained_variance_
    kept = variances > 1e-10 * variances[0]
    return np.asarray(pca.components_[kept].T / np.sqrt(variances[kept]))
