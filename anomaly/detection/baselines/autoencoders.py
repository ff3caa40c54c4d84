"""Baselines that reconstruct: a convolutional autoencoder and a variational one (MONAI)."""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.nets import AutoEncoder, VarAutoEncoder
from torch import Tensor, nn
from torch.nn import functional

from anomaly.detection.baselines.base import (
    BaselineScores,
    Budget,
    check_images,
    fitted,
    reconstruction_scores,
    seeded,
    train_network,
)

__all__ = ["AutoEncoderReconstruction"]

AUTOENCODER_WIDTHS = (16, 32, 64, 128)
"""Channels of both autoencoders; every entry halves the side."""

AUTOENCODER_CODE = 16
"""Channels of the autoencoder's code, on a 16 times coarser grid: 1/16 of the pixel values."""

AUTOENCODER_NORM = ("GROUP", {"num_groups": 4})

VAE_LATENT = 64

VAE_DEVIATION = 0.1


class AutoEncoderReconstruction:
    r"""Reconstruction error of a network with a narrow code (MONAI).

    - ``autoencoder``: convolutions down to a code of 1/16 of the pixel values, mean squared error.
    - ``vae``: 64 latent numbers, and the negative evidence bound (Kingma & Welling 2014, arXiv
      1312.6114) per pixel, with a decoder of standard deviation :math:`s = 0.1`,

      .. math:: \Big( \frac{\|x - \hat x\|^2}{2 s^2}
                + \mathrm{KL}(q(z | x) \,\|\, N(0, I)) \Big) / d ,

      which has the same minimum as a beta-VAE with unit variance and beta = s^2 = 0.01. With
      beta = 1 the KL term outweighs the error of a small image, and the code stays unused.

    Both have group normalisation. It normalises each image separately, so unlike batch
    normalisation it is the same in training, where codes are sampled, and in scoring at the
    posterior mean.

    Parameters
    ----------
    kind : {"autoencoder", "vae"}
    steps, batch_size : int
        Steps of Adam, without early stopping, and their batch size.
    learning_rate : float
        Maximum; the rate rises over the first 5 % of the steps and falls to 0 along a half cosine.
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
        self.budget = Budget(steps, batch_size, learning_rate)
        self._network: nn.Module | None = None

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Train on `train`; see `Baseline.fit`.

        Raises
        ------
        ConfigError
            If the side of the images is not a multiple of 16.
        """
        check_images(train, multiple=2 ** len(AUTOENCODER_WIDTHS))
        side = train.shape[-1]
        network = seeded(
            lambda: _Autoencoder() if self.kind == "autoencoder" else _VAE(side), seed
        ).to(train.device)
        train_network(network, network.loss, train, self.budget, seed)
        self._network = network

    def score(self, images: Tensor) -> BaselineScores:
        """Return the mean squared difference from the reconstruction, and its map."""
        return reconstruction_scores(fitted(self._network, self.name), images)


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

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.body.encode, "decoder": self.body.decode}

    def forward(self, x: Tensor) -> Tensor:
        reconstruction: Tensor = self.body(x)
        return reconstruction

    def loss(self, x: Tensor, noise: torch.Generator) -> Tensor:
        return functional.mse_loss(self(x), x)


class _VAE(nn.Module):
    """Variational autoencoder; ``forward`` reconstructs from the posterior mean."""

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

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.body.encode, "decoder": self.body.decode}

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
