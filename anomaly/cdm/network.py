"""Noise-level classifiers: ``(B, C, H, W) -> logits (B, T + 2)``. Input is ``x_t``, not ``t``.

`LevelClassifier` combines an `Encoder` (the default) or `PaperUNet` with an intercept for every
level. Optionally a closed-form Gaussian classifier is added, so that the network learns only what
the mean image and the power spectrum do not explain.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly.cdm.density import log_ratio_gradient, logits_and_gradient
from anomaly.cdm.encoder import Encoder, EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.unet import PaperUNet, UNetSettings

__all__ = ["LevelClassifier", "NetworkSettings", "build_network"]

NetworkSettings = EncoderSettings | UNetSettings


def build_network(settings: NetworkSettings, levels: NoiseLevels) -> Encoder | PaperUNet:
    """Build a network from its settings, with random weights and without a base."""
    if isinstance(settings, EncoderSettings):
        return Encoder(settings, levels)
    return PaperUNet(settings, levels)


class LevelClassifier(nn.Module):
    """A network with an intercept for every level, and optionally a closed-form classifier as base.

    Parameters
    ----------
    network : Encoder or PaperUNet
    base : CosineGaussianCDM, optional
        Fixed; computed in float32 even under autocast, since its logits span thousands of nats.

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
        """Number of which image sides must be multiples."""
        stride: int = self.network.stride
        return stride

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Parts of the network whose health is checked (`anomaly.cdm.health`), without the base."""
        return self.network.parts

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2)."""
        logits: Tensor = self.network(x) + self.intercept
        if self.base is not None:
            with torch.autocast(x.device.type, enabled=False):
                logits = logits + self.base(x)
        return logits

    def logits_and_gradient(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T + 2), and the gradient of ``F(x, t)`` by x (B, C, H, W).

        Both can be differentiated by the parameters.
        """
        logits, gradient = logits_and_gradient(self.network, x, t)
        logits = logits + self.intercept
        if self.base is not None:
            with torch.autocast(x.device.type, enabled=False):
                logits = logits + self.base(x)
                gradient = gradient + self.base.log_ratio_gradient(x, t)
        return logits, gradient

    def log_ratio_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of ``F(x, t)`` by x, without a graph: (B, C, H, W)."""
        gradient = log_ratio_gradient(self.network, x, t)
        if self.base is not None:
            with torch.autocast(x.device.type, enabled=False):
                gradient = gradient + self.base.log_ratio_gradient(x, t)
        return gradient
