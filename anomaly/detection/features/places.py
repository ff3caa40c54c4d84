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
    image_bands,
    octave_energies,
)
from anomaly.detection.placement import PLACEMENT_NAMES

__all__ = ["ENERGY", "EVIDENCE", "OCTAVE", "PLACEMENT", "SIGNED", "TEXTURE", "cell_columns"]


def cell_columns(settings: FeatureSettings) -> dict[str, tuple[str, int]]:
    """Group and level, such as ``"texture_0"``, and cell of every feature of a cell, by name."""
    return {
        name: (name.rpartition("_")[0], int(name.rpartition("_")[2]))
        for group in (ENERGY, TEXTURE, SIGNED)
        for name in group.columns(settings)
    }


def _octave(scans: ObservedScans) -> NDArray[np.float64]:
    return octave_energies(scans.residuals).reshape(len(scans.grey), -1)


def _energy(scans: ObservedScans) -> NDArray[np.float64]:
    return cell_energies(scans.residuals, scans.cells).reshape(len(scans.grey), -1)


def _texture(scans: ObservedScans) -> NDArray[np.float64]:
    bands = image_bands(scans.grey, scans.settings.bands)
    return cell_energies(bands, scans.cells).reshape(len(scans.grey), -1)


def _signed(scans: ObservedScans) -> NDArray[np.float64]:
    return scans.cells.means(scans.residuals).reshape(len(scans.grey), -1)


def _placement(scans: ObservedScans) -> NDArray[np.float64]:
    return np.column_stack([scans.placement.parameters, scans.placement.agreement])


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
        f"energy_{r}_{c}" for r in level_names(settings) for c in range(settings.cells)
    ),
    compute=_energy,
    reported=False,
)
TEXTURE = ScanGroup(
    name="texture",
    columns=lambda settings: tuple(
        f"texture_{k}_{c}" for k in range(settings.bands) for c in range(settings.cells)
    ),
    compute=_texture,
    reported=False,
)
SIGNED = ScanGroup(
    name="signed",
    columns=lambda settings: tuple(
        f"signed_{r}_{c}" for r in level_names(settings) for c in range(settings.cells)
    ),
    compute=_signed,
    reported=False,
)
PLACEMENT = ScanGroup(
    name="placement",
    columns=lambda _: (*PLACEMENT_NAMES, "agreement"),
    compute=_placement,
)
EVIDENCE = EvidenceGroup(
    name="evidence",
    columns=lambda _: LOCAL_FEATURES,
    compute=local_features,
    one_sided=True,
)
