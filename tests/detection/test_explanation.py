"""Explanations: contributions that add up to the score, where they lie, and sentences."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from anomaly.detection.detector import FeatureDetector
from anomaly.detection.explanation import Explanations, explain
from anomaly.detection.features import FeatureSettings, feature_groups
from anomaly.detection.kinds import CombinedSettings, KindSettings, LedoitWolfSettings
from anomaly.detection.local import Cells
from anomaly.detection.placement import Placement

SETTINGS = FeatureSettings(noise_to_signal=(0.25, 1.0), grid=6, border=0, bands=2)
USED = ("energy", "texture", "octave", "evidence_peak")
SIDE = 24


def columns() -> tuple[list[str], list[str]]:
    pairs = [
        (name, group)
        for group, names in feature_groups(SETTINGS).items()
        for name in names
        if name in USED or group in USED
    ]
    return [name for name, _ in pairs], [group for _, group in pairs]


NAMES, GROUPS = columns()
KIND = CombinedSettings(use=("energy", "texture"), guard=("octave",))


def features(count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, len(NAMES)))


def told(
    new: NDArray[np.float64],
    kind: KindSettings = KIND,
    sides: tuple[float, float] = (1.0, 0.0),
    placement: Placement | None = None,
) -> tuple[FeatureDetector, Explanations]:
    detector = FeatureDetector.fit(features(800, 0), NAMES, kind, GROUPS)
    where = placement or Placement.unmoved(len(new))
    both = np.tile(sides, (len(new), 1))
    grid = Cells.of(where, (SIDE, SIDE), SETTINGS.grid, SETTINGS.border)
    return detector, explain(detector, new, both, grid, SETTINGS, (SIDE, SIDE))


def test_cells_levels_and_pixels_add_up_to_the_part_and_to_the_score() -> None:
    new = features(50, 1)
    new[:, :40] *= 3
    placement = Placement(np.random.default_rng(0).normal(size=(50, 5)) * 0.05, np.ones(50))
    detector, said = told(new, placement=placement)
    whole = said.parts["whole"]
    assert_allclose(said.cells.sum(1), whole, atol=1e-6)
    assert_allclose(sum(said.levels.values()), whole, atol=1e-6)
    assert_allclose(said.spread.sum((1, 2), dtype=np.float64), whole, rtol=1e-5)
    # No other part decides here, so they add up to the score.
    quiet = np.array(detector.decisive(new)) == "whole"
    assert quiet.mean() > 0.9
    assert_allclose(said.cells.sum(1)[quiet], detector.score(new)[quiet], atol=1e-6)
    assert set(said.levels) == {"energy_0.25", "energy_1", "texture_0", "texture_1"}


@pytest.mark.parametrize(
    ("cell", "field"),
    [(0, "upper left"), (5, "upper right"), (15, "middle right"), (31, "lower left")],
)
def test_the_spread_lies_where_the_features_were_changed(cell: int, field: str) -> None:
    new = features(1, 2) * 0.1
    for name in (f"texture_0_{cell}", f"texture_1_{cell}", f"energy_1_{cell}"):
        new[0, NAMES.index(name)] = -25
    _, said = told(new)
    assert said.cells[0].argmax() == cell
    row, column = np.unravel_index(said.spread[0].argmax(), (SIDE, SIDE))
    assert (row // 4, column // 4) == divmod(cell, 6)
    where = f"mostly {field} in the picture"
    expected = f"Less texture than in normal scans, {where}; no single place decides."
    assert said.sentences == (expected,)


def test_changes_everywhere_have_no_field() -> None:
    new = features(1, 3) * 0.1
    for index, name in enumerate(NAMES):
        if name.startswith("texture_"):
            new[0, index] = 5 * (-1) ** index
    _, said = told(new)
    assert said.sentences[0].endswith("spread over the image; no single place decides.")
    assert said.sentences[0].startswith("Other texture than in normal scans")


def test_the_spread_follows_the_anatomy() -> None:
    new = features(1, 2) * 0.1
    new[0, NAMES.index("texture_0_14")] = 25  # row 2, column 2: pixels 8 to 11
    shifted = Placement(np.array([[4 / SIDE, -4 / SIDE, 0, 0, 0]]), np.ones(1))
    (_, still), (_, moved) = told(new), told(new, placement=shifted)
    # The blurred edge of a cell is cut off at the frame, a few per cent of a pixel's share.
    rolled = np.roll(still.spread[0], (4, -4), (0, 1))[4:, :-4]
    assert_allclose(moved.spread[0][4:, :-4], rolled, atol=0.1 * rolled.max())
    assert np.abs(moved.spread[0] - still.spread[0]).max() > 0.5 * rolled.max()


@pytest.mark.parametrize(("sides", "word"), [((3.0, 1.0), "brighter"), ((1.0, 3.0), "darker")])
def test_a_place_is_brighter_or_darker(sides: tuple[float, float], word: str) -> None:
    new = features(1, 4) * 0.1
    new[0, NAMES.index("evidence_peak")] = 20
    assert told(new, sides=sides)[1].sentences == (f"One place is {word} than in normal scans.",)


def test_a_guard_has_no_place() -> None:
    new = features(1, 4) * 0.1
    new[0, NAMES.index("octave_1_2")] = 40
    assert "no place explains it" in told(new)[1].sentences[0]


def test_a_kind_without_parts_has_no_explanation() -> None:
    new = features(2, 5)
    _, said = told(new, LedoitWolfSettings(use=("energy", "texture", "octave", "evidence_peak")))
    assert said.sentences == ("", "")
    assert not said.spread.any()
    assert said.parts == {}
