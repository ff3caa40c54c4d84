"""Synthetic chest radiographs: a thorax of smooth parts, an X-ray beam, a film, a lesion.

A phantom is a thickness map ``T(u, v)`` in cm of water, imaged on a film::

    T        = body - LUNG_LACK * air + bones + vessels (+ lesion)
    primary  = exp(-MU T)                          transmitted share of the beam
    exposure = blur(vignette (primary + scatter) + quantum noise)
    image    = tone((-log exposure - low) / (high - low))       0 = black, high exposure

`anomaly.data.synthetic.phantom_thorax` draws the thorax. A film positions, exposes and develops
it. A lesion is added to ``T``, before beam and noise, and the lesion-free twin uses the
same film; the mask contains the pixels where the two images differ by more than `VISIBLE`.

Phantoms are for tests and demonstrations. They show the behaviour of a method with known truth,
not its performance on patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.synthetic.phantom_thorax import (
    HALF_WIDTH,
    LUNG_LACK,
    Array,
    Thorax,
    View,
    bezier,
    blurred,
    dome,
    draw_thorax,
    draw_view,
    inside,
)
from anomaly.errors import ConfigError

__all__ = ["LESION_KINDS", "VISIBLE", "LesionKind", "Phantom", "draw_phantom", "is_visible"]

LesionKind: TypeAlias = Literal["nodule", "consolidation", "effusion", "device"]

LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)

VISIBLE = 0.01
"""Smallest change of the image, in [0, 1], that counts as part of a lesion."""

MU = 0.15
"""Effective attenuation of water per cm, broad beam at about 120 kV."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest radiograph with its ground truth.

    Attributes
    ----------
    image : ndarray (H, W) float32 in [0, 1]
        0 displays black; lungs dark, bones and mediastinum bright.
    mask : ndarray (H, W) bool
        True exactly where ``abs(image - twin) > VISIBLE``; everywhere else ``image == twin``.
    lesion : str or None
        Kind of the added lesion.
    twin : ndarray (H, W) float32 in [0, 1]
        The same patient on the same film, with the same noise, without the lesion.
    """

    image: Array
    mask: NDArray[np.bool_]
    lesion: LesionKind | None
    twin: Array


def draw_phantom(
    rng: np.random.Generator,
    size: tuple[int, int] = (256, 224),
    lesion: LesionKind | None = None,
    *,
    film: np.random.Generator | None = None,
) -> Phantom:
    """Draw one posteroanterior chest radiograph.

    Parameters
    ----------
    rng : numpy.random.Generator
        For the patient, and last for the lesion: the same state gives the same patient and film
        with and without a lesion.
    size : (int, int)
        Height and width in pixels; the height always spans `FIELD_HEIGHT` mm.
    lesion : {"nodule", "consolidation", "effusion", "device"} or None
        Lesion to add; None draws a normal film.
    film : numpy.random.Generator, optional
        For positioning, exposure and noise. The same `rng` with another `film` gives a second
        visit of the same patient. By default `rng` is also used for the film.

    Returns
    -------
    Phantom
    """
    exposed = _draw_film(rng if film is None else film, size)
    view = draw_view(rng, size, exposed.pose)
    thorax = draw_thorax(rng, view)
    if lesion is None:
        (twin,) = exposed.develop(thorax.thickness)
        return Phantom(twin, np.zeros(size, dtype=np.bool_), None, twin)
    altered = thorax.thickness + _LESIONS[lesion](rng, view, thorax)
    twin, image = exposed.develop(thorax.thickness, altered)
    mask = np.abs(image - twin) > np.float32(VISIBLE)
    return Phantom(np.where(mask, image, twin), mask, lesion, twin)


def is_visible(phantom: Phantom, height: int) -> bool:
    """Return whether the lesion is still visible when the image is reduced to `height` rows.

    It is visible if at least 6 pixels of the reduced image change by more than 0.06. At 64 rows,
    5 mm per pixel, most nodules below 20 mm and thin catheters are not.

    Parameters
    ----------
    phantom : Phantom
        With a lesion.
    height : int
        A divisor of the image's height.

    Raises
    ------
    ConfigError
        If it is not a divisor.
    """
    rows, columns = phantom.image.shape
    side = rows // height
    if side * height != rows:
        raise ConfigError(f"{height} rows: expected a divisor of the image's {rows}")
    change = np.abs(phantom.image - phantom.twin)[:, : columns // side * side]
    reduced = change.reshape(height, side, -1, side).mean(axis=(1, 3))
    return bool((reduced > 0.06).sum() >= 6)


# ---------------------------------------------------------------------------------------- film


@dataclass(frozen=True)
class _Film:
    """One exposure: pose (turn rad, right mm, down mm, zoom), beam, noise and development."""

    pose: tuple[float, float, float, float]
    quanta: float
    scatter: float
    vignette: Array
    noise: Array
    blur: float
    gamma: float
    margin: tuple[float, float]
    headroom: float
    equalise: float
    shutter: Array

    def develop(self, *thickness: Array) -> tuple[Array, ...]:
        """Images of thickness maps; the first, lesion-free one defines scatter and grey scale."""
        primary = np.exp(np.float32(-MU) * thickness[0])
        glow = np.float32(self.scatter) * _surroundings(primary, 4)
        first = self._density(primary, glow)
        # Like a vendor's processing, subtract a part of the local average.
        local = np.float32(self.equalise) * _surroundings(first, 6)
        body = (thickness[0] > 4) & (self.shutter > 0.5)
        low, high = np.percentile((first - local)[body][::7], self.margin)
        span = np.float32((high - low) * (1 + self.headroom))
        densities = [first]
        densities += [self._density(np.exp(np.float32(-MU) * t), glow) for t in thickness[1:]]
        return tuple(
            np.clip((d - local - np.float32(low)) / span, 0, 1) ** np.float32(self.gamma)
            * self.shutter
            for d in densities
        )

    def _density(self, primary: Array, glow: Array) -> Array:
        """Negative log of the exposure (H, W), from transmitted beam and scatter."""
        beam = self.vignette * (primary + glow)
        beam += self.noise * np.sqrt(beam / np.float32(self.quanta))
        out: Array = -np.log(np.maximum(blurred(beam, self.blur), 1e-4))
        return out


def _surroundings(image: Array, share: int) -> Array:
    """Smooth average (H, W) over about one `share`-th of the height."""
    reach = image.shape[0] // share
    out: Array = ndimage.uniform_filter(ndimage.uniform_filter(image, reach), reach)
    return out


def _draw_film(rng: np.random.Generator, size: tuple[int, int]) -> _Film:
    height, width = size
    pose = (
        float(rng.normal(0, np.radians(1.5))),
        float(rng.normal(0, 5)),
        float(rng.normal(4, 6)),
        float(rng.uniform(1.02, 1.12)),
    )
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    heel, fall = rng.normal(0, 0.04), rng.uniform(0.02, 0.12)
    vignette = (1 + heel * y - fall * (x**2 + y**2)).astype(np.float32)
    shutter = np.ones(size, dtype=np.float32)
    if rng.random() < 0.3:
        top, bottom, left, right = rng.uniform(0.0, 0.07, 4)
        up, down = y + 1 - 2 * top, 1 - 2 * bottom - y
        inward = np.minimum(np.minimum(up, down), np.minimum(x + 1 - 2 * left, 1 - 2 * right - x))
        shutter = np.clip(inward * height / 4, 0, 1).astype(np.float32)
    return _Film(
        pose=pose,
        quanta=float(np.exp(rng.uniform(np.log(1.5e4), np.log(8e4)))),
        scatter=float(rng.uniform(0.3, 0.7)),
        vignette=vignette,
        noise=rng.standard_normal(size, dtype=np.float32),
        blur=float(rng.uniform(0.45, 0.7)),
        gamma=float(rng.uniform(0.85, 1.25)),
        margin=(float(rng.uniform(0.2, 2.5)), float(rng.uniform(98, 99.8))),
        headroom=float(rng.uniform(0.02, 0.2)),
        equalise=float(rng.uniform(0.1, 0.45)),
        shutter=shutter,
    )


# ------------------------------------------------------------------------------------- lesions


def _place_in_lung(rng: np.random.Generator, view: View, thorax: Thorax) -> NDArray[np.float64]:
    """Draw a point (2,) in patient mm, uniform over the inner part of the lungs."""
    points = rng.uniform((-HALF_WIDTH, -150), (HALF_WIDTH, 110), (512, 2))
    place = np.rint(points @ view.matrix.T + view.offset).astype(np.int64)
    column, row = place.T
    height, width = view.u.shape
    on_film = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    depth = thorax.air[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    good = on_film & (depth > 6)
    return np.asarray(points[int(np.argmax(good))])


def _nodule(rng: np.random.Generator, view: View, thorax: Thorax) -> Array:
    """Draw a round, slightly lobed mass of 8 to 30 mm, from part-solid to solid."""
    u, v = _place_in_lung(rng, view, thorax)
    radius = 0.5 * np.exp(rng.uniform(np.log(8), np.log(30)))
    du, dv = view.u - np.float32(u), view.v - np.float32(v)
    bearing = np.arctan2(dv, du)
    lobes = sum(rng.uniform(0, 0.07) * np.cos(k * bearing + rng.uniform(0, 6.3)) for k in (2, 3, 5))
    rho2 = (du**2 + dv**2) / (radius * (1 + lobes)) ** 2
    sphere: Array = np.float32(2 * radius / 10) * dome(rho2)
    return np.float32(rng.uniform(0.7, 1.1)) * sphere


def _consolidation(rng: np.random.Generator, view: View, thorax: Thorax) -> Array:
    """Draw a patchy cloud, some 50 to 120 mm wide, that fills a lung and hides its vessels."""
    centre = _place_in_lung(rng, view, thorax)
    extent = rng.uniform(14, 32)
    points = centre + rng.normal(0, extent, (70, 2)) * rng.uniform(0.6, 1.2, 2)
    patches = view.splat(points, rng.uniform(0.3, 1, 70))
    cloud = blurred(patches, rng.uniform(6, 11) / view.pixel)
    cloud = np.clip(1.6 * cloud / (cloud.max() + 1e-9) - 0.25, 0, 1)
    cloud *= view.u * np.float32(np.sign(centre[0])) > 0
    filled: Array = np.float32(rng.uniform(0.2, 0.65)) * cloud
    return filled * (np.float32(LUNG_LACK) * thorax.air - thorax.vessels)


def _effusion(rng: np.random.Generator, view: View, thorax: Thorax) -> Array:
    """Draw fluid 20 to 75 mm deep in one lung base, 25 to 50 mm higher at the chest wall."""
    side = rng.choice([-1.0, 1.0])
    outward = view.u * np.float32(side)
    level = rng.uniform(58, 112)
    climb, width = rng.uniform(25, 50), rng.uniform(14, 28)
    surface = level - climb * np.exp((outward - HALF_WIDTH) / width)
    fluid = inside(view.v - surface.astype(np.float32), 3.5) * inside(outward - 8, 3)
    return fluid * np.float32(rng.uniform(0.75, 1) * LUNG_LACK) * thorax.air


def _device(rng: np.random.Generator, view: View, thorax: Thorax) -> Array:
    """Draw a pacemaker with its lead, or a central venous catheter."""
    del thorax
    t = view.samples(420)
    side = float(rng.choice([-1.0, 1.0]))
    vein: list[tuple[float, float]] = [(side * 60, -128), (side * 25, -112), (-20, -100)]
    vein += [(-22, -40), (-22, float(rng.uniform(-20, 25)))]
    if rng.random() < 0.5:
        catheter = bezier([(side * 170, -60), (side * 95, -98), *vein], t)
        return np.float32(rng.uniform(7, 14)) * view.tubes(catheter, rng.uniform(0.9, 1.3))
    box = (side * float(rng.uniform(88, 108)), float(rng.uniform(-95, -70)))
    half = rng.uniform((19, 17), (25, 23))
    square = ((view.u - box[0]) / half[0]) ** 4 + ((view.v - box[1]) / half[1]) ** 4
    can = np.float32(rng.uniform(8, 14)) * inside(1 - square, 0.08)
    tip = (float(rng.uniform(35, 60)), float(rng.uniform(75, 92)))
    lead = bezier([box, *vein, (-30, 60), (10, 95), tip], t)
    metal = np.float32(rng.uniform(8, 14)) * view.tubes(lead, rng.uniform(1.0, 1.5))
    return can + metal


_LESIONS: dict[LesionKind, Callable[[np.random.Generator, View, Thorax], Array]] = {
    "nodule": _nodule,
    "consolidation": _consolidation,
    "effusion": _effusion,
    "device": _device,
}
