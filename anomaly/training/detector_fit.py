"""Normal scans and a trained network -> heatmap model and detector.

The detector is fitted on unchanged normal scans and, if the configuration says so, on copies under
mild acquisition nuisance. If there are several candidates, they are fitted on the training normals
and compared on validation normals by their margin between synthetic perturbations and nuisance
(`anomaly.detection.selection`). No abnormal scan is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier
from anomaly.config import Config
from anomaly.data.images.network_images import Change, ImageReader, NetworkImages, read_images
from anomaly.data.synthetic.seeded import nuisance_change, perturbation_change
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection.detector import FeatureDetector
from anomaly.detection.extractor import FeatureExtractor, Observation, join
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.kinds import (
    KindSettings,
)
from anomaly.detection.scoring import (
    fit_heatmap,
    fit_on,
    fit_scoring,
    new_table,
    normal_table,
)
from anomaly.detection.selection import choose, margin, standard_error
from anomaly.logs import Public
from anomaly.progress import progress_bar

__all__ = [
    "FittedScoring",
    "ScanObserver",
    "calibration_change",
    "fit_detector",
    "fitting_set",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedScoring:
    """A detector and a heatmap model, with the result of the selection.

    Attributes
    ----------
    detector : FeatureDetector
    heatmap : HeatmapModel
    chosen : KindSettings
        Settings of the chosen candidate.
    margins : dict of str to float
        Margin of every candidate; empty if there was only one.
    """

    detector: FeatureDetector
    heatmap: HeatmapModel
    chosen: KindSettings
    margins: dict[str, float]


@dataclass(frozen=True)
class ScanObserver:
    """A trained network that computes observations of scans according to its configuration.

    Attributes
    ----------
    network : LevelClassifier
    levels : NoiseLevels
    config : Config
    reference : Tensor (1, size, size)
        Mean training image.
    device : torch.device
    """

    network: LevelClassifier
    levels: NoiseLevels
    config: Config
    reference: Tensor
    device: torch.device

    def observe(
        self, rows: Sequence[ManifestRow], what: str, change: Change | None = None
    ) -> Observation:
        """Read scans, optionally changed, and compute their observations, in order."""
        return join(list(self.parts(self.images(rows, change), what)))

    def images(self, rows: Sequence[ManifestRow], change: Change | None = None) -> NetworkImages:
        """Read the network images of scans, optionally changed, in order."""
        return read_images(self.reader(change), rows, self.config.data.workers)

    def reader(self, change: Change | None = None) -> ImageReader:
        """Return a reader of network images, which optionally changes the scans."""
        config = self.config
        return ImageReader(config.data.root, config.intensity, config.preprocessing, change)

    def parts(self, images: NetworkImages, what: str) -> Iterator[Observation]:
        """Observe images batch by batch, because the residuals of all do not fit in memory."""
        extract = FeatureExtractor.of(
            self.network.to(self.device),
            self.levels,
            self.config.features,
            self.config.preprocessing.grey_levels,
            self.reference,
        )
        with progress_bar(len(images), what, "scan") as bar:
            for observed in extract.batches(images.images, images.blank, self.device):
                yield observed
                bar.update(len(observed.blank))


def fit_detector(
    observer: ScanObserver, train: Sequence[ManifestRow], validation: Sequence[ManifestRow]
) -> FittedScoring:
    """Choose and fit the detector; fit the heatmap.

    Raises
    ------
    CalibrationError
        If there are too few scans.
    """
    settings = observer.config.detector
    trained = train if "train" in settings.fit_on else []
    rows = [*trained, *validation]
    observed, scans = fitting_set(observer, rows)
    chosen = settings.candidates[0]
    margins: dict[str, float] = {}
    if len(settings.candidates) > 1:
        chosen, margins = _choose(observer, observed, scans, len(trained), validation)
    features, heatmap = observer.config.features, observer.config.heatmap
    detector, model = fit_scoring(observed, features, heatmap, chosen, scans)
    return FittedScoring(detector, model, chosen, margins)


def fitting_set(
    observer: ScanObserver, rows: Sequence[ManifestRow]
) -> tuple[Observation, NDArray[np.intp]]:
    """Observe unchanged scans and as many copies under nuisance as the configuration states.

    Returns
    -------
    Observation
        All unchanged scans, then all first copies, and so on.
    ndarray of int
        For each image, the index of its scan in `rows`.
    """
    settings = observer.config.detector
    parts = [observer.observe(rows, "observing normals")]
    for copy in range(settings.nuisance_copies):
        change = nuisance_change(settings.seed, copy)
        parts.append(observer.observe(rows, f"under nuisance {copy + 1}", change))
    return join(parts), np.tile(np.arange(len(rows)), len(parts))


def _choose(
    observer: ScanObserver,
    observed: Observation,
    scans: NDArray[np.intp],
    trained: int,
    validation: Sequence[ManifestRow],
) -> tuple[KindSettings, dict[str, float]]:
    """Choose a candidate on validation scans; all are fitted on the first `trained` scans."""
    features, heatmap = observer.config.features, observer.config.heatmap
    copies = observer.config.detector.nuisance_copies
    perturbed = join(
        [
            observer.observe(
                validation,
                f"perturbed {copy + 1}",
                perturbation_change(observer.config.detector.seed, copy),
            )
            for copy in range(copies)
        ]
    )
    fitted_on = scans < trained
    is_copy = np.arange(len(scans)) >= len(scans) // (copies + 1)
    seen, own = observed.select(fitted_on), scans[fitted_on]
    table = normal_table(seen, features, heatmap, own)
    model = fit_heatmap(seen, features, heatmap)
    calm, disturbed = (
        new_table(part, features, model)
        for part in (observed.select(~fitted_on & is_copy), perturbed)
    )
    candidates = {str(candidate): candidate for candidate in observer.config.detector.candidates}
    margins = {}
    for name, candidate in candidates.items():
        detector = fit_on(table, candidate, own)
        scores = (detector.score(part.use(detector.names).values) for part in (calm, disturbed))
        margins[name] = margin(*scores)
        log.info("margin %.3f: %s", margins[name], Public(name))
    error = standard_error(max(margins.values()), len(calm.values), len(disturbed.values))
    chosen = choose(margins, error)
    log.info("chosen without any abnormal scan (standard error %.3f): %s", error, Public(chosen))
    return candidates[chosen], margins


def calibration_change(config: Config) -> Change | None:
    """Change of calibration scans before they are scored; None if they stay unchanged."""
    if not config.detector.calibrate_under_nuisance:
        return None
    return nuisance_change(config.detector.seed, 0)
