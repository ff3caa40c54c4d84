"""Kinds of detectors: densities over standardised features, one file each.

All use estimators of scikit-learn, stored as plain arrays. They are two-sided: an image that is
*too likely* is as far from normal as one that is too unlikely. Higher = more anomalous.
"""

from anomaly.detection.kinds.base import Density, ExplainedDensity, KindSettings, Normals
from anomaly.detection.kinds.combined import CombinedSettings
from anomaly.detection.kinds.conformal import ConformalSettings
from anomaly.detection.kinds.guarded import GuardedSettings
from anomaly.detection.kinds.ledoit_wolf import LedoitWolfSettings
from anomaly.detection.kinds.mixture import MixtureSettings
from anomaly.detection.kinds.neighbours import NeighboursSettings
from anomaly.detection.kinds.registry import KINDS, kind_of, register_kind

__all__ = [
    "KINDS",
    "CombinedSettings",
    "ConformalSettings",
    "Density",
    "ExplainedDensity",
    "GuardedSettings",
    "KindSettings",
    "LedoitWolfSettings",
    "MixtureSettings",
    "NeighboursSettings",
    "Normals",
    "kind_of",
    "register_kind",
]
