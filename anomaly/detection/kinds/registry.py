"""Registry of detector kinds: settings and density by name."""

from __future__ import annotations

from typing import NamedTuple

from anomaly.detection.kinds.base import Density, KindSettings
from anomaly.detection.kinds.combined import Combined, CombinedSettings
from anomaly.detection.kinds.conformal import Conformal, ConformalSettings
from anomaly.detection.kinds.guarded import Guarded, GuardedSettings
from anomaly.detection.kinds.ledoit_wolf import LedoitWolf, LedoitWolfSettings
from anomaly.detection.kinds.mixture import Mixture, MixtureSettings
from anomaly.detection.kinds.neighbours import Neighbours, NeighboursSettings
from anomaly.errors import ConfigError

__all__ = ["KINDS", "DetectorKind", "kind_of", "register_kind"]


class DetectorKind(NamedTuple):
    """The two classes of a kind: its settings and its density."""

    settings: type[KindSettings]
    density: type[Density]


KINDS: dict[str, DetectorKind] = {
    "ledoit_wolf": DetectorKind(LedoitWolfSettings, LedoitWolf),
    "mixture": DetectorKind(MixtureSettings, Mixture),
    "neighbours": DetectorKind(NeighboursSettings, Neighbours),
    "conformal": DetectorKind(ConformalSettings, Conformal),
    "guarded": DetectorKind(GuardedSettings, Guarded),
    "combined": DetectorKind(CombinedSettings, Combined),
}


def register_kind(settings: type[KindSettings], density: type[Density]) -> None:
    """Register a kind under the default of its settings' ``kind``.

    Raises
    ------
    ConfigError
        If the name exists already.
    """
    name = settings.kind
    if name in KINDS:
        raise ConfigError(f"there is a detector kind {name!r} already: give it another name")
    KINDS[name] = DetectorKind(settings, density)


def kind_of(name: str) -> DetectorKind:
    """Return the kind with a given name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in KINDS:
        raise ConfigError(f"kind is {name!r}: expected one of {', '.join(KINDS)}")
    return KINDS[name]
