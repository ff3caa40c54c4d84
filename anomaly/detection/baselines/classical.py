"""Baselines without a network: total variation, principal components, nearest pixels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn import functional

from anomaly.detection.baselines.base import (
    BaselineScores,
    check_images,
    fitted,
)
from anomaly.errors import CalibrationError

__all__ = ["PCAReconstruction", "PixelNeighbours", "TotalVariation"]

THUMBNAIL = 16
"""Side in pixels of the images that `PixelNeighbours` compares."""


class TotalVariation:
    """Roughness of an image compared with normal scans; fits two numbers.

    Parameters
    ----------
    side : {"two", "low"}
        "two": rougher and smoother are both abnormal; "low": only smoother is.
    """

    def __init__(self, side: Literal["two", "low"] = "two") -> None:
        self.side = side
        self.name = "total_variation" if side == "two" else "total_variation_low"
        self._normal: tuple[float, float] | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Compute mean and standard deviation over `validation`; see `Baseline.fit`.

        Raises
        ------
        CalibrationError
            If all images of `validation` are equally rough.
        """
        values = _total_variation(validation)
        mean, scale = float(values.mean()), float(values.std())
        if scale <= 1e-9 * mean:
            raise CalibrationError(
                f"total variation is {mean:g} on all {len(values)} normal scans: expected "
                "different scans"
            )
        self._normal = mean, scale

    def score(self, images: Tensor) -> BaselineScores:
        """Return the distance from the normals' mean in standard deviations; no map."""
        mean, scale = fitted(self._normal, self.name)
        above = (_total_variation(images) - mean) / scale
        return BaselineScores(np.abs(above) if self.side == "two" else -above, None)


def _total_variation(images: Tensor) -> NDArray[np.float64]:
    """Mean absolute difference of vertical and horizontal neighbours: (N,)."""
    check_images(images)
    wide = images.double()
    steps = [wide.diff(dim=dim).abs().flatten(1) for dim in (2, 3)]
    return np.asarray(torch.cat(steps, 1).mean(1).cpu().numpy())


class PCAReconstruction:
    """Distance from the span of the training images' principal components.

    Parameters
    ----------
    components : int
        Largest number; fewer if `train` has fewer images or pixels.
    """

    def __init__(self, components: int = 64) -> None:
        self.name = "pca_reconstruction"
        self.components = components
        self._pca: PCA | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Find the components of `train`; see `Baseline.fit`."""
        pixels = _pixels(train)
        count = min(self.components, *pixels.shape)
        self._pca = PCA(count, random_state=seed).fit(pixels)

    def score(self, images: Tensor) -> BaselineScores:
        """Return the mean squared difference from the projection, and its map."""
        pca: PCA = fitted(self._pca, self.name)
        pixels = _pixels(images)
        squares = np.square(pixels - pca.inverse_transform(pca.transform(pixels)))
        maps = squares.reshape(len(images), *images.shape[2:]).astype(np.float32)
        return BaselineScores(squares.mean(1), maps)


def _pixels(images: Tensor) -> NDArray[np.float64]:
    check_images(images)
    return np.asarray(images.flatten(1).double().cpu().numpy())


class PixelNeighbours:
    """Distance to the nearest training images (like deep nearest neighbours, on plain pixels).

    The mean over the k nearest is the score of DN2 (arXiv 2002.10445), here on 16x16 block means.

    Parameters
    ----------
    k : int
        Neighbours; at most as many as `train` has images.
    """

    def __init__(self, k: int = 5) -> None:
        self.name = "pixel_neighbours"
        self.k = k
        self._index: NearestNeighbors | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Store `train`; see `Baseline.fit`."""
        count = min(self.k, len(train))
        self._index = NearestNeighbors(n_neighbors=count).fit(_thumbnails(train))

    def score(self, images: Tensor) -> BaselineScores:
        """Return the mean Euclidean distance to the k nearest; no map."""
        index: NearestNeighbors = fitted(self._index, self.name)
        distances, _ = index.kneighbors(_thumbnails(images))
        return BaselineScores(np.asarray(distances.mean(1)), None)


def _thumbnails(images: Tensor) -> NDArray[np.float64]:
    check_images(images)
    return _pixels(functional.adaptive_avg_pool2d(images.double(), THUMBNAIL))
