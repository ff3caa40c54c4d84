"""Batches of network images from a manifest.

Decoding and resampling happen once; random augmentation (MONAI's) happens in every step. What step
``s`` sees is a function of (seed, s), so a resumed run sees what an uninterrupted one would.
Evaluation keeps order, drops nothing and reports what fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anomaly.data.intensity import IntensityPolicy
from anomaly.data.manifest import ManifestRow
from anomaly.data.processes import Lost, map_in_processes
from anomaly.data.readers import read_scan
from anomaly.data.transforms import (
    Augmentation,
    Frame,
    Preprocessing,
    augment,
    frame_scan,
    network_image,
)
from anomaly.errors import ScanError
from anomaly.types import Scan

__all__ = ["ImageReader", "NetworkImage", "framed_images", "network_images", "step_batches"]

Change: TypeAlias = Callable[[NDArray[np.float32], ManifestRow], NDArray[np.float32]]

# A process takes seconds to start: it has to import torch and MONAI.
SCANS_WORTH_A_PROCESS = 500


@dataclass(frozen=True)
class NetworkImage:
    """A scan as the network sees it, and the way back.

    Attributes
    ----------
    row : ManifestRow
    image : ndarray (1, size, size) float32 in [-1, 1], quantized
        No tensor: between processes those are files in shared memory, and run out.
    frame : Frame
    spacing : tuple of float or None
        Height and width of a source pixel, mm.
    """

    row: ManifestRow
    image: NDArray[np.float32]
    frame: Frame
    spacing: tuple[float, float] | None


@dataclass(frozen=True)
class ImageReader:
    """Reads one scan as the network sees it; can be sent to a process.

    Attributes
    ----------
    root : Path
    intensity : IntensityPolicy
    preprocessing : Preprocessing
    change : callable, optional
        ``change(pixels, row)`` alters the source's pixels (H, W) first.
    """

    root: Path
    intensity: IntensityPolicy
    preprocessing: Preprocessing
    change: Change | None = None

    def __call__(self, row: ManifestRow) -> NetworkImage | ScanError:
        """Read a scan; what makes it unusable is returned, for it costs this scan alone."""
        try:
            scan, framed, frame = self.framed(row)
        except ScanError as error:
            return error
        image = network_image(framed, self.preprocessing).numpy()
        return NetworkImage(row, image, frame, scan.spacing)

    def framed(self, row: ManifestRow) -> tuple[Scan, Tensor, Frame]:
        """Decode, change and frame a scan: (1, 2 size, 2 size) float32 in [0, 1], and the way back.

        Raises
        ------
        ScanError
        """
        scan = read_scan(self.root / row.path, row.frame, self.intensity)
        if self.change is not None:
            scan = replace(scan, pixels=self.change(scan.pixels, row))
        return scan, *frame_scan(scan, self.preprocessing)


def framed_images(reader: ImageReader, rows: Sequence[ManifestRow], workers: int) -> Tensor:
    """Decode and frame every row, in order: (N, 1, 2 size, 2 size) float32 in [0, 1].

    Parameters
    ----------
    reader : ImageReader
    rows : sequence of ManifestRow
    workers : int
        Processes that decode.

    Raises
    ------
    ScanError
        If a row cannot be read: `anomaly prepare` has read it before, so the archive changed.
    """
    # In processes, not threads: `anomaly.data.frames.decoding` says why.
    workers = min(workers, len(rows) // SCANS_WORTH_A_PROCESS)
    framed = []
    for _, image in map_in_processes(partial(_framed, reader), rows, workers):
        if isinstance(image, Lost):
            raise image.error()
        framed.append(torch.from_numpy(image))
    return torch.stack(framed)


def _framed(reader: ImageReader, row: ManifestRow) -> NDArray[np.float32]:
    return reader.framed(row)[1].numpy()


def network_images(framed: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Finish framed images without augmentation: (N, 1, size, size) in [-1, 1]."""
    return torch.stack([network_image(image, preprocessing) for image in framed])


class _Steps(Dataset[tuple[Tensor, list[str]]]):
    """Item ``s`` is this process's share of step ``s``'s batch."""

    def __init__(
        self,
        framed: Tensor,
        keys: Sequence[str],
        chain: Compose,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.framed = framed
        self.keys = keys
        self.chain = chain
        self.batch_size = batch_size
        self.seed = seed
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def __getitem__(self, step: int) -> tuple[Tensor, list[str]]:
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.share]
        images, keys = [], []
        for position in positions:
            epoch, place = divmod(int(position), len(self.framed))
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.framed))
            index = int(order[place])
            # One state per image and visit: the same whatever process or worker makes it.
            state = np.random.SeedSequence((self.seed, int(position))).generate_state(1)[0]
            self.chain.set_random_state(seed=int(state))
            images.append(torch.as_tensor(self.chain(self.framed[index])))
            keys.append(self.keys[index])
        return torch.stack(images), keys


def step_batches(
    framed: Tensor,
    keys: Sequence[str],
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    steps: range,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> DataLoader[tuple[Tensor, list[str]]]:
    """Batches of the given steps; every image is seen once an epoch, in a seeded order.

    Parameters
    ----------
    framed : Tensor (N, 1, 2 size, 2 size), from `framed_images`
    keys : sequence of N str
    augmentation, preprocessing
    batch_size : int
        Over all processes together.
    seed : int
    steps : range
        Steps to make.
    rank, world : int
        This process and how many there are; it gets ``batch_size / world`` rows of each batch.
    workers : int
        Processes that prepare batches ahead; the result does not depend on it.

    Returns
    -------
    DataLoader
        Of (images (B, 1, size, size) in [-1, 1], keys).
    """
    dataset = _Steps(
        framed, keys, augment(augmentation, preprocessing), batch_size, seed, rank, world
    )
    return DataLoader(dataset, batch_size=None, sampler=list(steps), num_workers=workers)
