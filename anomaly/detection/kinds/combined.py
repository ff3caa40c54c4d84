r"""``combined``: the image as a whole, its most unusual place, and guard features, in one score.

Each part has a statistic :math:`t` of an image: the log distance over the whole-image features, the
largest standardised place feature, the log distance over the guard features. Each is compared with
normals that it was not fitted on:

.. math::
    r = t - \mu(c), \qquad
    s = \ln 10 + \frac{r - Q_{0.9}(r)}{\mathrm{E}[r - Q_{0.9}(r) \mid r > Q_{0.9}(r)]},

with :math:`\mu(c)` a quadratic function of given columns :math:`c`, such as how much the anatomy
is magnified: a smaller chest has fewer pixels and noisier statistics. :math:`s` is minus the log of
the share of normals that are at least as unusual, by an exponential tail beyond their upper tenth,
so that parts can be compared: 3 is 1 in 20, 4.6 is 1 in 100.

Place and guard contribute only beyond their own limit (1 in 100, 1 in 200 normals), from the level
of 1 in 20 on: they are silent on most normals, so that they add few false alarms, and decisive on
images that are extreme in one place or as an acquisition. The score is the largest of the three.

The squared distance over the whole-image features is a sum over features,
:math:`z^\top P z = \sum_f z_f (P z)_f`: their shares of it explain the part exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import compress
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.kinds.base import Array, Arrays, KindSettings, Normals
from anomaly.detection.kinds.blocks import Blocks, log_distances
from anomaly.errors import ConfigError

__all__ = ["Combined", "CombinedSettings"]

PARTS = ("whole", "place", "guard")

LIMITS = {"place": math.log(100), "guard": math.log(200)}
"""Minus log of the share of normals beyond which a part contributes."""

ENTRY = math.log(20)
"""Score of a part at its limit."""

TAIL = 0.9
"""Quantile from which the tail of the normals is taken as exponential."""

COVARIANCE_WEIGHT = 500.0
"""Scans that the fitted covariance counts as when it is adapted to a site."""

GIVEN_LIMIT = 2.0
"""Standard deviations at which given columns are clipped: the function is not extrapolated."""


@dataclass(frozen=True)
class CombinedSettings(KindSettings):
    """Features of the three parts.

    Attributes
    ----------
    place : tuple of str
        Features of which the largest counts, by name or by group.
    guard : tuple of str
        Guard features, by name or by group.
    given : tuple of str
        Features that the parts are conditional on, by name or by group; may be empty.
    """

    kind: Literal["combined"] = "combined"
    place: tuple[str, ...] = ("evidence_peak",)
    guard: tuple[str, ...] = ("octave", "score_norm", "agreement")
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse parts without features."""
        super().__post_init__()
        for name in ("place", "guard"):
            if not getattr(self, name):
                raise ConfigError(
                    f"detector.candidates {name} is empty with kind combined: expected groups or "
                    "names of features"
                )

    @property
    def features(self) -> tuple[str, ...]:
        """All features used, by name or group."""
        return self.use + self.place + self.guard + self.given

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """Features by role; a feature may have one role only."""
        return {"use": self.use, "place": self.place, "guard": self.guard, "given": self.given}

    def __str__(self) -> str:
        """Return the name for tables."""
        given = f", given {' + '.join(self.given)}" if self.given else ""
        return (
            f"{super().__str__()}, place {' + '.join(self.place)}, "
            f"guard {' + '.join(self.guard)}{given}"
        )


@dataclass(frozen=True)
class Combined:
    """Fitted distances and laws of the normals.

    Attributes
    ----------
    role : ndarray (F,) float64
        Part of every feature: index in `PARTS`, or 3 for given columns.
    blocks : Blocks
        Distances over the features of whole and guard, in this order.
    given : ndarray (3, D) float64
        Coefficients of the quadratic function of each part.
    quantile, excess : ndarray (3,) float64
        Quantile `TAIL` of the normals, and their mean excess over it; `excess` > 0.
    """

    role: Array
    blocks: Blocks
    given: Array
    quantile: Array
    excess: Array

    counts_below: ClassVar[bool] = False

    @classmethod
    def fit(cls, normals: Normals, settings: CombinedSettings) -> Combined:
        """Fit on normal scans."""
        columns = list(zip(normals.names, normals.groups, strict=True))
        role = np.zeros(len(columns))
        for number, named in ((1, settings.place), (2, settings.guard), (3, settings.given)):
            role[[name in named or group in named for name, group in columns]] = number
        measured = _measured(role)
        block = (role[measured] == 2).astype(np.intp)
        own = Normals(
            normals.z[:, measured],
            normals.one_sided[measured],
            list(compress(normals.names, measured)),
            list(compress(normals.groups, measured)),
            normals.scans,
        )
        whole, guard = log_distances(Blocks.held_out(own, block))
        # The place features of normals are held out already: their heatmap was fitted without them.
        statistics = np.stack([whole, normals.judged[:, role == 1].max(1), guard])
        terms = _terms(normals.judged[:, role == 3])
        given = np.linalg.lstsq(terms, statistics.T, rcond=None)[0].T
        rest = statistics - given @ terms.T
        quantile = np.quantile(rest, TAIL, axis=1)
        beyond = [part[part > limit] - limit for part, limit in zip(rest, quantile, strict=True)]
        # Equal statistics have no tail; any excess then decides.
        excess = np.array([max(float(part.mean()), 1e-6) if len(part) else 1e-6 for part in beyond])
        return cls(role, Blocks.fit(own.z, block), given, quantile, excess)

    def score(self, z: Array) -> Array:
        """Anomaly scores (N,) of standardised features (N, F)."""
        return np.asarray(self._contenders(z).max(0))

    def decisive(self, z: Array) -> list[str]:
        """Name of the part that gives the score, of each of N images."""
        return [PARTS[index] for index in self._contenders(z).argmax(0)]

    def _contenders(self, z: Array) -> Array:
        """Candidates for the score, (3, N): minus infinity for a part within its limit."""
        rows = []
        for name, part in self.parts(z).items():
            beyond = part - LIMITS.get(name, ENTRY)
            rows.append(np.where((name not in LIMITS) | (beyond > 0), beyond + ENTRY, -np.inf))
        return np.stack(rows)

    def parts(self, z: Array) -> dict[str, Array]:
        """Minus log of the share of normals at least as unusual (N,), for each of `PARTS`."""
        beyond = (self.rest(z) - self.quantile[:, None]) / self.excess[:, None]
        return dict(zip(PARTS, beyond - math.log(1 - TAIL), strict=True))

    def rest(self, z: Array) -> Array:
        """Statistics (3, N) of the parts less what they are given; 0 on average of normals."""
        whole, guard = log_distances(self.blocks.distances(z[:, _measured(self.role)]))
        statistics = np.stack([whole, z[:, self.role == 1].max(1), guard])
        return np.asarray(statistics - self.given @ _terms(z[:, self.role == 3]).T)

    def adapted(self, z: Array, scans: int) -> Combined:
        """Return the density with the covariance of standardised features (M, F) mixed in.

        `scans` is how many scans they are of, and what the covariance counts as.
        """
        measured = z[:, _measured(self.role)]
        precision = np.zeros_like(self.blocks.precision)
        for index in range(int(self.blocks.group.max()) + 1):
            inner = np.ix_(self.blocks.group == index, self.blocks.group == index)
            own = measured[:, self.blocks.group == index]
            known = np.linalg.inv(self.blocks.precision[inner])
            site = own.T @ own / len(own)
            mixed = (COVARIANCE_WEIGHT * known + scans * site) / (COVARIANCE_WEIGHT + scans)
            precision[inner] = np.linalg.inv(mixed)
        return replace(self, blocks=Blocks(self.blocks.group, precision))

    def recentred(self, means: Array) -> Combined:
        """Return the density with laws moved by the means (3,) of a site's `rest`."""
        return replace(self, quantile=self.quantile + means)

    def shares(self, z: Array) -> Array:
        """Share of every feature (N, F) in the squared whole-image distance; 0 for the others."""
        measured = np.flatnonzero(_measured(self.role))
        inner = self.blocks.group == 0
        terms = self.blocks.terms(z[:, measured])[:, inner]
        shares = np.zeros_like(z)
        shares[:, measured[inner]] = terms / np.maximum(terms.sum(1, keepdims=True), 1e-12)
        return shares

    def arrays(self) -> dict[str, Array]:
        """Return the complete state."""
        return {
            **self.blocks.arrays(),
            "role": self.role,
            "given": self.given,
            "quantile": self.quantile,
            "excess": self.excess,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Combined:
        """Restore a density from its `arrays`."""
        blocks = Blocks(arrays["group"], arrays["precision"])
        return cls(arrays["role"], blocks, arrays["given"], arrays["quantile"], arrays["excess"])


def _measured(role: Array) -> NDArray[np.bool_]:
    return np.asarray((role == 0) | (role == 2))


def _terms(given: Array) -> Array:
    """Terms (N, D) of a quadratic function of given columns (N, G), clipped."""
    clipped = np.clip(given, -GIVEN_LIMIT, GIVEN_LIMIT)
    count = clipped.shape[1]
    products = [clipped[:, i] * clipped[:, j] for i in range(count) for j in range(i, count)]
    return np.column_stack([np.ones(len(given)), *clipped.T, *products])
