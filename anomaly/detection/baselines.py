r"""Baselines: what a reader will want the method compared with, all fitted on normal scans alone.

=============================  ============================================================
``total_variation``            :math:`|v - m| / s` of the mean absolute forward difference v
``total_variation_low``        :math:`(m - v) / s`: only smooth images are abnormal
``pca_reconstruction``         mean squared error of a projection on principal components
``pixel_neighbours``           mean distance to the k nearest training images, 16x16 pixels
``autoencoder_reconstruction`` mean squared error of a convolutional autoencoder
``vae_reconstruction``         the same of a variational one, at the posterior mean
``denoiser_msma``              Mahalanobis distance of the logarithms of
                               :math:`\|\hat\varepsilon\|^2 / d` at eight noise levels
``denoiser_reconstruction``    mean squared error after noising and denoising the image
=============================  ============================================================

The two ``denoiser`` scores share one `PlainDenoiser`: the trunk of `anomaly.cdm.network.Encoder`
with a way back up, told its noise level and trained as any diffusion model, so that what differs
from a classification diffusion model is the classification.

A higher score is more anomalous. Maps are squared differences in units of ``x^2``, uncalibrated:
0 where an image is what the method expects. Every method sees normal scans only, trains for a
number of steps given beforehand and stops for no other reason. Randomness is a function of the
seed; noise for scoring is the same for every image, so a score depends on neither the batch nor
the order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from monai.networks.nets import AutoEncoder, VarAutoEncoder
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.density import clean_estimate
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import stratified_levels
from anomaly.cdm.network import Encoder, EncoderSettings
from anomaly.errors import CalibrationError, ConfigError, NonFiniteLoss, TrainingError

__all__ = [
    "AutoEncoderReconstruction",
    "Baseline",
    "BaselineScores",
    "DenoiserMSMA",
    "DenoiserReconstruction",
    "PCAReconstruction",
    "PixelNeighbours",
    "PlainDenoiser",
    "TotalVariation",
    "default_baselines",
]

SCORING_BATCH = 64

THUMBNAIL = 16
"""Side in pixels of the images that `PixelNeighbours` compares."""

AUTOENCODER_WIDTHS = (16, 32, 64, 128)
"""Channels of both autoencoders; every entry halves the side."""

AUTOENCODER_CODE = 16
"""Channels of the autoencoder's code, on a grid 16 times coarser: 1/16 of the pixel values."""

AUTOENCODER_NORM = ("GROUP", {"num_groups": 4})

VAE_LATENT = 64

VAE_DEVIATION = 0.1
"""Standard deviation of the decoder: what is darker or brighter by less costs little to lose."""

NOISE_TO_SIGNAL = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
"""``sigma / alpha`` of the levels whose score norms `DenoiserMSMA` sees."""

MAP_NOISE_TO_SIGNAL = 0.25
RECONSTRUCTION_NOISE_TO_SIGNAL = 1.0
RECONSTRUCTION_STEPS = 10

Fitted = TypeVar("Fitted")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class BaselineScores:
    """What a baseline says of N images.

    Attributes
    ----------
    scores : ndarray (N,) float64; higher = more anomalous
    maps : ndarray (N, S, S) float32 >= 0, or None where the method makes none
        Squared differences per pixel, in units of ``x^2``.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32] | None


class Baseline(Protocol):
    """A method that learns what is normal and scores images.

    Attributes
    ----------
    name : str
        For tables; unique among `default_baselines`.
    """

    name: str

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Learn from normal scans.

        Parameters
        ----------
        train : Tensor (N, 1, S, S) float32 in [-1, 1]
            For weights; networks are trained on its device.
        validation : Tensor (M, 1, S, S) float32 in [-1, 1]
            Scans that are not in `train`, for statistics on top of the weights.
        seed : int
            The same seed on the same data gives the same scores (bit for bit on a CPU).
        """

    def score(self, images: Tensor) -> BaselineScores:
        """Score images (N, 1, S, S) float32 in [-1, 1], of the side that `fit` saw."""


def default_baselines(
    levels: NoiseLevels, settings: EncoderSettings, *, steps: int, batch_size: int
) -> list[Baseline]:
    """All baselines, cheapest first, in the order of this module's table.

    Parameters
    ----------
    levels : NoiseLevels
    settings : EncoderSettings
        Of the network that is compared with; `PlainDenoiser` takes its trunk.
    steps, batch_size : int
        Budget of every network that is trained: the two autoencoders and the one denoiser.
    """
    denoiser = PlainDenoiser(
        levels,
        widths=settings.widths,
        blocks=settings.blocks,
        patch=settings.patch,
        steps=steps,
        batch_size=batch_size,
    )
    return [
        TotalVariation("two"),
        TotalVariation("low"),
        PCAReconstruction(),
        PixelNeighbours(),
        AutoEncoderReconstruction("autoencoder", steps=steps, batch_size=batch_size),
        AutoEncoderReconstruction("vae", steps=steps, batch_size=batch_size),
        DenoiserMSMA(denoiser),
        DenoiserReconstruction(denoiser),
    ]


class TotalVariation:
    """How rough an image is, compared with normal scans; learns two numbers.

    Parameters
    ----------
    side : {"two", "low"}
        "two": rougher and smoother are both abnormal; "low": smoother alone is.
    """

    def __init__(self, side: Literal["two", "low"] = "two") -> None:
        self.side = side
        self.name = "total_variation" if side == "two" else "total_variation_low"
        self._normal: tuple[float, float] | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Take mean and standard deviation over `validation`; see `Baseline.fit`.

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
        """Distance from the normals' mean, in their standard deviations; no map."""
        mean, scale = _fitted(self._normal, self.name)
        above = (_total_variation(images) - mean) / scale
        return BaselineScores(np.abs(above) if self.side == "two" else -above, None)


def _total_variation(images: Tensor) -> NDArray[np.float64]:
    """Mean absolute difference of neighbours, down and right together: (N,)."""
    _check_images(images)
    wide = images.double()
    steps = [wide.diff(dim=dim).abs().flatten(1) for dim in (2, 3)]
    return np.asarray(torch.cat(steps, 1).mean(1).cpu().numpy())


class PCAReconstruction:
    """Distance from the span of the training images' principal components.

    Parameters
    ----------
    components : int
        At most; fewer where `train` has fewer images or pixels.
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
        """Mean squared difference from the projection; its map."""
        pca: PCA = _fitted(self._pca, self.name)
        pixels = _pixels(images)
        squares = np.square(pixels - pca.inverse_transform(pca.transform(pixels)))
        maps = squares.reshape(len(images), *images.shape[2:]).astype(np.float32)
        return BaselineScores(squares.mean(1), maps)


def _pixels(images: Tensor) -> NDArray[np.float64]:
    _check_images(images)
    return np.asarray(images.flatten(1).double().cpu().numpy())


class PixelNeighbours:
    """Distance to the nearest training images (deep nearest neighbours without the deep part).

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
        """Remember `train`; see `Baseline.fit`."""
        count = min(self.k, len(train))
        self._index = NearestNeighbors(n_neighbors=count).fit(_thumbnails(train))

    def score(self, images: Tensor) -> BaselineScores:
        """Mean Euclidean distance to the k nearest; no map."""
        index: NearestNeighbors = _fitted(self._index, self.name)
        distances, _ = index.kneighbors(_thumbnails(images))
        return BaselineScores(np.asarray(distances.mean(1)), None)


def _thumbnails(images: Tensor) -> NDArray[np.float64]:
    _check_images(images)
    return _pixels(functional.adaptive_avg_pool2d(images.double(), THUMBNAIL))


class AutoEncoderReconstruction:
    r"""Error of a network that must squeeze an image through a narrow code (MONAI).

    - ``autoencoder``: convolutions down to a code of 1/16 of the pixel values, mean squared error.
    - ``vae``: 64 latent numbers, and the negative evidence bound (Kingma & Welling 2014, arXiv
      1312.6114) per pixel, with a decoder of standard deviation :math:`s = 0.1`,

      .. math:: \Big( \frac{\|x - \hat x\|^2}{2 s^2}
                + \mathrm{KL}(q(z | x) \,\|\, N(0, I)) \Big) / d ,

      the minimum of which is that of a beta-VAE with unit variance and beta = s^2 = 0.01. With
      beta = 1 a small image has too few nats to spend, and the latent numbers carry nothing.

    Both have group normalisation. It is of each image by itself, so unlike batch normalisation it
    is the same in training, where codes are drawn, and in scoring at the posterior mean.

    Parameters
    ----------
    kind : {"autoencoder", "vae"}
    steps, batch_size : int
        Adam's, all of them; there is no early stopping.
    learning_rate : float
        Largest; rises over the first 5 % of the steps and falls to 0 along a half cosine.
    """

    def __init__(
        self,
        kind: Literal["autoencoder", "vae"],
        *,
        steps: int,
        batch_size: int,
        learning_rate: float = 2e-3,
    ) -> None:
        self.name = f"{kind}_reconstruction"
        self.kind = kind
        self.budget = _Budget(steps, batch_size, learning_rate)
        self._network: nn.Module | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Train on `train`; see `Baseline.fit`.

        Raises
        ------
        ConfigError
            If the side of the images is not a multiple of 16.
        """
        _check_images(train, multiple=2 ** len(AUTOENCODER_WIDTHS))
        side = train.shape[-1]
        network = _seeded(
            lambda: _Autoencoder() if self.kind == "autoencoder" else _VAE(side), seed
        ).to(train.device)
        _train(network, network.loss, train, self.budget, seed)
        self._network = network

    def score(self, images: Tensor) -> BaselineScores:
        """Mean squared difference from the reconstruction; its map."""
        return _reconstruction_scores(_fitted(self._network, self.name), images)


class _Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = AutoEncoder(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=AUTOENCODER_WIDTHS,
            strides=(2,) * len(AUTOENCODER_WIDTHS),
            inter_channels=[AUTOENCODER_CODE],
            num_inter_units=0,
            norm=AUTOENCODER_NORM,
        )

    def forward(self, x: Tensor) -> Tensor:
        reconstruction: Tensor = self.body(x)
        return reconstruction

    def loss(self, x: Tensor, noise: torch.Generator) -> Tensor:
        return functional.mse_loss(self(x), x)


class _VAE(nn.Module):
    """``forward`` reconstructs from the posterior mean, without drawing."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.body = VarAutoEncoder(
            spatial_dims=2,
            in_shape=(1, side, side),
            out_channels=1,
            latent_size=VAE_LATENT,
            channels=AUTOENCODER_WIDTHS,
            strides=(2,) * len(AUTOENCODER_WIDTHS),
            norm=AUTOENCODER_NORM,
            use_sigmoid=False,
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the posterior, each (B, 64)."""
        mean, log_variance = self.body.encode_forward(x)
        return mean, log_variance

    def decode(self, code: Tensor) -> Tensor:
        image: Tensor = self.body.decode_forward(code, use_sigmoid=False)
        return image

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])

    def loss(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """Negative evidence bound per pixel; see `AutoEncoderReconstruction`."""
        mean, log_variance = self.encode(x)
        # MONAI's own forward draws from the global generator.
        eps = torch.randn(mean.shape, generator=noise).to(mean)
        reconstruction = self.decode(mean + (log_variance / 2).exp() * eps)
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        error = functional.mse_loss(reconstruction, x) / (2 * VAE_DEVIATION**2)
        return error + divergence / x.numel()


class PlainDenoiser:
    r"""A diffusion model's denoiser with the trunk of `Encoder`, trained once for two baselines.

    Trained on the mean squared error of :math:`\varepsilon` over levels 1 to T, drawn uniformly
    and stratified. The two ends teach nothing: at level 0 there is no noise to find, at T + 1
    nothing else.

    Parameters
    ----------
    levels : NoiseLevels
    widths, blocks, patch
        As in `EncoderSettings`.
    steps, batch_size : int
        Adam's, all of them.
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
        self.budget = _Budget(steps, batch_size, learning_rate)
        self._trained: tuple[tuple[int, str], nn.Module] | None = None

    def fit(self, train: Tensor, seed: int) -> nn.Module:
        """Return the denoiser ``(x_t, t) -> eps_hat`` of these images and this seed.

        Trained on the first call; a call with the same images and seed returns the same network.

        Raises
        ------
        ConfigError
            If the side of the images does not fit `patch` and `widths`.
        """
        key = (seed, _fingerprint(train))
        if self._trained is None or self._trained[0] != key:
            self._trained = key, self._train(train, seed)
        return self._trained[1]

    def _train(self, train: Tensor, seed: int) -> nn.Module:
        network = _seeded(lambda: _Denoiser(self.settings, self.levels), seed)
        _check_images(train, multiple=network.stride)
        network.to(train.device)

        def loss(x_0: Tensor, noise: torch.Generator) -> Tensor:
            t = 1 + stratified_levels(len(x_0), self.levels.last - 1, noise).to(x_0.device)
            eps = torch.randn(x_0.shape, generator=noise).to(x_0)
            return functional.mse_loss(network(self.levels.perturb(x_0, t, eps), t), eps)

        _train(network, loss, train, self.budget, seed)
        return network


class _Denoiser(nn.Module):
    r"""``(x_t, t) -> eps_hat``: down with the stages of an `Encoder`, up with those of another.

    The last layer gives :math:`v = \alpha \varepsilon - \sigma x_0` (Salimans & Ho 2022, arXiv
    2202.00512), so that :math:`\hat\varepsilon = \sigma x_t + \alpha v`: the network need not copy
    pure noise from input to output. An `Encoder` has the same in its head.
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

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``eps_hat`` (B, 1, S, S) of images noised to levels ``t`` (B,)."""
        level = self.level(self.embedding[t])
        h = functional.pixel_unshuffle(x_t, self.patch)
        h = self.stem(torch.cat([h, _place(h)], 1))
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
    """Row and column in [-1, 1], the two channels that an `Encoder`'s stem wants: (B, 2, H, W)."""
    axes = [torch.linspace(-1, 1, n, device=h.device, dtype=h.dtype) for n in h.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(h), -1, -1, -1)


class DenoiserMSMA:
    """Size of the estimated noise at several levels, under a density fitted on normals.

    MSMA (Mahmood et al. 2021, arXiv 2010.13132). As theirs, except that images are noised to each
    level before the network sees them, as it was trained, and that the density over the logarithms
    is one Gaussian with Ledoit-Wolf shrinkage, after each is standardised.

    The map is the plain denoiser's residual ``(x_0 - E[x_0 | x_t])^2`` in one step from
    ``sigma / alpha = 0.25``; MSMA itself makes none, and the score is not its mean.

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
        """Train the denoiser unless it is, and fit the density on `validation`.

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
        norms, _ = self._look(network, validation, seed)
        scaler = StandardScaler().fit(np.log(norms))
        density = LedoitWolf().fit(scaler.transform(np.log(norms)))
        self._model = network, seed, scaler, density

    def score(self, images: Tensor) -> BaselineScores:
        """Mahalanobis distance of the logarithms of the score norms; residual map."""
        network, seed, scaler, density = _fitted(self._model, self.name)
        norms, residual = self._look(network, images, seed)
        squares = density.mahalanobis(scaler.transform(np.log(norms)))
        return BaselineScores(np.sqrt(squares), np.square(residual))

    def _ladder(self) -> list[int]:
        # A short schedule has one level near several of the ratios.
        return sorted({self.denoiser.levels.nearest(ratio) for ratio in NOISE_TO_SIGNAL})

    def _look(
        self, network: nn.Module, images: Tensor, seed: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Score norms (N, L), and the signed residual (N, S, S), means over the draws."""
        _check_images(images)

        def look(x_0: Tensor) -> tuple[Tensor, Tensor]:
            streams = [_generator(seed, 1 + draw) for draw in range(self.draws)]
            draws = [self._look_once(network, x_0, stream) for stream in streams]
            norms, residuals = zip(*draws, strict=True)
            return torch.stack(norms).mean(0), torch.stack(residuals).mean(0)

        norms, residual = _batchwise(look, network, images)
        return norms.astype(np.float64), residual

    def _look_once(
        self, network: nn.Module, x_0: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Score norms (B, L) and signed residual (B, S, S) for one draw of the noise."""
        levels = self.denoiser.levels
        shown = levels.nearest(MAP_NOISE_TO_SIGNAL)
        norms, residual = [], torch.zeros_like(x_0)
        for index in self._ladder():
            t = torch.full((len(x_0),), index, device=x_0.device)
            eps = torch.randn(x_0.shape[1:], generator=generator).to(x_0).expand_as(x_0)
            x_t = levels.perturb(x_0, t, eps)
            eps_hat = network(x_t, t)
            norms.append(eps_hat.square().flatten(1).mean(1))
            if index == shown:
                residual = x_0 - clean_estimate(x_t, eps_hat, t, levels)
        return torch.stack(norms, 1), residual[:, 0]


class DenoiserReconstruction:
    """Noise an image to ``sigma / alpha = 1``, denoise it and look at what changed.

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
        """Train the denoiser unless it is; see `Baseline.fit`."""
        self._model = self.denoiser.fit(train, seed), seed

    def score(self, images: Tensor) -> BaselineScores:
        """Mean squared difference from the denoised image; its map."""
        network, seed = _fitted(self._model, self.name)
        eps = torch.randn(images.shape[1:], generator=_generator(seed, 0))
        return _reconstruction_scores(
            network, images, lambda x: self._reconstruct(network, x, eps.to(x).expand_as(x))
        )

    def _reconstruct(self, network: nn.Module, x_0: Tensor, eps: Tensor) -> Tensor:
        levels = self.denoiser.levels
        ladder = _ladder_down(levels.nearest(RECONSTRUCTION_NOISE_TO_SIGNAL), RECONSTRUCTION_STEPS)
        x = levels.perturb(x_0, torch.full((len(x_0),), ladder[0]), eps)
        for start, end in pairwise(ladder):
            t = torch.full((len(x),), start, device=x.device)
            x_hat = clean_estimate(x, network(x, t), t, levels).clamp(-1, 1)
            eps_hat = (x - levels.alpha_at(t, x) * x_hat) / levels.sigma_at(t, x)
            x = levels.perturb(x_hat, torch.full_like(t, end), eps_hat)
        return x


def _ladder_down(top: int, steps: int) -> list[int]:
    """Levels from `top` down to clean, evenly spread over at most `steps` steps."""
    steps = min(steps, top)
    return [round(top * (steps - i) / steps) for i in range(steps + 1)]


@dataclass(frozen=True)
class _Budget:
    """Steps, images a step and the largest learning rate of a training."""

    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        """Refuse a budget that trains nothing."""
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ConfigError(
                f"a baseline's budget is {self.steps} steps of {self.batch_size} images at "
                f"learning rate {self.learning_rate}: expected 1 or more, 1 or more, above 0"
            )

    def share(self, step: int) -> float:
        """Share of the learning rate at a step: a short rise, then a half cosine down to 0."""
        rise = min(1.0, (step + 1) / max(1, self.steps // 20))
        return rise * (1 + math.cos(math.pi * step / self.steps)) / 2


def _train(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    train: Tensor,
    budget: _Budget,
    seed: int,
) -> None:
    """Train in place with Adam; leaves the network in evaluation mode, without gradients."""
    generator = _generator(seed, 0)
    size = min(budget.batch_size, len(train))
    epochs = math.ceil(budget.steps * size / len(train))
    order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(epochs)])
    optimizer = torch.optim.Adam(network.parameters(), lr=budget.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, budget.share)
    network.train()
    for rows in order[: budget.steps * size].split(size):
        error = loss(train[rows.to(train.device)], generator)
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if not torch.isfinite(error):
        raise NonFiniteLoss(f"a baseline's loss is {float(error)} after {budget.steps} steps")
    network.eval().requires_grad_(False)


def _seeded(make: Callable[[], Module], seed: int) -> Module:
    """Build a network whose random weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would reseed the accelerators too, which are not forked here.
        torch.default_generator.manual_seed(seed)
        return make()


def _generator(seed: int, purpose: int) -> torch.Generator:
    """CPU generator; each purpose of a seed has its own stream."""
    return torch.Generator().manual_seed(seed * 1_000_003 + purpose)


def _reconstruction_scores(
    network: nn.Module, images: Tensor, reconstruct: Callable[[Tensor], Tensor] | None = None
) -> BaselineScores:
    """Squared differences from the reconstruction and their means."""
    _check_images(images)
    rebuild = network if reconstruct is None else reconstruct
    (maps,) = _batchwise(lambda x: ((x - rebuild(x)).square()[:, 0],), network, images)
    return BaselineScores(maps.mean((1, 2), dtype=np.float64), maps)


@torch.no_grad()
def _batchwise(
    function: Callable[[Tensor], tuple[Tensor, ...]], network: nn.Module, images: Tensor
) -> tuple[NDArray[np.float32], ...]:
    """Apply a function that gives rows for images, batch by batch, on the network's device."""
    device = next(network.parameters()).device
    parts = [function(part.to(device)) for part in images.split(SCORING_BATCH)]
    return tuple(torch.cat(rows).cpu().numpy() for rows in zip(*parts, strict=True))


def _fingerprint(images: Tensor) -> str:
    values = np.ascontiguousarray(images.detach().cpu().numpy())
    return f"{values.shape} {hashlib.sha256(values.data).hexdigest()}"


def _check_images(images: Tensor, multiple: int = 1) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 1:
        raise ConfigError(f"images for a baseline have shape {shape}: expected (N, 1, S, S)")
    if shape[2] % multiple or shape[3] % multiple:
        raise ConfigError(
            f"images are {shape[2]}x{shape[3]}: this baseline needs sides that are multiples of "
            f"{multiple}"
        )


def _fitted(model: Fitted | None, name: str) -> Fitted:
    if model is None:
        raise TrainingError(f"{name} has learnt nothing yet: call fit before score")
    return model
