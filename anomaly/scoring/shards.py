"""Shards of a table of scans, and their assignment to processes.

A shard consists of a few hundred consecutive rows. The shards and their order depend only on the
table, so "shard 12" is the same for every process on every machine.
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
        """SHA-256 of everything that the part depends on, row by row; excludes paths of files."""
        lines = [
            f"{r.key} {r.sha256} {r.frame} {r.status} {r.reason} {r.view} {r.site} {r.study} "
            f"{r.patient}"
            for r in self.rows
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cut(rows: Sequence[ManifestRow], size: int) -> list[Shard]:
    """Cut rows into shards of `size` rows; the last one may be shorter."""
    return [
        Shard(index, tuple(rows[start : start + size]))
        for index, start in enumerate(range(0, len(rows), size))
    ]


@dataclass(frozen=True)
class ShardAssignment:
    """The shards assigned to a process.

    Attributes
    ----------
    number, of : int
        Number of the process, from 0, and number of processes; its own shards are ``number``,
        ``number + of``, ...
    only : bool
        True: the process scores only its own shards. False: it then continues with shards that no
        other process holds.
    """

    number: int = 0
    of: int = 1
    only: bool = False

    def order(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the process's own shards and, unless `only`, then all others."""
        own = [s for s in shards if s.index % self.of == self.number]
        return own if self.only else own + [s for s in shards if s.index % self.of != self.number]

    @classmethod
    def parse(cls, text: str) -> ShardAssignment:
        """Parse ``i/n``, from ``1/n`` to ``n/n``.

        Raises
        ------
        ConfigError
            If the text has another form.
        """
        number, slash, of = text.partition("/")
        if not slash or not number.isdecimal() or not of.isdecimal():
            raise ConfigError(f"--shard is {text!r}: expected i/n, such as 1/4 for the first of 4")
        if not 1 <= int(number) <= int(of):
            raise ConfigError(f"--shard is {text!r}: expected i from 1 to n")
        return cls(int(number) - 1, int(of), only=True)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> ShardAssignment:
        """Read the assignment by torchrun (RANK) or a SLURM array; default: one single process.

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
