"""fit: normal scans and a trained network -> heatmap model and detector.

The detector is fitted on normals as they are and, where the configuration says so, on copies under
mild acquisition nuisance. Of several candidates the one with the widest margin between synthetic
perturbations and nuisance is taken (`anomaly.detection.selection`), judged on validation
normals by detectors fitted on the training normals alone. No abnormal scan takes part.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier
from anomaly.config import Config
from anomaly.data.alterations import random_nuisance, random_perturbation
from anomaly.data.loaders import Change, framed_images, network_images
from anomaly.data.manifest import ManifestRow
from anomaly.detection.detector import Detector, DetectorSettings
from anomaly.detection.features import Observation, join, observe
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.scoring import fit_scoring, score_observation
from anomaly.detection.selection import margin, widest
from pipelines.run import progress_bar

__all__ = ["FittedScoring", "Watcher", "fit_detector", "fitting_set"]

log = logging.getLogger(__name__)

BATCH = 32


@dataclass(frozen=True)
class FittedScoring:
    """A detector and a heatmap model, and how the detector was chosen.

    Attributes
    ----------
    detector : Detector
    heatmap : HeatmapModel
    margins : dict of str to float
        Of every candidate; empty where there was nothing to choose.
    """

    detector: Detector
    heatmap: HeatmapModel
    margins: dict[str, float]


@dataclass(frozen=True)
class Watcher:
    """A trained network that looks at scans as its configuration says.

    Attributes
    ----------
    network : LevelClassifier
    levels : NoiseLevels
    config : Config
    device : torch.device
    """

    network: LevelClassifier
    levels: NoiseLevels
    config: Config
    device: torch.device

    def observe(
        self, rows: Sequence[ManifestRow], what: str, change: Change | None = None
    ) -> Observation:
        """Read scans, changed where asked, and ask the network about them, in order."""
        return join(list(self.parts(self.images(rows, change), what)))

    def images(self, rows: Sequence[ManifestRow], change: Change | None = None) -> Tensor:
        """Network images (N, 1, size, size) in [-1, 1] of scans, changed where asked, in order."""
        config = self.config
        framed = framed_images(
            config.data.root,
            rows,
            config.intensity,
            config.preprocessing,
            config.data.workers,
            change,
        )
        return network_images(framed, config.preprocessing)

    def parts(self, images: Tensor, what: str) -> Iterator[Observation]:
        """Ask the network about images, a batch at a time: not all residuals fit in memory."""
        network = self.network.to(self.device)
        grey = self.config.preprocessing.grey_levels
        with progress_bar(len(images), what, "scan") as bar:
            for part in images.split(BATCH):
                x = part.to(self.device)
                yield observe(network, self.levels, x, self.config.features, grey_levels=grey)
                bar.update(len(part))


def fit_detector(
    watcher: Watcher, train: Sequence[ManifestRow], validation: Sequence[ManifestRow]
) -> FittedScoring:
    """Choose and fit the detector; fit the heatmap.

    Raises
    ------
    CalibrationError
        If there are too few scans.
    """
    settings = watcher.config.detector
    trained = train if "train" in settings.fit_on else []
    rows = [*trained, *validation]
    observed, scans = fitting_set(watcher, rows)
    candidates = {str(candidate): candidate for candidate in settings.candidates}
    margins: dict[str, float] = {}
    if len(candidates) > 1:
        margins = _margins(watcher, candidates, observed, scans, len(trained), validation)
        for name, value in margins.items():
            log.info("margin %.3f  %s", value, name)
    chosen = widest(margins) if margins else next(iter(candidates))
    if margins:
        log.info("chosen without any abnormal scan: %s", chosen)
    features, heatmap = watcher.config.features, watcher.config.heatmap
    detector, model = fit_scoring(observed, features, heatmap, candidates[chosen], scans)
    return FittedScoring(detector, model, margins)


def fitting_set(
    watcher: Watcher, rows: Sequence[ManifestRow]
) -> tuple[Observation, NDArray[np.intp]]:
    """Observe scans as they are, and under nuisance as often as the configuration says.

    Returns
    -------
    Observation
        Of all scans as they are, then of all first copies, and so on.
    ndarray of int
        Number in `rows` of the scan that each image shows.
    """
    settings = watcher.config.detector
    parts = [watcher.observe(rows, "observing normals")]
    for copy in range(settings.nuisance_copies):
        change = partial(_changed, "nuisance", settings.seed, copy)
        parts.append(watcher.observe(rows, f"under nuisance {copy + 1}", change))
    return join(parts), np.tile(np.arange(len(rows)), len(parts))


def _margins(
    watcher: Watcher,
    candidates: dict[str, DetectorSettings],
    observed: Observation,
    scans: NDArray[np.intp],
    trained: int,
    validation: Sequence[ManifestRow],
) -> dict[str, float]:
    """Margin of every candidate, fitted on the first `trained` scans, on validation scans."""
    features, heatmap = watcher.config.features, watcher.config.heatmap
    copies = watcher.config.detector.nuisance_copies
    perturbed = join(
        [
            watcher.observe(
                validation,
                f"perturbed {copy + 1}",
                partial(_changed, "perturbation", watcher.config.detector.seed, copy),
            )
            for copy in range(copies)
        ]
    )
    fitted_on = scans < trained
    is_copy = np.arange(len(scans)) >= len(scans) // (copies + 1)
    seen = observed.select(fitted_on)
    nuisance = observed.select(~fitted_on & is_copy)
    margins = {}
    for name, candidate in candidates.items():
        detector, model = fit_scoring(seen, features, heatmap, candidate, scans[fitted_on])
        margins[name] = margin(
            *(score_observation(o, features, detector, model).scores for o in (nuisance, perturbed))
        )
    return margins


def _changed(
    kind: Literal["nuisance", "perturbation"],
    seed: int,
    copy: int,
    pixels: NDArray[np.float32],
    row: ManifestRow,
) -> NDArray[np.float32]:
    """Change a scan by a draw that is its own: a function of its content, the seed and the copy."""
    name = f"{kind} {seed} {copy} {row.sha256} {row.frame}".encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
    if kind == "nuisance":
        return random_nuisance(pixels, rng)
    return random_perturbation(pixels, rng).pixels
