"""The paper's network: a DDPM U-Net without time embedding, with mean pooling and a cumulative sum.

The cumulative sum is taken over the noise levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.shapes import check_size, refuse_less
from anomaly.errors import ConfigError

__all__ = ["PaperUNet", "UNetSettings"]


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
        """Check that every count is 1 or more and the dropout rate is below 1."""
        refuse_less(self, "channels", "widths", "blocks", "attention_stride")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"network.dropout is {self.dropout}: expected a share below 1")

    @property
    def stride(self) -> int:
        """Number of which image sides must be multiples."""
        return 1 << (len(self.widths) - 1)


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
        """Parts of the network whose health is checked: every block, on the way down and up."""
        down = {f"down {i}": block for i, block in enumerate(self.down, start=1)}
        up = {f"up {i}": block for i, block in enumerate(self.up, start=1)}
        return {**down, "middle": self.middle, **up}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2)."""
        check_size(x, self.stride)
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
    """Twice group norm, SiLU and convolution, with a shortcut; then optional attention."""

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
    """Single-head self-attention over positions, in basic operations to be differentiable twice."""

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
