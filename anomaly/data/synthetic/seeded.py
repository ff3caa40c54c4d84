"""Random changes of scans, seeded by their content and by the number of the copy.

A scan has the same copies in every table, batch and process.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.data.images.network_images import Change
from anomaly.data.synthetic.alterations import random_nuisance, random_perturbation
from anomaly.data.table.manifest import ManifestRow

__all__ = ["changed", "nuisance_change", "perturbation_change"]


def nuisance_change(seed: int, copy: int) -> Change:
    """Change of the numbered copy of a scan under nuisance."""
    return partial(changed, "nuisance", seed, copy)


def perturbation_change(seed: int, copy: int) -> Change:
    """Change of the numbered perturbed copy of a scan."""
    return partial(changed, "perturbation", seed, copy)


def changed(
    kind: Literal["nuisance", "perturbation"],
    seed: int,
    copy: int,
    pixels: NDArray[np.float32],
    row: ManifestRow,
) -> NDArray[np.float32]:
    """Change a scan at random, seeded by its content, the seed and the number of the copy."""
    name = f"{kind} {seed} {copy} {row.sha256} {row.frame}".encode()
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
    if kind == "nuisance":
        return random_nuisance(pixels, rng)
    return random_perturbation(pixels, rng).pixels
