r"""Constants of the log densities, fitted by convex optimisation.

The denoising loss determines every gradient of :math:`\log p_t`, but not its constant.
Cross-entropy does, but slowly, because one optimiser step changes a sum over thousands of pixels by
many nats.
With the network fixed, the constants :math:`b_t` that minimise the cross-entropy

.. math:: \min_b \; -\sum_n \log \mathrm{softmax}(f(x_n) + b)_{t_n}

solve a convex problem with ``T + 1`` unknowns. This is multinomial logistic regression with
intercepts only, and the same equation as the multistate Bennett acceptance ratio (Shirts &
Chodera 2008, eq. 11), which estimates ratios of normalising constants from samples of all levels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from anomaly.cdm.density import dequantize
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import stratified_levels
from anomaly.cdm.network import LevelClassifier
from anomaly.errors import TrainingError

__all__ = ["fit_intercepts", "solve_intercepts"]


BATCH = 64
"""Draws in one pass of the network."""


@torch.no_grad()
def fit_intercepts(
    classifier: LevelClassifier,
    images: Tensor,
    levels: NoiseLevels,
    *,
    grey_levels: int | None,
    draws: int,
    seed: int,
    on_draws: Callable[[int], object] | None = None,
) -> None:
    """Set ``classifier.intercept`` to minimise the cross-entropy of noised images, in place.

    Parameters
    ----------
    classifier : LevelClassifier
    images : Tensor (N, C, H, W) in [-1, 1]
        Training images.
    levels : NoiseLevels
    grey_levels : int or None
        For dequantisation; None if the images are continuous.
    draws : int
        Total number of noised images; about 20 per level give constants to a fraction of a nat.
    seed : int
    on_draws : callable, optional
        Called with the number of draws after each batch.
    """
    generator = torch.Generator().manual_seed(seed)
    device = classifier.intercept.device
    t = stratified_levels(draws, len(levels), generator)
    logits = []
    for part in torch.arange(draws).split(BATCH):
        x_0 = images[part % len(images)]
        if grey_levels is not None:
            x_0 = dequantize(x_0, grey_levels, torch.rand(x_0.shape, generator=generator))
        eps = torch.randn(x_0.shape, generator=generator)
        logits.append(classifier(levels.perturb(x_0, t[part], eps).to(device)).cpu())
        if on_draws is not None:
            on_draws(len(part))
    change = solve_intercepts(torch.cat(logits), t)
    classifier.intercept += change.to(classifier.intercept)


def solve_intercepts(logits: Tensor, t: Tensor) -> Tensor:
    """Minimise ``cross_entropy(logits + b, t)`` over ``b`` by damped Newton steps.

    Parameters
    ----------
    logits : Tensor (N, L)
    t : Tensor (N,) int64
        True levels; every level must occur.

    Returns
    -------
    Tensor (L,) float64
        ``b``, with ``b[-1] = 0``: only differences are determined.

    Raises
    ------
    TrainingError
        If a level has no sample, so that its constant is undetermined.
    """
    wide = logits.to(torch.float64)
    count = wide.shape[1]
    samples = torch.bincount(t, minlength=count).to(torch.float64)
    if bool((samples == 0).any()):
        raise TrainingError(
            f"{int((samples == 0).sum())} of {count} noise levels have no sample among {len(t)}: "
            "use more draws than levels"
        )
    b = torch.zeros(count, dtype=torch.float64)
    loss = functional.cross_entropy(wide, t, reduction="sum")
    for _ in range(200):
        p = torch.softmax(wide + b, 1)
        gradient = (p.sum(0) - samples)[:-1]
        hessian = (torch.diag(p.sum(0)) - p.T @ p)[:-1, :-1]
        # If the network separates levels perfectly, the Hessian is singular.
        ridge = 1e-3 * torch.eye(count - 1, dtype=torch.float64)
        step = functional.pad(torch.linalg.solve(hessian + ridge, gradient), (0, 1))
        scale = 1.0
        while scale > 1e-6:
            trial = functional.cross_entropy(wide + b - scale * step, t, reduction="sum")
            if trial <= loss:
                break
            scale /= 2
        else:
            break
        decrease = float(loss - trial)
        b, loss = b - scale * step, trial
        if decrease < 1e-7 * len(t):
            break
    return b
