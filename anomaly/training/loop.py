"""Training: one loop, torch alone.

`fit` takes a loss, an iterable of batches and settings. It never reads a file list and holds no
formula. Randomness is a function of (seed, step), never of what ran before; so an interrupted and
resumed run equals an uninterrupted one, and several processes together draw the noise that one
process would draw.

Every `TrainingSettings.examine_every` steps it looks whether every part of the network takes part
(`anomaly.cdm.health`), and says at once where one has died: the loss does not show it.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from anomaly.cdm.density import (
    bits_per_dim,
    denoising_bits_per_dim,
    dequantize,
    log_density,
)
from anomaly.cdm.health import HasParts, network_health
from anomaly.cdm.loss import CDMLoss, LossTerms, stratified_levels
from anomaly.errors import CheckpointError, ConfigError, NonFiniteLoss
from anomaly.logs import Public
from anomaly.training.checkpoint import (
    Metrics,
    append_metrics,
    keep_metrics_until,
    read_checkpoint,
    write_checkpoint,
)

__all__ = [
    "Batch",
    "FitResult",
    "TrainingSettings",
    "fit",
    "validation_metrics",
]

log = logging.getLogger(__name__)

EXAMINED = 4
"""Images of a batch that the network's health is judged by while it trains."""


class Batch(NamedTuple):
    """What one process sees of a training step.

    Attributes
    ----------
    images : Tensor (B, C, H, W) float32 in [-1, 1], on the grid of `grey_levels` values
    keys : sequence of B str
        Names of the scans, for messages.
    """

    images: Tensor
    keys: Sequence[str]


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
        """Refuse what cannot be trained."""
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


class FitResult(NamedTuple):
    """What training left.

    Attributes
    ----------
    network : Module
        The averaged network, in evaluation mode.
    step : int
        Steps done.
    finished : bool
        False where `should_stop` ended it early; the checkpoint resumes it.
    """

    network: nn.Module
    step: int
    finished: bool


def fit(
    loss: CDMLoss,
    batches: Callable[[int], Iterable[Batch]],
    settings: TrainingSettings,
    *,
    grey_levels: int | None,
    folder: Path,
    conditions: Mapping[str, str],
    device: torch.device | str = "cpu",
    validate: Callable[[nn.Module, int], Metrics] | None = None,
    on_metrics: Callable[[Metrics], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FitResult:
    """Train ``loss.network``; resume from the folder's checkpoint where there is one.

    Parameters
    ----------
    loss : CDMLoss
        Trained in place.
    batches : callable
        ``batches(start)`` iterates over this process's share of steps ``start, start + 1, ...``.
    settings : TrainingSettings
    grey_levels : int or None
        Grey values of the images, for dequantisation; None where they are continuous.
    folder : Path
        Holds ``checkpoint.pt`` and ``metrics.jsonl``; written by rank 0 alone.
    conditions : mapping of str to str
        What is trained on what, by name; `TrainingSettings` are added to it. A checkpoint of others
        is refused, and the names that differ are said. Only how often something is looked at or
        kept (``..._every``) may differ, and the number of steps where it is not yet reached.
    device : torch.device or str
    validate : callable, optional
        ``validate(averaged network, step)`` -> numbers to record.
    on_metrics : callable, optional
        ``on_metrics(record)`` after each validation, with all that is recorded.
    on_step : callable, optional
        ``on_step(step, loss)`` after each step, for a progress bar.
    should_stop : callable, optional
        Asked after each step; True writes a checkpoint and returns.

    Raises
    ------
    NonFiniteLoss
        With step, levels and scan keys; the last checkpoint stays.
    CheckpointError
        If the checkpoint is damaged or of another run, or cannot be written (disk full); the
        previous checkpoint survives.
    """
    rank, world = _rank_and_world()
    if settings.batch_size % world:
        raise ConfigError(
            f"training.batch_size {settings.batch_size} cannot be shared evenly by {world} "
            f"processes: choose a multiple of {world}"
        )
    state = _TrainingState(loss.to(device), settings, torch.device(device))
    named = {f"training.{name}": repr(value) for name, value in asdict(settings).items()}
    record = _Record(folder, {**conditions, **named}, rank, validate, on_metrics)
    record.resume(state)
    if state.step == 0:
        record.measure(state)  # where the curve starts: what the closed-form base knows
    for batch in batches(state.step) if state.step < settings.steps else ():
        terms, levels, norm = state.train_on(batch, rank, world, grey_levels)
        if on_step is not None:
            on_step(state.step, float(terms.total.detach()))
        _refuse_non_finite(terms, norm, levels, batch, state.step)
        if rank == 0 and state.is_due(settings.examine_every):
            state.examine(batch)
        if state.is_due(settings.validate_every):
            record.measure(state)
        stopped = _any_rank(should_stop is not None and should_stop(), world, state.device)
        if stopped or state.is_due(settings.checkpoint_every):
            record.save(state)
        if stopped or state.step == settings.steps:
            break
    return FitResult(state.averaged.eval(), state.step, state.step >= settings.steps)


@dataclass(frozen=True)
class _Record:
    """The run on disk; only rank 0 writes."""

    folder: Path
    conditions: Mapping[str, str]
    rank: int
    validate: Callable[[nn.Module, int], Metrics] | None
    on_metrics: Callable[[Metrics], None] | None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def resume(self, state: _TrainingState) -> None:
        resumed = self.checkpoint.exists()
        if resumed:
            state.load(read_checkpoint(self.checkpoint), self.conditions, self.checkpoint)
            log.info("resumed at step %d of %d", state.step, state.settings.steps)
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            keep_metrics_until(self.metrics, state.step if resumed else -1)

    def measure(self, state: _TrainingState) -> None:
        if self.rank == 0 and self.validate is not None:
            measured = {"step": state.step, **self.validate(state.averaged, state.step)}
            if state.update_to_weight:
                measured["update_to_weight"] = state.update_to_weight
            append_metrics(self.metrics, measured)
            if self.on_metrics is not None:
                self.on_metrics(measured)

    def save(self, state: _TrainingState) -> None:
        if self.rank == 0:
            write_checkpoint(self.checkpoint, state.dump(self.conditions))


class _TrainingState:
    """Everything that changes while training, and how to put it on disk and back."""

    def __init__(self, loss: CDMLoss, settings: TrainingSettings, device: torch.device) -> None:
        self.loss = loss
        self.settings = settings
        self.device = device
        self.step = 0
        self.averaged = copy.deepcopy(loss.network).requires_grad_(False).eval()
        # DDP keeps gradients equal over processes. Never static_graph: it is silently wrong for a
        # loss that differentiates through a gradient.
        self.module = DistributedDataParallel(loss) if _rank_and_world()[1] > 1 else loss
        self.parameters = [p for p in loss.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, settings.learning_rate, (0.9, 0.99))
        network = loss.network
        self.parts = network.parts if isinstance(network, HasParts) else {}
        self.dead: set[str] = set()  # what was warned of
        self.update_to_weight: dict[str, float] = {}

    def train_on(
        self, batch: Batch, rank: int, world: int, grey_levels: int | None
    ) -> tuple[LossTerms, Tensor, Tensor]:
        """Take one step; return its loss, the levels drawn and the norm of the gradient."""
        share = self.settings.batch_size // world
        images = batch.images.to(self.device, non_blocking=True)
        uniform, t, eps = self._draw(images.shape[1:], rank * share, share)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        joined = self.step >= self.settings.ce_from * self.settings.steps
        self.loss.ce_weight = self.settings.ce_weight if joined else 0.0
        if grey_levels is not None:
            images = dequantize(images, grey_levels, uniform)
        forked = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(forked), _autocast(self.settings.precision, self.device):
            # Dropout draws from the global stream: it too is a function of the step alone.
            torch.manual_seed(self._stream() * world + rank)
            terms: LossTerms = self.module(images, t, eps)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        # Processes share the gradient, not the loss: its norm lets them stop together.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if _is_finite(terms, norm):  # else the caller raises; the weights stay usable
            self._update()
        self.step += 1
        self._average()
        return terms, t, norm

    def _update(self) -> None:
        """Take the optimiser's step; where it will be recorded, measure how far it moves a part."""
        after, every = self.step + 1, self.settings.validate_every
        if after % every and after != self.settings.steps:
            self.optimizer.step()
            return
        before = {
            name: [p.detach().clone() for p in part.parameters()]
            for name, part in self.parts.items()
        }
        self.optimizer.step()
        self.update_to_weight = {
            name: _distance(before[name], list(part.parameters()))
            for name, part in self.parts.items()
        }

    def examine(self, batch: Batch) -> None:
        """Warn of parts of the network that are dead, once of each."""
        if not self.parts:
            return
        images = batch.images[:EXAMINED].to(self.device)
        health = network_health(self.loss.network, self.parts, self.loss.levels, images)
        for part in health.parts:
            if part.name in health.dead and part.name not in self.dead:
                log.warning(
                    "%s of the network is dead at step %d: at no noise level does it carry more "
                    "than %.2g %% of gradient times activation, and the rest learns without it. "
                    "Train anew with a lower training.learning_rate (%g); an encoder needs "
                    "network.normalize: true",
                    Public(part.name),
                    self.step,
                    100 * part.share,
                    self.settings.learning_rate,
                )
        self.dead |= set(health.dead)

    def _draw(self, shape: torch.Size, start: int, share: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noise of this process's rows, drawn as one process would draw the whole batch."""
        generator = torch.Generator().manual_seed(self._stream())
        size = self.settings.batch_size
        t = stratified_levels(size, len(self.loss.levels), generator)
        uniform = torch.rand(size, *shape, generator=generator)
        eps = torch.randn(size, *shape, generator=generator)
        rows = slice(start, start + share)
        return tuple(v[rows].to(self.device) for v in (uniform, t, eps))  # type: ignore[return-value]

    def _stream(self) -> int:
        # A plain function of (seed, step); a large odd factor keeps nearby seeds' streams apart.
        return self.settings.seed * 1_000_003 + self.step

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / max(1, self.settings.warmup_steps))
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))
        return self.settings.learning_rate * warm * decay

    @torch.no_grad()
    def _average(self) -> None:
        # The decay grows from 0, so that a short run does not average its random start.
        decay = min(self.settings.ema_decay, self.step / (self.step + 10))
        for averaged, current in zip(
            self.averaged.parameters(), self.loss.network.parameters(), strict=True
        ):
            averaged.lerp_(current.detach(), 1 - decay)

    def is_due(self, every: int) -> bool:
        """Whether something done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.settings.steps

    def dump(self, conditions: Mapping[str, str]) -> dict[str, Any]:
        return {
            "conditions": dict(conditions),
            "step": self.step,
            "network": self.loss.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, saved: Mapping[str, Any], conditions: Mapping[str, str], path: Path) -> None:
        before: Mapping[str, str] = saved["conditions"]
        differ = {
            name: (before.get(name, "absent"), conditions.get(name, "absent"))
            for name in sorted(before.keys() | conditions.keys())
            if before.get(name) != conditions.get(name) and not name.endswith("_every")
        }
        steps = differ.pop("training.steps", None)
        if differ:
            changes = [f"{name} was {was} and is {now}" for name, (was, now) in differ.items()]
            raise CheckpointError(
                f"{path} belongs to another training: {'; '.join(changes)}. Train into an empty "
                "folder, or restore what was changed"
            )
        if self.settings.steps < int(saved["step"]):
            raise CheckpointError(
                f"training.steps is {self.settings.steps}, and {path} is at step {saved['step']} "
                "already: ask for more steps, or train into an empty folder"
            )
        if steps is not None:
            log.info(
                "training.steps was %s and is %s: the learning rate goes on along the new length",
                Public(steps[0]),
                Public(steps[1]),
            )
        self.loss.network.load_state_dict(saved["network"])
        self.averaged.load_state_dict(saved["averaged"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = int(saved["step"])


@torch.no_grad()
def validation_metrics(
    loss: CDMLoss, network: nn.Module, images: Tensor, *, grey_levels: int, seed: int, batch: int
) -> Metrics:
    """Bits/dim, cross-entropy and per-level denoising error of held-out images.

    Parameters
    ----------
    loss : CDMLoss
        For its levels and weight; its own network is not used.
    network : Module
        Usually the averaged one.
    images : Tensor (N, C, H, W) in [-1, 1]
    grey_levels : int
    seed : int
        The same noise every time, so that curves compare.
    batch : int

    Returns
    -------
    dict
        ``bits_per_dim`` (dequantised, of the density), ``bits_per_dim_bound`` (what the denoising
        errors prove, `anomaly.cdm.density.denoising_bits_per_dim`), ``cross_entropy`` (nats),
        ``denoising`` (mean squared error of eps), ``denoising_by_level`` (ten rungs of the ladder;
        None for one that no image was noised to).
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


def _distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Norm of the change over the norm of what was; 0 where there is nothing."""
    change = sum(float((a.detach() - b).square().sum()) for a, b in zip(after, before, strict=True))
    size = sum(float(b.square().sum()) for b in before)
    return math.sqrt(change / size) if size else 0.0


def _is_finite(terms: LossTerms, norm: Tensor) -> bool:
    return bool(torch.isfinite(terms.total) & torch.isfinite(norm))


def _refuse_non_finite(
    terms: LossTerms, norm: Tensor, levels: Tensor, batch: Batch, step: int
) -> None:
    if _is_finite(terms, norm):
        return
    per_scan = terms.cross_entropy + terms.denoising
    bad = (~torch.isfinite(per_scan)).nonzero().flatten().tolist() or list(range(len(levels)))
    where = ", ".join(f"{batch.keys[i]} (level {int(levels[i])})" for i in bad[:8])
    raise NonFiniteLoss(
        f"the loss is {float(terms.total.detach())} and its gradient's norm {float(norm)} "
        f"at step {step}, from scans {where}"
        f"{' and others' if len(bad) > 8 else ''}. The last checkpoint is intact: lower "
        "training.learning_rate or look at these scans, then run again"
    )


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _any_rank(stop: bool, world: int, device: torch.device) -> bool:
    """Agree over processes: one that stops alone would leave the others waiting."""
    if world == 1:
        return stop
    flag = torch.tensor(int(stop), device=device)  # NCCL knows no CPU tensor
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    enabled = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
