"""Transforms from a scan to the network's frame, and of a heatmap back to the scan.

The chain, for training and evaluation::

    Scan.pixels --stretch--> [0, 1] --resample to twice the size--> (augment in training)
        --2x2 means--> network size --quantize to grey_levels--> [-1, 1]

Training and evaluation share every resampling step. Augmentation is done at twice the size, so
that its interpolation blur does not make training images smoother than scored ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anomaly.errors import ConfigError, Reason, UnsupportedScan
from anomaly.grey import percentile_range
from anomaly.types import Scan

__all__ = [
    "SUPERSAMPLING",
    "Augmentation",
    "Frame",
    "Preprocessing",
    "frame_scan",
    "grey_range",
    "network_image",
    "quantize",
    "stretch",
]

SUPERSAMPLING = 2
"""Size of framed images, in multiples of the network's size."""


@dataclass(frozen=True)
class Preprocessing:
    """Settings of the conversion of scans to network images; part of a bundle.

    Attributes
    ----------
    size : int
        Side of the network's square frame, in pixels.
    geometry : {"pad", "stretch"}
        Pad the shorter side with black to a square, or change the aspect ratio.
    intensity : {"percentile", "full"}
        "percentile" maps the image's own 0.5th and 99.5th percentile to 0 and 1, which removes most
        of the effect of exposure and windowing; "full" keeps the scale of `Scan.pixels`.
    grey_levels : int
        Grey values after resampling; bits/dim counts these.
    """

    size: int = 64
    geometry: Literal["pad", "stretch"] = "pad"
    intensity: Literal["percentile", "full"] = "percentile"
    grey_levels: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes and grey levels that cannot represent an image."""
        if self.size < 8:
            raise ConfigError(f"preprocessing.size is {self.size}: expected 8 or more pixels")
        if self.grey_levels < 2:
            raise ConfigError(
                f"preprocessing.grey_levels is {self.grey_levels}: expected 2 or more"
            )


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images that keep chest anatomy; no flip, since it moves the heart.

    Attributes
    ----------
    rotate : float
        Largest rotation, degrees.
    zoom : float < 1
        Largest relative change of size, for each axis separately.
    shift : float
        Largest translation, as a fraction of the side.
    gamma : float
        Exponent drawn from ``[1 / (1 + gamma), 1 + gamma]``.
    moved_until : float in [0, 1]
        Fraction of the training steps in which images are rotated, zoomed and shifted. The last
        steps use unmoved images, because moved ones do not follow the distribution of scans
        (docs/decisions/0014-live-network.md).
    """

    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    gamma: float = 0.0
    moved_until: float = 1.0

    def __post_init__(self) -> None:
        """Refuse negative ranges, and a zoom that would mirror."""
        for name in ("rotate", "zoom", "shift", "gamma"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"augmentation.{name} is {getattr(self, name)}: expected >= 0")
        if self.zoom >= 1:
            raise ConfigError(f"augmentation.zoom is {self.zoom}: expected less than 1")
        if not 0 <= self.moved_until <= 1:
            raise ConfigError(
                f"augmentation.moved_until is {self.moved_until}: expected a share, 0 to 1"
            )

    @property
    def unmoved(self) -> Augmentation:
        """The augmentation without geometric changes."""
        return replace(self, rotate=0.0, zoom=0.0, shift=0.0)


@dataclass(frozen=True)
class Frame:
    """The map between a source image and the network's square frame.

    Attributes
    ----------
    source : tuple of int
        Height and width of the source, pixels.
    size : int
        Side of the network's frame.
    geometry : {"pad", "stretch"}
    """

    source: tuple[int, int]
    size: int
    geometry: Literal["pad", "stretch"]

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the source after padding."""
        side = max(self.source)
        return (side, side) if self.geometry == "pad" else self.source

    @property
    def offset(self) -> tuple[int, int]:
        """Row and column of the source's first pixel within the padded source."""
        (rows, columns), (height, width) = self.padded, self.source
        return (rows - height) // 2, (columns - width) // 2

    def to_network(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Resample (C, H, W) to (C, size, size), antialiased.

        Parameters
        ----------
        pixels : Tensor (C, H, W) of the source's shape
        size : int, optional
            Side of the result; the frame's own by default.
        """
        self._check(tuple(pixels.shape[-2:]), self.source, "image")
        (top, left), (height, width) = self.offset, self.source
        rows, columns = self.padded
        margins = (left, columns - width - left, top, rows - height - top)
        side = size or self.size
        return functional.interpolate(
            functional.pad(pixels, margins)[None],
            size=(side, side),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0]

    def to_source(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample a map (size, size) to the source's pixels, bilinearly: (H, W) float32."""
        self._check(values.shape, (self.size, self.size), "map")
        full = functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None],
            size=self.padded,
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        (top, left), (height, width) = self.offset, self.source
        return full[top : top + height, left : left + width].numpy()

    def point_to_source(self, row: float, column: float) -> tuple[float, float]:
        """Return the source position of a network position; the centre of the first pixel is 0.

        Examples
        --------
        A source of 64 x 32 is padded to a square of 64, which is halved.

        >>> Frame((64, 32), 32, "pad").point_to_source(0, 8)
        (0.5, 0.5)
        """
        (top, left), (rows, columns) = self.offset, self.padded
        return (
            (row + 0.5) * rows / self.size - 0.5 - top,
            (column + 0.5) * columns / self.size - 0.5 - left,
        )

    @staticmethod
    def _check(shape: tuple[int, ...], expected: tuple[int, int], what: str) -> None:
        if shape != expected:
            raise ConfigError(f"the {what} is {shape}: this frame expects {expected}")


def stretch(pixels: NDArray[np.float32], intensity: str) -> NDArray[np.float32]:
    """Apply the intensity policy to pixels (H, W) in [0, 1]: (H, W) float32 in [0, 1].

    Raises
    ------
    UnsupportedScan
        If nearly all pixels are equal.
    """
    if intensity == "full":
        return pixels
    low, high = grey_range(pixels, intensity)
    if high <= low:
        raise UnsupportedScan(
            Reason.CONSTANT,
            f"99 % of the pixels have the value {low:.4g}: there is no image to judge. Exclude it",
        )
    unit: NDArray[np.float32] = np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32)
    return unit


def grey_range(pixels: NDArray[np.float32], intensity: str) -> tuple[float, float]:
    """Pixel values that `stretch` maps to 0 and to 1."""
    if intensity == "full":
        return 0.0, 1.0
    return percentile_range(pixels)


def quantize(unit: Tensor, grey_levels: int) -> Tensor:
    """Round [0, 1] to the grid of `grey_levels` values spread over [-1, 1]."""
    return torch.round(unit * (grey_levels - 1)) * (2 / (grey_levels - 1)) - 1


def frame_scan(scan: Scan, preprocessing: Preprocessing) -> tuple[Tensor, Frame]:
    """Stretch a scan and resample it to twice the network's size.

    Returns
    -------
    Tensor (1, 2 size, 2 size) float32 in [0, 1]
    Frame
        The map back to the source.
    """
    height, width = scan.pixels.shape
    frame = Frame((height, width), preprocessing.size, preprocessing.geometry)
    unit = torch.from_numpy(stretch(scan.pixels, preprocessing.intensity))[None]
    return frame.to_network(unit, SUPERSAMPLING * preprocessing.size), frame


def network_image(framed: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Apply 2x2 means and quantization: (1, 2 size, 2 size) -> (1, size, size)."""
    means = functional.avg_pool2d(framed, SUPERSAMPLING)
    return quantize(means.clamp(0, 1), preprocessing.grey_levels)
