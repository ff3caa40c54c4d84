r"""Attribution: the change of a log density between two images, shared out over their pixels.

With :math:`x` an image and :math:`x'` another one, such as its healthy counterfactual, the
integrated gradient (Sundararajan, Taly, Yan 2017, arXiv 1703.01365) of pixel :math:`i` is

.. math::
    a_i = (x_i - x'_i) \int_0^1 \partial_i \log p_t\bigl(x' + s (x - x')\bigr)\, ds, \qquad
    \sum_i a_i = \log p_t(x) - \log p_t(x') .

A pixel with a negative value makes the image less likely than the other one. The integral is a
Gauss-Legendre sum, which is exact for a Gaussian density from one node on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly.cdm.density import Network, score
from anomaly.errors import ConfigError

__all__ = ["integrated_gradient"]


def integrated_gradient(
    network: Network, x: Tensor, other: Tensor, t: Tensor, *, nodes: int = 8
) -> Tensor:
    """Share out ``log p_t(x) - log p_t(other)`` over the pixels: (B, C, H, W) nats.

    Parameters
    ----------
    network : callable
    x, other : Tensor (B, C, H, W)
        Both at noise level `t`; with the same noise, if they are noised.
    t : Tensor (B,) int64
    nodes : int
        Gradients to compute; the sum over the pixels is exact to the error of the integral.

    Raises
    ------
    ConfigError
        If the shapes differ, or there is no node.
    """
    if x.shape != other.shape:
        raise ConfigError(f"images have shapes {tuple(x.shape)} and {tuple(other.shape)}: equal?")
    if nodes < 1:
        raise ConfigError(f"nodes is {nodes}: expected 1 or more")
    total = torch.zeros_like(x)
    for place, weight in zip(*_gauss_legendre(nodes), strict=True):
        total += weight * score(network, other + place * (x - other), t)
    return (x - other) * total


def _gauss_legendre(nodes: int) -> tuple[list[float], list[float]]:
    """Places and weights of the integral over [0, 1] (Golub and Welsch 1969)."""
    order = torch.arange(1, nodes, dtype=torch.float64)
    beside = order / (4 * order.square() - 1).sqrt()
    jacobi = torch.diag(beside, 1) + torch.diag(beside, -1)
    places, vectors = torch.linalg.eigh(jacobi.reshape(nodes, nodes))
    return ((places + 1) / 2).tolist(), vectors[0].square().tolist()
