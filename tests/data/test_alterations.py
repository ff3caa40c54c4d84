"""Alterations by closed forms and known distances; lesions by their masks; draws by their keys."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anomaly.data.synthetic.alterations import (
    ALTERATIONS,
    GROSS,
    LESIONS,
    NUISANCES,
    WIDE_NUISANCES,
    Alteration,
    alter,
    lung_fields,
    random_nuisance,
    random_perturbation,
)
from anomaly.data.synthetic.alterations.air import aerated, bulla_profile, collapsed_lung
from anomaly.data.synthetic.alterations.image_changes import moved
from anomaly.detection.registration import register
from anomaly.errors import ConfigError

Pixels = NDArray[np.float32]

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "zhanglab" / "train" / "NORMAL"
BY_NAME = {alteration.name: alteration for alteration in ALTERATIONS}
DRAWN = {
    "shift_3",
    "shift_6",
    "noise_mild",
    "noise_strong",
    "crop_1.5",
    "ct_slice",
    "photograph",
} | {lesion.name for lesion in LESIONS}
SHAPES = ((224, 224), (150, 96), (64, 101), (32, 32))
each = pytest.mark.parametrize("alteration", ALTERATIONS, ids=lambda a: a.name)


def true_lungs(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Two upright ellipses, clear of the midline."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape)
    tall = ((rows - 0.45) / 0.25)[:, None] ** 2
    left, right = (((columns - centre) / 0.13) ** 2 for centre in (0.3, 0.7))
    lungs: NDArray[np.bool_] = (tall + left <= 1) | (tall + right <= 1)
    return lungs


def chest(shape: tuple[int, int] = (224, 224), seed: int = 0) -> Pixels:
    """Black surroundings, a grey body, two dark lungs, some grain."""
    body = np.zeros(shape)
    body[:, shape[1] // 12 : -(shape[1] // 12)] = 0.7
    image = ndimage.gaussian_filter(np.where(true_lungs(shape), 0.25, body), max(shape) / 112)
    grain = 0.02 * np.random.default_rng(seed).standard_normal(shape)
    return np.asarray(np.clip(image + grain, 0, 1), dtype=np.float32)


def altered(name: str, pixels: Pixels, key: str = "k", seed: int = 0) -> Pixels:
    return alter(pixels, BY_NAME[name], key, seed).pixels


def spot(shape: tuple[int, int], row: float, column: float, sigma: float = 3) -> Pixels:
    rows, columns = np.indices(shape)
    square = (rows - row) ** 2 + (columns - column) ** 2
    return np.exp(-square / (2 * sigma**2)).astype(np.float32)


def centroid(image: Pixels) -> NDArray[np.float64]:
    return np.array(ndimage.center_of_mass(image.astype(np.float64)))


# --- every alteration -------------------------------------------------------------------------


@each
@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_is_an_image_and_the_input_is_untouched(
    alteration: Alteration, shape: tuple[int, int]
) -> None:
    for pixels in (chest(shape), np.zeros(shape, np.float32), np.ones(shape, np.float32)):
        before = pixels.copy()
        pixels.setflags(write=False)
        result = alter(pixels, alteration, "k", 3)
        assert result.pixels.shape == shape
        assert result.pixels.dtype == np.float32
        assert np.isfinite(result.pixels).all()
        assert result.pixels.min() >= 0
        assert result.pixels.max() <= 1
        assert np.array_equal(pixels, before)
        assert not np.shares_memory(result.pixels, pixels)
        assert (result.mask is None) == (alteration.family != "lesion")
        if result.mask is not None:
            assert result.mask.shape == shape
            assert result.mask.dtype == np.bool_
            assert result.mask.any()


@each
def test_a_draw_belongs_to_its_key_and_seed(alteration: Alteration) -> None:
    pixels = chest()
    first = alter(pixels, alteration, "a", 1).pixels
    assert np.array_equal(first, alter(pixels, alteration, "a", 1).pixels)
    random = alteration.name in DRAWN
    assert np.array_equal(first, alter(pixels, alteration, "b", 1).pixels) != random
    assert np.array_equal(first, alter(pixels, alteration, "a", 2).pixels) != random


@each
def test_every_alteration_changes_a_radiograph(alteration: Alteration) -> None:
    pixels = chest()
    assert not np.array_equal(alter(pixels, alteration, "k", 0).pixels, pixels)


@each
def test_an_alteration_travels_to_a_worker(alteration: Alteration) -> None:
    again = pickle.loads(pickle.dumps(alteration))  # noqa: S301
    pixels = chest((64, 64))
    expected = alter(pixels, alteration, "k", 0).pixels
    assert np.array_equal(alter(pixels, again, "k", 0).pixels, expected)


def test_names_are_unique_and_families_agree() -> None:
    assert len(BY_NAME) == len(ALTERATIONS) == 12 + 10 + 8 + 9
    groups = (NUISANCES, WIDE_NUISANCES, GROSS, LESIONS)
    for group, family in zip(groups, ("nuisance", "nuisance", "gross", "lesion"), strict=True):
        assert {alteration.family for alteration in group} == {family}
    for alteration in ALTERATIONS:
        sized = alteration.name.startswith(("nodule_", "consolidation_"))
        assert alteration.size == (alteration.name.rsplit("_", 1)[1] if sized else None)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((31, 64), np.float32),
        np.zeros((1, 64, 64), np.float32),
        np.zeros((64, 64), np.float64),
        np.full((64, 64), 1.01, np.float32),
        np.full((64, 64), -0.01, np.float32),
        np.full((64, 64), np.nan, np.float32),
    ],
    ids=["small", "3-D", "float64", "bright", "negative", "nan"],
)
def test_what_is_no_image_is_refused(pixels: Pixels) -> None:
    for alteration in (NUISANCES[0], GROSS[-1], *LESIONS[:2], LESIONS[-1]):
        with pytest.raises(ConfigError, match="pixels"):
            alter(pixels, alteration, "k", 0)
    rng = np.random.default_rng(0)
    for refuse in (random_nuisance, random_perturbation):
        with pytest.raises(ConfigError, match="pixels"):
            refuse(pixels, rng)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        alter(chest(), NUISANCES[0], "k", -1)


# --- closed forms -----------------------------------------------------------------------------


def test_tone_follows_its_formula() -> None:
    x = chest()
    np.testing.assert_allclose(altered("gamma_0.8", x), x.astype(np.float64) ** 0.8, atol=1e-6)
    np.testing.assert_allclose(altered("gamma_1.25", x), x.astype(np.float64) ** 1.25, atol=1e-6)
    mean = x.mean(dtype=np.float64)
    for name, factor in (("contrast_-15", 0.85), ("contrast_+15", 1.15)):
        expected = np.clip(mean + factor * (x - mean), 0, 1)
        np.testing.assert_allclose(altered(name, x), expected, atol=1e-6)
    np.testing.assert_array_equal(altered("inversion", x), 1 - x)


def test_rotations_turn_a_square_exactly() -> None:
    x = chest()
    np.testing.assert_array_equal(altered("rotation_90", x), np.rot90(x))
    np.testing.assert_array_equal(altered("rotation_180", x), x[::-1, ::-1])


def test_a_quarter_turn_of_an_oblong_fills_its_frame() -> None:
    x = spot((64, 128), row=16, column=32, sigma=2)
    # A quarter turn anticlockwise takes (1/4, 1/4) of the sides to (3/4, 1/4).
    np.testing.assert_allclose(centroid(altered("rotation_90", x)), (48, 32), atol=1)


@pytest.mark.parametrize(("name", "at_224"), [("blur_0.5", 0.5), ("blur_strong", 3.0)])
@pytest.mark.parametrize("side", [448, 896])
def test_blur_of_an_impulse_has_the_stated_width(name: str, at_224: float, side: int) -> None:
    impulse = np.zeros((side, side // 2), np.float32)
    impulse[side // 2, side // 4] = 1
    rows = altered(name, impulse).sum(axis=1, dtype=np.float64)
    deviation = np.arange(side) - side // 2
    std = np.sqrt((rows * deviation**2).sum() / rows.sum())
    assert std == pytest.approx(at_224 * side / 224, rel=0.02)


def test_sharpening_adds_what_blur_takes() -> None:
    x = chest((448, 448))
    expected = np.clip(x + (x - ndimage.gaussian_filter(x, 1.0, mode="nearest")), 0, 1)
    np.testing.assert_allclose(altered("sharpen_0.5", x), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "std"), [("noise_mild", 0.01), ("noise_strong", 0.1)])
def test_noise_has_the_stated_deviation(name: str, std: float) -> None:
    grey = np.full((256, 256), 0.5, np.float32)
    assert (altered(name, grey) - grey).std() == pytest.approx(std, rel=0.03)


def test_jpeg_stores_eight_bits_and_loses_little() -> None:
    x = chest()
    stored = altered("jpeg_50", x)
    np.testing.assert_allclose(stored * 255, np.rint(stored * 255), atol=1e-4)
    assert 0 < np.abs(stored - x).mean() < 0.03


def test_resampling_removes_only_what_128_pixels_cannot_hold() -> None:
    columns = np.arange(512)
    kept, lost = (
        np.tile((0.5 + 0.3 * np.sin(2 * np.pi * columns / period)).astype(np.float32), (512, 1))
        for period in (32, 5)  # 128 of 512 pixels hold periods above 8
    )
    inner = np.s_[:, 32:-32]
    np.testing.assert_allclose(altered("resample_128", kept)[inner], kept[inner], atol=0.02)
    assert altered("resample_128", lost)[inner].std() < 0.05 * lost.std()


# --- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(224, 224), (200, 120)])
def test_shift_moves_a_marked_pixel_by_three_percent(shape: tuple[int, int]) -> None:
    marked = np.zeros(shape, np.float32)
    marked[100, 60] = 1
    steps = []
    for key in range(12):
        moved = altered("shift_3", marked, key=str(key))
        assert np.count_nonzero(moved) == 1
        steps.append(np.argwhere(moved)[0] - (100, 60))
    # Rounding to whole pixels moves the end of the step by half a diagonal at most.
    np.testing.assert_allclose(np.hypot(*np.transpose(steps)), 0.03 * max(shape), atol=0.71)
    assert len({tuple(step) for step in steps}) > 6


@pytest.mark.parametrize(("name", "factor"), [("zoom_+5", 1.05), ("zoom_-5", 0.95)])
def test_zoom_scales_distances_about_the_centre(name: str, factor: float) -> None:
    shape, centre = (200, 160), np.array([99.5, 79.5])
    for offset in ((-60, 0), (0, 50), (40, -40)):
        seen = centroid(altered(name, spot(shape, *(centre + offset))))
        np.testing.assert_allclose(seen - centre, factor * np.array(offset), atol=0.05)


def test_crop_magnifies_a_part_that_lies_inside() -> None:
    """The image is its own row coordinate: the crop's rows then tell where they came from."""
    rows = np.tile(np.linspace(0, 1, 151, dtype=np.float32)[:, None], (1, 100))
    for key in range(8):
        column = altered("crop_1.5", rows, key=str(key))[:, 0]
        np.testing.assert_allclose(np.diff(column), 1 / 150 / 1.5, atol=1e-5)


# --- lungs and lesions ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(224, 224), (180, 240), (600, 500)])
def test_lungs_are_found_where_they_are(shape: tuple[int, int]) -> None:
    found, true = lung_fields(chest(shape)), true_lungs(shape)
    assert (found & true).sum() > 0.9 * found.sum()
    assert (found & true).sum() > 0.9 * true.sum()


@pytest.mark.parametrize("grey", [0, 0.5, 1])
def test_without_lungs_either_half_gets_the_usual_place(grey: float) -> None:
    found = lung_fields(np.full((100, 80), grey, np.float32))
    assert 0.03 < found[:, :40].mean() < 0.25
    np.testing.assert_array_equal(found, found[:, ::-1])


@pytest.mark.parametrize("lesion", LESIONS[1:], ids=lambda a: a.name)
def test_opacities_lie_in_the_lungs(lesion: Alteration) -> None:
    pixels, lungs = chest(), true_lungs((224, 224))
    for key in range(10):
        mask = alter(pixels, lesion, str(key), 0).mask
        assert mask is not None
        assert (mask & lungs).sum() > 0.5 * mask.sum()
        if lesion.name.startswith("consolidation"):
            assert not (mask[:, :110].any() and mask[:, 114:].any())


@pytest.mark.parametrize("lesion", LESIONS[1:4], ids=lambda a: a.name)
def test_a_nodule_leaves_the_rest_alone(lesion: Alteration) -> None:
    pixels = chest()
    for key in range(10):
        result = alter(pixels, lesion, str(key), 0)
        assert result.mask is not None
        change = result.pixels - pixels
        assert change.min() >= 0
        assert change[~result.mask].max() <= 0.1 * 0.8  # the strongest nodule, times the profile
        assert change[result.mask].mean() > 0.05
        reach = ndimage.binary_dilation(result.mask, iterations=3)
        assert np.array_equal(result.pixels[~reach], pixels[~reach])


@pytest.mark.parametrize(("size", "diameter"), [("small", 0.05), ("medium", 0.09), ("large", 0.14)])
def test_a_nodule_has_the_stated_diameter(size: str, diameter: float) -> None:
    pixels = chest((448, 300))
    for key in range(5):
        mask = alter(pixels, BY_NAME[f"nodule_{size}"], str(key), 0).mask
        assert mask is not None
        seen = 2 * np.sqrt(mask.sum() / np.pi)
        assert seen == pytest.approx(diameter * 448, rel=0.12)


@pytest.mark.parametrize("kind", ["nodule", "consolidation"])
def test_a_larger_lesion_has_a_larger_mask(kind: str) -> None:
    pixels = chest()
    areas = [
        np.mean([alter(pixels, BY_NAME[f"{kind}_{size}"], str(k), 0).mask for k in range(12)])
        for size in ("small", "medium", "large")
    ]
    assert areas[1] > 1.5 * areas[0]
    assert areas[2] > 1.5 * areas[1]


def test_a_consolidation_brightens_and_hides_texture() -> None:
    pixels = chest()
    result = alter(pixels, BY_NAME["consolidation_large"], "k", 0)
    assert result.mask is not None
    core = ndimage.binary_erosion(result.mask & true_lungs((224, 224)), iterations=8)
    assert core.any()
    assert (result.pixels - pixels)[core].mean() > 0.1

    def texture(image: Pixels) -> float:
        return float((image - ndimage.gaussian_filter(image, 1))[core].std())

    assert texture(result.pixels) < 0.5 * texture(pixels)


def test_a_device_is_saturated_exactly_in_its_mask() -> None:
    pixels = chest()
    for key in range(8):
        result = alter(pixels, BY_NAME["metal_device"], str(key), 0)
        assert result.mask is not None
        np.testing.assert_array_equal(result.pixels != pixels, result.mask)
        assert (result.pixels[result.mask] == 1).all()
        assert ndimage.label(result.mask, np.ones((3, 3)))[1] == 1  # the lead holds on to the box
        assert 0.005 < result.mask.mean() < 0.04


# --- images that are no radiograph ------------------------------------------------------------


def test_wrong_images_owe_nothing_to_the_radiograph() -> None:
    for name in ("ct_slice", "photograph"):
        np.testing.assert_array_equal(altered(name, chest()), altered(name, 1 - chest()))


def test_a_ct_slice_has_black_corners_dark_lungs_and_a_bright_vertebra() -> None:
    image = altered("ct_slice", chest())
    assert image[:20, :20].mean() < 0.05
    assert image[105:120, 55:70].mean() < 0.3
    assert image.max() > 0.9


# --- the families for choosing ----------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_random_families_return_images(shape: tuple[int, int]) -> None:
    pixels = chest(shape)
    before = pixels.copy()
    pixels.setflags(write=False)
    for seed in range(20):
        nuisance = random_nuisance(pixels, np.random.default_rng(seed))
        perturbed = random_perturbation(pixels, np.random.default_rng(seed))
        assert np.array_equal(nuisance, random_nuisance(pixels, np.random.default_rng(seed)))
        assert perturbed.mask is None or perturbed.mask.any()
        assert not np.array_equal(perturbed.pixels, pixels)
        for image in (nuisance, perturbed.pixels):
            assert image.shape == shape
            assert image.dtype == np.float32
            assert np.isfinite(image).all()
            assert image.min() >= 0
            assert image.max() <= 1
    assert np.array_equal(pixels, before)


def test_random_nuisance_moves_a_chest_and_keeps_it() -> None:
    """Every draw is the same chest, magnified, turned and shifted."""
    pixels = chest()
    drawn = [random_nuisance(pixels, np.random.default_rng(seed)) for seed in range(30)]
    assert np.mean([np.abs(image - pixels).mean() for image in drawn]) < 0.15
    assert min(np.corrcoef(image.ravel(), pixels.ravel())[0, 1] for image in drawn) > 0.4
    found = register(np.stack(drawn), pixels).parameters
    scales, turns = found[:, 2:4], np.rad2deg(found[:, 4])
    assert 0.1 < np.abs(scales).max() < 0.2
    assert 3 < np.abs(turns).max() < 8
    assert len({image.tobytes() for image in drawn}) == len(drawn)


def test_a_random_perturbation_is_local_or_far_beyond_nuisance() -> None:
    """What has a mask changes there; without one the whole image is blurred or noisy."""
    pixels = chest()
    signs, sharpness, shares = set(), set(), []
    roughness = float(np.abs(np.diff(pixels)).mean())
    for seed in range(40):
        result = random_perturbation(pixels, np.random.default_rng(seed))
        change = np.abs(result.pixels - pixels)
        if result.mask is None:
            ratio = float(np.abs(np.diff(result.pixels)).mean()) / roughness
            assert ratio < 0.8 or ratio > 1.5
            sharpness.add(ratio > 1)
            continue
        assert change[result.mask].mean() > 3 * change[~result.mask].mean()
        assert result.mask.mean() < 0.75
        shares.append(result.mask.mean())
        signs.add(int(np.sign((result.pixels - pixels).mean().round(3))))
    assert signs >= {-1, 1}
    assert min(shares) < 0.01 < 0.2 < max(shares)
    assert sharpness == {False, True}


# --- dark lesions -----------------------------------------------------------------------------


def test_aerating_darkens_towards_the_darkest_lung_and_hides_texture() -> None:
    pixels, fields = chest(), true_lungs((224, 224))
    dark = np.percentile(pixels[fields], 5)
    full = aerated(pixels, fields, np.ones_like(pixels), 1.0)
    assert full[fields].max() <= dark + 1e-6
    half = aerated(pixels, fields, np.ones_like(pixels), 0.5)
    inner = ndimage.binary_erosion(fields, iterations=12)
    assert half[inner].std() < 0.5 * pixels[inner].std()
    np.testing.assert_array_equal(aerated(pixels, fields, np.zeros_like(pixels), 1.0), pixels)


def test_a_bulla_is_a_disc_of_its_diameter() -> None:
    profile = bulla_profile((101, 101), (50, 50), 40)
    assert profile[50, 50] == 1
    assert profile[50, 50 + 21] == 0
    assert (profile > 0.5).sum() == pytest.approx(np.pi * 19**2, rel=0.03)


def test_a_collapsed_lung_is_smaller_and_reaches_the_hilum() -> None:
    lung = true_lungs((224, 224)) & (np.arange(224) < 112)
    rest = collapsed_lung(lung, 0.7)
    assert not (rest & ~lung).any()
    assert rest.sum() == pytest.approx(0.49 * lung.sum(), rel=0.05)
    # It stays at the middle of the chest, and leaves the outer side.
    assert np.nonzero(rest)[1].max() == pytest.approx(np.nonzero(lung)[1].max(), abs=1)
    assert np.nonzero(rest)[1].min() > np.nonzero(lung)[1].min() + 5


def test_a_move_has_scales_rotation_and_shift_in_this_order() -> None:
    # A point 20 right of the centre: scaled by 1.5, turned by 90 degrees, shifted by (3, 4).
    x = spot((101, 101), row=50, column=70, sigma=3)
    found = centroid(moved(x, (1.0, 1.5), (3, 4), 90))
    np.testing.assert_allclose(found, (50 - 30 + 3, 50 + 4), atol=0.2)


# --- real radiographs -------------------------------------------------------------------------


@pytest.mark.skipif(
    not ARCHIVE.is_dir(),
    reason="the archive (doi 10.17632/rscbjbr9sj) is not beside the repository",
)
def test_lung_fields_of_real_radiographs_are_dark_and_on_both_sides() -> None:
    for path in sorted(ARCHIVE.iterdir())[:120:10]:
        with Image.open(path) as opened:
            image = opened.convert("L")
        image.thumbnail((448, 448))
        pixels = np.asarray(image).astype(np.float32) / np.float32(255)
        lungs = lung_fields(pixels)
        height, width = lungs.shape
        for half in (np.s_[:, : width // 2], np.s_[:, -(width // 2) :]):
            assert 0.02 < lungs[half].mean() < 0.6
        assert not lungs[: height // 9].any()
        spine = pixels[height // 4 : height * 3 // 4, int(0.45 * width) : int(0.55 * width)]
        assert np.median(pixels[lungs]) < np.median(spine)
        for lesion in LESIONS:
            result = alter(pixels, lesion, path.name, 0)
            assert result.mask is not None
            darker = lesion.name in ("bulla", "pneumothorax")
            change = float((result.pixels - pixels)[result.mask].mean())
            # The line of the pleura is bright, in a space that may be dark already.
            assert change < 0.005 if darker else change > 0
