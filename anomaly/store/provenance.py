"""Provenance: hashes of everything that results depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Provenance"]

_MOST_PARTS = 10_000_000


@dataclass(frozen=True)
class Provenance:
    """Everything that results depend on. Results with different provenance must not be mixed.

    Attributes
    ----------
    bundle, manifest, inputs, settings : str
        Hashes of the bundle, of the table of scans, of the scans in the order of the shards, and of
        the settings that a row depends on.
    alpha : float
        False-alarm rate of the flags.
    parts : int
        Total number of shards.
    versions : mapping of str to str
        Versions of the packages that computed the results.

    Raises
    ------
    ValueError
        If a field has the wrong type or is out of range: provenance may be read from an untrusted
        folder.
    """

    bundle: str
    manifest: str
    inputs: str
    settings: str
    alpha: float
    parts: int
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the type and range of every field."""
        hashes = (self.bundle, self.manifest, self.inputs, self.settings)
        sound = all(isinstance(text, str) and len(text) <= 64 for text in hashes)
        sound = sound and isinstance(self.alpha, float) and 0 < self.alpha < 1
        sound = sound and type(self.parts) is int and 0 <= self.parts <= _MOST_PARTS
        versions = self.versions if isinstance(self.versions, Mapping) else {0: 0}
        sound = sound and all(isinstance(text, str) for pair in versions.items() for text in pair)
        if not sound:
            raise ValueError(f"{self!r:.200} is no provenance")
