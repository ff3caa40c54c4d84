"""Seeded alterations of a real radiograph: nuisances, gross errors, inserted lesions.

An alteration maps an image and a random generator to another image::

    alter(image, alteration, key, seed) = alteration.apply(image, rng(seed, alteration, key))

Each scan therefore has its own draw of each alteration, independent of the order in which scans are
altered. Three families evaluate a detector without abnormal images: `NUISANCES` should not change
its score; `GROSS` and `LESIONS` should raise it. `random_nuisance` and `random_perturbation` are
for *choosing* a detector. They use different parameters, and mostly different methods, than the
families that evaluate it.

Lengths "at 224" are pixels of an image whose longer side is 224, scaled to the actual image.
"""

from anomaly.data.synthetic.alterations.alteration import Alteration, Altered, Family, Size, alter
from anomaly.data.synthetic.alterations.gross_errors import GROSS
from anomaly.data.synthetic.alterations.lesions import LESIONS
from anomaly.data.synthetic.alterations.lungs import lung_fields
from anomaly.data.synthetic.alterations.nuisances import (
    NUISANCES,
    WIDE_NUISANCES,
    random_nuisance,
)
from anomaly.data.synthetic.alterations.perturbations import random_perturbation

__all__ = [
    "ALTERATIONS",
    "GROSS",
    "LESIONS",
    "NUISANCES",
    "WIDE_NUISANCES",
    "Alteration",
    "Altered",
    "Family",
    "Size",
    "alter",
    "lung_fields",
    "random_nuisance",
    "random_perturbation",
]

ALTERATIONS: tuple[Alteration, ...] = NUISANCES + WIDE_NUISANCES + GROSS + LESIONS
