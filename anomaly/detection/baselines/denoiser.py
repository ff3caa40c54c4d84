"""Baselines with a plain diffusion model: score norms at several levels, partial noise."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.density import clean_estimate
from anomaly.cdm.encoder import Encoder, EncoderSettings
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import stratified_levels
from anomaly.detection.baselines.base import (
    BaselineScores,
    Budget,
    batchwise,
    check_images,
    fingerprint,
    fitted,
    reconstruction_scores,
    seeded,
    seeded_generator,
    train_network,
)
from anomaly.errors import CalibrationError, ConfigError

__all__ = ["DenoiserMSMA", "DenoiserReconstruction", "PlainDenoiser"]

NOISE_TO_SIGNAL = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
"""``sigma / alpha`` of the levels whose score norms `DenoiserMSMA` uses."""

MAP_NOISE_TO_SIGNAL = 0.25
RECONSTRUCTION_NOISE_TO_SIGNAL = 1.0
RECONSTRUCTION_STEPS = 10


class PlainDenoiser:
    r"""A diffusion model's denoiser with the trunk of `Encoder`, trained once for two baselines.

    Trained on the mean squared error of :math:`\varepsilon` over levels 1 to T, drawn uniformly
    and stratified. The two end levels are omitted: level 0 has no noise, and level T + 1 only
    noise.

    Parameters
    ----------
    levels : NoiseLevels
    widths, blocks, patch
        As in `EncoderSettings`.
    steps, batch_size : int
        Steps of Adam, and their batch size.
    learning_rate : float
        As in `AutoEncoderReconstruction`.
    """

    def __init__(
        self,
        levels: NoiseLevels,
        *,
        widths: tuple[int, ...],
        blocks: int,
        patch: int,
        steps: int,
        batch_size: int,
        learning_rate: float = 2e-3,
    ) -> None:
        self.levels = levels
        self.settings = EncoderSettings(patch=patch, widths=widths, blocks=blocks)
        self.budget = Budget(steps, batch_size, learning_rate)
        self._trained: tuple[tuple[int, str], nn.Module] | None = None

    def fit(self, train: Tensor, seed: int) -> nn.Module:
        """Return the denoiser ``(x_t, t) -> eps_hat`` trained on these images with this seed.

        It is trained on the first call; a call with the same images and seed returns the same
        network.

        Raises
        ------
        ConfigError
            If the side of the images does not fit `patch` and `widths`.
        """
        key = (seed, fingerprint(train))
        if self._trained is None or self._trained[0] != key:
            self._trained = key, self._train(train, seed)
        return self._trained[1]

    def _train(self, train: Tensor, seed: int) -> nn.Module:
        network = seeded(lambda: _Denoiser(self.settings, self.levels), seed)
        check_images(train, multiple=network.stride)
        network.to(train.device)

        def loss(x_0: Tensor, noise: torch.Generator) -> Tensor:
            t = 1 + stratified_levels(len(x_0), self.levels.last - 1, noise).to(x_0.device)
            eps = torch.randn(x_0.shape, generator=noise).to(x_0)
            return functional.mse_loss(network(self.levels.perturb(x_0, t, eps), t), eps)

        train_network(network, loss, train, self.budget, seed)
        return network


class _Denoiser(nn.Module):
    r"""``(x_t, t) -> eps_hat``, with the stages of one `Encoder` down and of another up.

    The last layer predicts :math:`v = \alpha \varepsilon - \sigma x_0` (Salimans & Ho 2022, arXiv
    2202.00512), so that :math:`\hat\varepsilon = \sigma x_t + \alpha v`: the network need not copy
    pure noise from input to output. The head of an `Encoder` has the same property.
    """

    embedding: Tensor

    def __init__(self, settings: EncoderSettings, levels: NoiseLevels) -> None:
        super().__init__()
        down, up = Encoder(settings, levels), Encoder(settings, levels)
        widths, hidden = settings.widths, 64
        self.levels = levels
        self.patch, self.stride = down.patch, down.stride
        self.stem, self.stages, self.downs = down.stem, down.stages, down.downs
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.merges = nn.ModuleList(nn.Conv2d(2 * fine, fine, 1) for fine in widths[:-1])
        self.up_stages = up.stages[:-1]
        # Smooth coordinates of log(sigma / alpha) and of the level's index.
        self.register_buffer("embedding", down.embedding)
        self.level = nn.Sequential(nn.Linear(down.embedding.shape[1], hidden), nn.SiLU())
        self.shifts = nn.ModuleList(nn.Linear(hidden, width) for width in widths)
        self.up_shifts = nn.ModuleList(nn.Linear(hidden, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], settings.patch**2, 3, padding=1)
        for weights in self.head.parameters():
            nn.init.zeros_(weights)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Parts to examine for dead ones."""
        down = {f"down {i}": stage for i, stage in enumerate(self.stages, start=1)}
        return {**down, **{f"up {i}": stage for i, stage in enumerate(self.up_stages, start=1)}}

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``eps_hat`` (B, 1, S, S) of images noised to levels ``t`` (B,)."""
        level = self.level(self.embedding[t])
        h = functional.pixel_unshuffle(x_t, self.patch)
        h = torch.cat([h, _place(h)], 1).contiguous(memory_format=torch.channels_last)
        h = self.stem(h)
        skips: list[Tensor] = []
        for scale, (stage, shift) in enumerate(zip(self.stages, self.shifts, strict=True)):
            h = self.downs[scale - 1](h) if scale else h
            h = stage(h + shift(level)[:, :, None, None])
            skips.append(h)
        for scale in reversed(range(len(self.ups))):
            h = self.merges[scale](torch.cat([self.ups[scale](h), skips[scale]], 1))
            h = self.up_stages[scale](h + self.up_shifts[scale](level)[:, :, None, None])
        v = functional.pixel_shuffle(self.head(functional.silu(h)), self.patch)
        return self.levels.sigma_at(t, x_t) * x_t + self.levels.alpha_at(t, x_t) * v


def _place(h: Tensor) -> Tensor:
    """Row and column in [-1, 1], the two extra channels of an `Encoder`'s stem: (B, 2, H, W)."""
    axes = [torch.linspace(-1, 1, n, device=h.device, dtype=h.dtype) for n in h.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(h), -1, -1, -1)


class DenoiserMSMA:
    """Density of the norms of the estimated noise at several levels, fitted on normals.

    MSMA (Mahmood et al. 2021, arXiv 2010.13132) with two differences: images are noised to each
    level before the network is applied, as in training, and the density over the standardised
    logarithms is one Gaussian with Ledoit-Wolf shrinkage.

    The map is the plain denoiser's residual ``(x_0 - E[x_0 | x_t])^2`` in one step from
    ``sigma / alpha = 0.25``; MSMA itself has no map, and the score is not the mean of this one.

    Parameters
    ----------
    denoiser : PlainDenoiser
    draws : int
        Noise draws averaged.
    """

    def __init__(self, denoiser: PlainDenoiser, draws: int = 2) -> None:
        if draws < 1:
            raise ConfigError(f"denoiser_msma has {draws} draws: expected 1 or more")
        self.name = "denoiser_msma"
        self.denoiser = denoiser
        self.draws = draws
        self._model: tuple[nn.Module, int, StandardScaler, LedoitWolf] | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Train the denoiser if necessary, and fit the density on `validation`.

        Raises
        ------
        CalibrationError
            If `validation` has fewer than 10 images.
        """
        if len(validation) < 10:
            raise CalibrationError(
                f"{len(validation)} normal scans to fit {self.name} on: expected at least 10"
            )
        network = self.denoiser.fit(train, seed)
        norms, _ = self._observe(network, validation, seed)
        scaler = StandardScaler().fit(np.log(norms))
        density = LedoitWolf().fit(scaler.transform(np.log(norms)))
        self._model = network, seed, scaler, density

    def score(self, images: Tensor) -> BaselineScores:
        """Return the Mahalanobis distance of the log score norms, and the residual map."""
        network, seed, scaler, density = fitted(self._model, self.name)
        norms, residual = self._observe(network, images, seed)
        squares = density.mahalanobis(scaler.transform(np.log(norms)))
        return BaselineScores(np.sqrt(squares), np.square(residual))

    def _norm_levels(self) -> list[int]:
        # In a short schedule the same level may be nearest to several ratios.
        return sorted({self.denoiser.levels.nearest(ratio) for ratio in NOISE_TO_SIGNAL})

    def _observe(
        self, network: nn.Module, images: Tensor, seed: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Score norms (N, L) and signed residual (N, S, S), averaged over the draws."""
        check_images(images)

        def observe_batch(x_0: Tensor) -> tuple[Tensor, Tensor]:
            streams = [seeded_generator(seed, 1 + draw) for draw in range(self.draws)]
            draws = [self._observe_once(network, x_0, stream) for stream in streams]
            norms, residuals = zip(*draws, strict=True)
            return torch.stack(norms).mean(0), torch.stack(residuals).mean(0)

        norms, residual = batchwise(observe_batch, network, images)
        return norms.astype(np.float64), residual

    def _observe_once(
        self, network: nn.Module, x_0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Score norms (B, L) and signed residual (B, S, S) for one noise draw."""
        levels = self.denoiser.levels
        map_level = levels.nearest(MAP_NOISE_TO_SIGNAL)
        norms, residual = [], torch.zeros_like(x_0)
        for index in self._norm_levels():
            t = torch.full((len(x_0),), index, device=x_0.device)
            eps = torch.randn(x_0.shape[1:], generator=generator).to(x_0).expand_as(x_0)
            x_t = levels.perturb(x_0, t, eps)
            eps_hat = network(x_t, t)
            norms.append(eps_hat.square().flatten(1).mean(1))
            if index == map_level:
                residual = x_0 - clean_estimate(x_t, eps_hat, t, levels)
        return torch.stack(norms, 1), residual[:, 0]


class DenoiserReconstruction:
    """Difference of an image from itself after noising to ``sigma / alpha = 1`` and denoising.

    Like AnoDDPM (Wyatt et al. 2022, CVPR workshops) with Gaussian instead of simplex noise, and
    ten deterministic steps (DDIM, Song et al. 2021), evenly spread over the levels.

    Parameters
    ----------
    denoiser : PlainDenoiser
    """

    def __init__(self, denoiser: PlainDenoiser) -> None:
        self.name = "denoiser_reconstruction"
        self.denoiser = denoiser
        self._model: tuple[nn.Module, int] | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Train the denoiser if necessary; see `Baseline.fit`."""
        self._model = self.denoiser.fit(train, seed), seed

    def score(self, images: Tensor) -> BaselineScores:
        """Return the mean squared difference from the denoised image, and its map."""
        network, seed = fitted(self._model, self.name)
        eps = torch.randn(images.shape[1:], generator=seeded_generator(seed, 0))
        return reconstruction_scores(
            network, images, lambda x: self._reconstruct(network, x, eps.to(x).expand_as(x))
        )

    def _reconstruct(self, network: nn.Module, x_0: Tensor, eps: Tensor) -> Tensor:
        levels = self.denoiser.levels
        visited = _levels_down(levels.nearest(RECONSTRUCTION_NOISE_TO_SIGNAL), RECONSTRUCTION_STEPS)
        x = levels.perturb(x_0, torch.full((len(x_0),), visited[0]), eps)
        for start, end in pairwise(visited):
            t = torch.full((len(x),), start, device=x.device)
            x_hat = clean_estimate(x, network(x, t), t, levels).clamp(-1, 1)
            eps_hat = (x - levels.alpha_at(t, x) * x_hat) / levels.sigma_at(t, x)
            x = levels.perturb(x_hat, torch.full_like(t, end), eps_hat)
        return x


def _levels_down(top: int, steps: int) -> list[int]:
    """Levels from `top` down to clean, evenly spread over at most `steps` steps."""
    steps = min(steps, top)
    return [round(top * (steps - i) / steps) for i in range(steps + 1)]
