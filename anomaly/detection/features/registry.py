"""Registry of feature groups, in the order of the detector's columns."""

from __future__ import annotations

from anomaly.detection.features.denoising import RESIDUAL, SCORE_NORM
from anomaly.detection.features.density import NLL, NLL_EXCESS, POSTERIOR, PROFILE
from anomaly.detection.features.group import FeatureGroup
from anomaly.detection.features.places import ENERGY, EVIDENCE, OCTAVE, PLACEMENT, SIGNED, TEXTURE
from anomaly.detection.features.settings import FeatureSettings
from anomaly.errors import ConfigError

__all__ = ["GROUPS", "feature_groups", "register_group", "reported_names"]

GROUPS: dict[str, FeatureGroup] = {
    group.name: group
    for group in (
        NLL,
        NLL_EXCESS,
        PROFILE,
        POSTERIOR,
        SCORE_NORM,
        RESIDUAL,
        OCTAVE,
        ENERGY,
        TEXTURE,
        SIGNED,
        PLACEMENT,
        EVIDENCE,
    )
}
"""Groups by name, in the order of the columns of every table of features."""


def register_group(group: FeatureGroup) -> None:
    """Append a group to the registry, so that settings can use its name.

    Raises
    ------
    ConfigError
        If the name exists already.
    """
    if group.name in GROUPS:
        raise ConfigError(f"there is a feature group {group.name!r} already: give it another name")
    GROUPS[group.name] = group


def feature_groups(settings: FeatureSettings) -> dict[str, tuple[str, ...]]:
    """Names of all features, by group, in the order of `GROUPS`."""
    return {name: group.columns(settings) for name, group in GROUPS.items()}


def reported_names(settings: FeatureSettings) -> tuple[str, ...]:
    """Names of the features that are reported for every scan."""
    return tuple(
        column for group in GROUPS.values() if group.reported for column in group.columns(settings)
    )
