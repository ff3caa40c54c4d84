"""Validation metrics of a network on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomaly.cdm.density import bits_per_dim, denoising_bits_per_dim, dequantize, log_density
from anomaly.cdm.loss import CDMLoss, stratified_levels
from anomaly.training.checkpoint import Metrics

__all__ = ["validation_metrics"]


@torch.no_grad()
def validation_metrics(
    loss: CDMLoss, network: nn.Module, images: Tensor, *, grey_levels: int, seed: int, batch: int
) -> Metrics:
    """Bits/dim, cross-entropy and per-level denoising error of held-out images.

    Parameters
    ----------
    loss : CDMLoss
        Source of the levels and the weight of the cross-entropy; its network is not used.
    network : Module
        Usually the averaged network.
    images : Tensor (N, C, H, W) in [-1, 1]
    grey_levels : int
    seed : int
        Seed of the noise; the same for every validation, so that they can be compared.
    batch : int

    Returns
    -------
    dict
        ``bits_per_dim`` (of the density, dequantised), ``bits_per_dim_bound`` (bound from the
        denoising errors, `anomaly.cdm.density.denoising_bits_per_dim`), ``cross_entropy`` (nats),
        ``denoising`` (mean squared error of eps), ``denoising_by_level`` (the same over ten equal
        ranges of levels; None for a range without an image).
    """
    levels = loss.levels
    generator = torch.Generator().manual_seed(seed)
    t = stratified_levels(len(images), len(levels), generator)
    uniform = torch.rand(images.shape, generator=generator)
    eps = torch.randn(images.shape, generator=generator)
    x_0 = dequantize(images, grey_levels, uniform)
    device = next(network.parameters()).device
    judge = CDMLoss(network, levels, loss.ce_weight)
    bits, cross_entropy, denoising = [], [], []
    for part in torch.arange(len(images)).split(batch):
        x = x_0[part].to(device)
        log_p = log_density(network(x), x)[:, 0]
        bits.append(bits_per_dim(log_p, x[0].numel(), grey_levels).cpu())
        terms = judge(x, t[part].to(device), eps[part].to(device))
        cross_entropy.append(terms.cross_entropy.cpu())
        denoising.append(terms.denoising.cpu())
    error = torch.cat(denoising)
    rungs = torch.div(t * 10, len(levels), rounding_mode="floor")
    return {
        "bits_per_dim": float(torch.cat(bits).mean()),
        "bits_per_dim_bound": denoising_bits_per_dim(error, t, levels, grey_levels),
        "cross_entropy": float(torch.cat(cross_entropy).mean()),
        "denoising": float(error.mean()),
        "denoising_by_level": [
            float(error[rungs == r].mean()) if bool((rungs == r).any()) else None for r in range(10)
        ],
    }
