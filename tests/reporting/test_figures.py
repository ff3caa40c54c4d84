"""Figures against arrays and paths worked out by hand."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from anomaly.reporting.plots.figures import (
    colour_bar,
    contour_path,
    histogram_path,
    overlay_rgba,
    png_bytes,
    shrink_max,
    shrink_mean,
    spread_rgba,
)


def chunk_names(png: bytes) -> list[bytes]:
    """Names of the chunks of a PNG file, in order."""
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += 12 + length
    return names


def test_overlay_is_blank_below_the_threshold_and_opaque_from_the_ceiling() -> None:
    evidence = np.array([[0.0, 2.999, 3.0, 7.5, 12.0, 99.0]], dtype=np.float32)

    rgba = overlay_rgba(evidence, threshold=3.0, ceiling=12.0)

    assert rgba.dtype == np.uint8
    assert rgba.shape == (1, 6, 4)
    assert not rgba[0, :2].any()
    # 0.35, then halfway 0.35 + 0.65 / 2 = 0.675, then 1, in units of 255
    assert rgba[0, 2:, 3].tolist() == [89, 172, 255, 255]
    assert (rgba[0, 4] == rgba[0, 5]).all()


def test_overlay_grows_with_evidence_in_opacity_and_brightness() -> None:
    evidence = np.linspace(3.0, 12.0, 200)[None]

    rgba = overlay_rgba(evidence, 3.0, 12.0)[0].astype(float)

    luminance = rgba[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(rgba[:, 3]) >= 0).all()
    assert (np.diff(luminance) >= -1.0).all()  # rounding of three channels to bytes
    assert luminance[-1] > luminance[0] + 100


def test_same_evidence_has_the_same_colour_on_every_scan() -> None:
    alone = overlay_rgba(np.array([[5.0]]), 3.0, 12.0)
    beside_a_peak = overlay_rgba(np.array([[5.0, 1000.0]]), 3.0, 12.0)

    assert (alone[0, 0] == beside_a_peak[0, 0]).all()


@pytest.mark.parametrize(
    ("threshold", "ceiling"), [(3.0, 3.0), (4.0, 3.0), (np.nan, 3.0), (0.0, np.inf)]
)
def test_overlay_refuses_an_empty_scale(threshold: float, ceiling: float) -> None:
    with pytest.raises(ValueError, match="threshold < ceiling"):
        overlay_rgba(np.zeros((2, 2)), threshold, ceiling)


def test_overlay_refuses_nan() -> None:
    with pytest.raises(ValueError, match="NaN"):
        overlay_rgba(np.array([[np.nan]]), 1.0, 2.0)


def test_spread_is_opaque_in_proportion_on_its_own_scale() -> None:
    spread = np.array([[0.0, 1.0, 2.0, 4.0, -3.0]], dtype=np.float32)
    rgba = spread_rgba(spread)
    assert rgba[0, :, 3].tolist() == [0, 38, 76, 153, 0]  # 0.6 * 255 at the largest
    np.testing.assert_array_equal(spread_rgba(10 * spread), rgba)
    assert not spread_rgba(np.zeros((2, 2), np.float32))[..., 3].any()
    with pytest.raises(ValueError, match="NaN"):
        spread_rgba(np.array([[np.nan]]))


def test_colour_bar_runs_from_ceiling_to_threshold() -> None:
    bar = colour_bar(0.1, 0.7, steps=5)

    assert bar.shape == (5, 1, 4)
    assert (bar[0] == overlay_rgba(np.array([[0.7]]), 0.1, 0.7)[0]).all()
    assert (bar[-1] == overlay_rgba(np.array([[0.1]]), 0.1, 0.7)[0]).all()
    assert bar[-1, 0, 3] > 0


def test_contour_of_a_rectangle() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True  # two rows of three pixels: corners (2, 1) to (5, 3)

    assert contour_path(mask) == "M2 1H5M2 3H5M2 1V3M5 1V3"
    assert contour_path(np.ones((2, 3), dtype=bool)) == "M0 0H3M0 2H3M0 0V2M3 0V2"


def test_contour_of_two_places_a_hole_and_nothing() -> None:
    apart = np.array([[True, False, True]])
    ring = np.array([[True, True, True], [True, False, True], [True, True, True]])

    assert contour_path(apart) == "M0 0H1M2 0H3M0 1H1M2 1H3M0 0V1M1 0V1M2 0V1M3 0V1"
    assert contour_path(ring) == "M0 0H3M1 1H2M1 2H2M0 3H3M0 0V3M1 1V2M2 1V2M3 0V3"
    assert contour_path(np.zeros((3, 3), dtype=bool)) == ""


def test_histogram_of_known_counts() -> None:
    # 8 bars over 0..8; 2 scores in the first bar, 1 in the second, 4 in the last (8 closes it)
    scores = np.array([0.0, 0.5, 1.5, 7.2, 7.4, 7.6, 8.0])

    path = histogram_path(scores, low=0.0, high=16.0, width=160, height=20)

    # one unit of score is 10 wide; the tallest bar, 4 counts, is 20 high
    assert path == (
        "M0.0 20V10.0H10.0V20Z"  # 2 counts
        "M10.0 20V15.0H20.0V20Z"  # 1 count
        "M70.0 20V0.0H80.0V20Z"  # 4 counts
    )


def test_shrink_mean_and_max_of_known_blocks() -> None:
    image = np.arange(16, dtype=np.float32).reshape(4, 4)

    assert shrink_mean(image, 2).tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert shrink_max(image, 2).tolist() == [[5.0, 7.0], [13.0, 15.0]]
    assert (shrink_mean(image, 4) == image).all()


@pytest.mark.parametrize("shape", [(1000, 700), (513, 1), (37, 901), (100, 60)])
def test_shrink_keeps_peak_mean_and_proportions(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    image = rng.random(shape, dtype=np.float32)
    peak = tuple(int(rng.integers(n)) for n in shape)
    image[peak] = 5.0

    mean, tallest = shrink_mean(image, 512), shrink_max(image, 512)

    assert mean.shape == tallest.shape
    assert max(mean.shape) == min(512, max(shape))
    for side, shrunk in zip(shape, mean.shape, strict=True):
        assert abs(shrunk - side * min(1, 512 / max(shape))) <= 0.5 or shrunk == 1
    assert tallest.max() == 5.0
    at = np.unravel_index(tallest.argmax(), tallest.shape)
    for place, whole, part in zip(peak, shape, at, strict=True):
        n = tallest.shape[shape.index(whole)]
        assert abs((part + 0.5) * whole / n - (place + 0.5)) <= whole / n
    assert (tallest >= mean).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4)])
def test_png_keeps_pixels_and_nothing_else(shape: tuple[int, ...]) -> None:
    array: NDArray[np.uint8] = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)

    png = png_bytes(array)

    assert (np.asarray(Image.open(io.BytesIO(png))) == array).all()
    assert set(chunk_names(png)) == {b"IHDR", b"IDAT", b"IEND"}
