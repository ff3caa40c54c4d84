"""Outlines against shapes that can be walked by finger."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly.errors import AnomalyError
from anomaly.regions import find_regions
from anomaly.reporting.outlines import MAX_POINTS, outlines, region_outlines
from anomaly.types import Region


def drawn(*rows: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in row] for row in rows])


def area(loop: np.ndarray) -> float:
    """Signed area by the trapezium rule; positive clockwise on a screen, where y points down."""
    x, y = loop.T
    return float(((x[1:] - x[:-1]) * (y[1:] + y[:-1])).sum() / -2)


def test_one_pixel_is_walked_around_clockwise() -> None:
    (loop,) = outlines(drawn("...", "..#"))
    assert loop.tolist() == [[2, 1], [3, 1], [3, 2], [2, 2], [2, 1]]


def test_a_straight_edge_has_no_points_between_its_ends() -> None:
    (loop,) = outlines(drawn("####", "#..."))
    assert loop.tolist() == [[0, 0], [4, 0], [4, 1], [1, 1], [1, 2], [0, 2], [0, 0]]


@pytest.mark.parametrize("rows", [("#.", ".#"), (".#", "#.")])
def test_pixels_that_touch_at_a_corner_have_one_outline(rows: tuple[str, str]) -> None:
    (loop,) = outlines(drawn(*rows))
    assert area(loop) == 2
    assert loop.tolist().count([1, 1]) == 2


def test_the_outer_edge_comes_before_the_holes() -> None:
    outer, hole = outlines(drawn("#####", "#...#", "#####"))
    assert outer.tolist() == [[0, 0], [5, 0], [5, 3], [0, 3], [0, 0]]
    assert area(hole) == -3  # the other way round: what is inside lies on the right


def test_areas_of_all_loops_add_up_to_the_pixels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        evidence = rng.random((12, 17)).astype(np.float32)
        regions = find_regions(evidence, 0.6, None)
        for region, loops in zip(regions, region_outlines(evidence, 0.6, regions), strict=True):
            assert round(sum(map(area, loops))) == region.area


def test_a_ring_and_what_it_surrounds_are_two_regions() -> None:
    evidence = np.pad(np.array([[3.0]], dtype=np.float32), 2) + 2 * drawn(
        "#####", "#...#", "#...#", "#...#", "#####"
    ).astype(np.float32)
    regions = find_regions(evidence, 1.0, None)  # both around row 2, column 2
    dot, ring = region_outlines(evidence, 1.0, regions)
    assert [loop[0].tolist() for loop in dot] == [[2, 2]]
    assert [area(loop) for loop in ring] == [25, -9]


def test_loops_that_meet_at_their_corners_are_all_found() -> None:
    outer, *holes = outlines(drawn("#####", "#.#.#", "##.##", "#####"))
    assert area(outer) == 20
    # The holes at (1, 1), (1, 3) and (2, 2) touch at corners; what is inside crosses there.
    assert [area(hole) for hole in holes] == [-1, -1, -1]


def test_a_long_outline_is_thinned_and_stays_closed() -> None:
    comb = np.zeros((3, 4 * MAX_POINTS), dtype=bool)
    comb[1] = True
    comb[0, ::2] = True  # every tooth has four corners
    (loop,) = outlines(comb)
    assert MAX_POINTS / 2 < len(loop) <= MAX_POINTS + 1
    assert loop[0].tolist() == loop[-1].tolist()


def test_regions_of_other_evidence_are_refused() -> None:
    evidence = np.eye(4, dtype=np.float32)
    moved = Region(row=2.5, column=1.5, area=4, area_mm2=None, peak=1.0)
    with pytest.raises(AnomalyError, match="no place of 4 pixels around row 2"):
        region_outlines(evidence, 0.5, (moved,))
