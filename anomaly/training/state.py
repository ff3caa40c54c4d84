"""The state of a training run: everything that changes from step to step, and the step itself.

Random numbers are a function of (seed, step) and not of earlier draws, so an interrupted and
resumed run equals an uninterrupted one, and several processes together draw the same noise as one
process.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anomaly.cdm.density import dequantize
from anomaly.cdm.health import HasParts, network_health
from anomaly.cdm.loss import CDMLoss, LossTerms, stratified_levels
from anomaly.errors import CheckpointError, NonFiniteLoss
from anomaly.logs import Public
from anomaly.parallel import ParallelThreads
from anomaly.training.processes import rank_and_world
from anomaly.training.settings import TrainingSettings

__all__ = ["Batch", "TrainingState", "refuse_non_finite"]

log = logging.getLogger(__name__)

PART = 8
"""Images of a batch that one thread differentiates at a time: a processor's cache holds few."""

EXAMINED = 4
"""Number of images of a batch that are used to check the network's health during training."""


class Batch(NamedTuple):
    """The share of one process in the batch of a training step.

    Attributes
    ----------
    images : Tensor (B, C, H, W) float32 in [-1, 1], on the grid of `grey_levels` values
    keys : sequence of B str
        Keys of the scans, for messages.
    """

    images: Tensor
    keys: Sequence[str]


class TrainingState:
    """Everything that changes during training, with `dump` and `load` for checkpoints."""

    def __init__(self, loss: CDMLoss, settings: TrainingSettings) -> None:
        self.loss = loss
        self.settings = settings
        self.device = next(loss.parameters()).device
        self.step = 0
        self.averaged = copy.deepcopy(loss.network).requires_grad_(False).eval()
        # DDP keeps gradients equal across processes. Do not use static_graph: it is silently wrong
        # for a loss that differentiates through a gradient.
        self.module = DistributedDataParallel(loss) if rank_and_world()[1] > 1 else loss
        self.parameters = [p for p in loss.network.parameters() if p.requires_grad]
        # Not fused: on a CPU it takes gradients with channels innermost for gradients with channels
        # outermost, and learns something else without a word (PyTorch 2.13).
        self.optimizer = torch.optim.Adam(self.parameters, settings.learning_rate, (0.9, 0.99))
        # Parts of a batch share the global generator, from which dropout draws.
        draws = any(isinstance(module, nn.Dropout) and module.p for module in loss.modules())
        # Kept from step to step: a new thread has no memory yet, and has to ask for all of it.
        self._threads = ParallelThreads(self.device)
        self._divides = self.device.type == "cpu" and self.module is loss and not draws
        network = loss.network
        self.parts = network.parts if isinstance(network, HasParts) else {}
        self.dead: set[str] = set()  # parts that were reported
        self.update_to_weight: dict[str, float] = {}

    def train_on(
        self, batch: Batch, rank: int, world: int, grey_levels: int | None
    ) -> tuple[LossTerms, Tensor, Tensor]:
        """Do one step; return its loss, the drawn noise levels and the norm of the gradient."""
        share = self.settings.batch_size // world
        images = batch.images.to(self.device, non_blocking=True)
        uniform, t, eps = self._draw(images.shape[1:], rank * share, share)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        joined = self.step >= self.settings.ce_from * self.settings.steps
        self.loss.ce_weight = self.settings.ce_weight if joined else 0.0
        if grey_levels is not None:
            images = dequantize(images, grey_levels, uniform)
        self.optimizer.zero_grad(set_to_none=True)
        if self._divides:
            terms = self._backpropagate_parts(images, t, eps)
        else:
            terms = self._backpropagate(images, t, eps, self._stream() * world + rank)
        # Processes share the gradient, not the loss, so its norm lets them stop together.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if _is_finite(terms, norm):  # else the caller raises; the weights stay usable
            self._update()
        self.step += 1
        self._average()
        return terms, t, norm

    def _backpropagate(self, images: Tensor, t: Tensor, eps: Tensor, seed: int) -> LossTerms:
        """Compute the loss of a batch and its gradient as one."""
        forked = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(forked), _autocast(self.settings.precision, self.device):
            # Dropout uses the global generator, which must also depend only on seed and step.
            torch.manual_seed(seed)
            terms: LossTerms = self.module(images, t, eps)
        terms.total.backward()
        return terms

    def _backpropagate_parts(self, images: Tensor, t: Tensor, eps: Tensor) -> LossTerms:
        """Compute the same in parts of a batch, in parallel threads.

        The parts do not depend on the number of threads, and their gradients are added in order, so
        the result does not depend on it either.
        """
        count = len(images)

        def differentiate(rows: slice) -> tuple[LossTerms, Sequence[Tensor | None]]:
            with torch.enable_grad(), _autocast(self.settings.precision, self.device):
                terms: LossTerms = self.loss(images[rows], t[rows], eps[rows])
                share = len(terms.denoising) / count
                terms = terms._replace(total=terms.total * share)
            gradients = torch.autograd.grad(terms.total, self.parameters, allow_unused=True)
            return terms._replace(total=terms.total.detach()), gradients

        rows = (slice(start, start + PART) for start in range(0, count, PART))
        parts = []
        for _, (terms, gradients) in self._threads.map(differentiate, rows):
            parts.append(terms)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    known = parameter.grad
                    parameter.grad = gradient if known is None else known + gradient
        return LossTerms(
            torch.stack([part.total for part in parts]).sum(),
            torch.cat([part.cross_entropy for part in parts]),
            torch.cat([part.denoising for part in parts]),
        )

    def _update(self) -> None:
        """Do the optimiser step; before a validation also measure the relative update by part."""
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
        """Warn of dead parts of the network, once for each."""
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
        """Random numbers for this process's rows, taken from a draw for the whole batch."""
        generator = torch.Generator().manual_seed(self._stream())
        size = self.settings.batch_size
        t = stratified_levels(size, len(self.loss.levels), generator)
        uniform = torch.rand(size, *shape, generator=generator)
        eps = torch.randn(size, *shape, generator=generator)
        rows = slice(start, start + share)
        return tuple(v[rows].to(self.device) for v in (uniform, t, eps))  # type: ignore[return-value]

    def _stream(self) -> int:
        # A function of (seed, step) only; the large odd factor separates streams of nearby seeds.
        return self.settings.seed * 1_000_003 + self.step

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / max(1, self.settings.warmup_steps))
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))
        return self.settings.learning_rate * warm * decay

    @torch.no_grad()
    def _average(self) -> None:
        # The decay grows from 0, so that a short run does not average its random initial weights.
        decay = min(self.settings.ema_decay, self.step / (self.step + 10))
        for averaged, current in zip(
            self.averaged.parameters(), self.loss.network.parameters(), strict=True
        ):
            averaged.lerp_(current, 1 - decay)

    def is_due(self, every: int) -> bool:
        """Whether an action that is done every `every` steps, and at the end, is due now."""
        return self.step % every == 0 or self.step == self.settings.steps

    def dump(self, conditions: Mapping[str, str]) -> dict[str, Any]:
        """Return the content of a checkpoint, for `load`."""
        return {
            "conditions": dict(conditions),
            "step": self.step,
            "network": self.loss.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, saved: Mapping[str, Any], conditions: Mapping[str, str], path: Path) -> None:
        """Restore the state from a checkpoint.

        Raises
        ------
        CheckpointError
            If the checkpoint belongs to another training run.
        """
        self._check(saved, conditions, path)
        self.loss.network.load_state_dict(saved["network"])
        self.averaged.load_state_dict(saved["averaged"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = int(saved["step"])

    def _check(self, saved: Mapping[str, Any], conditions: Mapping[str, str], path: Path) -> None:
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


def refuse_non_finite(
    terms: LossTerms, norm: Tensor, levels: Tensor, batch: Batch, step: int
) -> None:
    """Check that the loss and the norm of its gradient are finite.

    Raises
    ------
    NonFiniteLoss
        If not; the message states the step, the noise levels and the keys of the scans.
    """
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


def _is_finite(terms: LossTerms, norm: Tensor) -> bool:
    return bool(torch.isfinite(terms.total) & torch.isfinite(norm))


def _distance(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Norm of the change divided by the norm of the earlier values; 0 if that is 0."""
    change = sum(float((a.detach() - b).square().sum()) for a, b in zip(after, before, strict=True))
    size = sum(float(b.square().sum()) for b in before)
    return math.sqrt(change / size) if size else 0.0


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    enabled = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
