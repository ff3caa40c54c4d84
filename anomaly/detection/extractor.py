"""Feature extraction: features of every group, and residual maps, of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.features.group import DrawGroup, NoiseDraw, ObservedScans, ScanGroup
from anomaly.detection.features.registry import GROUPS
from anomaly.detection.features.settings import FeatureSettings
from anomaly.detection.local import Cells
from anomaly.detection.passes import NetworkPasses, Passes
from anomaly.detection.placement import Placement
from anomaly.detection.registration import register
from anomaly.parallel import in_parallel

__all__ = ["FeatureExtractor", "Observation", "batch_size", "join"]

BATCH_PIXELS = 24 * 64**2
"""Pixels of the images that are observed together."""


@dataclass(frozen=True)
class Observation:
    """Features and residual maps of a set of images.

    Attributes
    ----------
    groups : dict of str to ndarray (N, F) float64
        Features by group, with the columns of `feature_groups`; all except those of the
        heatmap, which need its model.
    residuals : ndarray (N, L, H, W) float32
        Signed residual maps, one per level of `FeatureSettings.noise_to_signal`, in units of ``x``.
    placement : Placement
        Where the anatomy lies (`anomaly.detection.placement`).
    blank : ndarray (N, H, W) bool
        Pixels without evidence (`anomaly.data.images.blanks`).
    cells : Cells or None
        The grid of cells over the images, if it is at hand; it is as large as all maps together.
    """

    groups: dict[str, NDArray[np.float64]]
    residuals: NDArray[np.float32]
    placement: Placement
    blank: NDArray[np.bool_]
    cells: Cells | None = None

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Observation:
        """Return the observation of a subset of the images."""
        groups = {k: v[rows] for k, v in self.groups.items()}
        return Observation(
            groups, self.residuals[rows], self.placement.select(rows), self.blank[rows]
        )


def batch_size(side: int) -> int:
    """Return the number of images with a side of that many pixels that are observed together."""
    return max(1, BATCH_PIXELS // side**2)


def join(parts: list[Observation]) -> Observation:
    """Concatenate observations of several sets of images."""
    return Observation(
        {k: np.concatenate([part.groups[k] for part in parts]) for k in parts[0].groups},
        np.concatenate([part.residuals for part in parts]),
        Placement.join([part.placement for part in parts]),
        np.concatenate([part.blank for part in parts]),
    )


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes observations of images from the passes of a network.

    Attributes
    ----------
    passes : callable
        The network's results for images (`anomaly.detection.passes`).
    settings : FeatureSettings
        With which `passes` was made.
    grey_levels : int
        Grey values of the images.
    reference : Tensor (C, H, W)
        Mean normal image, to which images are registered.
    """

    passes: Passes
    settings: FeatureSettings
    grey_levels: int
    reference: Tensor

    @classmethod
    def of(
        cls,
        network: nn.Module,
        levels: NoiseLevels,
        settings: FeatureSettings,
        grey_levels: int,
        reference: Tensor,
    ) -> FeatureExtractor:
        """Return the extractor of a network in evaluation mode."""
        passes = NetworkPasses(network, levels, settings, grey_levels, reference)
        return cls(passes, settings, grey_levels, reference)

    def __call__(self, images: Tensor, blank: NDArray[np.bool_] | None = None) -> Observation:
        """Compute the observation of images.

        Parameters
        ----------
        images : Tensor (N, C, H, W) in [-1, 1], quantised, on the network's device
        blank : ndarray (N, H, W) bool, optional
            Pixels without evidence; none by default.

        Raises
        ------
        ConfigError
            If images and reference differ in size.
        """
        settings = self.settings
        results = self.passes(images)
        draws = [
            NoiseDraw(density, norms, errors, images[0].numel(), self.grey_levels)
            for density, norms, errors in zip(*results[:-1], strict=True)
        ]
        groups = {
            group.name: torch.stack([group.compute(draw) for draw in draws]).mean(0).cpu().numpy()
            for group in GROUPS.values()
            if isinstance(group, DrawGroup)
        }
        residuals = results.residuals.cpu().numpy()
        grey = images.float().mean(-3).cpu().numpy()  # colour channels share the geometry
        mean = self.reference.float().mean(-3).cpu().numpy()
        placement = register(grey, mean)
        cells = Cells.of(placement, grey.shape[1:], settings.grid, settings.border)
        scans = ObservedScans(
            images, grey, self.grey_levels, residuals, placement, cells, settings, groups
        )
        for group in GROUPS.values():
            if isinstance(group, ScanGroup):
                groups[group.name] = group.compute(scans)
        groups = {name: groups[name] for name in GROUPS if name in groups}
        if blank is None:
            blank = np.zeros(grey.shape, dtype=np.bool_)
        return Observation(groups, residuals, placement, blank, cells)

    def batches(
        self, images: Tensor, blank: NDArray[np.bool_], device: torch.device
    ) -> Iterator[Observation]:
        """Yield the observations of images in batches, in order, computed in parallel on a device.

        Parameters as in a call. The residual maps of all images may not fit in memory.
        """
        size = batch_size(images.shape[-1])
        cuts = range(size, len(blank), size)
        parts = zip(images.split(size), np.split(blank, cuts), strict=True)

        def observe(part: tuple[Tensor, NDArray[np.bool_]]) -> Observation:
            images = part[0].pin_memory() if device.type == "cuda" else part[0]
            return self(images.to(device, non_blocking=True), part[1])

        return (observed for _, observed in in_parallel(observe, parts, device))
