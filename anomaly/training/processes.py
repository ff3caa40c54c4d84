"""The processes that train together, as torch.distributed knows them."""

from __future__ import annotations

import torch
from torch import distributed as dist

__all__ = ["any_rank", "rank_and_world"]


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process, and how many there are: 0 and 1 where it is alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def any_rank(stop: bool, world: int, device: torch.device) -> bool:
    """Whether any process stops: one that stops alone would leave the others waiting."""
    if world == 1:
        return stop
    flag = torch.tensor(int(stop), device=device)  # NCCL knows no CPU tensor
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
