"""Batches of training images.

Decoding and resampling happened once (`anomaly.data.network_images`); random augmentation happens
in every step. What step ``s`` sees is a function of (seed, s), so a resumed run sees what an
uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anomaly.data.augmentation import RandomAugmentation
from anomaly.data.transforms import Augmentation, Preprocessing

__all__ = ["step_batches"]


class _Steps(Dataset[tuple[Tensor, list[str]]]):
    """Item ``s`` is this process's share of step ``s``'s batch."""

    def __init__(
        self,
        framed: Tensor,
        keys: Sequence[str],
        change: RandomAugmentation,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.framed = framed
        self.keys = keys
        self.change = change
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
            self.change.set_random_state(seed=int(state))
            images.append(self.change(self.framed[index]))
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
        framed, keys, RandomAugmentation(augmentation, preprocessing), batch_size, seed, rank, world
    )
    return DataLoader(dataset, batch_size=None, sampler=list(steps), num_workers=workers)
