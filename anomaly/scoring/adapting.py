"""Normal scans of a site and a bundle -> a bundle adapted to them, not calibrated yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from anomaly.data.images.network_images import ImageReader, NetworkImages, read_images
from anomaly.data.synthetic.seeded import nuisance_change
from anomaly.data.table.manifest import ManifestRow, scan_marks
from anomaly.detection.adaptation import FEWEST_SITE_SCANS, adapt
from anomaly.detection.extractor import Observation, join
from anomaly.detection.plausibility import are_negatives
from anomaly.errors import CalibrationError
from anomaly.store.bundle import Adapted, Bundle

__all__ = ["FEWEST_NORMALS_TO_ADAPT", "adapted_bundle", "halves"]

FEWEST_NORMALS_TO_ADAPT = 2 * FEWEST_SITE_SCANS
"""Smallest number of normal scans of a site, half of which adapt and half of which calibrate."""


def halves(
    rows: Sequence[ManifestRow], seed: int
) -> tuple[tuple[ManifestRow, ...], tuple[ManifestRow, ...]]:
    """Divide scans by patient into one half to adapt to and one to calibrate on.

    Parameters
    ----------
    rows : sequence of ManifestRow
        Frames of one file, and scans of one patient, stay together.
    seed : int

    Raises
    ------
    CalibrationError
        If there are fewer than `FEWEST_NORMALS_TO_ADAPT` scans.
    """
    if len(rows) < FEWEST_NORMALS_TO_ADAPT:
        raise CalibrationError(
            f"{len(rows)} normal scans to adapt and calibrate with: expected at least "
            f"{FEWEST_NORMALS_TO_ADAPT}, half for each"
        )
    patients = [row.patient or row.path or f"scan {index}" for index, row in enumerate(rows)]
    order = np.random.default_rng(seed).permutation(sorted(set(patients))).tolist()
    first_patients: set[str] = set()
    while sum(patient in first_patients for patient in patients) < len(rows) // 2:
        first_patients.add(order.pop())
    first = tuple(row for row, who in zip(rows, patients, strict=True) if who in first_patients)
    second = tuple(
        row for row, who in zip(rows, patients, strict=True) if who not in first_patients
    )
    return first, second


def adapted_bundle(
    bundle: Bundle,
    reader: ImageReader,
    rows: Sequence[ManifestRow],
    device: torch.device,
    *,
    manifest_hash: str,
) -> Bundle:
    """Return a bundle whose detector and heatmap are adapted to normal scans.

    Each scan is seen as it is and, if the detector was fitted on copies under nuisance, in as many
    such copies. Its former calibration does not apply and is removed.

    Raises
    ------
    CalibrationError
        If there are too few scans, one of them is a negative, or the detector's kind cannot be
        adapted.
    ScanError
        If a scan cannot be read.
    """
    config, extract = bundle.config, bundle.extractor(device)
    parts: list[Observation] = []
    workers = config.data.workers

    seed, copies = config.detector.seed, config.detector.nuisance_copies
    changes = [None, *(nuisance_change(seed, copy) for copy in range(copies))]
    for change in changes:
        images = read_images(replace(reader, change=change), rows, workers)
        if change is None:
            _refuse_negatives(images, rows, bundle)
        parts += extract.batches(images.images, images.blank, device)
    scans = np.tile(np.arange(len(rows)), len(changes))
    detector, heatmap = adapt(bundle.detector, bundle.heatmap, join(parts), config.features, scans)
    marks = frozenset(mark for row in rows for mark in scan_marks(row))
    return replace(
        bundle,
        detector=detector,
        heatmap=heatmap,
        seen=bundle.seen | marks,
        adapted=Adapted(len(rows), manifest_hash),
        calibrated=None,
        hash="",
    )


def _refuse_negatives(images: NetworkImages, rows: Sequence[ManifestRow], bundle: Bundle) -> None:
    negative = are_negatives(images.images.numpy(), bundle.reference.cpu().numpy())
    if negative.any():
        raise CalibrationError(
            f"{rows[int(negative.argmax())].path} looks like the negative of a scan, and "
            f"{int(negative.sum())} of {len(rows)} do: such scans are not scored, leave them out"
        )
