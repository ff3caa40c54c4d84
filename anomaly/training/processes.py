"""Distributed training: rank, number of processes and a common stop (torch.distributed)."""

from __future__ import annotations

import torch
from torch import distributed as dist

__all__ = ["any_rank", "rank_and_world"]


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; 0 and 1 if not distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def any_rank(stop: bool, world: int, device: torch.device) -> bool:
    """Whether any process stops; if one stopped alone, the others would wait for it."""
    if world == 1:
        return stop
    flag = torch.tensor(int(stop), device=device)  # NCCL supports no CPU tensors
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
