"""Scans -> scores, features and evidence maps, batch by batch.

Scans are decoded ahead of time (in decoder processes, if there are any), and as many batches as
there are processor cores are scored at once (`anomaly.parallel`). All queues are bounded, so memory
does not grow with the number of scans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.images.network_images import ImageReader, ListedReader, NetworkImage
from anomaly.data.readers.isolation import Lost, Workers
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection.extractor import FeatureExtractor, batch_size
from anomaly.detection.features import reported_names
from anomaly.detection.plausibility import are_negatives
from anomaly.detection.scoring import score_observation
from anomaly.errors import Reason, ScanError, UnsupportedScan
from anomaly.parallel import in_parallel
from anomaly.store.bundle import Bundle

__all__ = ["Outcome", "ReadScan", "ScoredScan", "Scorer"]


@dataclass(frozen=True)
class ScoredScan:
    """A scan with its score, features and evidence, before any decision.

    Attributes
    ----------
    source : NetworkImage
    score : float
    features : dict of str to float
    evidence : ndarray (size, size) float32, in the network's frame
        0 in blank areas (`anomaly.data.images.blanks`).
    spread : ndarray (size, size) float32
        Contributions to the score of the image as a whole (`anomaly.detection.explanation`).
    part : str
        Part that gives the score; empty if the detector has none.
    explanation : str
        Where the score comes from, in one sentence; empty if the detector does not say.
    """

    source: NetworkImage
    score: float
    features: dict[str, float]
    evidence: NDArray[np.float32]
    spread: NDArray[np.float32]
    part: str
    explanation: str

    @cached_property
    def source_evidence(self) -> NDArray[np.float32]:
        """Evidence on the pixels of the source, (H, W) float32."""
        return self.source.frame.to_source(self.evidence)

    @property
    def peak(self) -> float:
        """Largest evidence on the pixels of the source; padding does not count."""
        return float(self.source_evidence.max())


Outcome: TypeAlias = ScoredScan | tuple[ManifestRow, ScanError]
"""A scored scan, or the reason why there is no score."""

ReadScan: TypeAlias = NetworkImage | tuple[ManifestRow, ScanError]
"""The network image of a scan, or the reason why it cannot be read."""


@dataclass(frozen=True)
class Scorer:
    """A bundle on a device that scores scans.

    Attributes
    ----------
    bundle : Bundle
    reader : ImageReader
    device : torch.device
    workers : Workers
        Decoder processes; the default decodes in this process.
    """

    bundle: Bundle
    reader: ImageReader
    device: torch.device
    workers: Workers = field(default_factory=lambda: Workers(0))

    def score(self, items: Iterable[tuple[int, ManifestRow]]) -> Iterator[tuple[int, Outcome]]:
        """Score (group, row) pairs in order, reading a bounded number of rows ahead.

        A batch contains scans of one group only, so the bits of a score depend only on its group. A
        row that was skipped in the table of scans is returned with the reason given there.
        """
        read = self.workers.map(ListedReader(self.reader), items)
        yield from self.score_images(map(_without_loss, read))

    def score_images(self, images: Iterable[tuple[int, ReadScan]]) -> Iterator[tuple[int, Outcome]]:
        """Score (group, image) pairs that are already read, as `score` does."""
        batches = (
            (group, batch)
            for group, members in groupby(images, itemgetter(0))
            for batch in _batches(members, batch_size(self.bundle.config.preprocessing.size))
        )
        extract = self.bundle.extractor(self.device)

        def score(work: tuple[int, list[ReadScan]]) -> list[Outcome]:
            return self._outcomes(work[1], extract)

        for (group, _), outcomes in in_parallel(score, batches, self.device):
            yield from ((group, outcome) for outcome in outcomes)

    def _outcomes(self, batch: list[ReadScan], extract: FeatureExtractor) -> list[Outcome]:
        good = [item for item in batch if isinstance(item, NetworkImage)]
        scored = iter(self._scored(good, extract) if good else [])
        return [next(scored) if isinstance(item, NetworkImage) else item for item in batch]

    def _scored(self, batch: list[NetworkImage], extract: FeatureExtractor) -> Iterator[Outcome]:
        bundle, features = self.bundle, self.bundle.config.features
        images = np.stack([item.image for item in batch])
        observed = extract(
            torch.from_numpy(images).to(self.device), np.stack([item.blank for item in batch])
        )
        scores = score_observation(observed, features, bundle.detector, bundle.heatmap)
        negative = are_negatives(images, bundle.reference.cpu().numpy())
        names = reported_names(features)
        for index, item in enumerate(batch):
            values = dict(zip(names, scores.features[index].tolist(), strict=True))
            explanations = scores.explanations
            values |= {
                f"part_{name}": float(part[index]) for name, part in explanations.parts.items()
            }
            scored = ScoredScan(
                item,
                float(scores.scores[index]),
                values,
                scores.evidence[index],
                explanations.spread[index],
                explanations.decisive[index],
                explanations.sentences[index],
            )
            yield _negative(scored) if negative[index] else _finite(scored)


def _without_loss(
    read: tuple[tuple[int, ManifestRow], NetworkImage | ScanError | Lost],
) -> tuple[int, ReadScan]:
    (group, row), result = read
    if isinstance(result, Lost):
        result = result.error()
    return group, result if isinstance(result, NetworkImage) else (row, result)


def _batches(images: Iterable[tuple[int, ReadScan]], size: int) -> Iterator[list[ReadScan]]:
    iterator = iter(images)
    while batch := [item for _, item in islice(iterator, size)]:
        yield batch


def _negative(scan: ScoredScan) -> Outcome:
    return scan.source.row, UnsupportedScan(
        Reason.INVERTED,
        "it looks like the negative of a scan: is its photometric interpretation wrong?",
    )


def _finite(scan: ScoredScan) -> Outcome:
    """Refuse a score that is not finite: NaN compares as below any threshold, hence as normal."""
    if np.isfinite(scan.score) and np.isfinite(scan.peak):
        return scan
    return scan.source.row, UnsupportedScan(
        Reason.SCORE_NOT_FINITE, f"the network gives {scan.score} for this scan: it is not judged"
    )
