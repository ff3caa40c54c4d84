r"""Baselines to compare the method with, all fitted on normal scans only.

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

The two ``denoiser`` scores share one `PlainDenoiser`: the trunk of `anomaly.cdm.encoder.Encoder`
with a decoder, conditioned on the noise level and trained like any diffusion model, so that it
differs from a classification diffusion model only in the classification.

A higher score is more anomalous. Maps are squared differences in units of ``x^2``, uncalibrated:
0 where an image equals the method's expectation. Every method uses normal scans only and trains for
a fixed number of steps without early stopping. Randomness depends only on the
seed; noise for scoring is the same for every image, so a score depends on neither the batch nor
the order.
"""

from __future__ import annotations

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.baselines.autoencoders import AutoEncoderReconstruction
from anomaly.detection.baselines.base import Baseline, BaselineScores
from anomaly.detection.baselines.classical import (
    PCAReconstruction,
    PixelNeighbours,
    TotalVariation,
)
from anomaly.detection.baselines.denoiser import (
    DenoiserMSMA,
    DenoiserReconstruction,
    PlainDenoiser,
)

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


def default_baselines(
    levels: NoiseLevels, settings: EncoderSettings, *, steps: int, batch_size: int
) -> list[Baseline]:
    """All baselines, cheapest first, in the order of this module's table.

    Parameters
    ----------
    levels : NoiseLevels
    settings : EncoderSettings
        Settings of the network to compare with; `PlainDenoiser` uses the same trunk.
    steps, batch_size : int
        Budget of every trained network: the two autoencoders and the one denoiser.
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
