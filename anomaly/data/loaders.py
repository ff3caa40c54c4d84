"""Batches of network images from a manifest.

Decoding and resampling happen once; random augmentation (MONAI's) happens in every step. What step
``s`` sees is a function of (seed, s), so a resumed run sees what an uninterrupted one would.
Evaluation keeps order, drops nothing and reports what fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from anomaly.data.processes import map_in_processes
from anomaly.data.readers import read_scan
from anomaly.data.transforms import (
    Augmentation,
    Frame,
    Preprocessing,
    augment,
    frame_scan,
    network_image,
)
from anomaly.errors import ScanError, UnreadableScan
from anomaly.types import Scan

__all__ = ["NetworkImage", "framed_images", "network_images", "read_network_images", "step_batches"]

Change: TypeAlias = Callable[[NDArray[np.float32], ManifestRow], NDArray[np.float32]]

# A process takes seconds to start: it has to import torch and MONAI.
SCANS_WORTH_A_PROCESS = 500


@dataclass(frozen=True)
class NetworkImage:
    """A scan as the network sees it, and the way back.

    Attributes
    ----------
    row : ManifestRow
    scan : Scan
    image : Tensor (1, size, size) float32 in [-1, 1], quantized
    frame : Frame
    """

    row: ManifestRow
    scan: Scan
    image: Tensor
    frame: Frame


def read_network_images(
    root: Path,
    rows: Iterable[ManifestRow],
    intensity: IntensityPolicy,
    preprocessing: Preprocessing,
) -> Iterator[NetworkImage | tuple[ManifestRow, ScanError]]:
    """Read scans one by one, in order; a scan that fails comes as (row, error), never silently."""
    for row in rows:
        try:
            scan = read_scan(root / row.path, row.frame, intensity)
            framed, frame = frame_scan(scan, preprocessing)
        except ScanError as error:
            yield row, error
            continue
        yield NetworkImage(row, scan, network_image(framed, preprocessing), frame)


def framed_images(
    root: Path,
    rows: Sequence[ManifestRow],
    intensity: IntensityPolicy,
    preprocessing: Preprocessing,
    workers: int,
    change: Change | None = None,
) -> Tensor:
    """Decode and frame every row, in order: (N, 1, 2 size, 2 size) float32 in [0, 1].

    Parameters
    ----------
    root, rows, intensity, preprocessing
    workers : int
        Processes that decode.
    change : callable, optional
        ``change(pixels, row)`` alters the source's pixels (H, W) first; it is sent to processes.

    Raises
    ------
    ScanError
        If a row cannot be read: `anomaly prepare` has read it before, so the archive changed.
    """
    # In processes, not threads: `anomaly.data.frames.decoding` says why.
    workers = min(workers, max(1, len(rows) // SCANS_WORTH_A_PROCESS))
    read = partial(_framed, root, intensity, preprocessing, change)
    framed = []
    for row, image in map_in_processes(read, rows, workers):
        if image is None:
            raise UnreadableScan("decoder crashed", f"scan {row.key} ended the process reading it")
        framed.append(torch.from_numpy(image))
    return torch.stack(framed)


def _framed(
    root: Path,
    intensity: IntensityPolicy,
    preprocessing: Preprocessing,
    change: Change | None,
    row: ManifestRow,
) -> NDArray[np.float32]:
    scan = read_scan(root / row.path, row.frame, intensity)
    if change is not None:
        scan = replace(scan, pixels=change(scan.pixels, row))
    return frame_scan(scan, preprocessing)[0].numpy()


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
