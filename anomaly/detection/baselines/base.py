"""Shared parts of the baselines: scores, training of networks, checks of images."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomaly.cdm.health import HasParts, dead_parts, measure_use
from anomaly.errors import ConfigError, NonFiniteLoss, TrainingError
from anomaly.logs import Public

__all__ = [
    "Baseline",
    "BaselineScores",
    "Budget",
    "batchwise",
    "check_images",
    "fingerprint",
    "fitted",
    "reconstruction_scores",
    "seeded",
    "seeded_generator",
    "train_network",
]

log = logging.getLogger(__name__)

SCORING_BATCH = 64

Fitted = TypeVar("Fitted")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class BaselineScores:
    """Scores and maps of a baseline for N images.

    Attributes
    ----------
    scores : ndarray (N,) float64; higher = more anomalous
    maps : ndarray (N, S, S) float32 >= 0, or None if the method has none
        Squared differences per pixel, in units of ``x^2``.
    """

    scores: NDArray[np.float64]
    maps: NDArray[np.float32] | None


class Baseline(Protocol):
    """A method that is fitted on normal scans and scores images.

    Attributes
    ----------
    name : str
        Name in tables; unique among `default_baselines`.
    """

    name: str

    def fit(self, train: Tensor, validation: Tensor, seed: int) -> None:
        """Fit on normal scans.

        Parameters
        ----------
        train : Tensor (N, 1, S, S) float32 in [-1, 1]
            For weights; networks are trained on its device.
        validation : Tensor (M, 1, S, S) float32 in [-1, 1]
            Scans that are not in `train`, for statistics given the weights.
        seed : int
            The same seed on the same data gives the same scores (bit for bit on a CPU).
        """

    def score(self, images: Tensor) -> BaselineScores:
        """Score images (N, 1, S, S) float32 in [-1, 1], of the same size as in `fit`."""


@dataclass(frozen=True)
class Budget:
    """Steps, batch size and maximum learning rate of a training."""

    steps: int
    batch_size: int
    learning_rate: float

    def __post_init__(self) -> None:
        """Refuse a budget without training."""
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ConfigError(
                f"a baseline's budget is {self.steps} steps of {self.batch_size} images at "
                f"learning rate {self.learning_rate}: expected 1 or more, 1 or more, above 0"
            )

    def share(self, step: int) -> float:
        """Return the fraction of the learning rate at a step: a short rise, then a half cosine."""
        rise = min(1.0, (step + 1) / max(1, self.steps // 20))
        return rise * (1 + math.cos(math.pi * step / self.steps)) / 2


def train_network(
    network: nn.Module,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    train: Tensor,
    budget: Budget,
    seed: int,
) -> None:
    """Train in place with Adam; afterwards the network is in evaluation mode, without gradients."""
    generator = seeded_generator(seed, 0)
    size = min(budget.batch_size, len(train))
    epochs = math.ceil(budget.steps * size / len(train))
    order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(epochs)])
    optimizer = torch.optim.Adam(network.parameters(), lr=budget.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, budget.share)
    network.train()
    for rows in order[: budget.steps * size].split(size):
        error = loss(train[rows.to(train.device)], generator)
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if not torch.isfinite(error):
        raise NonFiniteLoss(f"a baseline's loss is {float(error)} after {budget.steps} steps")
    network.eval()
    if isinstance(network, HasParts):
        _warn_of_dead_parts(network, loss, train[:size], seed)
    network.requires_grad_(False)


def _warn_of_dead_parts(
    network: HasParts,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    images: Tensor,
    seed: int,
) -> None:
    """Warn of dead parts: a baseline with a dead network is not a fair comparison."""
    uses = measure_use(network.parts, lambda: loss(images, seeded_generator(seed, 1)))
    for name in dead_parts({name: use.share for name, use in uses.items()}):
        log.warning(
            "%s of a baseline's network is dead after training: it carries %.2g %% of "
            "gradient times activation. The baseline's figures are not those of the whole",
            Public(name),
            100 * uses[name].share,
        )


def seeded(make: Callable[[], Module], seed: int) -> Module:
    """Build a network whose random weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the accelerators, which are not forked here.
        torch.default_generator.manual_seed(seed)
        return make()


def seeded_generator(seed: int, purpose: int) -> torch.Generator:
    """Return a CPU generator; each purpose of a seed has its own stream."""
    return torch.Generator().manual_seed(seed * 1_000_003 + purpose)


def reconstruction_scores(
    network: nn.Module, images: Tensor, reconstruct: Callable[[Tensor], Tensor] | None = None
) -> BaselineScores:
    """Return squared differences from the reconstruction, and their means."""
    check_images(images)
    rebuild = network if reconstruct is None else reconstruct
    (maps,) = batchwise(lambda x: ((x - rebuild(x)).square()[:, 0],), network, images)
    return BaselineScores(maps.mean((1, 2), dtype=np.float64), maps)


@torch.no_grad()
def batchwise(
    function: Callable[[Tensor], tuple[Tensor, ...]], network: nn.Module, images: Tensor
) -> tuple[NDArray[np.float32], ...]:
    """Apply a function with one row per image, batch by batch, on the network's device."""
    device = next(network.parameters()).device
    parts = [function(part.to(device)) for part in images.split(SCORING_BATCH)]
    return tuple(torch.cat(rows).cpu().numpy() for rows in zip(*parts, strict=True))


def fingerprint(images: Tensor) -> str:
    """Return shape and content hash of images."""
    values = np.ascontiguousarray(images.detach().cpu().numpy())
    return f"{values.shape} {hashlib.sha256(values.data).hexdigest()}"


def check_images(images: Tensor, multiple: int = 1) -> None:
    """Refuse anything but a batch of square images whose side is a multiple of `multiple`."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 1:
        raise ConfigError(f"images for a baseline have shape {shape}: expected (N, 1, S, S)")
    if shape[2] % multiple or shape[3] % multiple:
        raise ConfigError(
            f"images are {shape[2]}x{shape[3]}: this baseline needs sides that are multiples of "
            f"{multiple}"
        )


def fitted(model: Fitted | None, name: str) -> Fitted:
    """Return the model, or raise an error if it is not fitted yet."""
    if model is None:
        raise TrainingError(f"{name} has learnt nothing yet: call fit before score")
    return model
