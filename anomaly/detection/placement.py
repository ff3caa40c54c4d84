r"""Placement: where the anatomy of an image lies, relative to the mean normal image.

Patients stand higher or lower before the detector, turned a little, and fill more or less of the
frame. With :math:`\bar m` the mean of the training images and positions measured from the centre
of the frame in units of its sides, place :math:`p` of the mean normal image is at

.. math:: T(p) = R(\varphi)\,\mathrm{diag}(e^{s})\,p + \delta

in the image: two scales :math:`s`, a rotation :math:`\varphi` and a shift :math:`\delta`, found by
`anomaly.detection.registration`.

Local features (`anomaly.detection.local`) and the statistics of the heatmap
(`anomaly.detection.heatmap`) are read at registered places; the image itself is never moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = ["PLACEMENT_NAMES", "Placement", "frame_positions", "matrices", "sample"]

Maps = TypeVar("Maps", bound=NDArray[np.floating])

PLACEMENT_NAMES = ("shift_rows", "shift_columns", "scale_rows", "scale_columns", "rotation")
"""Parameters of a placement: shares of the sides, logarithms of the scales, and radians
(counter-clockwise as displayed)."""


@dataclass(frozen=True)
class Placement:
    """Placements of N images.

    Attributes
    ----------
    parameters : ndarray (N, 5) float64
        Columns `PLACEMENT_NAMES`; all 0 if the anatomy lies as in the mean normal image.
    agreement : ndarray (N,) float64 in [-1, 1]
        Correlation of image and mean normal image at registered places; near 1 if they fit well.
    """

    parameters: NDArray[np.float64]
    agreement: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.parameters)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Placement:
        """Return the placements of a subset of the images."""
        return Placement(self.parameters[rows], self.agreement[rows])

    @classmethod
    def join(cls, parts: list[Placement]) -> Placement:
        """Concatenate the placements of several sets of images."""
        return cls(
            np.concatenate([part.parameters for part in parts]),
            np.concatenate([part.agreement for part in parts]),
        )

    @classmethod
    def unmoved(cls, count: int) -> Placement:
        """Return the placement of images that lie as the mean normal image."""
        return cls(np.zeros((count, len(PLACEMENT_NAMES))), np.ones(count))

    def aligned(self, maps: Maps) -> Maps:
        """Read maps (N, ..., H, W) of the images at the places of the mean normal image.

        Bilinear; the border repeats.
        """
        height, width = maps.shape[-2:]
        turn, shift = matrices(torch.from_numpy(self.parameters))
        places = frame_positions(height, width) @ turn.mT + shift[:, None]
        return _read(maps, places)

    def in_images(self, maps: Maps) -> NDArray[np.floating]:
        """Read maps (..., H, W) of the mean normal image at the pixels of the images, (N, ...).

        Bilinear; the border repeats.
        """
        places = torch.from_numpy(self.reference_positions(*maps.shape[-2:]))
        return _read(np.broadcast_to(maps, (len(self), *maps.shape)), places)

    def reference_positions(self, height: int, width: int) -> NDArray[np.float64]:
        """Places of the mean normal image at every pixel of the images, (N, H W, 2) float64.

        Rows and columns from the centre of the frame, in units of its sides.
        """
        turn, shift = matrices(torch.from_numpy(self.parameters))
        places = (frame_positions(height, width) - shift[:, None]) @ torch.linalg.inv(turn).mT
        return np.asarray(places.numpy(), dtype=np.float64)


def frame_positions(height: int, width: int) -> Tensor:
    """Positions (H W, 2) float64 of the pixel centres of a frame: rows, columns in (-1/2, 1/2)."""
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5 for n in (height, width)
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def matrices(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (N, 2, 2) and shifts (N, 2) of parameters (N, 5)."""
    cosine, sine = parameters[:, 4].cos(), parameters[:, 4].sin()
    scale = parameters[:, 2:4].exp()
    # Rows run downwards, so that this turns counter-clockwise as displayed.
    rows = torch.stack([cosine * scale[:, 0], -sine * scale[:, 1]], 1)
    columns = torch.stack([sine * scale[:, 0], cosine * scale[:, 1]], 1)
    return torch.stack([rows, columns], 1), parameters[:, :2]


def sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Values (N, K, P) of maps (N, K, H, W) at positions (N, P, 2); bilinear, border repeated."""
    grid = (2 * positions.flip(-1)).unsqueeze(2).to(maps.dtype)
    return grid_sample(maps, grid, padding_mode="border", align_corners=False).squeeze(-1)


def _read(maps: Maps, positions: Tensor) -> Maps:
    flat = torch.from_numpy(maps.reshape(len(maps), -1, *maps.shape[-2:]).copy())
    return cast(Maps, sample(flat, positions).numpy().reshape(maps.shape))
