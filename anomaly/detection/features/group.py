"""A feature group: a name, its columns, and how they are computed from one of three sources.

::

    DrawGroup      a noise draw             once a draw, then averaged over draws
    ScanGroup      images and residual maps once
    EvidenceGroup  the heatmap              once the heatmap model is fitted

To add one, make an object of one of these and register it (`anomaly.detection.features.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anomaly.detection.features.settings import FeatureSettings

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
    """What the network makes of N images under one draw of noise.

    Attributes
    ----------
    log_density : Tensor (N, T + 1)
        Log density at every noise level, nats.
    log_posterior : Tensor (N, T + 1) float64
        Log probability of every level, given the image.
    noise_norms, noise_errors : Tensor (N, L)
        Mean square of the predicted noise, and of its error, at each of the L levels of
        `FeatureSettings.noise_to_signal`.
    dims : int
        Values of an image.
    grey_levels : int
        Grey values of an image, for bits/dim.
    last_level : int
        T.
    """

    log_density: Tensor
    log_posterior: Tensor
    noise_norms: Tensor
    noise_errors: Tensor
    dims: int
    grey_levels: int
    last_level: int


@dataclass(frozen=True)
class ObservedScans:
    """N images, and what is known of them once all noise draws are done.

    Attributes
    ----------
    images : Tensor (N, C, H, W) in [-1, 1]
    grey : ndarray (N, H, W) float32
        Mean over channels.
    grey_levels : int
    residuals : ndarray (N, L, H, W) float32
        Signed residual maps, one a level.
    shifts : ndarray (N, 2) float64
        Where the anatomy lies (`anomaly.detection.placement.displacements`).
    settings : FeatureSettings
    drawn : mapping of str to ndarray (N, F) float64
        Features of the draw groups.
    """

    images: Tensor
    grey: NDArray[np.float32]
    grey_levels: int
    residuals: NDArray[np.float32]
    shifts: NDArray[np.float64]
    settings: FeatureSettings
    drawn: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class _Group:
    """What every group has.

    Attributes
    ----------
    name : str
        By which settings name it; begins the names of its columns.
    columns : callable
        ``columns(settings)``: names of its F features, in order.
    one_sided : bool
        Its features are distances already: only large values are unusual.
    reported : bool
        They stand in tables and reports, one by one.
    """

    name: str
    columns: Callable[[FeatureSettings], tuple[str, ...]]
    one_sided: bool = False
    reported: bool = True


@dataclass(frozen=True, kw_only=True)
class DrawGroup(_Group):
    """A group that each draw of noise gives anew; its features are means over the draws.

    Attributes
    ----------
    compute : callable
        ``compute(draw)``: Tensor (N, F).
    """

    compute: Callable[[NoiseDraw], Tensor]


@dataclass(frozen=True, kw_only=True)
class ScanGroup(_Group):
    """A group of images and residual maps.

    Attributes
    ----------
    compute : callable
        ``compute(scans)``: ndarray (N, F) float64.
    """

    compute: Callable[[ObservedScans], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class EvidenceGroup(_Group):
    """A group of the heatmap.

    Attributes
    ----------
    compute : callable
        ``compute(evidence, blank)``: ndarray (N, F) float64 of maps (N, H, W) and pixels without
        evidence.
    """

    compute: Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float64]]


FeatureGroup: TypeAlias = DrawGroup | ScanGroup | EvidenceGroup
