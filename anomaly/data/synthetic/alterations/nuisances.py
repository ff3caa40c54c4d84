"""Nuisances: changes of acquisition and handling that should not change the score."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from anomaly.data.synthetic.alterations.alteration import Alteration, Change, Rng, whole_image
from anomaly.data.synthetic.alterations.canvas import Array, at_224, checked, finished
from anomaly.data.synthetic.alterations.image_changes import (
    blur,
    contrast,
    gamma,
    jpeg,
    moved,
    noise,
    resample,
    sharpen,
)

__all__ = ["NUISANCES", "WIDE_NUISANCES", "random_nuisance"]


def _zoom(pixels: Array, _: Rng, *, rows: float, columns: float) -> Array:
    return moved(pixels, (rows, columns))


def _shift(pixels: Array, rng: Rng, *, share: float) -> Array:
    """Shift by a share of the longer side, rounded to whole pixels to avoid blur."""
    angle, distance = rng.uniform(0, 2 * np.pi), share * max(pixels.shape)
    shift = (round(distance * np.sin(angle)), round(distance * np.cos(angle)))
    return moved(pixels, shift=shift)


def _rotate(pixels: Array, _: Rng, *, degrees: float) -> Array:
    return moved(pixels, degrees=degrees)


def _nuisance(name: str, change: Change) -> Alteration:
    return Alteration(name, "nuisance", whole_image(change))


NUISANCES: tuple[Alteration, ...] = (
    _nuisance("gamma_0.8", partial(gamma, exponent=0.8)),
    _nuisance("gamma_1.25", partial(gamma, exponent=1.25)),
    _nuisance("contrast_-15", partial(contrast, factor=0.85)),
    _nuisance("contrast_+15", partial(contrast, factor=1.15)),
    _nuisance("blur_0.5", partial(blur, sigma=0.5)),
    _nuisance("sharpen_0.5", partial(sharpen, amount=1.0)),
    _nuisance("jpeg_50", partial(jpeg, quality=50)),
    _nuisance("resample_128", partial(resample, side=128)),
    _nuisance("zoom_+5", partial(_zoom, rows=1.05, columns=1.05)),
    _nuisance("zoom_-5", partial(_zoom, rows=0.95, columns=0.95)),
    _nuisance("shift_3", partial(_shift, share=0.03)),
    _nuisance("noise_mild", partial(noise, std=0.01)),
)
"""Changes of acquisition and handling that do not alter the anatomy or the expected score."""

WIDE_NUISANCES: tuple[Alteration, ...] = (
    _nuisance("zoom_+15", partial(_zoom, rows=1.15, columns=1.15)),
    _nuisance("zoom_-15", partial(_zoom, rows=0.85, columns=0.85)),
    _nuisance("tall_15", partial(_zoom, rows=1.15, columns=1)),
    _nuisance("wide_15", partial(_zoom, rows=1, columns=1.15)),
    _nuisance("short_15", partial(_zoom, rows=0.85, columns=1)),
    _nuisance("narrow_15", partial(_zoom, rows=1, columns=0.85)),
    _nuisance("rotate_+6", partial(_rotate, degrees=6)),
    _nuisance("rotate_-6", partial(_rotate, degrees=-6)),
    _nuisance("shift_6", partial(_shift, share=0.06)),
    _nuisance("resample_80", partial(resample, side=80)),
)
"""Changes as large as hospitals differ: other collimation, aspect ratio, turn and resolution."""


def random_nuisance(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Apply a random composition of changes: position as `WIDE_NUISANCES`, the rest milder.

    Scales up to 15 % along each side, rotations up to 6 degrees, shifts up to 4 %; sharpness, tone,
    noise and storage about two thirds as strong as `NUISANCES`. The changes follow the order of an
    acquisition: position, optics, tone, resolution, noise, storage.

    Parameters
    ----------
    pixels : ndarray (H, W) float32 in [0, 1]
        At least 32 pixels per side; not modified.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray (H, W) float32 in [0, 1]
    """
    height, width = checked(pixels).shape
    rows, columns = np.exp(rng.uniform(-0.15, 0.15, 2))
    shift = (height * rng.uniform(-0.04, 0.04), width * rng.uniform(-0.04, 0.04))
    image = moved(pixels, (rows, columns), shift, rng.uniform(-6, 6))
    if rng.random() < 0.5:
        image = blur(image, rng, sigma=rng.uniform(0, 0.5))
    else:
        image = sharpen(image, rng, amount=rng.uniform(0, 0.7))
    limit = np.log(1.18)
    image = gamma(finished(image), rng, exponent=np.exp(rng.uniform(-limit, limit)))
    image = finished(contrast(image, rng, factor=rng.uniform(0.88, 1.12)))
    if rng.random() < 0.5:
        image = resample(image, rng, side=round(at_224(int(rng.integers(80, 225)), image)))
    image = finished(noise(image, rng, std=rng.uniform(0, 0.007)))
    if rng.random() < 0.5:
        image = jpeg(image, rng, quality=int(rng.integers(55, 96)))
    return finished(image)
