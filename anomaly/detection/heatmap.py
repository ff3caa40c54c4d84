r"""Heatmap: residual maps calibrated per pixel, and regions.

The signed residuals :math:`r_l` of several levels, each in units of its own size on normals, are
added, smoothed at several scales and compared with normal scans *at the same place* of
the anatomy, which is displaced by :math:`\delta` pixels in this scan
(`anomaly.detection.placement`):

.. math:: u(p) = \sum_l \frac{r_l(p)}{\rho_l}, \qquad
          z_s(p) = \frac{(G_s * u)(p) - m_s(p - \delta)}{d_s(p - \delta)}, \qquad
          y(p) = \sqrt{\tfrac1S \sum_s z_s(p)^2}, \qquad
          e = \frac{y}{\mathrm{median}\, y},

so the evidence ``e`` is 1 where the deviation equals the scan's median deviation. A
lesion adds residual of one sign over its area and at neighbouring levels; the sum and the smoothing
keep it and average noise out. A smoothing scale of the lesion's own size detects it best, but the
size is not known in advance. Dividing by the median removes effects on the whole scan, such as
another body or exposure, and no lesion that covers less than half of the scan changes the median:
the heatmap localises, the detector decides.
Blank places (`anomaly.data.images.blanks`) have no evidence and are excluded from the median.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomaly.detection.placement import displaced
from anomaly.errors import CalibrationError, ConfigError

__all__ = ["LOCAL_FEATURES", "HeatmapModel", "HeatmapSettings", "local_features"]

LOCAL_FEATURES = ("evidence_mean", "evidence_top", "evidence_peak")
"""``evidence_mean`` over the image, ``evidence_top`` over its highest 2 %, ``evidence_peak``."""

TOP_SHARE = 0.02


@dataclass(frozen=True)
class HeatmapSettings:
    """Settings of the heatmap.

    Attributes
    ----------
    smoothing : tuple of float
        Standard deviations of the Gaussians, network pixels; the smallest determines the size of
        the smallest detectable region.
    """

    smoothing: tuple[float, ...] = (0.7, 1.0, 1.4, 2.8, 4.0)

    def __post_init__(self) -> None:
        """Refuse an empty list and negative scales."""
        if not self.smoothing or any(scale < 0 for scale in self.smoothing):
            raise ConfigError(
                f"heatmap.smoothing is {self.smoothing}: expected one or more scales >= 0 pixels"
            )


@dataclass(frozen=True)
class HeatmapModel:
    """Per-place statistics of normal residuals.

    Attributes
    ----------
    size : ndarray (L,) float32, > 0
        Root mean square of the residuals of each level on normal scans.
    mean, scale : ndarray (S, H, W) float32
        Mean and deviation of the smoothed sums of normal scans, per smoothing scale; `scale` > 0.
    smoothing : tuple of S float
        As in `HeatmapSettings`.
    """

    size: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    smoothing: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        residuals: NDArray[np.float32],
        shifts: NDArray[np.float64],
        settings: HeatmapSettings,
    ) -> HeatmapModel:
        """Fit on the residuals (N, L, H, W) and displacements (N, 2) of normal scans.

        Raises
        ------
        CalibrationError
            If a level's residuals are the same on all scans: there is no spread to compare with.
        """
        # The computed variance of equal floats is rounding, not zero.
        variance = residuals.var(0, dtype=np.float64).max((1, 2))
        constant = variance <= 1e-12 * np.square(residuals).max((0, 2, 3))
        if constant.any():
            raise CalibrationError(
                f"residual maps {np.flatnonzero(constant).tolist()} are the same on all "
                f"{len(residuals)} normal scans: expected different scans to fit the heatmap on"
            )
        size = np.sqrt(np.square(residuals).mean((0, 2, 3), dtype=np.float64)).astype(np.float32)
        means, scales = [], []
        for scale in settings.smoothing:
            smooth = displaced(_smooth(_added(residuals, size), scale), shifts)
            # The variance is smoothed: an estimate from few scans at one pixel is noisy, and one
            # that is too small would give evidence on every new scan.
            variance = _smooth(smooth.var(0, dtype=np.float64), 2.0)
            # A border without variation would divide by zero; a hundredth of the mean deviation
            # is far below anything visible.
            scales.append(np.sqrt(np.maximum(variance, 1e-4 * variance.mean())))
            means.append(smooth.mean(0))
        return cls(
            size,
            np.stack(means).astype(np.float32),
            np.stack(scales).astype(np.float32),
            settings.smoothing,
        )

    def evidence(
        self,
        residuals: NDArray[np.float32],
        shifts: NDArray[np.float64],
        blank: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Return evidence (N, H, W) >= 0 of residuals (N, L, H, W) and displacements (N, 2).

        It is 0 on blank pixels (N, H, W); the median of the others is 1.
        """
        added = _added(residuals, self.size)
        total = np.zeros(added.shape, dtype=np.float32)
        for index, scale in enumerate(self.smoothing):
            aligned = displaced(_smooth(added, scale), shifts)
            total += np.square((aligned - self.mean[index]) / self.scale[index])
        deviation = displaced(np.sqrt(total / len(self.smoothing)), -shifts)
        evidence = np.zeros(added.shape, dtype=np.float32)
        for target, distance, visible in zip(evidence, deviation, ~blank, strict=True):
            if visible.any():
                # Normal scans have 0.6 to 0.9; a scan equal to the mean would divide by zero.
                target[visible] = distance[visible] / max(np.median(distance[visible]), 1e-3)
        return evidence

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return everything but the settings, for saving."""
        return {"size": self.size, "mean": self.mean, "scale": self.scale}

    @classmethod
    def from_arrays(
        cls, settings: HeatmapSettings, arrays: Mapping[str, NDArray[np.float32]]
    ) -> HeatmapModel:
        """Restore a model from its `arrays`."""
        return cls(arrays["size"], arrays["mean"], arrays["scale"], settings.smoothing)


def local_features(evidence: NDArray[np.float32], blank: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logarithms of `LOCAL_FEATURES` of evidence maps (N, H, W): (N, 3) float64.

    Computed over the pixels that are not blank (N, H, W); minus infinity if all are blank.
    """
    rows = []
    for evidence_map, visible in zip(evidence, ~blank, strict=True):
        values = np.sort(evidence_map[visible]).astype(np.float64) if visible.any() else np.zeros(1)
        top = max(1, round(TOP_SHARE * len(values)))
        rows.append((values.mean(), values[-top:].mean(), values[-1]))
    # Logarithms, because a maximum has a long tail and the detector is Gaussian.
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(rows))


def _added(residuals: NDArray[np.float32], size: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum over levels (N, H, W) of residuals (N, L, H, W), each in units of its size (L,)."""
    total: NDArray[np.float32] = np.einsum("nlhw,l->nhw", residuals, 1 / size)
    return total


def _smooth(maps: NDArray[np.floating], sigma: float) -> NDArray[np.floating]:
    """Gaussian blur over the last two axes; the border repeats."""
    widths = (0.0,) * (maps.ndim - 2) + (sigma, sigma)
    return np.asarray(ndimage.gaussian_filter(maps, widths, mode="nearest"))
