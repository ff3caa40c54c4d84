r"""The closed-form CDM of Gaussian data.

For :math:`x_0 \sim N(m, \Sigma)` every noisy density is Gaussian too, and with the eigenvalues
:math:`\lambda_k` of :math:`\Sigma` the optimal classifier is known:

.. math::
    f(x)_t = \log N(x;\; \alpha_t m,\; \alpha_t^2 \Sigma + \sigma_t^2 I)
           = -\tfrac12 \sum_k \left[ \frac{(z_k - \alpha_t m_k)^2}{v_{tk}}
             + \log 2 \pi v_{tk} \right],
    \qquad v_{tk} = \alpha_t^2 \lambda_k + \sigma_t^2,

where :math:`z, m` are coordinates in the eigenbasis. There are two bases:

- `GaussianCDM`: any covariance, full eigenbasis. The tests use it as the exact reference.
- `CosineGaussianCDM`: a mean image and a covariance that is diagonal in the 2-D discrete cosine
  transform, fitted to images. It models only the mean and the power spectrum of the data;
  `anomaly.cdm.network.LevelClassifier` trains a network for the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anomaly.cdm.levels import NoiseLevels

__all__ = ["CosineGaussianCDM", "GaussianCDM", "cosine_basis"]


class _DiagonalGaussianCDM(nn.Module):
    """Logits of a Gaussian whose covariance is diagonal in some orthonormal coordinates."""

    noise_variance: Tensor
    quadratic: Tensor
    linear: Tensor
    constant: Tensor

    def __init__(
        self, mean: Tensor, variances: Tensor, levels: NoiseLevels, dtype: torch.dtype
    ) -> None:
        super().__init__()
        alpha, sigma = levels.alpha[:, None], levels.sigma[:, None]
        m, lam = mean.to(torch.float64)[None], variances.to(torch.float64)[None]
        v = alpha**2 * lam + sigma**2
        # The square is expanded into matrix products: (T + 2) x d work, not (T + 2) x B x d memory.
        constant = -0.5 * (alpha**2 * m**2 / v + torch.log(2 * math.pi * v)).sum(1)
        self.register_buffer("noise_variance", levels.sigma**2, persistent=False)
        # Derived, and T times as large as their source: never saved.
        self.register_buffer("quadratic", (-0.5 / v).to(dtype), persistent=False)
        self.register_buffer("linear", (alpha * m / v).to(dtype), persistent=False)
        self.register_buffer("constant", constant.to(dtype), persistent=False)

    def denoising_error(self) -> Tensor:
        """Mean squared error of eps of the best denoiser: (T + 2,), 1 at the clean end.

        For every coordinate ``alpha^2 lambda / v = 1 - sigma^2 / v``.
        """
        return 1 + 2 * self.noise_variance * self.quadratic.double().mean(1)

    def logits(self, z: Tensor) -> Tensor:
        """Return (B, T + 2) from coordinates (B, d)."""
        return z.square() @ self.quadratic.T + z @ self.linear.T + self.constant

    def log_ratio_slopes(self, z: Tensor, t: Tensor) -> Tensor:
        """Gradient of ``F(., t) = f_{T+1} - f_t`` by the coordinates: (B, d)."""
        curvature = self.quadratic[-1] - self.quadratic[t]
        return 2 * z * curvature + (self.linear[-1] - self.linear[t])


class GaussianCDM(_DiagonalGaussianCDM):
    """Optimal classifier for ``N(mean, covariance)`` data.

    Parameters
    ----------
    mean : Tensor (C, H, W)
    covariance : Tensor (d, d), positive definite, ``d = C * H * W``
    levels : NoiseLevels
    """

    basis: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor, levels: NoiseLevels) -> None:
        variances, basis = torch.linalg.eigh(covariance.to(torch.float64))
        centre = mean.flatten().to(torch.float64) @ basis
        super().__init__(centre, variances, levels, mean.dtype)
        self.register_buffer("basis", basis.to(mean.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2) of images (B, C, H, W)."""
        return self.logits(x.flatten(1) @ self.basis)


class CosineGaussianCDM(_DiagonalGaussianCDM):
    """Optimal classifier for a Gaussian with a mean image and a cosine power spectrum.

    Parameters
    ----------
    mean : Tensor (C, H, W)
    spectrum : Tensor (C, H, W), > 0
        Variance of every cosine coefficient.
    levels : NoiseLevels

    Mean and spectrum are the whole state; the rest is recomputed from them.
    """

    mean: Tensor
    spectrum: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, mean: Tensor, spectrum: Tensor, levels: NoiseLevels) -> None:
        rows, columns = cosine_basis(mean.shape[-2]), cosine_basis(mean.shape[-1])
        centre = rows @ mean.to(torch.float64) @ columns.T
        super().__init__(centre.flatten(), spectrum.flatten(), levels, mean.dtype)
        self.register_buffer("mean", mean)
        self.register_buffer("spectrum", spectrum)
        self.register_buffer("rows", rows.to(mean.dtype), persistent=False)
        self.register_buffer("columns", columns.to(mean.dtype), persistent=False)

    @classmethod
    def fit(cls, images: Tensor, levels: NoiseLevels, *, floor: float) -> CosineGaussianCDM:
        """Estimate mean and power spectrum from images (N, C, H, W) in [-1, 1].

        Parameters
        ----------
        images : Tensor (N, C, H, W)
        levels : NoiseLevels
        floor : float
            Smallest variance of a coefficient: that of dequantisation noise,
            ``grey_step(n)**2 / 12``. It keeps the density finite at constant pixels (borders).
        """
        wide = images.to(torch.float64)
        mean = wide.mean(0)
        rows, columns = cosine_basis(mean.shape[-2]), cosine_basis(mean.shape[-1])
        spectrum = (rows @ (wide - mean) @ columns.T).square().mean(0) + floor
        return cls(mean.to(images.dtype), spectrum.to(images.dtype), levels)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T + 2) of images (B, C, H, W)."""
        return self.logits(self._coefficients(x).flatten(1))

    def log_ratio_gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of ``F(x, t)`` by x: (B, C, H, W), for levels `t` (B,)."""
        z = self._coefficients(x)
        slopes = self.log_ratio_slopes(z.flatten(1), t).view_as(z)
        return self.rows.T @ slopes @ self.columns

    def _coefficients(self, x: Tensor) -> Tensor:
        """Coefficients (B, C, H, W) of images in the cosine basis."""
        return self.rows @ x @ self.columns.T


def cosine_basis(size: int) -> Tensor:
    """Orthonormal DCT-II matrix (size, size) float64: row k is the k-th cosine."""
    n = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis
