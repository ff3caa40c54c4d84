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
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.layers import (
    Normalized,
    Residual,
    Stage,
    convolution,
    convolution_gradient,
    normalize,
    normalize_gradient,
    silu_gradient,
)
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
        self.stem = convolution(inputs, settings.widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(*[Residual(width) for _ in range(settings.blocks)]) for width in settings.widths
        )
        self.reads = nn.ModuleList(
            convolution(width, settings.features, 1) for width in settings.widths
        )
        self.downs = nn.ModuleList(
            convolution(fine, coarse, 2, stride=2)
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
        return self._logits(self._scales(x), x[0].numel())

    def logits_and_gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T + 2), and the gradient of ``F(x, t)`` (B, C, H, W) without autograd."""
        scales = self._scales(x)
        return self._logits(scales, x[0].numel()), self._gradient(scales, t)

    def log_ratio_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of ``F(x, t)`` (B, C, H, W), for levels `t` (B,), without autograd."""
        return self._gradient(self._scales(x), t)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Parts of the network whose health is checked: the residual blocks of every scale."""
        return {f"scale {scale}": stage for scale, stage in enumerate(self.stages, start=1)}

    def _scales(self, x: Tensor) -> list[_Scale]:
        """Run the convolutions."""
        check_size(x, self.stride)
        h = functional.pixel_unshuffle(x, self.patch)
        # With channels innermost, convolutions and their gradients need no copies of features.
        h = torch.cat([h, _position(h)], 1).contiguous(memory_format=torch.channels_last)
        h = self.stem(h)
        scales = []
        for number, (stage, read) in enumerate(zip(self.stages, self.reads, strict=True)):
            entry = end = None
            # The finest scale is not normalised, because contrast distinguishes noise levels.
            if number:
                h = self.downs[number - 1](h)
                if self.normalize:
                    entry = normalize(h)
                    h = entry.features
            hidden: list[Tensor] = []
            h = stage(h, hidden)
            if number and self.normalize:
                end = normalize(h)
                h = end.features
            scales.append(_Scale(entry, hidden, end, read(h)))
        return scales

    def _logits(self, scales: list[_Scale], dims: int) -> Tensor:
        sums = []
        for number, (_, _, _, read) in enumerate(scales):
            linear, weight = self._read_slopes(number)
            wide = torch.promote_types(read.dtype, torch.float32)
            total = weight * functional.silu(read).sum((2, 3), dtype=wide)
            if linear:
                total = total + linear * read.sum((2, 3), dtype=wide)
            sums.append(total)
        pooled = torch.cat([*sums, torch.full_like(sums[0][:, :1], dims)], 1)
        device = pooled.device.type
        with torch.autocast(device, enabled=False):  # sums over an image exceed bfloat16
            weights: Tensor = self.level_weights(self.embedding)
            pooled = pooled.to(weights.dtype)
            return pooled @ weights.T * self.gain + self.offset * math.sqrt(dims)

    def _gradient(self, scales: list[_Scale], t: Tensor) -> Tensor:
        """Run the convolutions backwards, from the weights of ``F(x, t)`` on the sums."""
        with torch.autocast(t.device.type, enabled=False):
            weights = self.level_weights(self.embedding) * self.gain[:, None]
            of_sums = (weights[-1] - weights[t])[:, :-1, None, None].chunk(len(scales), 1)
        g = self._sum_gradient(len(scales) - 1, scales[-1].read, of_sums[-1])
        for number in reversed(range(len(scales))):
            scale = scales[number]
            if scale.end is not None:
                g = normalize_gradient(g, scale.end)
            g = cast(Stage, self.stages[number]).gradient(g, scale.hidden)
            if scale.entry is not None:
                g = normalize_gradient(g, scale.entry)
            if number:
                finer = number - 1
                g = convolution_gradient(g, cast(nn.Conv2d, self.downs[finer]))
                g = g + self._sum_gradient(finer, scales[finer].read, of_sums[finer])
        of_input = convolution_gradient(g, self.stem)[:, :-2]  # without the position
        return functional.pixel_shuffle(of_input, self.patch)

    def _sum_gradient(self, number: int, read: Tensor, of_sums: Tensor) -> Tensor:
        """Gradient by the features of a scale, through its sums (B, features, 1, 1) alone."""
        linear, weight = self._read_slopes(number)
        g = silu_gradient(weight * of_sums, read)
        if linear:
            g = g + linear * of_sums
        return convolution_gradient(g, cast(nn.Conv2d, self.reads[number]))

    def _read_slopes(self, number: int) -> tuple[float, float]:
        """Weights of the sums of the features of a scale and of their SiLU.

        The linear part has a slope where SiLU is flat. Every scale has a quarter of the positions
        of the previous one. A factor of 2 per scale compensates in part; otherwise the coarsest
        scale, with 16 positions for 64x64 pixels, would contribute very little.
        """
        if not self.normalize:
            return 0.0, 1.0
        return 2**number * READ_SLOPE, 2**number * (1 - READ_SLOPE)


class _Scale(NamedTuple):
    """Values of one scale, for the sums and for the input gradient.

    Attributes
    ----------
    entry, end : Normalized or None
        Before and after the residual blocks.
    hidden : list of Tensor
        Values before the activation of every residual block.
    read : Tensor (B, features, H, W)
        Values before the activation that is summed.
    """

    entry: Normalized | None
    hidden: list[Tensor]
    end: Normalized | None
    read: Tensor


def _position(h: Tensor) -> Tensor:
    """Row and column of every position in [-1, 1]: (B, 2, H, W). Anatomy depends on position."""
    rows = torch.linspace(-1, 1, h.shape[2], device=h.device, dtype=h.dtype)
    columns = torch.linspace(-1, 1, h.shape[3], device=h.device, dtype=h.dtype)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid.expand(h.shape[0], -1, -1, -1)


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
