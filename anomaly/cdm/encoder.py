r"""The encoder: residual convolutions whose features are *summed* over the image.

The resolution decreases from scale to scale. At every scale the features are summed over all
positions, and the logit of level ``t`` combines the sums with its own weights,

.. math:: f(x)_t = \frac{1 - \sigma_t^2}{\sigma_t} \, w_t \cdot S(x) + \sqrt{d}\, b_t .

A log density is a sum over the image. Its gradient grows as :math:`1/\sigma_t` at low noise, and
its difference from that of pure noise decreases as :math:`1 - \sigma_t^2` at high noise (for
centred data: `anomaly.cdm.gaussian` near sigma = 1); the head has both factors built in. There is
no decoder: the input gradient runs the encoder backwards and takes its place. At every scale except
the finest, features are normalised to a root mean square of 1 over the channels of every position,
and the summed activation has a non-zero slope everywhere. Without these two measures the coarse
scales die within a few hundred steps (docs/decisions/0014-live-network.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.shapes import check_size, refuse_less

__all__ = ["Encoder", "EncoderSettings"]

READ_SLOPE = 0.1
"""Weight of the linear part of the activation that an `Encoder` sums: its slope far below zero."""

_ENDS = 2
"""Number of last columns of the level embedding, which mark clean images and pure noise."""


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
        """Check that every count is 1 or more."""
        refuse_less(self, "channels", "patch", "widths", "blocks", "features")

    @property
    def stride(self) -> int:
        """Number of which image sides must be multiples."""
        return self.patch << (len(self.widths) - 1)


class Encoder(nn.Module):
    """The default network; see the docstring of the module."""

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
        # The clean level has no denoising error to learn from, so it starts with the weights of its
        # neighbour. (The gain of pure noise is 0.)
        nn.init.zeros_(first.weight[:, -_ENDS:])
        # Small, but not zero: at first, all noise levels are about equally likely.
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
        check_size(x, self.stride)
        h = functional.pixel_unshuffle(x, self.patch)
        h = self.stem(torch.cat([h, _position(h)], 1))
        sums = []
        for scale, (stage, read) in enumerate(zip(self.stages, self.reads, strict=True)):
            # The finest scale is not normalised, because contrast distinguishes noise levels.
            if scale:
                h = self._normalized(self.downs[scale - 1](h))
            h = stage(h)
            if scale:
                h = self._normalized(h)
            sums.append(self._summed(read(h), scale))
        dims = x[0].numel()
        pooled = torch.cat([*sums, torch.full_like(sums[0][:, :1], dims)], 1)
        with torch.autocast(x.device.type, enabled=False):  # sums over an image exceed bfloat16
            weights: Tensor = self.level_weights(self.embedding)
            pooled = pooled.to(weights.dtype)
            return pooled @ weights.T * self.gain + self.offset * math.sqrt(dims)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Parts of the network whose health is checked: the residual blocks of every scale."""
        return {f"scale {scale}": stage for scale, stage in enumerate(self.stages, start=1)}

    def _normalized(self, h: Tensor) -> Tensor:
        """Features with root mean square 1 over the channels of every position.

        This is the pixel norm of Karras et al. 2018 (arXiv 1710.10196, section 4.2). Its second
        derivative takes a few products only, while that of group norm is slow.
        """
        if not self.normalize:
            return h
        normalized: Tensor = h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-4)
        return normalized

    def _summed(self, h: Tensor, scale: int) -> Tensor:
        """Sum over the image of SiLU with a linear part against saturation: (B, features)."""
        if not self.normalize:
            return functional.silu(h).sum((2, 3), dtype=torch.float32)
        active = (1 - READ_SLOPE) * functional.silu(h) + READ_SLOPE * h
        # Every scale has a quarter of the positions of the previous one. A factor of 2 per scale
        # compensates in part; otherwise the coarsest scale, with 16 positions for 64x64 pixels,
        # would contribute very little.
        sums: Tensor = 2**scale * active.sum((2, 3), dtype=torch.float32)
        return sums


class _Residual(nn.Module):
    """``h + conv(silu(conv(h)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3, padding=1)
        self.second = _convolution(width, width, 3, padding=1)
        # A small initial branch preserves the size of the features without a norm layer.
        self.second.weight.data.mul_(0.3)

    def forward(self, h: Tensor) -> Tensor:
        branch: Tensor = self.second(functional.silu(self.first(h)))
        return h + branch


def _convolution(
    inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """Convolution with an initialisation that preserves the size of features (He et al. 2015).

    With PyTorch's default, features shrink layer by layer. Near zero SiLU is a parabola, so the
    input gradient of its sums is linear in x, and non-linear denoising is learned late.
    """
    layer = nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _position(h: Tensor) -> Tensor:
    """Row and column of every position in [-1, 1]: (B, 2, H, W). Anatomy depends on position."""
    rows = torch.linspace(-1, 1, h.shape[2], device=h.device, dtype=h.dtype)
    columns = torch.linspace(-1, 1, h.shape[3], device=h.device, dtype=h.dtype)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid.expand(len(h), -1, -1, -1)


def _finite_noise_to_signal(levels: NoiseLevels) -> Tensor:
    """``sigma / alpha`` of all levels, with the two ends replaced by one further ladder step."""
    inner = levels.sigma[1:-1] / levels.alpha[1:-1]
    if len(inner) == 1:
        return torch.cat([inner / 2, inner, inner * 2])
    # Geometric steps; further away, the clean level would use weights that no loss has trained.
    return torch.cat([inner[:1] ** 2 / inner[1:2], inner, inner[-1:] ** 2 / inner[-2:-1]])


def _gradient_scale(levels: NoiseLevels) -> Tensor:
    """``(1 - sigma^2) / sigma`` (T + 2,) float32, finite for clean images and 0 for pure noise."""
    sigma = torch.cat([_finite_noise_to_signal(levels)[:1], levels.sigma[1:]])
    return ((1 - levels.sigma**2) / sigma).float()


def _level_embedding(levels: NoiseLevels) -> Tensor:
    """Embedding of every level (T + 2, 34): cosines of log noise and of the index, end markers."""
    log_noise = torch.log(_finite_noise_to_signal(levels))
    log_noise = (log_noise - log_noise[0]) / (log_noise[-1] - log_noise[0])
    index = torch.linspace(0, 1, len(levels), dtype=torch.float64)
    waves = torch.arange(1, 17, dtype=torch.float64) * math.pi / 2
    ends = torch.zeros(len(levels), _ENDS, dtype=torch.float64)
    ends[0, 0] = ends[-1, 1] = 1
    smooth = [torch.cos(v[:, None] * waves) for v in (log_noise, index)]
    return torch.cat([*smooth, ends], 1).float()
