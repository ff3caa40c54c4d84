r"""Noise-level classifiers: ``(B, C, H, W) -> logits (B, T + 2)``. They see ``x_t``, never ``t``.

- `Encoder` (the default): residual convolutions going down in resolution; at every scale features
  of every place are *summed* over the image, and level ``t`` reads the sums with its own weights,

  .. math:: f(x)_t = \frac{1 - \sigma_t^2}{\sigma_t} \, w_t \cdot S(x) + \sqrt{d}\, b_t .

  A log density is a sum over the image. Its gradient grows as :math:`1/\sigma_t` where noise is
  low, and its difference from pure noise's fades as :math:`1 - \sigma_t^2` where noise is high
  (for centred data: `anomaly.cdm.gaussian` near sigma = 1): the head has both built in. There is no
  decoder; the input gradient runs the encoder backwards and is one. Features of every scale but
  the finest are brought to a root mean square of 1 over the channels of every place, and what is
  summed is never flat: without these the coarse scales die within a few hundred steps
  (docs/decisions/0014-live-network.md).
- `PaperUNet`: the paper's DDPM U-Net without time embedding, mean-pooled, cumulative-sum head.
- `LevelClassifier`: either of them, with an intercept for every level, and optionally on top of a
  closed-form Gaussian classifier, so that the network learns what the mean image and the power
  spectrum do not already say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.errors import ConfigError

__all__ = [
    "Encoder",
    "EncoderSettings",
    "LevelClassifier",
    "NetworkSettings",
    "PaperUNet",
    "UNetSettings",
    "build_network",
]


@dataclass(frozen=True)
class EncoderSettings:
    """Shape of an `Encoder`.

    Attributes
    ----------
    channels : int
        Of the image, 1 or 3.
    patch : int
        Side of the pixel block that becomes one position of the first feature map.
    widths : tuple of int
        Feature channels, one entry a resolution; each next one has half the side.
    blocks : int
        Residual blocks a resolution.
    features : int
        Features summed over the image, a resolution.
    normalize : bool
        Bring features of all scales but the finest to a root mean square of 1 at every place, and
        sum what is never flat. False is the network of bundles up to format 5, whose coarse scales
        die in training.
    spectral_base : bool
        Start from the mean and the power spectrum of the training images (`LevelClassifier`).
    """

    kind: Literal["encoder"] = "encoder"
    channels: int = 1
    patch: int = 2
    widths: tuple[int, ...] = (32, 48, 64)
    blocks: int = 1
    features: int = 32
    normalize: bool = True
    spectral_base: bool = True

    def __post_init__(self) -> None:
        """Refuse what has no place, no channel or no layer."""
        _refuse_less(self, "channels", "patch", "widths", "blocks", "features")

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this."""
        return self.patch << (len(self.widths) - 1)


@dataclass(frozen=True)
class UNetSettings:
    """Shape of a `PaperUNet`; the defaults are the paper's for 32x32 images.

    Attributes
    ----------
    channels : int
        Of the image, 1 or 3.
    widths : tuple of int
        Feature channels, one entry a resolution, from the full one.
    blocks : int
        Residual blocks a resolution.
    attention_stride : int
        Attention where the feature map is this much smaller than the image; the paper's 16x16
        is 2 for 32x32 images, 4 for 64x64.
    dropout : float
    spectral_base : bool
        As in `EncoderSettings`; not in the paper.
    """

    kind: Literal["unet"] = "unet"
    channels: int = 1
    widths: tuple[int, ...] = (128, 256, 256, 256)
    blocks: int = 2
    attention_stride: int = 2
    dropout: float = 0.1
    spectral_base: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no place, no channel or no layer."""
        _refuse_less(self, "channels", "widths", "blocks", "attention_stride")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network.dropout is {self.dropout}: expected a share below 1")

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this."""
        return 1 << (len(self.widths) - 1)


def _refuse_less(settings: EncoderSettings | UNetSettings, *names: str) -> None:
    """Refuse counts below 1, and lists of none."""
    for name in names:
        value = getattr(settings, name)
        if not value or min(value if isinstance(value, tuple | list) else [value]) < 1:
            raise ConfigError(f"network.{name} is {value}: expected 1 or more")


NetworkSettings = EncoderSettings | UNetSettings

READ_SLOPE = 0.1
"""Weight of the linear part of what an `Encoder` sums: the slope far below zero."""

_ENDS = 2
"""Last columns of the level embedding, which mark clean images and pure noise."""


def build_network(settings: NetworkSettings, levels: NoiseLevels) -> Encoder | PaperUNet:
    """Build the network that the settings describe, with random weights, without its base."""
    if isinstance(settings, EncoderSettings):
        return Encoder(settings, levels)
    return PaperUNet(settings, levels)


class LevelClassifier(nn.Module):
    """A network, the closed-form classifier it corrects if any, and an intercept for every level.

    Parameters
    ----------
    network : Encoder or PaperUNet
    base : CosineGaussianCDM, optional
        Fixed; computed in float32 whatever the autocast, since its logits span thousands of nats.

    Attributes
    ----------
    intercept : Tensor (T + 2,) float32
        Added to the logits; zero until `anomaly.cdm.intercepts.fit_intercepts`.
    """

    intercept: Tensor

    def __init__(self, network: Encoder | PaperUNet, base: CosineGaussianCDM | None = None) -> None:
        super().__init__()
        self.network = network
        self.base = base
        self.register_buffer("intercept", torch.zeros(network.level_count))

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this."""
        stride: int = self.network.stride
        return stride

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Where to look whether the network lives (`anomaly.cdm.health`); the base is fixed."""
        return self.network.parts

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2)."""
        logits: Tensor = self.network(x) + self.intercept
        if self.base is not None:
            with torch.autocast(x.device.type, enabled=False):
                logits = logits + self.base(x)
        return logits


class Encoder(nn.Module):
    """The default network; see the module's docstring."""

    gain: Tensor
    embedding: Tensor

    def __init__(self, settings: EncoderSettings, levels: NoiseLevels) -> None:
        super().__init__()
        self.patch = settings.patch
        self.normalize = settings.normalize
        self.stride = settings.stride
        self.level_count = len(levels)
        inputs = settings.channels * settings.patch**2 + 2
        self.stem = _convolution(inputs, settings.widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*[_Residual(width) for _ in range(settings.blocks)])
            for width in settings.widths
        )
        self.reads = nn.ModuleList(
            _convolution(width, settings.features, 1) for width in settings.widths
        )
        self.downs = nn.ModuleList(
            _convolution(fine, coarse, 2, stride=2)
            for fine, coarse in zip(settings.widths[:-1], settings.widths[1:], strict=True)
        )
        sums = settings.features * len(settings.widths)
        self.register_buffer("embedding", _level_embedding(levels))
        self.register_buffer("gain", _gradient_scale(levels))
        hidden = 64
        first, last = nn.Linear(self.embedding.shape[1], hidden), nn.Linear(hidden, sums + 1)
        # No denoising error teaches the clean level: it begins as what its neighbour would be.
        # (Pure noise reads with a gain of 0.)
        nn.init.zeros_(first.weight[:, -_ENDS:])
        # Small, not zero: every level starts near "all noise levels are equally likely".
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.level_weights = nn.Sequential(
            first,
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            last,
        )
        self.offset = nn.Parameter(torch.zeros(len(levels)))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2)."""
        _check_size(x, self.stride)
        h = functional.pixel_unshuffle(x, self.patch)
        h = self.stem(torch.cat([h, _position(h)], 1))
        sums = []
        for scale, (stage, read) in enumerate(zip(self.stages, self.reads, strict=True)):
            # The finest scale keeps its size: contrast is what tells one noise level from another.
            if scale:
                h = self._normalized(self.downs[scale - 1](h))
            h = stage(h)
            if scale:
                h = self._normalized(h)
            sums.append(self._summed(read(h), scale))
        dims = x[0].numel()
        pooled = torch.cat([*sums, torch.full_like(sums[0][:, :1], dims)], 1)
        with torch.autocast(x.device.type, enabled=False):  # sums over an image outgrow bfloat16
            weights: Tensor = self.level_weights(self.embedding)
            pooled = pooled.to(weights.dtype)
            return pooled @ weights.T * self.gain + self.offset * math.sqrt(dims)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Where to look whether the network lives: what makes the features of every scale."""
        return {f"scale {scale}": stage for scale, stage in enumerate(self.stages, start=1)}

    def _normalized(self, h: Tensor) -> Tensor:
        """Features with root mean square 1 over the channels of every place.

        As the pixel norm of Karras et al. 2018 (arXiv 1710.10196, section 4.2); twice
        differentiable with a few products, where group norm is slow.
        """
        if not self.normalize:
            return h
        normalized: Tensor = h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-4)
        return normalized

    def _summed(self, h: Tensor, scale: int) -> Tensor:
        """Sum of SiLU over the image, with a linear part against saturation: (B, features)."""
        if not self.normalize:
            return functional.silu(h).sum((2, 3), dtype=torch.float32)
        active = (1 - READ_SLOPE) * functional.silu(h) + READ_SLOPE * h
        # Every scale has a quarter of the places of the one before; half of that is made good, or
        # the coarsest, with 16 places of 64x64 pixels, would hardly be heard.
        sums: Tensor = 2**scale * active.sum((2, 3), dtype=torch.float32)
        return sums


class _Residual(nn.Module):
    """``h + conv(silu(conv(h)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3, padding=1)
        self.second = _convolution(width, width, 3, padding=1)
        # A branch that starts small keeps the sum's size without a norm layer.
        self.second.weight.data.mul_(0.3)

    def forward(self, h: Tensor) -> Tensor:
        branch: Tensor = self.second(functional.silu(self.first(h)))
        return h + branch


def _convolution(
    inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """Convolution that keeps the features' size (He et al. 2015).

    PyTorch's default shrinks it layer by layer; near zero SiLU is a parabola, the input gradient
    of its sums is linear in x, and what is not linear in denoising is learned late.
    """
    layer = nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


class PaperUNet(nn.Module):
    """The paper's network: DDPM U-Net without time embedding (Ho et al. 2020), cumulative head."""

    def __init__(self, settings: UNetSettings, levels: NoiseLevels) -> None:
        super().__init__()
        widths, drop = settings.widths, settings.dropout
        self.stride = settings.stride
        self.level_count = len(levels)
        self.stem = nn.Conv2d(settings.channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for scale, channels_out in enumerate(widths):
            attend = 2**scale == settings.attention_stride
            for _ in range(settings.blocks):
                self.down.append(_UNetBlock(width, channels_out, drop, attend))
                width = channels_out
                skips.append(width)
            if scale + 1 < len(widths):
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.Sequential(
            _UNetBlock(width, width, drop, attend=True),
            _UNetBlock(width, width, drop, attend=False),
        )
        for scale, channels_out in reversed(list(enumerate(widths))):
            attend = 2**scale == settings.attention_stride
            for _ in range(settings.blocks + 1):
                self.up.append(_UNetBlock(width + skips.pop(), channels_out, drop, attend))
                width = channels_out
            if scale:
                self.up.append(
                    nn.Sequential(
                        nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)
                    )
                )
        self.head = nn.Sequential(
            _norm(width), nn.SiLU(), nn.Conv2d(width, 2 * widths[0], 3, padding=1)
        )
        self.classify = nn.Linear(2 * widths[0], len(levels))

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Where to look whether the network lives: every block, on the way down and up."""
        down = {f"down {i}": block for i, block in enumerate(self.down, start=1)}
        up = {f"up {i}": block for i, block in enumerate(self.up, start=1)}
        return {**down, "middle": self.middle, **up}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2)."""
        _check_size(x, self.stride)
        h = self.stem(x)
        skips = [h]
        for layer in self.down:
            h = layer(h)
            skips.append(h)
        h = self.middle(h)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1) if isinstance(layer, _UNetBlock) else h)
        pooled = self.head(h).mean((2, 3), dtype=torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            steps: Tensor = self.classify(pooled.to(self.classify.weight.dtype))
            return torch.cumsum(steps, 1)


class _UNetBlock(nn.Module):
    """Group norm, SiLU, convolution, twice, with a shortcut; then attention where asked."""

    def __init__(self, width: int, channels_out: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, channels_out, 3, padding=1),
            _norm(channels_out),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.shortcut = (
            nn.Identity() if width == channels_out else nn.Conv2d(width, channels_out, 1)
        )
        self.attention = _Attention(channels_out) if attend else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.attention(self.shortcut(h) + self.body(h))
        return out


class _Attention(nn.Module):
    """Single-head self-attention over positions, written out: it must be differentiable twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).chunk(3, dim=1)  # each (B, width, H * W)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)
        mixed: Tensor = self.out((v @ weights.transpose(1, 2)).reshape(h.shape))
        return h + mixed


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width), width)


def _check_size(x: Tensor, stride: int) -> None:
    height, width = x.shape[-2:]
    if height % stride or width % stride:
        raise ConfigError(
            f"images are {height}x{width}: this network needs sides that are multiples of {stride}"
        )


def _position(h: Tensor) -> Tensor:
    """Row and column of every position, in [-1, 1]: (B, 2, H, W). Anatomy has a place."""
    rows = torch.linspace(-1, 1, h.shape[2], device=h.device, dtype=h.dtype)
    columns = torch.linspace(-1, 1, h.shape[3], device=h.device, dtype=h.dtype)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid.expand(len(h), -1, -1, -1)


def _finite_noise_to_signal(levels: NoiseLevels) -> Tensor:
    """``sigma / alpha`` with the two infinite ends moved one step of the ladder further."""
    inner = levels.sigma[1:-1] / levels.alpha[1:-1]
    if len(inner) == 1:
        return torch.cat([inner / 2, inner, inner * 2])
    # Geometric steps: further away, the clean level would read with weights that nothing taught.
    return torch.cat([inner[:1] ** 2 / inner[1:2], inner, inner[-1:] ** 2 / inner[-2:-1]])


def _gradient_scale(levels: NoiseLevels) -> Tensor:
    """``(1 - sigma^2) / sigma`` (T + 2,) float32, finite at the clean end; 0 at pure noise."""
    sigma = torch.cat([_finite_noise_to_signal(levels)[:1], levels.sigma[1:]])
    return ((1 - levels.sigma**2) / sigma).float()


def _level_embedding(levels: NoiseLevels) -> Tensor:
    """Smooth coordinates of every level (T + 2, 34): cosines of log noise and index, ends."""
    log_noise = torch.log(_finite_noise_to_signal(levels))
    log_noise = (log_noise - log_noise[0]) / (log_noise[-1] - log_noise[0])
    index = torch.linspace(0, 1, len(levels), dtype=torch.float64)
    waves = torch.arange(1, 17, dtype=torch.float64) * math.pi / 2
    ends = torch.zeros(len(levels), _ENDS, dtype=torch.float64)
    ends[0, 0] = ends[-1, 1] = 1
    smooth = [torch.cos(v[:, None] * waves) for v in (log_noise, index)]
    return torch.cat([*smooth, ends], 1).float()
