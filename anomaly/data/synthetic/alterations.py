"""Seeded alterations of a real radiograph: nuisance, gross errors, inserted lesions.

An alteration maps an image and a random generator to another image::

    alter(image, alteration, key, seed) = alteration.apply(image, rng(seed, alteration, key))

so that every scan has its own draw of every alteration, whatever else is altered before it. Three
families ask a detector for two things without any abnormal image: `NUISANCES` should leave its
score alone; `GROSS` and `LESIONS` should raise it. `random_nuisance` and `random_perturbation` are
for *choosing* a detector. They are drawn by other parameters, and mostly by other means, than the
families that measure it.

Lengths "at 224" are pixels of an image whose longer side is 224, scaled to the image at hand.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.synthetic.alteration_drawings import (
    CANVAS_SIDE,
    Array,
    checked,
    confined_cloud,
    device_mask,
    draw_ct_slice,
    draw_photograph,
    lung_centre,
    lung_fields,
    nodule_profile,
    opacified,
    resized,
    smoothed,
    working_copy,
)
from anomaly.errors import ConfigError

__all__ = [
    "ALTERATIONS",
    "GROSS",
    "LESIONS",
    "NUISANCES",
    "Alteration",
    "Altered",
    "Family",
    "Size",
    "alter",
    "lung_fields",
    "random_nuisance",
    "random_perturbation",
]

Family: TypeAlias = Literal["nuisance", "gross", "lesion"]
Size: TypeAlias = Literal["small", "medium", "large"]
Rng: TypeAlias = np.random.Generator
Change: TypeAlias = Callable[[Array, Rng], Array]


@dataclass(frozen=True)
class Altered:
    """An altered image and where it was altered.

    Attributes
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
    mask : ndarray (H, W) bool or None
        Where something was drawn, never empty; None for a change of the whole image.
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Alteration:
    """A named way to alter an image.

    Attributes
    ----------
    name : str
        Unique; part of the seed.
    family : {"nuisance", "gross", "lesion"}
    apply : callable
        From pixels (H, W) float32 in [0, 1] and a generator to `Altered`. Can be pickled.
    size : {"small", "medium", "large"} or None
        For the lesions that come in three sizes.
    """

    name: str
    family: Family
    apply: Callable[[NDArray[np.float32], np.random.Generator], Altered]
    size: Size | None = None


def alter(pixels: NDArray[np.float32], alteration: Alteration, key: str, seed: int) -> Altered:
    """Alter one scan, by its own reproducible draw.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        At least 32 pixels a side; left as it is.
    alteration : Alteration
    key : str
        What tells this scan from others, such as its path in the manifest.
    seed : int
        Not negative.

    Returns
    -------
    Altered

    Raises
    ------
    ConfigError
        If the pixels cannot be altered or the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"the seed of an alteration is {seed}: expected 0 or more")
    digest = hashlib.sha256(f"{alteration.name}\0{key}".encode()).digest()
    return alteration.apply(pixels, np.random.default_rng([seed, int.from_bytes(digest, "big")]))


def _finished(pixels: NDArray[np.floating]) -> Array:
    return np.asarray(np.clip(pixels, 0, 1), dtype=np.float32)


def _at_224(length: float, pixels: Array) -> float:
    height, width = pixels.shape
    return float(length * max(height, width) / 224)


# --- changes of the whole image ---------------------------------------------------------------


def _gamma(pixels: Array, _: Rng, *, exponent: float) -> Array:
    return np.asarray(pixels ** np.float32(exponent), dtype=np.float32)


def _contrast(pixels: Array, _: Rng, *, factor: float) -> Array:
    mean = np.float32(pixels.mean(dtype=np.float64))
    return np.asarray(mean + np.float32(factor) * (pixels - mean), dtype=np.float32)


def _blur(pixels: Array, _: Rng, *, sigma: float) -> Array:
    """Blur by a Gaussian, sigma in pixels at 224."""
    return smoothed(pixels, _at_224(sigma, pixels))


def _sharpen(pixels: Array, rng: Rng, *, amount: float) -> Array:
    """Unsharp mask of radius 0.5 px at 224."""
    detail = pixels - _blur(pixels, rng, sigma=0.5)
    return np.asarray(pixels + np.float32(amount) * detail, dtype=np.float32)


def _jpeg(pixels: Array, _: Rng, *, quality: int) -> Array:
    stored = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(stored, "JPEG", quality=quality)
    with Image.open(stored) as read:
        return np.asarray(np.asarray(read) / 255, dtype=np.float32)


def _resample(pixels: Array, _: Rng, *, side: int) -> Array:
    """Reduce to a longer side of `side` pixels and back; an image no larger stays as it is."""
    factor = side / max(pixels.shape)
    if factor >= 1:
        return pixels
    height, width = pixels.shape
    small = resized(
        pixels, (max(1, round(factor * height)), max(1, round(factor * width))), sharp=True
    )
    return resized(small, (height, width), sharp=True)


def _moved(pixels: Array, zoom: float, shift: tuple[float, float]) -> Array:
    """Magnify about the centre, then shift by (rows, columns) pixels; bilinear, border repeated."""
    centre = (np.array(pixels.shape) - 1) / 2
    offset = centre - (centre + np.array(shift)) / zoom
    moved = ndimage.affine_transform(
        pixels, np.full(2, 1 / zoom), offset, order=1, mode="nearest", output=np.float32
    )
    return np.asarray(moved)


def _zoom(pixels: Array, _: Rng, *, factor: float) -> Array:
    return _moved(pixels, factor, (0, 0))


def _shift(pixels: Array, rng: Rng, *, share: float) -> Array:
    """Shift by a share of the longer side, to whole pixels so that nothing is blurred."""
    angle, distance = rng.uniform(0, 2 * np.pi), share * max(pixels.shape)
    return _moved(pixels, 1, (round(distance * np.sin(angle)), round(distance * np.cos(angle))))


def _noise(pixels: Array, rng: Rng, *, std: float) -> Array:
    return pixels + np.float32(std) * rng.standard_normal(pixels.shape, dtype=np.float32)


def _invert(pixels: Array, _: Rng) -> Array:
    return 1 - pixels


def _rotate(pixels: Array, _: Rng, *, quarters: int) -> Array:
    turned = np.rot90(pixels, quarters)
    return turned if turned.shape == pixels.shape else resized(turned, pixels.shape)


def _crop(pixels: Array, rng: Rng, *, zoom: float) -> Array:
    """Magnify a random part, ``1 / zoom`` of either side, to the whole frame."""
    height, width = ((zoom - 1) * (side - 1) / 2 for side in pixels.shape)
    return _moved(pixels, zoom, (rng.uniform(-height, height), rng.uniform(-width, width)))


def _ct_slice(pixels: Array, rng: Rng) -> Array:
    return draw_ct_slice(pixels.shape, rng)


def _photograph(pixels: Array, rng: Rng) -> Array:
    return draw_photograph(pixels.shape, rng)


def _change(change: Change, pixels: Array, rng: Rng) -> Altered:
    return Altered(_finished(change(checked(pixels), rng)), None)


def _nuisance(name: str, change: Change) -> Alteration:
    return Alteration(name, "nuisance", partial(_change, change))


def _gross(name: str, change: Change) -> Alteration:
    return Alteration(name, "gross", partial(_change, change))


# --- lesions ----------------------------------------------------------------------------------


def _add_device(pixels: Array, rng: Rng) -> Altered:
    mask = device_mask(lung_fields(pixels), rng)
    return Altered(np.where(mask, np.float32(1), pixels), mask)


def _add_nodule(pixels: Array, rng: Rng, *, diameter: float) -> Altered:
    """Add a nodule; diameter as a share of the longer side."""
    strength = rng.uniform(0.45, 0.8)
    centre = lung_centre(lung_fields(pixels), rng)
    profile = nodule_profile(pixels.shape, centre, diameter * max(pixels.shape), rng)
    return Altered(_finished(opacified(pixels, profile, strength)), profile > 0.1)


def _add_consolidation(pixels: Array, rng: Rng, *, extent: float) -> Altered:
    """Add a consolidation; extent as a share of the longer side."""
    strength = rng.uniform(0.35, 0.75)
    fields = lung_fields(working_copy(pixels, CANVAS_SIDE))
    profile = np.clip(resized(confined_cloud(fields, extent, rng), pixels.shape), 0, 1)
    veiled = pixels + profile * (smoothed(pixels, _at_224(2.5, pixels)) - pixels)
    return Altered(_finished(opacified(veiled, profile, strength)), profile > 0.2)


def _drawn(draw: Callable[[Array, Rng], Altered], pixels: Array, rng: Rng) -> Altered:
    return draw(checked(pixels), rng)


def _lesion(
    name: str, draw: Callable[[Array, Rng], Altered], size: Size | None = None
) -> Alteration:
    return Alteration(name, "lesion", partial(_drawn, draw), size)


NODULES: tuple[tuple[Size, float], ...] = (("small", 0.05), ("medium", 0.09), ("large", 0.14))
"""Diameters, shares of the longer side."""
CONSOLIDATIONS: tuple[tuple[Size, float], ...] = (
    ("small", 0.12),
    ("medium", 0.22),
    ("large", 0.35),
)
"""Extents, shares of the longer side."""

NUISANCES: tuple[Alteration, ...] = (
    _nuisance("gamma_0.8", partial(_gamma, exponent=0.8)),
    _nuisance("gamma_1.25", partial(_gamma, exponent=1.25)),
    _nuisance("contrast_-15", partial(_contrast, factor=0.85)),
    _nuisance("contrast_+15", partial(_contrast, factor=1.15)),
    _nuisance("blur_0.5", partial(_blur, sigma=0.5)),
    _nuisance("sharpen_0.5", partial(_sharpen, amount=1.0)),
    _nuisance("jpeg_50", partial(_jpeg, quality=50)),
    _nuisance("resample_128", partial(_resample, side=128)),
    _nuisance("zoom_+5", partial(_zoom, factor=1.05)),
    _nuisance("zoom_-5", partial(_zoom, factor=0.95)),
    _nuisance("shift_3", partial(_shift, share=0.03)),
    _nuisance("noise_mild", partial(_noise, std=0.01)),
)
"""Acquisition and handling that leaves the patient as he is; a detector should stay calm."""

GROSS: tuple[Alteration, ...] = (
    _gross("blur_strong", partial(_blur, sigma=3.0)),
    _gross("noise_strong", partial(_noise, std=0.1)),
    _gross("inversion", _invert),
    _gross("rotation_90", partial(_rotate, quarters=1)),
    _gross("rotation_180", partial(_rotate, quarters=2)),
    _gross("crop_1.5", partial(_crop, zoom=1.5)),
    _gross("ct_slice", _ct_slice),
    _gross("photograph", _photograph),
)
"""Images that should never have reached a detector of chest radiographs."""

LESIONS: tuple[Alteration, ...] = (
    _lesion("metal_device", _add_device),
    *(_lesion(f"nodule_{s}", partial(_add_nodule, diameter=d), s) for s, d in NODULES),
    *(
        _lesion(f"consolidation_{s}", partial(_add_consolidation, extent=e), s)
        for s, e in CONSOLIDATIONS
    ),
)
"""Things drawn into the lungs, with their masks."""

ALTERATIONS: tuple[Alteration, ...] = NUISANCES + GROSS + LESIONS


# --- for choosing a detector ------------------------------------------------------------------


def random_nuisance(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a composition of mild changes, each about two thirds as strong as in `NUISANCES`.

    In the order of an acquisition: position, optics, tone, resolution, noise, storage.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        At least 32 pixels a side; left as it is.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) float32 in [0, 1]
    """
    height, width = checked(pixels).shape
    shift = (height * rng.uniform(-0.02, 0.02), width * rng.uniform(-0.02, 0.02))
    image = _moved(pixels, 1 + rng.uniform(-0.03, 0.03), shift)
    if rng.random() < 0.5:
        image = _blur(image, rng, sigma=rng.uniform(0, 0.4))
    else:
        image = _sharpen(image, rng, amount=rng.uniform(0, 0.6))
    limit = np.log(1.15)
    image = _gamma(_finished(image), rng, exponent=np.exp(rng.uniform(-limit, limit)))
    image = _finished(_contrast(image, rng, factor=rng.uniform(0.9, 1.1)))
    if rng.random() < 0.5:
        image = _resample(image, rng, side=round(_at_224(int(rng.integers(150, 225)), image)))
    image = _finished(_noise(image, rng, std=rng.uniform(0, 0.006)))
    if rng.random() < 0.5:
        image = _jpeg(image, rng, quality=int(rng.integers(60, 96)))
    return _finished(image)


def random_perturbation(pixels: NDArray[np.float32], rng: np.random.Generator) -> Altered:
    """Draw one change that matters: in a patch, an opacity, or blur or noise of the whole image.

    A patch is smoothed, moved, darkened or roughened. Blur and noise are several times as strong
    as `random_nuisance` makes them.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        At least 32 pixels a side; left as it is.
    rng : numpy.random.Generator

    Returns
    -------
    Altered
        With the mask of the place; None where the whole image is changed.
    """
    change = _PERTURBATIONS[rng.integers(len(_PERTURBATIONS))]
    return change(checked(pixels), rng)


def _soft_disc(shape: tuple[int, ...], rng: Rng) -> Array:
    """Draw a disc with a cosine edge, (H, W) in [0, 1], 1 at a pixel well inside the image."""
    row, column = (int(side * rng.uniform(0.12, 0.88)) for side in shape)
    radius = rng.uniform(0.06, 0.2) * max(shape)
    distance = np.hypot(np.arange(shape[0])[:, None] - row, np.arange(shape[1]) - column)
    edge = np.clip((distance / radius - 0.5) / 0.5, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32)


def _blended(pixels: Array, other: Array, profile: Array) -> Altered:
    return Altered(_finished(pixels + profile * (other - pixels)), profile > 0.1)


def _smooth_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    return _blended(pixels, _blur(pixels, rng, sigma=rng.uniform(1.5, 5)), profile)


def _paste_patch(pixels: Array, rng: Rng) -> Altered:
    """Move a patch by at least a tenth of either side, from within the same image."""
    profile = _soft_disc(pixels.shape, rng)
    signs = rng.choice((-1, 1), 2)
    steps = [int(s * rng.uniform(0.1, 0.4) * n) for s, n in zip(signs, pixels.shape, strict=True)]
    # Rolled rather than repeated at the border: streaks would give the patch away.
    return _blended(pixels, np.roll(pixels, steps, (0, 1)), profile)


def _add_opacity(pixels: Array, rng: Rng) -> Altered:
    """Add a few overlapping soft balls, in the lungs but not confined to them."""
    longer = max(pixels.shape)
    row, column = lung_centre(lung_fields(pixels), rng)
    radius = rng.uniform(0.08, 0.4) * longer / 2
    rows, columns = np.arange(pixels.shape[0])[:, None], np.arange(pixels.shape[1])
    clear = np.ones(pixels.shape, dtype=np.float32)
    for _ in range(int(rng.integers(2, 7))):
        angle, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0, 0.6)
        y, x, width = row + away * np.sin(angle), column + away * np.cos(angle), radius - away
        clear *= 1 - 0.8 * np.exp(-3 * ((rows - y) ** 2 + (columns - x) ** 2) / width**2)
    profile = np.asarray((1 - clear) / (1 - clear.min()), dtype=np.float32)
    return Altered(_finished(opacified(pixels, profile, rng.uniform(0.25, 0.7))), profile > 0.1)


def _darken_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    return _blended(pixels, pixels * np.float32(rng.uniform(0.4, 0.8)), profile)


def _roughen_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    texture = rng.standard_normal(pixels.shape, dtype=np.float32)
    texture = _blur(texture, rng, sigma=rng.uniform(0.3, 2))
    texture *= np.float32(rng.uniform(0.03, 0.12)) / texture.std()
    return _blended(pixels, _finished(pixels + texture), profile)


def _blur_all(pixels: Array, rng: Rng) -> Altered:
    return Altered(_finished(_blur(pixels, rng, sigma=rng.uniform(2, 5))), None)


def _noise_all(pixels: Array, rng: Rng) -> Altered:
    return Altered(_finished(_noise(pixels, rng, std=rng.uniform(0.06, 0.15))), None)


_PERTURBATIONS = (
    _smooth_patch,
    _paste_patch,
    _add_opacity,
    _darken_patch,
    _roughen_patch,
    _blur_all,
    _noise_all,
)
