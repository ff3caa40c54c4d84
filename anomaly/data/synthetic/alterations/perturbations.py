"""Perturbations: changes that should raise the score, for choosing a detector.

Three families, equally frequent: a *patch* of 5 to 40 % of the longer side, a *field* of 40 to 90 %
whose texture or density changes mildly, and the *whole* image. A detector that sees one family only
is no better at the others than at chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic.alterations.alteration import Altered, Rng
from anomaly.data.synthetic.alterations.canvas import Array, checked, finished
from anomaly.data.synthetic.alterations.image_changes import blur, noise
from anomaly.data.synthetic.alterations.lungs import lung_centre, lung_fields
from anomaly.data.synthetic.alterations.opacities import opacified

__all__ = ["random_perturbation"]


def random_perturbation(pixels: NDArray[np.float32], rng: np.random.Generator) -> Altered:
    """Apply one random perturbation of a random family.

    A patch is smoothed, replaced, darkened, brightened, roughened or made opaque; small patches are
    as frequent as large ones. A field is smoothed, roughened, veiled or aerated. Blur and noise of
    the whole image are several times as strong as in `random_nuisance`.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        At least 32 pixels per side; not modified.
    rng : numpy.random.Generator

    Returns
    -------
    Altered
        Its mask is None if the whole image was changed.
    """
    family = _PERTURBATIONS[rng.integers(len(_PERTURBATIONS))]
    change = family[rng.integers(len(family))]
    return change(checked(pixels), rng)


def _soft_disc(
    shape: tuple[int, ...], rng: Rng, diameters: tuple[float, float] = (0.05, 0.4)
) -> Array:
    """Draw a disc with a cosine edge, (H, W) in [0, 1]; its centre is well inside the image.

    Its diameter is a share of the longer side, uniform in its logarithm.
    """
    row, column = (int(side * rng.uniform(0.12, 0.88)) for side in shape)
    radius = float(np.exp(rng.uniform(*np.log(diameters)))) / 2 * max(shape)
    distance = np.hypot(np.arange(shape[0])[:, None] - row, np.arange(shape[1]) - column)
    edge = np.clip((distance / radius - 0.5) / 0.5, 0, 1)
    return (0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32)


def _blended(pixels: Array, other: Array, profile: Array) -> Altered:
    return Altered(finished(pixels + profile * (other - pixels)), profile > 0.1)


def _smooth_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    return _blended(pixels, blur(pixels, rng, sigma=rng.uniform(1.5, 5)), profile)


def _paste_patch(pixels: Array, rng: Rng) -> Altered:
    """Replace a patch by another part of the image, at least a tenth of each side away."""
    profile = _soft_disc(pixels.shape, rng)
    signs = rng.choice((-1, 1), 2)
    steps = [int(s * rng.uniform(0.1, 0.4) * n) for s, n in zip(signs, pixels.shape, strict=True)]
    # Roll instead of repeating the border, which would mark the patch with streaks.
    return _blended(pixels, np.roll(pixels, steps, (0, 1)), profile)


def _add_opacity(pixels: Array, rng: Rng) -> Altered:
    """Add a few overlapping soft balls, centred in the lungs but not confined to them."""
    longer = max(pixels.shape)
    row, column = lung_centre(lung_fields(pixels), rng)
    radius = float(np.exp(rng.uniform(np.log(0.05), np.log(0.4)))) * longer / 2
    rows, columns = np.arange(pixels.shape[0])[:, None], np.arange(pixels.shape[1])
    clear = np.ones(pixels.shape, dtype=np.float32)
    for _ in range(int(rng.integers(2, 7))):
        angle, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0, 0.6)
        y, x, width = row + away * np.sin(angle), column + away * np.cos(angle), radius - away
        clear *= 1 - 0.8 * np.exp(-3 * ((rows - y) ** 2 + (columns - x) ** 2) / width**2)
    profile = np.asarray((1 - clear) / (1 - clear.min()), dtype=np.float32)
    return Altered(finished(opacified(pixels, profile, rng.uniform(0.25, 0.7))), profile > 0.1)


def _darken_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    return _blended(pixels, pixels * np.float32(rng.uniform(0.4, 0.8)), profile)


def _brighten_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    return _blended(pixels, 1 - (1 - pixels) * np.float32(rng.uniform(0.4, 0.8)), profile)


def _roughen_patch(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng)
    texture = rng.standard_normal(pixels.shape, dtype=np.float32)
    texture = blur(texture, rng, sigma=rng.uniform(0.3, 2))
    texture *= np.float32(rng.uniform(0.03, 0.12)) / texture.std()
    return _blended(pixels, finished(pixels + texture), profile)


def _smooth_field(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng, _FIELD)
    return _blended(pixels, blur(pixels, rng, sigma=rng.uniform(1, 2.5)), profile)


def _roughen_field(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng, _FIELD)
    texture = rng.standard_normal(pixels.shape, dtype=np.float32)
    texture = blur(texture, rng, sigma=rng.uniform(0.5, 3))
    texture *= np.float32(rng.uniform(0.02, 0.06)) / texture.std()
    return _blended(pixels, finished(pixels + texture), profile)


def _veil_field(pixels: Array, rng: Rng) -> Altered:
    """Brighten air and lower its contrast, as fluid does."""
    profile = _soft_disc(pixels.shape, rng, _FIELD)
    veiled = blur(opacified(pixels, profile, rng.uniform(0.15, 0.4)), rng, sigma=1)
    return _blended(pixels, finished(veiled), profile)


def _aerate_field(pixels: Array, rng: Rng) -> Altered:
    profile = _soft_disc(pixels.shape, rng, _FIELD)
    return _blended(pixels, pixels * np.float32(rng.uniform(0.7, 0.9)), profile)


def _blur_all(pixels: Array, rng: Rng) -> Altered:
    return Altered(finished(blur(pixels, rng, sigma=rng.uniform(2, 5))), None)


def _noise_all(pixels: Array, rng: Rng) -> Altered:
    return Altered(finished(noise(pixels, rng, std=rng.uniform(0.06, 0.15))), None)


_FIELD = (0.4, 0.9)
"""Diameters of a field, as shares of the longer side."""

_PERTURBATIONS = (
    (
        _smooth_patch,
        _paste_patch,
        _add_opacity,
        _darken_patch,
        _brighten_patch,
        _roughen_patch,
    ),
    (_smooth_field, _roughen_field, _veil_field, _aerate_field),
    (_blur_all, _noise_all),
)
