"""Feature groups by octave and by place: of the residual maps, and of the image itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.features.denoising import level_names
from anomaly.detection.features.group import EvidenceGroup, ObservedScans, ScanGroup
from anomaly.detection.features.settings import FeatureSettings
from anomaly.detection.heatmap import LOCAL_FEATURES, local_features
from anomaly.detection.local import (
    OCTAVES,
    cell_energies,
    cell_means,
    image_bands,
    octave_energies,
)

__all__ = ["ENERGY", "EVIDENCE", "OCTAVE", "SIGNED", "TEXTURE"]


def _cells(settings: FeatureSettings) -> range:
    return range((settings.grid - 2 * settings.border) ** 2)


def _octave(scans: ObservedScans) -> NDArray[np.float64]:
    return octave_energies(scans.residuals).reshape(len(scans.grey), -1)


def _energy(scans: ObservedScans) -> NDArray[np.float64]:
    grid, border = scans.settings.grid, scans.settings.border
    energies = cell_energies(scans.residuals, grid, border, scans.shifts)
    return energies.reshape(len(scans.grey), -1)


def _texture(scans: ObservedScans) -> NDArray[np.float64]:
    settings = scans.settings
    bands = image_bands(scans.grey, settings.bands)
    energies = cell_energies(bands, settings.grid, settings.border, scans.shifts)
    return energies.reshape(len(scans.grey), -1)


def _signed(scans: ObservedScans) -> NDArray[np.float64]:
    grid, border = scans.settings.grid, scans.settings.border
    return cell_means(scans.residuals, grid, border, scans.shifts).reshape(len(scans.grey), -1)


OCTAVE = ScanGroup(
    name="octave",
    columns=lambda settings: tuple(
        f"octave_{r}_{k}" for r in level_names(settings) for k in range(OCTAVES)
    ),
    compute=_octave,
)
# One feature per cell is too many to report one by one.
ENERGY = ScanGroup(
    name="energy",
    columns=lambda settings: tuple(
        f"energy_{r}_{c}" for r in level_names(settings) for c in _cells(settings)
    ),
    compute=_energy,
    reported=False,
)
TEXTURE = ScanGroup(
    name="texture",
    columns=lambda settings: tuple(
        f"texture_{k}_{c}" for k in range(settings.bands) for c in _cells(settings)
    ),
    compute=_texture,
    reported=False,
)
SIGNED = ScanGroup(
    name="signed",
    columns=lambda settings: tuple(
        f"signed_{r}_{c}" for r in level_names(settings) for c in _cells(settings)
    ),
    compute=_signed,
    reported=False,
)
EVIDENCE = EvidenceGroup(
    name="evidence",
    columns=lambda _: LOCAL_FEATURES,
    compute=local_features,
    one_sided=True,
)
