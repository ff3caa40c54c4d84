"""The chain to the network's frame and the way back: geometry by pixel, intensity by hand."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomaly.data.images.augmentation import RandomAugmentation
from anomaly.data.images.transforms import (
    SUPERSAMPLING,
    Augmentation,
    Frame,
    Preprocessing,
    frame_scan,
    network_image,
    quantize,
    stretch,
)
from anomaly.errors import ConfigError, UnsupportedScan
from anomaly.types import Scan, ScanIdentity

Geometry = Literal["pad", "stretch"]
GEOMETRIES: tuple[Geometry, Geometry] = ("pad", "stretch")
ALL = Augmentation(rotate=5, zoom=0.1, shift=0.05, gamma=0.2)


def scan(pixels: NDArray[np.float32]) -> Scan:
    identity = ScanIdentity("p", "s", "e", "i")
    return Scan(pixels.astype(np.float32), 256, identity, "DX", None, "none", "as is")


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def centroid(image: NDArray[np.float32]) -> tuple[float, float]:
    rows, columns = np.indices(image.shape)
    total = image.sum(dtype=np.float64)
    return float((rows * image).sum() / total), float((columns * image).sum() / total)


# --- geometry ---------------------------------------------------------------------------------


@given(
    st.integers(17, 90), st.integers(17, 90), st.sampled_from(GEOMETRIES), st.data(), st.just(16)
)
def test_a_lit_network_pixel_returns_to_its_own_place(
    height: int, width: int, geometry: Geometry, data: st.DataObject, size: int
) -> None:
    """The source is no smaller than the frame, so the bilinear tent of one pixel is sampled."""
    frame = Frame((height, width), size, geometry)
    # Away from the border, where bilinear interpolation repeats the edge, and off the padding.
    inside = [
        (r, c)
        for r in range(1, size - 1)
        for c in range(1, size - 1)
        if all(
            low >= 0 and high <= side - 1
            for low, high, side in zip(
                frame.point_to_source(r - 1, c - 1),
                frame.point_to_source(r + 1, c + 1),
                (height, width),
                strict=True,
            )
        )
    ]
    if not inside:
        return
    row, column = data.draw(st.sampled_from(inside))
    lit = np.zeros((size, size), dtype=np.float32)
    lit[row, column] = 1
    back = frame.to_source(lit)
    assert back.shape == (height, width)
    assert centroid(back) == pytest.approx(frame.point_to_source(row, column), abs=0.5)
    assert np.abs(
        np.subtract(np.unravel_index(back.argmax(), back.shape), centroid(back))
    ).max() <= (max(frame.padded) / size / 2 + 0.5)


@given(st.integers(9, 80), st.integers(9, 80), st.sampled_from(GEOMETRIES))
@example(80, 9, "pad")
@example(33, 80, "stretch")
def test_a_blob_in_the_scan_is_found_where_it_was(
    height: int, width: int, geometry: Geometry
) -> None:
    """There and back: source -> framed -> network -> source keeps the centre of a soft blob."""
    centre = (0.55 * (height - 1), 0.4 * (width - 1))
    rows, columns = np.indices((height, width))
    spread = max(height, width) / 12
    blob = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * spread**2)).astype(
        np.float32
    )
    how = Preprocessing(32, geometry, "full", 1 << 16)
    framed, frame = frame_scan(scan(blob), how)
    seen = ((network_image(framed, how)[0].numpy() + 1) / 2).astype(np.float32)
    back = frame.to_source(seen)
    # Resampling moves no mass: within half a source pixel, or half a network pixel where coarser.
    tolerance = 0.5 * max(1.0, *(p / 32 for p in frame.padded))
    assert centroid(back) == pytest.approx(centroid(blob), abs=tolerance)
    place = np.unravel_index(seen.argmax(), seen.shape)
    found = frame.point_to_source(float(place[0]), float(place[1]))
    step = max(p / 32 for p in frame.padded)
    assert found == pytest.approx(centre, abs=step / 2 + 1)


def test_padding_is_black_and_centred() -> None:
    frame = Frame((8, 4), 8, "pad")
    assert frame.padded == (8, 8)
    assert frame.offset == (0, 2)
    image = frame.to_network(torch.ones(1, 8, 4))[0]
    expected = torch.zeros(8, 8)
    expected[:, 2:6] = 1  # two black columns left, two right
    assert torch.equal(image, expected)
    # an odd remainder goes to the far side
    assert Frame((4, 7), 8, "pad").offset == (1, 0)
    assert Frame((7, 7), 8, "pad").offset == (0, 0)


def test_stretching_pads_nothing() -> None:
    frame = Frame((8, 4), 8, "stretch")
    assert (frame.padded, frame.offset) == ((8, 4), (0, 0))
    assert torch.equal(frame.to_network(torch.ones(1, 8, 4)), torch.ones(1, 8, 8))


def test_points_by_hand() -> None:
    # 8 x 4 padded to 8 x 8, shown in 4 x 4: one network pixel is 2 x 2 source pixels, and the
    # first column of the source is the third of the padded one.
    frame = Frame((8, 4), 4, "pad")
    assert frame.point_to_source(0, 0) == (0.5, 0.5 - 2)
    assert frame.point_to_source(3, 1) == (6.5, 0.5)
    stretched = Frame((8, 4), 4, "stretch")
    assert stretched.point_to_source(1, 3) == (2.5, 3)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("side", [16, 15, 48])
def test_a_constant_stays_itself(side: int, geometry: Geometry) -> None:
    frame = Frame((side, side), 16, geometry)
    image = frame.to_network(torch.full((1, side, side), 0.3))
    torch.testing.assert_close(image, torch.full((1, 16, 16), 0.3))
    back = frame.to_source(np.full((16, 16), 2.5, dtype=np.float32))
    np.testing.assert_allclose(back, 2.5, rtol=1e-6)


def test_a_ramp_stays_a_ramp() -> None:
    # Row r of the source holds r; network row i is centred on source row 3 i + 1 (three source
    # rows a network row), away from the border where the filter is cut off.
    ramp = torch.arange(48.0)[None, :, None].expand(1, 48, 48)
    image = Frame((48, 48), 16, "stretch").to_network(ramp)[0]
    expected = (3 * torch.arange(16.0) + 1)[:, None].expand(16, 16)
    torch.testing.assert_close(image[1:-1], expected[1:-1], atol=1e-4, rtol=0)
    # ... and the way back: bilinear interpolation of a ramp is exact between the outer centres
    back = Frame((48, 48), 16, "stretch").to_source(expected.numpy().copy())
    np.testing.assert_allclose(back[1:-1, 5], np.arange(1, 47), atol=1e-4)


def test_shrinking_averages_and_does_not_skip() -> None:
    """White noise falls like one over the side of what is averaged, here 32 source pixels.

    Uniform noise on [-1, 1] has deviation 0.577; a mean over 32 x 32 would leave 0.577 / 32 =
    0.018, the antialiasing tent a little less. Reading four neighbours four times leaves 0.1.
    """
    how = Preprocessing(8, "stretch", "full", 1 << 16)
    framed, _ = frame_scan(scan(noise((256, 256))), how)
    assert 0.008 < network_image(framed, how).std() < 0.025


def test_a_frame_refuses_what_it_was_not_made_for() -> None:
    frame = Frame((8, 4), 16, "pad")
    with pytest.raises(ConfigError, match=r"the image is \(4, 8\): this frame expects \(8, 4\)"):
        frame.to_network(torch.zeros(1, 4, 8))
    with pytest.raises(ConfigError, match=r"the map is \(8, 4\): this frame expects \(16, 16\)"):
        frame.to_source(np.zeros((8, 4), dtype=np.float32))


# --- intensity --------------------------------------------------------------------------------


def test_stretch_by_hand() -> None:
    # 201 values 0, 1/200 ... 1: the 0.5th percentile is value 1, the 99.5th value 199, so
    # v -> (v - 0.005) / 0.99, clipped.
    values = np.arange(201, dtype=np.float32).reshape(3, 67) / np.float32(200)
    unit = stretch(values, "percentile").ravel()
    assert unit.dtype == np.float32
    assert unit[[0, 1, 199, 200]] == pytest.approx([0, 0, 1, 1], abs=1e-6)
    assert unit[[50, 100]] == pytest.approx([(0.25 - 0.005) / 0.99, 0.5], abs=1e-6)
    np.testing.assert_array_equal(stretch(values, "full"), values)


@given(st.floats(0.05, 0.9), st.floats(0, 0.1, allow_subnormal=False), st.integers(0, 100))
def test_stretch_takes_exposure_out(gain: float, offset: float, seed: int) -> None:
    image = noise((20, 17), seed)
    changed = (gain * image + offset).astype(np.float32)
    np.testing.assert_allclose(
        stretch(changed, "percentile"), stretch(image, "percentile"), atol=2e-5
    )


def test_an_image_without_contrast_is_refused() -> None:
    flat = np.full((50, 50), 0.5, dtype=np.float32)
    flat[0, 0] = 1  # one hot pixel in 2500 is no image
    with pytest.raises(UnsupportedScan) as caught:
        stretch(flat, "percentile")
    assert caught.value.reason == "constant"


def test_quantize_by_hand() -> None:
    unit = torch.tensor([0.0, 0.24, 0.26, 0.5, 0.74, 0.76, 1.0])
    assert quantize(unit, 3).tolist() == [-1, -1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("levels", [2, 256, 4096])
def test_network_images_lie_on_the_grid(levels: int) -> None:
    how = Preprocessing(8, grey_levels=levels)
    framed, _ = frame_scan(scan(noise((30, 21))), how)
    assert framed.shape == (1, SUPERSAMPLING * 8, SUPERSAMPLING * 8)
    image = network_image(framed, how)
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert image.min() >= -1
    assert image.max() <= 1
    steps = (image.double() + 1) * (levels - 1) / 2
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


# --- augmentation -----------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_training_without_augmentation_is_evaluation(geometry: Geometry) -> None:
    how = Preprocessing(16, geometry)
    framed, _ = frame_scan(scan(noise((50, 37))), how)
    change = RandomAugmentation(Augmentation(), how)
    change.set_random_state(seed=3)
    assert torch.equal(change(framed), network_image(framed, how))


@pytest.mark.parametrize(
    "one",
    [
        Augmentation(rotate=5),
        Augmentation(zoom=0.1),
        Augmentation(shift=0.1),
        Augmentation(gamma=1),
    ],
    ids=["rotate", "zoom", "shift", "gamma"],
)
def test_each_augmentation_does_something_and_is_seeded(one: Augmentation) -> None:
    how = Preprocessing(16)
    framed, _ = frame_scan(scan(noise((40, 40))), how)
    change = RandomAugmentation(one, how)
    plain = network_image(framed, how)

    def draw(seed: int) -> torch.Tensor:
        change.set_random_state(seed=seed)
        return change(framed.clone())

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(draw(1), plain)
    steps = (draw(1) + 1) * 255 / 2
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert draw(1).abs().max() <= 1


def moved_dots(one: Augmentation, place: tuple[float, float], draws: int = 300) -> NDArray[Any]:
    """Where a dot at a place, (row, column) from the centre in sides, lies after each draw."""
    how = Preprocessing(64, "stretch", "full", 1 << 16)
    rows, columns = (np.indices((128, 128)) + 0.5) / 128 - 0.5
    distance = (rows - place[0]) ** 2 + (columns - place[1]) ** 2
    framed = torch.from_numpy(np.exp(-distance / (2 * 0.03**2)).astype(np.float32))[None]
    change = RandomAugmentation(one, how)
    found = []
    for seed in range(draws):
        change.set_random_state(seed=seed)
        unit = ((change(framed)[0].numpy() + 1) / 2).astype(np.float32)
        found.append([(c + 0.5) / 64 - 0.5 for c in centroid(unit)])
    return np.array(found)


def test_shift_moves_both_ways_along_both_axes_as_far_as_said() -> None:
    moved = moved_dots(Augmentation(shift=0.1), (0.0, 0.0))
    for axis in (0, 1):
        assert -0.101 < moved[:, axis].min() < -0.09
        assert 0.09 < moved[:, axis].max() < 0.101
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.2


def test_rotation_keeps_the_radius_and_turns_as_far_as_said() -> None:
    moved = moved_dots(Augmentation(rotate=10), (0.0, 0.3))
    np.testing.assert_allclose(np.hypot(*moved.T), 0.3, atol=2e-3)
    angle = np.rad2deg(np.arctan2(moved[:, 0], moved[:, 1]))
    assert -10.2 < angle.min() < -9
    assert 9 < angle.max() < 10.2


def test_zoom_is_a_factor_of_its_own_for_each_axis_about_the_centre() -> None:
    moved = moved_dots(Augmentation(zoom=0.1), (0.2, 0.2))
    factor = moved / 0.2
    # What is sampled at 1.1 times the distance lies at 1 / 1.1 of it.
    assert np.all(factor > 1 / 1.1 - 0.01)
    assert np.all(factor < 1 / 0.9 + 0.01)
    assert np.all(factor.min(0) < 0.93)
    assert np.all(factor.max(0) > 1.08)
    assert abs(np.asarray(np.corrcoef(factor.T))[0, 1]) < 0.2
    centre = moved_dots(Augmentation(zoom=0.1), (0.0, 0.0), draws=20)
    np.testing.assert_allclose(centre, 0, atol=1e-3)


def test_the_global_seed_has_no_say() -> None:
    how = Preprocessing(16)
    framed, _ = frame_scan(scan(noise((40, 40))), how)
    change = RandomAugmentation(ALL, how)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global stream is what must not matter
        change.set_random_state(seed=7)
        drawn.append(change(framed))
    assert torch.equal(*drawn)


def test_gamma_stays_in_its_range() -> None:
    # gamma in [1 / 1.5, 1.5]: of a ramp 0..1, the middle 0.5 becomes 0.5**gamma
    how = Preprocessing(16, "stretch", "full", 1 << 16)
    ramp = torch.linspace(0, 1, 32).expand(1, 32, 32).contiguous()
    change = RandomAugmentation(Augmentation(gamma=0.5), how)
    middle = []
    for seed in range(60):
        change.set_random_state(seed=seed)
        unit = (change(ramp)[0, 0] + 1) / 2
        middle.append(float(unit[7:9].mean()))
    assert 0.5**1.5 - 0.01 < min(middle) < 0.42
    assert 0.56 < max(middle) < 0.5 ** (1 / 1.5) + 0.01


def test_a_turned_image_is_nearly_as_sharp_as_an_unturned_one() -> None:
    """Interpolation at twice the size: training images are not smoother than those judged."""
    how = Preprocessing(32, "stretch", "full", 256)
    framed, _ = frame_scan(scan(noise((256, 256))), how)
    change = RandomAugmentation(Augmentation(rotate=4, shift=0.03), how)

    def roughness(image: torch.Tensor) -> float:
        return float(image[:, 2:-2, 2:-2].diff(dim=2).square().mean())

    turned = []
    for seed in range(20):
        change.set_random_state(seed=seed)
        turned.append(roughness(change(framed)))
    assert np.mean(turned) > 0.6 * roughness(network_image(framed, how))


@pytest.mark.parametrize("name", ["rotate", "zoom", "shift", "gamma"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_an_impossible_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"augmentation.{name}"):
        Augmentation(**{name: value})


@pytest.mark.parametrize(("size", "levels"), [(7, 256), (64, 1)])
def test_an_impossible_frame_is_refused(size: int, levels: int) -> None:
    with pytest.raises(ConfigError, match="preprocessing"):
        Preprocessing(size, grey_levels=levels)
