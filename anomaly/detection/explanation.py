r"""Explanation of a score: which part gives it, and from where.

The part ``whole`` of a score is a distance over features of cells, levels and groups. With
:math:`s` the part and :math:`h_f` the share of feature :math:`f` in the squared distance
(`anomaly.detection.kinds.base.ExplainedDensity.shares`), the *contribution* of a feature is
:math:`s h_f`, and

.. math::
    \sum_f s h_f = s, \qquad
    \mathrm{spread}(p) = \sum_c w_c(p) \sum_{f \in c} s h_f, \qquad \sum_p \mathrm{spread}(p) = s,

with :math:`w_c` the weights of the pixels in cell :math:`c` (`anomaly.detection.local`). The
contribution of a single feature can be negative: a feature can make another one less unusual. Cells
and pixels add up to the part if all its features are of cells, in the network's frame. The part
``place`` is explained by the heatmap, which has its peak where it comes from; the part
``guard`` has no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.detector import FeatureDetector
from anomaly.detection.features import FeatureSettings, cell_columns
from anomaly.detection.kinds.base import Array
from anomaly.detection.local import Cells

__all__ = ["Explanations", "explain"]

CLEAR = 0.25
"""Share of the contributions from which a field, or one direction of the texture, is named."""

FIELDS = ("upper left", "upper right", "middle left", "middle right", "lower left", "lower right")
"""Thirds and halves of the picture as displayed, by rows."""


@dataclass(frozen=True)
class Explanations:
    """Explanations of N scores.

    Attributes
    ----------
    parts : mapping of str to ndarray (N,)
        Parts of the scores; empty if the detector's kind has none.
    levels : mapping of str to ndarray (N,)
        Contributions to the part ``whole`` by group and level, such as ``"texture_0"``.
    cells : ndarray (N, C) float64
        Contributions by cell, in order of rows.
    spread : ndarray (N, H, W) float32
        Contributions by pixel, in the network's frame; 0 if the detector's kind has no parts.
    decisive : tuple of N str
        Part that gives the score; empty if the detector's kind has no parts.
    sentences : tuple of N str
        One sentence for people; empty if the detector's kind has no parts.
    """

    parts: Mapping[str, Array]
    levels: Mapping[str, Array]
    cells: Array
    spread: NDArray[np.float32]
    decisive: tuple[str, ...]
    sentences: tuple[str, ...]


def explain(
    detector: FeatureDetector,
    features: Array,
    sides: Array,
    grid: Cells,
    settings: FeatureSettings,
    shape: tuple[int, int],
) -> Explanations:
    """Explain the scores of N scans.

    Parameters
    ----------
    detector : FeatureDetector
    features : ndarray (N, F)
        The detector's features.
    sides : ndarray (N, 2)
        Largest evidence where a scan is brighter, and where it is darker, than expected.
    grid : Cells
        The grid of cells over the images.
    settings : FeatureSettings
    shape : (int, int)
        Pixels of an image.
    """
    count = len(features)
    shares = detector.shares(features)
    if shares is None:
        none = np.zeros((count, settings.cells))
        nowhere = np.zeros((count, *shape), np.float32)
        return Explanations({}, {}, none, nowhere, ("",) * count, ("",) * count)
    parts = detector.parts(features)
    whole, columns = parts["whole"], cell_columns(settings)
    local = [index for index, name in enumerate(detector.names) if name in columns]
    places = [columns[detector.names[index]] for index in local]
    of_cell = np.zeros((len(local), settings.cells))
    of_cell[np.arange(len(local)), [cell for _, cell in places]] = 1
    by_cell = shares[:, local] @ of_cell
    names = list(dict.fromkeys(level for level, _ in places))
    of_level = np.array([[level == name for name in names] for level, _ in places], dtype=float)
    levels = dict(zip(names, (whole[:, None] * (shares[:, local] @ of_level)).T, strict=True))
    cells = by_cell * whole[:, None]
    spread = grid.spread(cells).reshape(count, *shape).astype(np.float32)
    z = (features - detector.mean) / detector.scale
    # Of shares, not of contributions: these change their sign where the part is below 0.
    directions = (shares * np.sign(z)).sum(1) / np.maximum(np.abs(shares).sum(1), 1e-12)
    decisive = tuple(detector.decisive(features))
    sentences = tuple(
        _sentence(part, *row)
        for part, row in zip(decisive, zip(by_cell, directions, sides, strict=True), strict=True)
    )
    return Explanations(parts, levels, cells, spread, decisive, sentences)


def _sentence(part: str, cells: Array, direction: float, sides: Array) -> str:
    if part == "place":
        darker = sides[1] > sides[0]
        return f"One place is {'darker' if darker else 'brighter'} than in normal scans."
    if part == "guard":
        return (
            "The image as a whole is unlike a normal acquisition, in noise, sharpness or contrast; "
            "no place explains it."
        )
    texture = "other texture than in normal scans"
    if abs(direction) > CLEAR:
        texture = f"{'more' if direction > 0 else 'less'} texture than in normal scans"
    return f"{texture[0].upper()}{texture[1:]}, {_fields(cells)}; no single place decides."


def _fields(cells: Array) -> str:
    """Say where the contributions come from, in the picture as displayed."""
    side = round(len(cells) ** 0.5)
    if side < len(FIELDS) // 2:
        return "spread over the image"  # too few cells for thirds
    grid = np.maximum(cells, 0).reshape(side, side)
    rows = np.minimum(np.arange(side) * 3 // side, 2)
    columns = np.minimum(np.arange(side) * 2 // side, 1)
    field = 2 * rows[:, None] + columns
    shares = np.bincount(field.ravel(), grid.ravel(), len(FIELDS)) / max(grid.sum(), 1e-12)
    named = [index for index in np.argsort(-shares) if shares[index] >= CLEAR]
    if not named:
        return "spread over the image"
    return f"mostly {_listed([FIELDS[index] for index in named])} in the picture"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"
