"""Settings of training, checked when they are created."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anomaly.errors import ConfigError

__all__ = ["TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train. A contradiction raises `ConfigError`.

    Attributes
    ----------
    steps : int
        Optimiser steps in all.
    batch_size : int
        Images a step, over all processes together.
    learning_rate : float
        Adam's, after `warmup_steps`; decays to 1 % along a half cosine.
    warmup_steps : int
    ema_decay : float in [0, 1)
        Of the averaged weights, which are the ones evaluated and shipped.
    clip_norm : float
        Largest norm of the gradient.
    ce_weight : float
        Weight of the cross-entropy beside the denoising error; 0 leaves the constants of the log
        densities to `anomaly.cdm.intercepts.fit_intercepts` alone.
    ce_from : float in [0, 1]
        Share of the steps after which the cross-entropy joins. Early on its gradient, a sum over
        the whole image, drowns what the denoising error has to teach.
    level_weights : {"uniform", "balanced", "relative"}
        "uniform" is the paper's loss; the others weigh each level's denoising error by a power,
        0.7 or 1, of the inverse of the error that the best linear denoiser leaves there
        (`anomaly.cdm.loss.inverse_error_weights`).
    precision : {"auto", "float32", "bfloat16"}
        "auto" is bfloat16 autocast on a GPU that has it, float32 elsewhere.
    seed : int
    validate_every, checkpoint_every, examine_every : int
        Steps between; all also happen at the end. `examine_every` is for the network's health.
    """

    steps: int = 3000
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    ce_weight: float = 1e-3
    ce_from: float = 0.0
    level_weights: Literal["uniform", "balanced", "relative"] = "uniform"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    validate_every: int = 500
    checkpoint_every: int = 500
    examine_every: int = 100

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        for name in ("steps", "batch_size", "validate_every", "checkpoint_every", "examine_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}: expected more than 0")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"training.ema_decay is {self.ema_decay}: expected 0 <= decay < 1")
        if not 0 <= self.ce_from <= 1:
            raise ConfigError(f"training.ce_from is {self.ce_from}: expected 0 <= share <= 1")
        if self.warmup_steps < 0:
            raise ConfigError(f"training.warmup_steps is {self.warmup_steps}: expected 0 or more")
        if self.ce_weight < 0:
            raise ConfigError(f"training.ce_weight is {self.ce_weight}: expected 0 or more")
