"""Thorax of a phantom: a sum of smooth parts in millimetres of a standard patient.

The standard patient is 300 mm wide inside the ribs. ``u`` increases to the right of the image (the
patient's left), ``v`` downwards; the origin is the centre of the thorax. A `View` maps a
stretched standard patient to the pixels; every part is then a map (H, W) in cm of water. Solids
are formulas in ``u`` and ``v``; bones, vessels and wires are tubes, drawn sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage  # type: ignore[import-untyped, unused-ignore]

__all__ = [
    "FIELD_HEIGHT",
    "HALF_WIDTH",
    "LUNG_LACK",
    "Array",
    "Thorax",
    "View",
    "bezier",
    "blurred",
    "dome",
    "draw_thorax",
    "draw_view",
    "ellipse",
    "inside",
]

Array: TypeAlias = NDArray[np.float32]

FIELD_HEIGHT = 400.0
"""Height of the detector in mm, whatever the number of pixels."""

LUNG_LACK = 0.75
"""Difference in attenuation between a cm of water and a cm of aerated lung, relative to water."""

HALF_WIDTH = 150.0
"""Half of the width inside the ribs, in mm of the standard patient."""

VERTEBRA = 24.0
"""Height in mm of a vertebra with its disc, and distance between ribs at the spine."""


# ------------------------------------------------------------------------------------ geometry


@dataclass(frozen=True)
class View:
    """Map between the standard patient and the pixels.

    ``u`` and ``v`` (H, W) are the patient's coordinates in mm at every pixel; `matrix` (2, 2) and
    `offset` (2,) map patient mm to (column, row); `pixel` is the width of a pixel in patient mm.
    """

    u: Array
    v: Array
    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    pixel: float

    def splat(self, points: ArrayLike, weights: ArrayLike) -> Array:
        """Add `weights` (n,) at `points` (n, 2) in patient mm, each distributed to four pixels."""
        height, width = self.u.shape
        x, y = np.asarray(points, dtype=np.float32).reshape(-1, 2).T
        matrix, offset = self.matrix.astype(np.float32), self.offset.astype(np.float32)
        column = matrix[0, 0] * x + matrix[0, 1] * y + offset[0]
        row = matrix[1, 0] * x + matrix[1, 1] * y + offset[1]
        on_film = (column > -1) & (column < width) & (row > -1) & (row < height)
        column, row = column[on_film] + 1, row[on_film] + 1
        # Rounding may move the last share to the next pixel: keep it in the margin.
        left = np.minimum(column.astype(np.int64), width)
        top = np.minimum(row.astype(np.int64), height)
        right_share, low_share = column - left, row - top
        weight = np.broadcast_to(np.asarray(weights, dtype=np.float32), on_film.shape)[on_film]
        # One pixel of margin on every side receives the shares outside the film.
        index = top * (width + 2) + left
        total = np.zeros((height + 2) * (width + 2))
        for step, share in ((0, 1 - low_share), (width + 2, low_share)):
            part = weight * share
            right = part * right_share
            total += np.bincount(index + step, part - right, total.size)
            total += np.bincount(index + step + 1, right, total.size)
        return total.reshape(height + 2, width + 2)[1:-1, 1:-1].astype(np.float32)

    def tubes(self, paths: NDArray[np.float64], radius: ArrayLike, marrow: float = 0.0) -> Array:
        """Thickness in cm of round tubes of `radius` mm along `paths` (..., n, 2) in mm.

        `marrow` is the inner fraction of the radius that is soft, as in a bone.
        """
        path = np.asarray(paths, dtype=np.float32)
        r = np.broadcast_to(np.asarray(radius, dtype=np.float32), path.shape[:-1])
        along = np.gradient(path, axis=-2)
        step = np.hypot(along[..., 0], along[..., 1]) + np.float32(1e-6)
        normal = np.stack([-along[..., 1], along[..., 0]], axis=-1) * (r / step)[..., None]
        count = int(np.ceil(2 * float(r.max()) / self.pixel)) + 2
        across = ((np.arange(count) + 0.5) / count * 2 - 1).astype(np.float32)
        points = path[..., None, :] + across[:, None] * normal[..., None, :]
        chord = np.sqrt(1 - across**2) - 0.8 * np.sqrt(np.maximum(marrow**2 - across**2, 0))
        # Chord 2 r / 10 in cm times the area step * 2 r / count of a sample, in mm2.
        scale = 0.4 * r * r * step / (count * self.pixel**2)
        return self.splat(points, (scale[..., None] * chord).ravel())

    def samples(self, length: float) -> NDArray[np.float64]:
        """Parameters in [0, 1] dense enough to draw a path of `length` mm without gaps."""
        return np.linspace(0, 1, int(np.ceil(length / (0.9 * self.pixel))) + 2)


def draw_view(
    rng: np.random.Generator, size: tuple[int, int], pose: tuple[float, float, float, float]
) -> View:
    """Draw a patient by stretching the standard patient, and position it on the detector."""
    height, width = size
    turn, right, down, zoom = pose
    stretch = np.diag(rng.uniform((0.86, 0.9), (1.02, 1.04)) * zoom)
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.array([[c, -s], [s, c]]) @ stretch * (height / FIELD_HEIGHT)
    offset = np.array([width - 1, height - 1]) / 2
    offset += np.array([right, down]) * (height / FIELD_HEIGHT)
    rows, columns = np.indices(size, dtype=np.float32)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    x, y = columns - np.float32(offset[0]), rows - np.float32(offset[1])
    u = inverse[0, 0] * x + inverse[0, 1] * y
    v = inverse[1, 0] * x + inverse[1, 1] * y
    return View(u, v, matrix, offset, float(np.linalg.det(matrix) ** -0.5))


def bezier(points: ArrayLike, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bezier curve (..., n, 2) at parameters `t` (n,) of control points (..., k, 2)."""
    curve = np.asarray(points, dtype=np.float64)[..., None, :]
    while curve.shape[-3] > 1:
        left, right = curve[..., :-1, :, :], curve[..., 1:, :, :]
        curve = left + (right - left) * t[:, None]
    out: NDArray[np.float64] = curve[..., 0, :, :]
    return out


def inside(distance: Array, softness: float) -> Array:
    """1 for positive `distance`, 0 for negative, with a transition over `softness` mm."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / (2 * softness)), dtype=np.float32)


def blurred(image: Array, sigma: float) -> Array:
    """Gaussian blur (H, W) of `sigma` pixels."""
    out: Array = ndimage.gaussian_filter(image, sigma)
    return out


def dome(rho2: Array) -> Array:
    """Depth of an ellipsoid of depth 1 where `rho2` is the squared normalised radius."""
    return np.asarray(np.sqrt(np.maximum(1 - rho2, 0)), dtype=np.float32)


def ellipse(
    view: View, centre: tuple[float, float], half: tuple[float, float], tilt: float = 0.0
) -> Array:
    """Squared normalised radius (H, W) of an ellipse, its first axis rotated by `tilt` rad."""
    du, dv = view.u - np.float32(centre[0]), view.v - np.float32(centre[1])
    c, s = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    along, across = (c * du + s * dv) / half[0], (c * dv - s * du) / half[1]
    return np.asarray(along**2 + across**2, dtype=np.float32)


# ------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Thorax:
    """The lesion-free patient, as maps (H, W) float32, >= 0.

    Attributes
    ----------
    thickness : ndarray
        Total thickness in the beam, in cm of water.
    air : ndarray
        Depth of aerated lung in cm.
    vessels : ndarray
        Contribution of the lung vessels to `thickness`.
    """

    thickness: Array
    air: Array
    vessels: Array


def draw_thorax(rng: np.random.Generator, view: View) -> Thorax:
    """Draw the organs and bones of one patient in a `view`."""
    body = _body(rng, view)
    cage = _cage(rng, view)
    diaphragm = _diaphragm(rng, view)
    aerated = inside(diaphragm - view.v, 1.2)
    # Behind the dome a thin wedge of lung reaches further down.
    recess = 0.15 * np.clip(1 - (view.v - diaphragm) / 40, 0, 1)
    air = cage * (aerated + (1 - aerated) * recess)
    air = np.maximum(air - _mediastinum(rng, view), 0)
    vessels = _vessels(rng, view) * np.clip(air / 6, 0, 1)
    texture = _texture(rng, view) * np.clip(air / 12, 0, 1)
    thickness = body - np.float32(LUNG_LACK) * air + vessels + texture
    thickness += _spine(rng, view) + _ribs(rng, view) + _shoulders(rng, view)
    thickness -= _airway_and_stomach(rng, view, diaphragm)
    return Thorax(np.maximum(thickness, 0), air.astype(np.float32), vessels)


def _body(rng: np.random.Generator, view: View) -> Array:
    """Soft tissue of the body: trunk, shoulders, neck, breasts."""
    side = np.abs(view.u)
    fat = rng.uniform(0, 1)
    half = 172 + 22 * fat + 75 * inside(-(view.v + rng.uniform(75, 100)), 16)
    trunk = np.sqrt(np.clip(1 - (side / half) ** 3, 0, None))
    slope = rng.uniform(0.25, 0.5)
    below = view.v + np.float32(rng.uniform(182, 196)) - slope * np.maximum(side - 40, 0)
    shoulder = np.sqrt(np.clip(below / 60, 0, 1))
    neck = 0.55 * dome((view.u / np.float32(rng.uniform(52, 62))) ** 2)
    depth = np.float32(20 + 5 * fat) * trunk * np.maximum(shoulder, neck)
    if rng.random() < 0.5:
        droop, size = rng.uniform(45, 75), rng.uniform(40, 62)
        for centre in (-82, 82):
            breast = dome(ellipse(view, (centre, droop), (size * 1.15, size)))
            depth += np.float32(rng.uniform(0.5, 1.0) * size / 22) * breast
    return np.asarray(depth, dtype=np.float32)


def _cage(rng: np.random.Generator, view: View) -> Array:
    """Depth in cm inside the rib cage, as if full of lung and open below."""
    side = np.abs(view.u)
    axis, wide, apex = rng.uniform(48, 56), rng.uniform(60, 90), rng.uniform(-155, -142)
    lateral = (side - axis) / np.where(side > axis, HALF_WIDTH - axis, axis + 18)
    upward = (view.v - wide) / np.where(view.v < wide, wide - apex, 420)
    rho2 = np.abs(lateral) ** 2.3 + np.abs(upward) ** 2.3
    return np.float32(rng.uniform(14, 17)) * dome(rho2.astype(np.float32))


def _diaphragm(rng: np.random.Generator, view: View) -> Array:
    """Height ``v`` (H, W) in mm of the diaphragm over each ``u``; the right dome is higher."""
    right = rng.uniform(72, 98)
    left = right + rng.uniform(4, 18)
    top = right + (left - right) * inside(view.u, 8)
    crest, drop = rng.uniform(58, 75), rng.uniform(32, 55)
    side = np.abs(view.u)
    outer = np.clip((side - crest) / (HALF_WIDTH - crest), 0, 1.2) ** 2
    inner = np.clip((crest - side) / crest, 0, 1) ** 2
    return (top + drop * outer + 0.3 * drop * inner).astype(np.float32)


def _mediastinum(rng: np.random.Generator, view: View) -> Array:
    """Depth in cm of heart, great vessels and hila, which displace lung."""
    size, tilt = rng.uniform(0.84, 1.12), rng.uniform(0.45, 0.85)
    shift = rng.normal(0, 3)
    heart = 12 * dome(ellipse(view, (27 + shift, 66), (66 * size, 45 * size), tilt))
    atrium = 10 * dome(ellipse(view, (-14 + shift, 66), (31 * size, 44 * size), -0.2))
    outflow = 9 * dome(ellipse(view, (20 + shift, 14), (30 * size, 46 * size), -0.15))
    knob = rng.uniform(14, 20)
    arch = 9 * dome(ellipse(view, (20 + shift / 2, -47 + rng.normal(0, 5)), (knob, knob)))
    width = rng.uniform(24, 31) + 10 * inside(-(view.v + 85), 12)
    width += rng.uniform(0, 7) * np.cos(view.v / rng.uniform(18, 30) + rng.uniform(0, 6.3))
    strip = 10 * dome(((view.u - 1) / width) ** 2)
    depth = np.maximum.reduce([heart, atrium, outflow, arch, strip])
    for centre in ((-40.0, 4.0), (41.0, -8.0)):
        hilum = ellipse(view, centre, (22, 30))
        depth += np.float32(rng.uniform(1.5, 4)) * np.exp(-2 * np.minimum(hilum, 20))
    # Organs move during the exposure, and their edges are curved, so the outline is blurred.
    return blurred(depth.astype(np.float32), 1.6 / view.pixel)


def _vessels(rng: np.random.Generator, view: View) -> Array:
    """Thickness in cm of the arteries that branch from both hila."""
    fan = np.radians([-95, -65, -35, -5, 25, 50, 72])
    angle = np.concatenate([fan, np.pi - fan]) + rng.normal(0, 0.15, 14)
    root = np.repeat([[38.0, -5.0], [-38.0, 5.0]], 7, axis=0) + rng.normal(0, 9, (14, 2))
    radius = rng.uniform(3.8, 6.0, 14)
    total = np.zeros_like(view.u)
    for generation in range(5):
        length = 44 * 0.8**generation * rng.uniform(0.6, 1.2, len(angle))
        t = view.samples(float(length.max()))
        turned = angle[:, None] + rng.normal(0, 0.5, (len(angle), 1)) * t
        steps = np.stack([np.cos(turned), np.sin(turned)], axis=-1) * length[:, None, None]
        paths = root[:, None] + np.cumsum(steps, axis=1) / len(t)
        total += view.tubes(paths, radius[:, None] * (1 - 0.25 * t))
        spread = rng.uniform(0.2, 0.65, len(angle))
        angle = np.concatenate([turned[:, -1] - spread, turned[:, -1] + spread])
        root = np.concatenate([paths[:, -1]] * 2)
        radius = np.concatenate([radius, radius]) * rng.uniform(0.6, 0.8, len(angle))
    return 1.3 * total


def _texture(rng: np.random.Generator, view: View) -> Array:
    """Fine lung markings in cm, around zero, fixed to the patient."""
    points = rng.uniform((-160, -160), (160, 160), (6000, 2))
    specks = view.splat(points, rng.choice([-1.0, 1.0], 6000))
    marks = blurred(specks, 2.0 / view.pixel)
    return marks * np.float32(rng.uniform(0.08, 0.22) / (marks.std() + 1e-9))


def _spine(rng: np.random.Generator, view: View) -> Array:
    """Vertebral bodies with discs, pedicles and spinous processes, slightly bowed."""
    bow = np.float32(rng.normal(0, 4)) * np.cos(view.v / 110 + rng.uniform(0, 6))
    across = view.u - bow
    phase = 2 * np.pi * (view.v - rng.uniform(0, VERTEBRA)) / VERTEBRA
    between = np.maximum(np.cos(phase), 0) ** 2
    disc = between * between * between
    plate = between - disc
    half = 16 + 2 * between
    body = dome(np.square((across / half) ** 2)) * (1.1 - 0.5 * disc + 0.3 * plate)
    level = np.maximum(-np.cos(phase - 0.6), 0) ** 2
    pedicles = dome(((np.abs(across) - 11) / 4) ** 2)
    process = dome((across / 3.5) ** 2)
    bone = np.float32(rng.uniform(0.8, 1.3)) * (body + 0.7 * level * (pedicles + process))
    return np.asarray(bone, dtype=np.float32)


def _ribs(rng: np.random.Generator, view: View) -> Array:
    """Paired ribs: half loops in space, so that front, back and edge project correctly."""
    count = int(rng.integers(9, 12))
    pitch = VERTEBRA * rng.uniform(0.95, 1.06)
    level = rng.uniform(-152, -142) + pitch * np.arange(count)[:, None]
    reach = HALF_WIDTH + 3 - 92 * np.exp(-np.arange(count)[:, None] / 1.7)
    drop = rng.uniform(62, 92) * (1 - 0.75 * np.exp(-np.arange(count)[:, None] / 2.0))
    t = view.samples(420)
    turn = np.pi * (0.06 + 0.72 * t)
    out = reach * np.sin(turn) ** rng.uniform(0.75, 0.95)
    down = level + drop * (1 - np.cos(turn)) / 2 * 1.15 - rng.uniform(6, 13) * np.sin(2 * turn)
    paths = np.stack(
        [np.stack([side * out, down + rng.normal(0, 1.2, (count, 1))], axis=-1) for side in (-1, 1)]
    )
    bone = view.tubes(paths, rng.uniform(4.6, 6.4) * (1 + 0.15 * t), marrow=0.78)
    return bone * np.float32(rng.uniform(1.7, 2.6))


def _shoulders(rng: np.random.Generator, view: View) -> Array:
    """Clavicles, scapulae and heads of the humeri."""
    lift, spread = rng.uniform(-8, 8), rng.uniform(-8, 12)
    t = view.samples(200)
    total = np.zeros_like(view.u)
    for side in (-1, 1):
        skew = rng.normal(0, 3)
        collar = [[14, -112], [50, -122], [85, -112 - lift], [120, -150 - lift], [168, -140 - lift]]
        blade = [[96 + spread, -112], [112 + spread, -60], [122 + spread, -10], [140 + spread, 15]]
        spine = [[104 + spread, -98], [130 + spread, -112], [168 + spread, -132]]
        outer = [[140 + spread, 15], [150 + spread, -30], [160 + spread, -90]]
        flip = np.array([side, 1.0])
        shift = np.array([0.0, skew])
        clavicle = bezier(np.array(collar) * flip + shift, t)
        total += 2.2 * view.tubes(clavicle, 6.0 + 1.5 * np.abs(2 * t - 1), marrow=0.75)
        for edge, radius in ((blade, 2.4), (spine, 4.0), (outer, 4.0)):
            total += view.tubes(bezier(np.array(edge) * flip + shift, t), radius)
        head = (side * (178.0 + spread), -118.0 + skew)
        total += 2.2 * dome(ellipse(view, head, (24, 25)))
    return blurred(total, 0.7 / view.pixel)


def _airway_and_stomach(rng: np.random.Generator, view: View, diaphragm: Array) -> Array:
    """Gas in cm of missing water: trachea, main bronchi, and often a bubble in the stomach."""
    t = view.samples(160)
    carina = (float(rng.normal(1, 3)), float(rng.normal(-38, 5)))
    bend = float(rng.normal(0, 4))
    trachea = bezier([(0, -215), (0, -130), (bend, -80), carina], t)
    gas = 0.9 * view.tubes(trachea, rng.uniform(7, 9.5))
    for end in ((-34.0, 2.0), (42.0, 0.0)):
        middle = (end[0] / 2, carina[1] + 12)
        gas += 0.8 * view.tubes(bezier([carina, middle, end], t[::2]), 5.5)
    if rng.random() < 0.6:
        centre = (float(rng.uniform(55, 85)), float(rng.uniform(118, 135)))
        bubble = dome(ellipse(view, centre, tuple(rng.uniform((20, 12), (38, 24)))))
        gas += np.float32(rng.uniform(2, 6)) * bubble * inside(view.v - diaphragm - 5, 1.5)
    return blurred(gas, 1.0 / view.pixel)
