"""Alterations: named, seeded changes of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic.alterations.canvas import Array, checked, finished
from anomaly.errors import ConfigError

__all__ = ["Alteration", "Altered", "Change", "Family", "Rng", "Size", "alter", "whole_image"]

Family: TypeAlias = Literal["nuisance", "gross", "lesion"]
Size: TypeAlias = Literal["small", "medium", "large"]
Rng: TypeAlias = np.random.Generator
Change: TypeAlias = Callable[[Array, Rng], Array]


@dataclass(frozen=True)
class Altered:
    """An altered image and the mask of its change.

    Attributes
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
    mask : ndarray (H, W) bool or None
        Altered pixels, never empty; None if the whole image was changed.
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Alteration:
    """A named change of an image.

    Attributes
    ----------
    name : str
        Unique; part of the seed.
    family : {"nuisance", "gross", "lesion"}
    apply : callable
        Maps pixels (H, W) float32 in [0, 1] and a generator to `Altered`. Can be pickled.
    size : {"small", "medium", "large"} or None
        Size of lesions that have three sizes.
    """

    name: str
    family: Family
    apply: Callable[[NDArray[np.float32], np.random.Generator], Altered]
    size: Size | None = None


def alter(pixels: NDArray[np.float32], alteration: Alteration, key: str, seed: int) -> Altered:
    """Alter one scan with its own reproducible random draw.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        At least 32 pixels per side; not modified.
    alteration : Alteration
    key : str
        Identifies the scan, such as its path in the manifest.
    seed : int
        Not negative.

    Returns
    -------
    Altered

    Raises
    ------
    ConfigError
        The pixels cannot be altered, or the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"the seed of an alteration is {seed}: expected 0 or more")
    digest = hashlib.sha256(f"{alteration.name}\0{key}".encode()).digest()
    return alteration.apply(pixels, np.random.default_rng([seed, int.from_bytes(digest, "big")]))


def whole_image(change: Change) -> Callable[[Array, Rng], Altered]:
    """`Alteration.apply` for a change of the whole image."""
    return partial(_change, change)


def _change(change: Change, pixels: Array, rng: Rng) -> Altered:
    return Altered(finished(change(checked(pixels), rng)), None)
