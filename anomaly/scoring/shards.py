"""Shards: a table of scans cut into pieces of work, and whose turn each is.

A shard is some hundred consecutive rows. Cut and order depend on the table alone, so every process
on every machine means the same by "shard 12".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anomaly.data.table.manifest import ManifestRow
from anomaly.errors import ConfigError

__all__ = ["Shard", "ShardAssignment", "cut"]


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of the table of scans.

    Attributes
    ----------
    index : int
    rows : tuple of ManifestRow
    """

    index: int
    rows: tuple[ManifestRow, ...]

    @property
    def inputs(self) -> str:
        """SHA-256 over what its part depends on, row by row; where a file lies is no part of it."""
        lines = [
            f"{r.key} {r.sha256} {r.frame} {r.status} {r.reason} {r.view} {r.site} {r.study} "
            f"{r.patient}"
            for r in self.rows
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cut(rows: Sequence[ManifestRow], size: int) -> list[Shard]:
    """Cut rows into shards of `size`, the last one shorter."""
    return [
        Shard(index, tuple(rows[start : start + size]))
        for index, start in enumerate(range(0, len(rows), size))
    ]


@dataclass(frozen=True)
class ShardAssignment:
    """Which shards a process begins with.

    Attributes
    ----------
    number, of : int
        It is the `number`-th (from 0) of so many; its own shards are ``number``,
        ``number + of``, ...
    only : bool
        True: it leaves the others alone. False: it goes on with what nobody holds.
    """

    number: int = 0
    of: int = 1
    only: bool = False

    def order(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return own shards, then, where it helps others, the rest."""
        own = [s for s in shards if s.index % self.of == self.number]
        return own if self.only else own + [s for s in shards if s.index % self.of != self.number]

    @classmethod
    def parse(cls, text: str) -> ShardAssignment:
        """Read ``i/n``, from ``1/n`` to ``n/n``.

        Raises
        ------
        ConfigError
            If it is something else.
        """
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal():
            raise ConfigError(f"--shard is {text!r}: expected i/n, such as 1/4 for the first of 4")
        if not 1 <= int(number) <= int(of):
            raise ConfigError(f"--shard is {text!r}: expected i from 1 to n")
        return cls(int(number) - 1, int(of), only=True)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> ShardAssignment:
        """Read the turn that torchrun (RANK) or a SLURM array gives; alone where neither does.

        Raises
        ------
        ConfigError
            If the variables contradict each other.
        """
        try:
            if "RANK" in environment:
                number, of = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            elif "SLURM_ARRAY_TASK_ID" in environment:
                first, last, step = (
                    int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
                    for name, default in (("MIN", "0"), ("MAX", "0"), ("STEP", "1"))
                )
                task = int(environment["SLURM_ARRAY_TASK_ID"])
                number, of = (task - first) // step, (last - first) // step + 1
            else:
                return cls()
        except (KeyError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"RANK and WORLD_SIZE, or SLURM_ARRAY_TASK_ID, _MIN, _MAX and _STEP, do not say "
                f"whose turn this is ({error}): unset them, or give --shard i/n"
            ) from error
        if not 0 <= number < of:
            raise ConfigError(f"process {number} of {of}: unset RANK, or give --shard i/n")
        return cls(number, of)
