"""Provenance: what results were made of, by hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Provenance"]

_MOST_PARTS = 10_000_000


@dataclass(frozen=True)
class Provenance:
    """What results were made of; two runs agree in it or are different results.

    Attributes
    ----------
    bundle, manifest, inputs, settings : str
        Hashes: of the bundle, of the table of scans, of the scans in the order of the shards, of
        the settings that a row depends on.
    alpha : float
        Rate that flags were raised at.
    parts : int
        Shards in all.
    versions : mapping of str to str
        Of the packages that computed.

    Raises
    ------
    ValueError
        If a field is not of its type or out of range: provenance is read from folders that may
        come from somebody else.
    """

    bundle: str
    manifest: str
    inputs: str
    settings: str
    alpha: float
    parts: int
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no run of ours has written."""
        hashes = (self.bundle, self.manifest, self.inputs, self.settings)
        sound = all(isinstance(text, str) and len(text) <= 64 for text in hashes)
        sound = sound and isinstance(self.alpha, float) and 0 < self.alpha < 1
        sound = sound and type(self.parts) is int and 0 <= self.parts <= _MOST_PARTS
        versions = self.versions if isinstance(self.versions, Mapping) else {0: 0}
        sound = sound and all(isinstance(text, str) for pair in versions.items() for text in pair)
        if not sound:
            raise ValueError(f"{self!r:.200} is no provenance")
