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

import logging
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from anomaly.cdm.density import clean_estimate, dequantize, log_density, predict_noise
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.features.settings import FeatureSettings
from anomaly.logs import Public

__all__ = ["NetworkPasses", "PassResults", "Passes", "multiplies_bfloat16"]

log = logging.getLogger(__name__)

PIXELS, HALF_PIXELS = 16 * 64**2, 48 * 64**2
"""Pixels in one pass on a CPU, whose caches hold few; in bfloat16."""

PARITY = 0.03
"""Largest error of residual maps in bfloat16, relative to their own size, at any level."""


class PassResults(NamedTuple):
    """Results for N images under D noise draws.

    Attributes
    ----------
    log_density : Tensor (D, N, T + 2) float64
        Log density of the dequantised image at every noise level, nats; a draw and its negative
        share theirs.
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
    reference : Tensor (C, H, W)
        Mean normal image.
    whole : bool
        Do all noisy images in one pass on a CPU too, as on other devices, for export.
    """

    reference: Tensor
    uniform: Tensor
    noise: Tensor
    t: Tensor

    def __init__(
        self,
        network: nn.Module,
        levels: NoiseLevels,
        settings: FeatureSettings,
        grey_levels: int,
        reference: Tensor,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.levels = levels
        self.grey_levels = grey_levels
        self.whole = whole
        self.precision = settings.precision
        ratios, shape = settings.noise_to_signal, reference.shape
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
        self.register_buffer("reference", reference, persistent=False)
        self.register_buffer("uniform", torch.stack(uniform), persistent=False)
        self.register_buffer("noise", torch.stack(noise), persistent=False)
        self.register_buffer("t", t, persistent=False)

    def forward(self, images: Tensor) -> PassResults:
        """Return the results for images (N, C, H, W) in [-1, 1], quantised."""
        half = self.precision == "bfloat16"
        if self.precision == "auto" and multiplies_bfloat16(images.device):
            half = self._has_parity(images.device)
        return self._compute(images, half=half)

    def _has_parity(self, device: torch.device) -> bool:
        """Whether bfloat16 gives the same residual maps on a device; examined once a network."""
        with _examining:
            known = _has_parity.setdefault(self.network, {})
            key = (device, tuple(self.t.tolist()))
            if key not in known:
                error = self._error_in_bfloat16(device)
                known[key] = error <= PARITY
                log.info(
                    "bfloat16 on this processor: residual maps differ by %.2g of their size; %s",
                    error,
                    Public("it is used" if known[key] else "float32 is used"),
                )
            return known[key]

    def _error_in_bfloat16(self, device: torch.device) -> float:
        """Largest error of a residual map, relative to its size, on noisy mean normal images."""
        noise = torch.randn(self.reference.shape, generator=torch.Generator().manual_seed(0))
        probe = self.reference.cpu() + torch.tensor([0.03, 0.3])[:, None, None, None] * noise
        steps = self.grey_levels - 1
        probe = ((probe.clamp(-1, 1) + 1) / 2 * steps).round() / steps * 2 - 1
        exact, near = (
            self._compute(probe.to(device), half=half).residuals for half in (False, True)
        )
        size = exact.square().mean((2, 3)).sqrt()
        return float(((near - exact).square().mean((2, 3)).sqrt() / size).max())

    @torch.no_grad()
    def _compute(self, images: Tensor, *, half: bool) -> PassResults:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            draws: list[PassResults] = []
            noises = zip(self.uniform.to(images), self.noise.to(images), strict=True)
            for number, (uniform, noise) in enumerate(noises):
                known = draws[-1].log_density if number % 2 else None
                draws.append(self._draw(images, uniform, noise, known))
        density, norms, errors, residuals = (torch.stack(part) for part in zip(*draws, strict=True))
        return PassResults(density, norms, errors, residuals.mean(0))

    def _draw(
        self, images: Tensor, uniform: Tensor, noise: Tensor, density: Tensor | None
    ) -> PassResults:
        """Compute the results of one draw; its log density if it is not known."""
        x_0 = dequantize(images, self.grey_levels, uniform)
        if density is None:
            # In full precision: a likelihood is thousands of nats, and its differences are few.
            with torch.autocast(images.device.type, enabled=False):
                density = self._in_rows(lambda x: log_density(self.network(x), x), x_0)
        # One row per level and image: the network sees no difference.
        many = (len(self.t), *x_0.shape)
        clean = x_0.expand(many).flatten(0, 1)
        eps = noise[:, None].expand(many).flatten(0, 1)
        t = self.t.to(images.device)[:, None].expand(many[:2]).flatten()
        x_t = self.levels.perturb(clean, t, eps)
        eps_hat = self._in_rows(
            lambda x, level: predict_noise(self.network, x, level, self.levels), x_t, t
        )
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

    def _in_rows(self, function: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        """Apply a function to a few rows at a time on a CPU, and to all at once elsewhere."""
        if self.whole or x.device.type != "cpu":
            return function(x, *others)
        pixels = HALF_PIXELS if torch.is_autocast_enabled("cpu") else PIXELS
        rows = max(1, pixels // x[0, 0].numel())
        parts = zip(*(values.split(rows) for values in (x, *others)), strict=True)
        return torch.cat([function(*part) for part in parts])


_examining = Lock()
_has_parity: WeakKeyDictionary[nn.Module, dict[tuple[torch.device, tuple[int, ...]], bool]]
_has_parity = WeakKeyDictionary()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16, which is several times as fast there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = getattr(torch.cpu, "get_capabilities", None)  # of PyTorch 2.9 and later
    return device.type == "cpu" and known is not None and bool(known().get("amx_bf16"))
