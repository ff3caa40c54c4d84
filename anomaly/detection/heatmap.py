r"""Heatmap: residual maps calibrated by place, sign and surroundings, and their extremes.

The signed residuals :math:`r_l` of several levels, each in units of its own size on normals, are
added and smoothed, in a few *channels* :math:`k` of different levels and scales:
:math:`u_k = G_{\sigma_k} * \sum_{l \in k} r_l / \rho_l`. A lesion adds residual of one sign over
its area and at neighbouring levels; the sum and the smoothing keep it and average noise out. The
channels are compared with normal scans *at the same place* :math:`p'` of the anatomy
(`anomaly.detection.placement`), with the rest of the same scan and with the surroundings:

.. math::
    z_k(p) = \frac{u_k(p) - m_k(p')}{d_k(p')}, \qquad
    y_k = \frac{z_k}{\mathrm{median}_q \sqrt{\tfrac1K \sum_j z_j(q)^2}}, \qquad
    q_k = \frac{y_k}{\sqrt{\tfrac12 + \tfrac12\, G_{8\sigma_k} * y_k^2}} .

Dividing by the median removes effects on the whole scan, such as another body or exposure; a
lesion that covers less than half of the scan does not change it. Dividing by the surroundings lets
a small lesion stand out from a quiet place and not from a busy one. The evidence is

.. math::
    e(p) = \max_k \max\Bigl(\frac{q_k(p)}{b_k^+}, \frac{-q_k(p)}{b_k^-}\Bigr),

with :math:`b_k^\pm` the largest value of that sign which one normal scan in a hundred reaches: 1
is as far from normal as that, in either direction, at any scale. Blank places
(`anomaly.data.images.blanks`) and the rim of the frame have no evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from anomaly.detection.blur import blurred
from anomaly.detection.placement import Placement
from anomaly.errors import CalibrationError, ConfigError

__all__ = ["LOCAL_FEATURES", "HeatmapModel", "HeatmapSettings", "MapChannel", "local_features"]

LOCAL_FEATURES = (
    "evidence_mean",
    "evidence_top",
    "evidence_peak",
    "evidence_bright",
    "evidence_dark",
)
"""``evidence_mean`` over the image, ``evidence_top`` over its highest 2 %, ``evidence_peak``;
the largest where the image is brighter, and where it is darker, than expected."""

TOP_SHARE = 0.02

RARE = 0.01
"""Share of normal scans whose largest evidence of a channel and sign is above 1."""

SITE_WEIGHT = 50.0
"""Scans that the fitted mean counts as when it is adapted to a site."""

SURROUNDINGS = 8.0
"""Sigma of the surroundings of a place, in units of the channel's own smoothing."""


@dataclass(frozen=True)
class MapChannel:
    """Levels and scale of one channel.

    Attributes
    ----------
    levels : (float, float)
        Range of ``sigma / alpha`` of the levels whose residuals are added: lower levels show
        texture noise, higher ones differences between patients.
    smoothing : float
        Standard deviation of the Gaussian, network pixels; the size of what is detected best.
    """

    levels: tuple[float, float]
    smoothing: float

    def __post_init__(self) -> None:
        """Refuse empty ranges and negative scales."""
        low, high = self.levels
        if not 0 < low <= high:
            raise ConfigError(
                f"heatmap.channels levels are {self.levels}: expected 0 < lowest <= highest"
            )
        if self.smoothing < 0:
            raise ConfigError(
                f"heatmap.channels smoothing is {self.smoothing}: expected 0 pixels or more"
            )

    def holds(self, ratios: Sequence[float]) -> NDArray[np.bool_]:
        """Return which of the levels belong to the channel."""
        low, high = self.levels
        return np.array([low <= ratio <= high for ratio in ratios], dtype=np.bool_)


@dataclass(frozen=True)
class HeatmapSettings:
    """Settings of the heatmap.

    Attributes
    ----------
    channels : tuple of MapChannel
        The smallest smoothing determines the size of the smallest detectable region.
    rim : float
        Margin without evidence, as a share of the side: collimation and markers, not anatomy.
    """

    channels: tuple[MapChannel, ...] = (
        MapChannel((0.06, 0.5), 1.0),
        MapChannel((0.06, 0.5), 2.0),
        MapChannel((0.25, 2.0), 2.8),
    )
    rim: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an empty list, and a rim that leaves nothing."""
        if not self.channels:
            raise ConfigError("heatmap.channels is empty: expected one or more")
        if not 0 <= self.rim < 0.5:
            raise ConfigError(f"heatmap.rim is {self.rim}: expected a share of the side below 0.5")

    def check_levels(self, ratios: Sequence[float]) -> None:
        """Check that every channel holds one of the levels.

        Raises
        ------
        ConfigError
            If one does not.
        """
        for channel in self.channels:
            if not channel.holds(ratios).any():
                raise ConfigError(
                    f"heatmap.channels levels are {channel.levels}: expected a range that holds "
                    f"one of the levels {tuple(ratios)}"
                )


@dataclass(frozen=True)
class HeatmapModel:
    """Statistics of normal residuals by channel and place.

    Attributes
    ----------
    weights : ndarray (K, L) float32, >= 0
        Weight of every level in a channel: 1 / root mean square of its residuals on normal scans,
        or 0 if the channel does not use it.
    mean, scale : ndarray (K, H, W) float32
        Mean and deviation of a channel over normal scans, at the places of the mean normal image;
        `scale` > 0.
    limits : ndarray (K, 2) float32, > 0
        Largest values, positive and negative, that a share `RARE` of normal scans reaches.
    smoothing : tuple of K float
        As in `MapChannel`.
    rim : float
        As in `HeatmapSettings`.
    """

    weights: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    limits: NDArray[np.float32]
    smoothing: tuple[float, ...]
    rim: float

    @classmethod
    def fit(
        cls,
        residuals: NDArray[np.float32],
        placement: Placement,
        blank: NDArray[np.bool_],
        settings: HeatmapSettings,
        ratios: Sequence[float],
    ) -> HeatmapModel:
        """Fit on normal scans.

        Parameters
        ----------
        residuals : ndarray (N, L, H, W)
        placement : Placement
            Of the N images.
        blank : ndarray (N, H, W) bool
            Pixels without evidence.
        settings : HeatmapSettings
        ratios : sequence of L float
            ``sigma / alpha`` of the levels.

        Raises
        ------
        CalibrationError
            If a level's residuals are the same on all scans: there is no spread to compare with.
        """
        holds = np.stack([channel.holds(ratios) for channel in settings.channels])
        used = residuals[:, holds.any(0)]
        # The computed variance of equal floats is rounding, not zero.
        variance = used.var(0, dtype=np.float64).max((1, 2))
        constant = variance <= 1e-12 * np.square(used).max((0, 2, 3))
        if constant.any():
            raise CalibrationError(
                f"residual maps {np.flatnonzero(constant).tolist()} are the same on all "
                f"{len(residuals)} normal scans: expected different scans to fit the heatmap on"
            )
        size = np.sqrt(np.square(residuals).mean((0, 2, 3), dtype=np.float64))
        weights = np.where(holds, 1 / np.maximum(size, 1e-12), 0).astype(np.float32)
        smoothing = tuple(channel.smoothing for channel in settings.channels)
        channels = _channels(residuals, weights, smoothing)
        aligned = placement.aligned(channels)
        # The variance is smoothed: an estimate from few scans at one pixel is noisy, and one
        # that is too small would give evidence on every new scan.
        variance = blurred(aligned.var(0, dtype=np.float64), 2.0)
        # A border without variation would divide by zero; a hundredth of the mean deviation
        # is far below anything visible.
        scale = np.sqrt(np.maximum(variance, 1e-4 * variance.mean((1, 2), keepdims=True)))
        mean, scale = aligned.mean(0).astype(np.float32), scale.astype(np.float32)
        unit = np.ones((len(holds), 2), dtype=np.float32)
        model = cls(weights, mean, scale, unit, smoothing, settings.rim)
        peaks = _peaks(model._relative(channels, placement, blank))
        return replace(model, limits=_rare(peaks))

    def adapted(
        self,
        residuals: NDArray[np.float32],
        placement: Placement,
        blank: NDArray[np.bool_],
    ) -> HeatmapModel:
        """Return the model with mean and scale moved towards those of M normal scans of a site.

        Parameters as in `signed_evidence`. The mean counts as `SITE_WEIGHT` scans, the variance as
        ten times as many. The limits are kept: how far the rarest normal scans lie from the others
        takes many scans to know.
        """
        channels = _channels(residuals, self.weights, self.smoothing)
        aligned = placement.aligned(channels)
        share = len(aligned) / (len(aligned) + SITE_WEIGHT)
        # Of few scans, only what neighbouring places share is known.
        change = blurred(aligned.mean(0, dtype=np.float64) - self.mean, 2.0)
        mean = (self.mean + share * change).astype(np.float32)
        spread = blurred(np.square(aligned - mean).mean(0, dtype=np.float64), 2.0)
        count = 10 * SITE_WEIGHT
        variance = (count * np.square(self.scale) + len(aligned) * spread) / (count + len(aligned))
        scale = np.sqrt(variance).astype(np.float32)
        return replace(self, mean=mean, scale=scale)

    def signed_evidence(
        self,
        residuals: NDArray[np.float32],
        placement: Placement,
        blank: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Evidence (N, H, W) of residuals (N, L, H, W), with a sign.

        Positive where the image is brighter than expected; 0 on blank pixels (N, H, W).
        """
        channels = _channels(residuals, self.weights, self.smoothing)
        relative = self._relative(channels, placement, blank)
        bright = (relative / self.limits[:, 0, None, None]).max(1)
        dark = (-relative / self.limits[:, 1, None, None]).max(1)
        signed = np.where(bright >= dark, np.maximum(bright, 0), -dark)
        return np.asarray(signed, dtype=np.float32)

    def evidence(
        self,
        residuals: NDArray[np.float32],
        placement: Placement,
        blank: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Evidence (N, H, W) >= 0: the size of `signed_evidence`."""
        return np.asarray(np.abs(self.signed_evidence(residuals, placement, blank)))

    def _relative(
        self, channels: NDArray[np.float32], placement: Placement, blank: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Channels (N, K, H, W) relative to normal scans, the whole scan and the surroundings."""
        visible = ~(blank | _rim(blank.shape[1:], self.rim))
        count = len(self.mean)
        read = placement.in_images(np.concatenate([self.mean, self.scale]))
        z = (channels - read[:, :count]) / read[:, count:]
        size = np.sqrt(np.square(z).mean(1))
        # Normal scans have 0.6 to 0.9; a scan equal to the mean would divide by zero.
        usual = [
            max(float(np.median(own[seen])), 1e-3) if seen.any() else 1.0
            for own, seen in zip(size, visible, strict=True)
        ]
        z /= np.array(usual, dtype=np.float32)[:, None, None, None]
        return _against_surroundings(z, visible, self.smoothing)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return everything but the settings, for saving."""
        return {
            "weights": self.weights,
            "mean": self.mean,
            "scale": self.scale,
            "limits": self.limits,
        }

    @classmethod
    def from_arrays(
        cls, settings: HeatmapSettings, arrays: Mapping[str, NDArray[np.float32]]
    ) -> HeatmapModel:
        """Restore a model from its `arrays`."""
        return cls(
            arrays["weights"],
            arrays["mean"],
            arrays["scale"],
            arrays["limits"],
            tuple(channel.smoothing for channel in settings.channels),
            settings.rim,
        )


def local_features(evidence: NDArray[np.float32], blank: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Logarithms of `LOCAL_FEATURES` of signed evidence (N, H, W): (N, 5) float64.

    Computed over the pixels that are not blank (N, H, W); minus infinity if all are blank. Nothing
    counts as a thousandth.
    """
    rows = []
    for evidence_map, visible in zip(evidence, ~blank, strict=True):
        signed = evidence_map[visible].astype(np.float64) if visible.any() else np.zeros(1)
        values = np.sort(np.abs(signed))
        top = max(1, round(TOP_SHARE * len(values)))
        statistics = (values.mean(), values[-top:].mean(), values[-1], signed.max(), -signed.min())
        # One sign may be missing, or all that is visible lie in the rim.
        rows.append([max(float(value), 1e-3 if visible.any() else 0.0) for value in statistics])
    # Logarithms, because a maximum has a long tail and the detector is Gaussian.
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(rows))


def _rim(shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
    """Pixels (H, W) within a share of the side from the border, in whole pixels rounded down."""
    inside = np.ones(shape, dtype=np.bool_)
    for axis, side in enumerate(shape):
        margin = int(share * side)
        along = (np.arange(side) >= margin) & (np.arange(side) < side - margin)
        inside &= along[:, None] if axis == 0 else along
    return ~inside


def _peaks(relative: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest values of both signs (N, K, 2) of relative channels (N, K, H, W)."""
    return np.stack([relative.max((2, 3)), -relative.min((2, 3))], -1)


def _rare(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Value (K, 2) above which a share `RARE` of peaks (N, K, 2) lies, taken as lognormal.

    A quantile of few scans would be their maximum, and depend on their number. Scans without any
    visible pixel have no peak, and do not count.
    """
    seen = peaks[(peaks != 0).any((1, 2))]
    logs = np.log(np.maximum(seen.astype(np.float64), 1e-3))
    beyond = float(ndtri(1 - RARE)) * logs.std(0)
    return np.asarray(np.exp(logs.mean(0) + beyond), dtype=np.float32)


def _channels(
    residuals: NDArray[np.float32], weights: NDArray[np.float32], smoothing: Sequence[float]
) -> NDArray[np.float32]:
    """Weighted and smoothed sums (N, K, H, W) of residuals (N, L, H, W)."""
    added: NDArray[np.float32] = np.einsum("nlhw,kl->nkhw", residuals, weights)
    return np.stack([blurred(added[:, k], scale) for k, scale in enumerate(smoothing)], 1)


def _against_surroundings(
    relative: NDArray[np.float32], seen: NDArray[np.bool_], smoothing: Sequence[float]
) -> NDArray[np.float32]:
    """Divide channels (N, K, H, W) by the root mean square of their surroundings, half and half."""
    weight = seen.astype(np.float32)
    result = np.empty_like(relative)
    for k, scale in enumerate(smoothing):
        sigma = SURROUNDINGS * max(scale, 0.5)
        # Nothing lies beyond the border.
        around = blurred(np.square(relative[:, k]) * weight, sigma, "constant", reach=3)
        power = around / np.maximum(blurred(weight, sigma, "constant", reach=3), 1e-3)
        result[:, k] = np.where(seen, relative[:, k] / np.sqrt(0.5 + 0.5 * power), 0)
    return result
