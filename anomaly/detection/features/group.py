"""Feature groups: a name, columns, and their computation from one of three sources.

::

    DrawGroup      a noise draw             once per draw, then averaged over draws
    ScanGroup      images and residual maps once
    EvidenceGroup  the heatmap              once the heatmap model is fitted

To add a group, create an object of one of these classes and register it
(`anomaly.detection.features.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anomaly.detection.features.settings import FeatureSettings
from anomaly.detection.local import Cells
from anomaly.detection.placement import Placement

__all__ = [
    "DrawGroup",
    "EvidenceGroup",
    "FeatureGroup",
    "NoiseDraw",
    "ObservedScans",
    "ScanGroup",
]


@dataclass(frozen=True)
class NoiseDraw:
    """Network outputs for N images under one noise draw.

    Attributes
    ----------
    log_density : Tensor (N, T + 2) float64
        Log density at every noise level, nats.
    noise_norms, noise_errors : Tensor (N, L)
        Mean square of the predicted noise, and of its error, at each of the L levels of
        `FeatureSettings.noise_to_signal`.
    dims : int
        Pixel values per image.
    grey_levels : int
        Grey values of an image, for bits/dim.
    """

    log_density: Tensor
    noise_norms: Tensor
    noise_errors: Tensor
    dims: int
    grey_levels: int


@dataclass(frozen=True)
class ObservedScans:
    """N images with the results of all noise draws.

    Attributes
    ----------
    images : Tensor (N, C, H, W) in [-1, 1]
    grey : ndarray (N, H, W) float32
        Mean over channels.
    grey_levels : int
    residuals : ndarray (N, L, H, W) float32
        Signed residual maps, one per level.
    placement : Placement
        Where the anatomy lies (`anomaly.detection.placement`).
    cells : Cells
        The grid of cells over the images.
    settings : FeatureSettings
    drawn : mapping of str to ndarray (N, F) float64
        Features of the draw groups.
    """

    images: Tensor
    grey: NDArray[np.float32]
    grey_levels: int
    residuals: NDArray[np.float32]
    placement: Placement
    cells: Cells
    settings: FeatureSettings
    drawn: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Common fields of all groups.

    Attributes
    ----------
    name : str
        Name in settings, and prefix of its column names.
    columns : callable
        ``columns(settings)``: names of its F features, in order.
    one_sided : bool
        Whether its features are distances, so that only large values are unusual.
    reported : bool
        Whether tables and reports show its features one by one.
    """

    name: str
    columns: Callable[[FeatureSettings], tuple[str, ...]]
    one_sided: bool = False
    reported: bool = True


@dataclass(frozen=True, kw_only=True)
class DrawGroup(_Group):
    """A group computed for each noise draw; its features are means over the draws.

    Attributes
    ----------
    compute : callable
        ``compute(draw)``: Tensor (N, F).
    """

    compute: Callable[[NoiseDraw], Tensor]


@dataclass(frozen=True, kw_only=True)
class ScanGroup(_Group):
    """A group computed from images and residual maps.

    Attributes
    ----------
    compute : callable
        ``compute(scans)``: ndarray (N, F) float64.
    """

    compute: Callable[[ObservedScans], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class EvidenceGroup(_Group):
    """A group computed from the heatmap.

    Attributes
    ----------
    compute : callable
        ``compute(evidence, blank)``: ndarray (N, F) float64 of maps (N, H, W), positive where a
        scan is brighter than expected and negative where darker, and pixels without evidence.
    """

    compute: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float64]]


FeatureGroup: TypeAlias = DrawGroup | ScanGroup | EvidenceGroup
