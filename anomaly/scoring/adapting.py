"""Normal scans of a site and a bundle -> a bundle adapted to them, not calibrated yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from anomaly.data.images.network_images import ImageReader, read_images
from anomaly.data.table.manifest import ManifestRow, scan_marks
from anomaly.detection.adaptation import FEWEST_SITE_SCANS, adapt
from anomaly.detection.extractor import join
from anomaly.errors import CalibrationError
from anomaly.store.bundle import Adapted, Bundle

__all__ = ["FEWEST_NORMALS_TO_ADAPT", "adapted_bundle", "halves"]

FEWEST_NORMALS_TO_ADAPT = 2 * FEWEST_SITE_SCANS
"""Smallest number of normal scans of a site, half of which adapt and half of which calibrate."""

BATCH = 32


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

    Its former calibration does not apply and is removed.

    Raises
    ------
    CalibrationError
        If there are too few scans, or the detector's kind cannot be adapted.
    ScanError
        If a scan cannot be read.
    """
    extract = bundle.extractor(device)
    images = read_images(reader, rows, bundle.config.data.workers)
    observed = join([extract(part.images.to(device), part.blank) for part in images.split(BATCH)])
    detector, heatmap = adapt(bundle.detector, bundle.heatmap, observed, bundle.config.features)
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
