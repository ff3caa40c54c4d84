"""train: normal scans -> a network, a detector, a bundle.

Runs in one process, or on several devices with
``torchrun --nproc-per-node N -m anomaly train RUN``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from anomaly.cdm.density import grey_step
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.health import network_health
from anomaly.cdm.intercepts import fit_intercepts
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import POWERS, CDMLoss, inverse_error_weights
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.config import Config, DataSettings, ResultsSettings, write_config
from anomaly.data.images.loaders import Deal, step_batches
from anomaly.data.images.network_images import ImageReader, framed_images, network_images
from anomaly.data.table.gate import Gate
from anomaly.data.table.manifest import Manifest, ManifestRow, scan_marks
from anomaly.detection.look_alikes import LookAlikes
from anomaly.errors import AnomalyError, BundleError, ConfigError, ManifestError
from anomaly.files import writing
from anomaly.pipelines.context import process_place
from anomaly.pipelines.run import RunFolder, stop_on_interrupt
from anomaly.progress import progress_bar
from anomaly.scoring.leases import Leases
from anomaly.store.bundle import Bundle, read_bundle, write_bundle
from anomaly.store.bundle_files import is_calibrated
from anomaly.training.board import Board, quiet_board
from anomaly.training.checkpoint import Metrics
from anomaly.training.detector_fit import ScanObserver, fit_detector
from anomaly.training.loop import FitResult, Observers, TrainingFolder, fit
from anomaly.training.samples import draw_samples, write_samples
from anomaly.training.state import Batch
from anomaly.training.validation import validation_metrics

__all__ = ["fit_bundle", "look_alikes", "normals_of", "processes", "train", "trained_bundle"]

log = logging.getLogger(__name__)

SCORING_BATCH = 32
# Steps after which the remaining training time is logged.
SPEED_STEPS = 50
# Held-out normals for the check of the network's health.
HEALTH_IMAGES = 16
# Draws per level for fitting the intercepts: for training curves, and finally for the bundle.
CURVE_DRAWS, FINAL_DRAWS = 3, 20


def train(run: RunFolder, config: Config, device: torch.device) -> FitResult:
    """Train the network (resuming from a checkpoint), fit the detector and write the bundle.

    Does nothing if the run's bundle was already trained with the same settings on the same scans.

    Raises
    ------
    AnomalyError
        Another training is running in this run folder.
    """
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    rank, _ = process_place()
    known = trained_bundle(run, config, manifest)
    if known is not None:
        log.info("the bundle is trained with these settings on these scans already: nothing to do")
        return FitResult(known.network, config.training.steps, finished=True)
    lease = Leases().claim(run.path / "training.lease") if rank == 0 else nullcontext()
    if lease is None:
        raise AnomalyError(f"another training is at work in {run.path}: wait, or name a new folder")
    with lease:
        return _train(run, config, manifest, device)


def trained_bundle(run: RunFolder, config: Config, manifest: Manifest) -> Bundle | None:
    """Return the run's bundle if it was trained with these settings on these scans, else None."""
    if not run.bundle.exists():
        return None
    try:
        bundle = read_bundle(run.bundle)
    except BundleError:
        log.warning("the run's bundle cannot be read: trained or exported again")
        return None
    fits = _made_with(bundle.config) == _made_with(config) and bundle.adapted is None
    return bundle if fits and bundle.manifest_hash == manifest.hash else None


def _made_with(config: Config) -> Config:
    """Return the settings on which a trained bundle depends; the others are set to defaults."""
    # The table of scans is compared by its hash; intervals between validations have no effect.
    training = replace(config.training, validate_every=1, checkpoint_every=1, examine_every=1)
    return replace(
        config,
        name="",
        data=DataSettings(),
        gate=Gate(),
        training=training,
        alpha=0.05,
        results=ResultsSettings(),
    )


def _train(run: RunFolder, config: Config, manifest: Manifest, device: torch.device) -> FitResult:
    normals = {split: normals_of(manifest, config, split) for split in ("train", "validation")}
    reader = ImageReader(config.data.root, config.intensity, config.preprocessing)
    framed = {
        split: framed_images(reader, rows, config.data.workers) for split, rows in normals.items()
    }
    images = {split: network_images(f, config.preprocessing) for split, f in framed.items()}
    levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
    classifier = _classifier(config, levels, images["train"])
    keys = [row.key for row in normals["train"]]
    views = _Images(framed["train"], keys, images)
    result = _Training(run, config, classifier, levels, views, device).fit(manifest.hash)
    if not result.finished:
        log.info("stopped at step %d; the same command resumes", result.step)
        return result
    if process_place()[0] == 0:
        assert isinstance(result.network, LevelClassifier)
        observer = ScanObserver(result.network, levels, config, images["train"].mean(0), device)
        bundle = _write_bundle(run, manifest.hash, observer, normals, images["train"])
        samples = run.path / "samples"
        run.record("train", {"bundle_hash": bundle.hash, "steps": result.step}, [samples])
    return result


def _write_bundle(
    run: RunFolder,
    manifest_hash: str,
    observer: ScanObserver,
    normals: Mapping[str, tuple[ManifestRow, ...]],
    images: Tensor,
) -> Bundle:
    """Fit the intercepts and the detector, and write the bundle; `images` are those of training."""
    config, levels = observer.config, observer.levels
    _fit_intercepts(observer.network, images, levels, config, FINAL_DRAWS)
    return fit_bundle(run, manifest_hash, observer, normals, images)


def fit_bundle(
    run: RunFolder,
    manifest_hash: str,
    observer: ScanObserver,
    normals: Mapping[str, Sequence[ManifestRow]],
    images: Tensor,
    *,
    seen: frozenset[str] = frozenset(),
) -> Bundle:
    """Fit the detector on normals of the splits train and validation, and write the bundle.

    `seen` are `anomaly.data.table.manifest.scan_marks` of other scans that the network has seen.
    """
    config = observer.config
    if run.bundle.exists() and is_calibrated(run.bundle):
        log.warning("the bundle is made anew: calibrate it again")
    write_config(run.config, config)  # it may be re-exported
    log.info("fitting the detector")
    fitted = fit_detector(observer, normals["train"], normals["validation"])
    marks = frozenset(mark for rows in normals.values() for row in rows for mark in scan_marks(row))
    return write_bundle(
        Bundle(
            config,
            observer.levels,
            observer.network,
            fitted.detector,
            fitted.heatmap,
            observer.reference,
            manifest_hash,
            marks | seen,
            str(fitted.chosen),
            fitted.margins,
            look_alikes(normals["train"], images, config),
        ),
        run.bundle,
    )


def look_alikes(rows: Sequence[ManifestRow], images: Tensor, config: Config) -> LookAlikes | None:
    """Draw the training images that a report may show; images with burned-in text are excluded."""
    fit = [index for index, row in enumerate(rows) if not row.burned_in]
    if not config.look_alikes or not fit:
        return None
    drawn = np.random.default_rng(config.training.seed).permutation(fit)
    return LookAlikes.of(images.numpy()[np.sort(drawn[: config.look_alikes])])


def normals_of(manifest: Manifest, config: Config, split: str) -> tuple[ManifestRow, ...]:
    """Return the normal scans of a split.

    Raises
    ------
    ManifestError
        If there are none.
    """
    rows = manifest.select(split=split, label=config.data.normal)
    if not rows:
        raise ManifestError(
            f"the {split} split holds no scan labelled {config.data.normal!r}: raise "
            f"data.splits.{split} ({config.data.splits.get(split, 0)}) or add scans"
        )
    return rows


def _classifier(config: Config, levels: NoiseLevels, images: Tensor) -> LevelClassifier:
    torch.manual_seed(config.training.seed)
    network = build_network(config.network, levels)
    base = None
    if config.network.spectral_base:
        # Dequantisation noise is the minimum variance of any pixel.
        floor = grey_step(config.preprocessing.grey_levels) ** 2 / 12
        base = CosineGaussianCDM.fit(images, levels, floor=floor)
    return LevelClassifier(network, base)


@dataclass(frozen=True)
class _Images:
    """The normal scans for training, in the forms that are needed.

    Attributes
    ----------
    framed : Tensor (N, 1, 2 size, 2 size) in [0, 1]
        Training scans before augmentation.
    keys : list of N str
    views : dict of str to Tensor (M, 1, size, size) in [-1, 1]
        Network images of the scans of each split.
    """

    framed: Tensor
    keys: list[str]
    views: dict[str, Tensor]


class _Training:
    """One training: batches for the training loop, validation and progress output."""

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        classifier: LevelClassifier,
        levels: NoiseLevels,
        images: _Images,
        device: torch.device,
    ) -> None:
        self.run, self.config, self.levels, self.images = run, config, levels, images
        self.device = device
        self.rank, self.world = process_place()
        weights = _level_weights(config, classifier)
        self.loss = CDMLoss(classifier, levels, config.training.ce_weight, weights).to(device)
        self.board = Board(run.path / "tensorboard") if self.rank == 0 else None
        steps = config.training.steps
        self.bar = progress_bar(steps, "training", "step", hidden=self.rank != 0)
        self._first: tuple[int, float] | None = None

    def fit(self, manifest_hash: str) -> FitResult:
        """Train to the end, or until a signal; `manifest_hash` identifies the table of scans."""
        with stop_on_interrupt() as stop, self.bar, quiet_board():
            result = fit(
                self.loss,
                self._batches,
                self.config.training,
                TrainingFolder(self.run.path, self._conditions(manifest_hash)),
                grey_levels=self.config.preprocessing.grey_levels,
                observers=Observers(self._validate, self._on_metrics, self._on_step, stop),
            )
        if self.board is not None:
            self.board.close()
        if not result.finished and stop.signal:
            log.info("stopped at step %d; the same command resumes", result.step)
            raise SystemExit(128 + stop.signal)  # so that `train && calibrate` stops too
        return result

    def _conditions(self, manifest_hash: str) -> dict[str, str]:
        """Return the conditions under which training can resume from a checkpoint."""
        return {
            "the table of scans": manifest_hash[:16],
            **{
                f"{section}.{name}": repr(value)
                for section in ("intensity", "preprocessing", "augmentation", "levels", "network")
                for name, value in asdict(getattr(self.config, section)).items()
            },
        }

    def _batches(self, start: int) -> Iterator[Batch]:
        # Written only now: if the checkpoint refuses the configuration, nothing changes.
        if self.rank == 0:
            write_config(self.run.config, self.config)
        settings = self.config.training
        loader = step_batches(
            self.images.framed,
            self.images.keys,
            self.config.augmentation,
            self.config.preprocessing,
            range(start, settings.steps),
            Deal(settings.batch_size, settings.seed, settings.steps, self.rank, self.world),
        )
        for batch, names in loader:
            yield Batch(batch, names)

    def _validate(self, averaged: nn.Module, step: int) -> Metrics:
        assert self.board is not None
        assert isinstance(averaged, LevelClassifier)
        train, held_out = self.images.views["train"], self.images.views["validation"]
        grey = self.config.preprocessing.grey_levels
        fitted = averaged.intercept.clone()
        _fit_intercepts(averaged, train, self.levels, self.config, CURVE_DRAWS)
        metrics = validation_metrics(
            self.loss, averaged, held_out, grey_levels=grey, seed=0, batch=SCORING_BATCH
        )
        averaged.intercept.copy_(fitted)  # validation must not change the network
        shown = held_out[:HEALTH_IMAGES].to(self.device)
        health = network_health(averaged, averaged.parts, self.levels, shown)
        metrics["health"] = health.record()
        drawn = draw_samples(averaged, self.levels, train.shape[1:], self.device)
        samples = self.run.path / "samples"
        with writing(samples):
            sheet = write_samples(samples / f"step-{step:06d}.png", drawn)
            self.board.show("samples (synthetic)", sheet, step)
        self.bar.write(
            f"step {step}: {metrics['bits_per_dim']:.3f} bits/dim ({grey} grey levels, "
            f"dequantised; {metrics['bits_per_dim_bound']:.3f} by denoising), denoising error "
            f"{metrics['denoising']:.4f} on held-out normals; "
            + (f"DEAD: {', '.join(health.dead)}" if health.dead else "every part lives")
        )
        return metrics

    def _on_metrics(self, record: Metrics) -> None:
        assert self.board is not None
        numbers = {name: value for name, value in record.items() if name != "step"}
        self.board.write(numbers, record["step"])

    def _on_step(self, step: int, value: float) -> None:
        if self._first is None:
            self._first = step, time.perf_counter()
        first, began = self._first
        if step == first + SPEED_STEPS and self.rank == 0:
            a_step = (time.perf_counter() - began) / SPEED_STEPS
            left = a_step * (self.config.training.steps - step)
            log.info("%.3g s a step: some %.0f minutes to go", a_step, left / 60)
        self.bar.update(step - self.bar.n)
        self.bar.set_postfix(loss=f"{value:.4f}", refresh=False)


def _level_weights(config: Config, classifier: LevelClassifier) -> Tensor | None:
    name = config.training.level_weights
    if name == "uniform":
        return None
    if classifier.base is None:
        raise ConfigError(
            f"training.level_weights is {name!r}, which needs network.spectral_base: true; use "
            "'uniform' without a base"
        )
    return inverse_error_weights(classifier.base.denoising_error(), POWERS[name])


def _fit_intercepts(
    network: LevelClassifier, images: Tensor, levels: NoiseLevels, config: Config, draws: int
) -> None:
    count = draws * len(levels)
    with progress_bar(count, "fitting the constants of the levels", "draw") as bar:
        fit_intercepts(
            network,
            images,
            levels,
            grey_levels=config.preprocessing.grey_levels,
            draws=count,
            seed=config.training.seed,
            on_draws=bar.update,
        )


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the process group if torchrun started several processes."""
    if process_place()[1] == 1:
        yield
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes cannot join each other ({error}): start them by torchrun, or unset "
            "RANK and WORLD_SIZE"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()
