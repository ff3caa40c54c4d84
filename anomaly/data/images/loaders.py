"""Batches of training images.

Decoding and resampling are done once before (`anomaly.data.images.network_images`); random
augmentation is done in every step. The batch of step ``s`` depends only on (seed, s), so a resumed
run gets the same batches as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anomaly.data.images.augmentation import RandomAugmentation
from anomaly.data.images.transforms import Augmentation, Preprocessing

__all__ = ["Deal", "step_batches"]


@dataclass(frozen=True)
class Deal:
    """How the images of a training are dealt out.

    Attributes
    ----------
    batch_size : int
        Over all processes together.
    seed : int
    total : int
        Steps of the whole training, of which `Augmentation.moved_until` is a share.
    rank, world : int
        This process and how many there are; it gets ``batch_size / world`` rows of each batch.
    workers : int
        Processes that prepare batches ahead; the result does not depend on it.
    """

    batch_size: int
    seed: int
    total: int
    rank: int = 0
    world: int = 1
    workers: int = 0

    @property
    def share(self) -> slice:
        """Rows of each batch that are this process's."""
        start, stop = (
            place * self.batch_size // self.world for place in (self.rank, self.rank + 1)
        )
        return slice(start, stop)


@dataclass(frozen=True)
class _Changes:
    """The augmentation of every step; picklable."""

    moving: RandomAugmentation
    unmoving: RandomAugmentation
    unmoved_from: int

    def __call__(self, step: int) -> RandomAugmentation:
        return self.moving if step < self.unmoved_from else self.unmoving


class _Steps(Dataset[tuple[Tensor, list[str]]]):
    """Dataset whose item ``s`` is this process's share of the batch of step ``s``."""

    def __init__(
        self,
        framed: Tensor,
        keys: Sequence[str],
        changes: _Changes,
        deal: Deal,
    ) -> None:
        self.framed = framed
        self.keys = keys
        self.changes = changes
        self.batch_size = deal.batch_size
        self.seed = deal.seed
        self.share = deal.share

    def __getitem__(self, step: int) -> tuple[Tensor, list[str]]:
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.share]
        change = self.changes(step)
        images, keys = [], []
        for position in positions:
            epoch, place = divmod(int(position), len(self.framed))
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.framed))
            index = int(order[place])
            # One random state per position, so that process and worker do not matter.
            state = np.random.SeedSequence((self.seed, int(position))).generate_state(1)[0]
            change.set_random_state(seed=int(state))
            images.append(change(self.framed[index]))
            keys.append(self.keys[index])
        return torch.stack(images), keys


def step_batches(
    framed: Tensor,
    keys: Sequence[str],
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    steps: range,
    deal: Deal,
) -> DataLoader[tuple[Tensor, list[str]]]:
    """Return the batches of the given steps; every epoch visits each image once, in seeded order.

    Parameters
    ----------
    framed : Tensor (N, 1, 2 size, 2 size), from `framed_images`
    keys : sequence of N str
    augmentation, preprocessing
    steps : range
        Steps to load.
    deal : Deal

    Returns
    -------
    DataLoader
        Yields (images (B, 1, size, size) in [-1, 1], keys).
    """
    changes = _Changes(
        RandomAugmentation(augmentation, preprocessing),
        RandomAugmentation(augmentation.unmoved, preprocessing),
        math.ceil(augmentation.moved_until * deal.total),
    )
    dataset = _Steps(framed, keys, changes, deal)
    return DataLoader(dataset, batch_size=None, sampler=list(steps), num_workers=deal.workers)
