r"""Passes of the network over images: log densities and residual maps, for every noise draw.

One pass over the dequantised image gives its log density at every noise level. At each of a few
levels, one pass and one input gradient over the noised image give the predicted noise and

.. math:: r_l = x_0 - E[x_0 \mid x_t],

the residual map, a scaled input gradient of the log density ratio: the signed difference of the
image from the model's expectation.

Noise depends on (seed, draw) and is the same for every image, so a result depends on neither the
batch nor the order. Every second draw is the negative of the one before, so that the first-order
effect of noise on a residual cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anomaly.cdm.density import clean_estimate, dequantize, log_density, predict_noise
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.features.settings import FeatureSettings

__all__ = ["NetworkPasses", "PassResults", "Passes"]

ROWS = 16
"""Noisy images in one pass on a CPU, whose caches hold few."""


class PassResults(NamedTuple):
    """Results for N images under D noise draws.

    Attributes
    ----------
    log_density : Tensor (D, N, T + 2) float64
        Log density of the dequantised image at every noise level, nats.
    noise_norms, noise_errors : Tensor (D, N, L) float32
        Mean square of the predicted noise, and of its error, at each of the L levels of
        `FeatureSettings.noise_to_signal`.
    residuals : Tensor (N, L, H, W) float32
        Residual maps in units of ``x``, averaged over draws and channels.
    """

    log_density: Tensor
    noise_norms: Tensor
    noise_errors: Tensor
    residuals: Tensor


Passes = Callable[[Tensor], PassResults]
"""From images (N, C, H, W) in [-1, 1], quantised; `NetworkPasses`, or an exported model."""


class NetworkPasses(nn.Module):
    """Passes of a network in PyTorch.

    Parameters
    ----------
    network : Module
        In evaluation mode.
    levels : NoiseLevels
    settings : FeatureSettings
    grey_levels : int
        Grey values of the images.
    shape : (int, int, int)
        Channels, height and width of an image.
    rows : int or None
        Noisy images in one pass on a CPU; all if None, and on other devices.
    """

    uniform: Tensor
    noise: Tensor
    t: Tensor

    def __init__(
        self,
        network: nn.Module,
        levels: NoiseLevels,
        settings: FeatureSettings,
        grey_levels: int,
        shape: tuple[int, ...],
        rows: int | None = ROWS,
    ) -> None:
        super().__init__()
        self.network = network
        self.levels = levels
        self.grey_levels = grey_levels
        self.rows = rows
        self.in_bfloat16 = settings.precision == "bfloat16"
        ratios = settings.noise_to_signal
        uniform: list[Tensor] = []
        noise: list[Tensor] = []
        for number in range(settings.draws):
            if number % 2:
                uniform.append(1 - uniform[-1])
                noise.append(-noise[-1])
                continue
            generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number // 2)
            uniform.append(torch.rand(shape, generator=generator))
            noise.append(torch.randn((len(ratios), *shape), generator=generator))
        t = torch.tensor([levels.nearest(ratio) for ratio in ratios])
        self.register_buffer("uniform", torch.stack(uniform), persistent=False)
        self.register_buffer("noise", torch.stack(noise), persistent=False)
        self.register_buffer("t", t, persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> PassResults:
        """Return the results for images (N, C, H, W) in [-1, 1], quantised."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.in_bfloat16):
            draws = [
                self._draw(images, uniform, noise)
                for uniform, noise in zip(
                    self.uniform.to(images), self.noise.to(images), strict=True
                )
            ]
        density, norms, errors, residuals = (torch.stack(part) for part in zip(*draws, strict=True))
        return PassResults(density, norms, errors, residuals.mean(0))

    def _draw(self, images: Tensor, uniform: Tensor, noise: Tensor) -> PassResults:
        """Compute the results of one draw."""
        x_0 = dequantize(images, self.grey_levels, uniform)
        density = log_density(self.network(x_0), x_0)
        # One row per level and image: the network sees no difference.
        many = (len(self.t), *x_0.shape)
        clean = x_0.expand(many).flatten(0, 1)
        eps = noise[:, None].expand(many).flatten(0, 1)
        t = self.t.to(images.device)[:, None].expand(many[:2]).flatten()
        x_t = self.levels.perturb(clean, t, eps)
        eps_hat = self._predict_noise(x_t, t)
        residual = (clean - clean_estimate(x_t, eps_hat, t, self.levels)).mean(1)
        by_level = [
            rows.reshape(*many[:2], *rows.shape[1:]).transpose(0, 1)
            for rows in (
                eps_hat.square().flatten(1).mean(1),
                (eps_hat - eps).square().flatten(1).mean(1),
                residual,
            )
        ]
        return PassResults(density, *by_level)

    def _predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.rows is None or x_t.device.type != "cpu":
            return predict_noise(self.network, x_t, t, self.levels)
        parts = [
            predict_noise(self.network, x, level, self.levels)
            for x, level in zip(x_t.split(self.rows), t.split(self.rows), strict=True)
        ]
        return torch.cat(parts)
