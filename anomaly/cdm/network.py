"""Noise-level classifiers: ``(B, C, H, W) -> logits (B, T + 2)``. They see ``x_t``, never ``t``.

`LevelClassifier` is `Encoder` (the default) or `PaperUNet`, with an intercept for every level, and
optionally on top of a closed-form Gaussian classifier, so that the network learns what the mean
image and the power spectrum do not already say.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly.cdm.encoder import Encoder, EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.unet import PaperUNet, UNetSettings

__all__ = ["LevelClassifier", "NetworkSettings", "build_network"]

NetworkSettings = EncoderSettings | UNetSettings


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
