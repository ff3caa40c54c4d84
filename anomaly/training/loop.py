"""The training loop, in plain PyTorch.

`fit` takes a loss, an iterable of batches and settings. It reads no scans and defines no part of
the loss. An interrupted and resumed run equals an uninterrupted one (`anomaly.training.state`).

Every `TrainingSettings.examine_every` steps the loop checks that every part of the network
contributes (`anomaly.cdm.health`), and warns of dead parts, which the loss does not show.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import nn

from anomaly.cdm.loss import CDMLoss
from anomaly.errors import ConfigError
from anomaly.parallel import one_ahead
from anomaly.training.checkpoint import (
    Metrics,
    append_metrics,
    keep_metrics_until,
    read_checkpoint,
    write_checkpoint,
)
from anomaly.training.processes import any_rank, rank_and_world
from anomaly.training.settings import TrainingSettings
from anomaly.training.state import Batch, TrainingState, refuse_non_finite

__all__ = ["FitResult", "Observers", "TrainingFolder", "fit"]

log = logging.getLogger(__name__)


class FitResult(NamedTuple):
    """The result of training.

    Attributes
    ----------
    network : Module
        Averaged network, in evaluation mode.
    step : int
        Number of steps done.
    finished : bool
        False if `should_stop` ended the training early; it can be resumed from the checkpoint.
    """

    network: nn.Module
    step: int
    finished: bool


@dataclass(frozen=True)
class TrainingFolder:
    """The folder of a training run, and the conditions for resuming it.

    Attributes
    ----------
    path : Path
        Contains ``checkpoint.pt`` and ``metrics.jsonl``; only rank 0 writes to it.
    conditions : mapping of str to str
        Description of the model and the data, by name; `TrainingSettings` are added. A checkpoint
        with other conditions is refused, and the error names those that differ. Only intervals
        (``..._every``) may differ, and the number of steps if it is not yet reached.
    """

    path: Path
    conditions: Mapping[str, str]


@dataclass(frozen=True)
class Observers:
    """Callbacks that observe a training run and can end it.

    Attributes
    ----------
    validate : callable or None
        ``validate(averaged network, step)`` -> metrics to record.
    on_metrics : callable or None
        ``on_metrics(record)`` after each validation, with the complete record.
    on_step : callable or None
        ``on_step(step, loss)`` after each step, for a progress bar.
    should_stop : callable or None
        Called after each step; if it returns True, the loop writes a checkpoint and returns.
    """

    validate: Callable[[nn.Module, int], Metrics] | None = None
    on_metrics: Callable[[Metrics], None] | None = None
    on_step: Callable[[int, float], None] | None = None
    should_stop: Callable[[], bool] | None = None

    def ask_to_stop(self) -> bool:
        """Whether the training should stop now."""
        return self.should_stop is not None and self.should_stop()


NOBODY = Observers()


def fit(
    loss: CDMLoss,
    batches: Callable[[int], Iterable[Batch]],
    settings: TrainingSettings,
    folder: TrainingFolder,
    *,
    grey_levels: int | None,
    observers: Observers = NOBODY,
) -> FitResult:
    """Train ``loss.network``; resume from the folder's checkpoint if there is one.

    Parameters
    ----------
    loss : CDMLoss
        Trained in place, on its current device.
    batches : callable
        ``batches(start)`` iterates over this process's share of steps ``start, start + 1, ...``.
    settings : TrainingSettings
    folder : TrainingFolder
    grey_levels : int or None
        Number of grey levels of the images, for dequantisation; None if they are continuous.
    observers : Observers

    Raises
    ------
    NonFiniteLoss
        If the loss or its gradient is not finite. The message states the step, the noise levels and
        the keys of the scans; the last checkpoint is unchanged.
    CheckpointError
        If the checkpoint is damaged or of another run, or cannot be written (disk full); then the
        previous checkpoint is unchanged.
    """
    rank, world = rank_and_world()
    if settings.batch_size % world:
        raise ConfigError(
            f"training.batch_size {settings.batch_size} cannot be shared evenly by {world} "
            f"processes: choose a multiple of {world}"
        )
    state = TrainingState(loss, settings)
    named = {f"training.{name}": repr(value) for name, value in asdict(settings).items()}
    record = _Record(folder.path, {**folder.conditions, **named}, rank, observers)
    record.resume(state)
    if state.step == 0:
        record.measure(state)  # start of the curve: the closed-form base alone
    for batch in one_ahead(batches(state.step) if state.step < settings.steps else ()):
        terms, levels, norm = state.train_on(batch, rank, world, grey_levels)
        if observers.on_step is not None:
            observers.on_step(state.step, float(terms.total.detach()))
        refuse_non_finite(terms, norm, levels, batch, state.step)
        if rank == 0 and state.is_due(settings.examine_every):
            state.examine(batch)
        if state.is_due(settings.validate_every):
            record.measure(state)
        stopped = any_rank(observers.ask_to_stop(), world, state.device)
        if stopped or state.is_due(settings.checkpoint_every):
            record.save(state)
        if stopped or state.step == settings.steps:
            break
    return FitResult(state.averaged.eval(), state.step, state.step >= settings.steps)


@dataclass(frozen=True)
class _Record:
    """The files of the run; only rank 0 writes."""

    folder: Path
    conditions: Mapping[str, str]
    rank: int
    observers: Observers

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def resume(self, state: TrainingState) -> None:
        resumed = self.checkpoint.exists()
        if resumed:
            state.load(read_checkpoint(self.checkpoint), self.conditions, self.checkpoint)
            log.info("resumed at step %d of %d", state.step, state.settings.steps)
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            keep_metrics_until(self.metrics, state.step if resumed else -1)

    def measure(self, state: TrainingState) -> None:
        validate, on_metrics = self.observers.validate, self.observers.on_metrics
        if self.rank == 0 and validate is not None:
            measured = {"step": state.step, **validate(state.averaged, state.step)}
            if state.update_to_weight:
                measured["update_to_weight"] = state.update_to_weight
            append_metrics(self.metrics, measured)
            if on_metrics is not None:
                on_metrics(measured)

    def save(self, state: TrainingState) -> None:
        if self.rank == 0:
            write_checkpoint(self.checkpoint, state.dump(self.conditions))
