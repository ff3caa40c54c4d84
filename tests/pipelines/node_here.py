"""A node as its own process, with a folder as destination that notes what it is asked for.

python node_here.py SETTINGS.yaml [DESTINATION]
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anomaly.config import Config
from anomaly.data.readers.isolation import Workers
from anomaly.data.table.manifest import Manifest
from anomaly.errors import AnomalyError
from anomaly.logs import log_what_is_allowed
from anomaly.pipelines.node import load_settings, run_node
from anomaly.pipelines.run import RunFolder


def one_object_a_row(run: RunFolder, config: Config, _processes: Workers) -> list[Path]:
    """Write a file for each scan, the same each time, named as a derived UID would be."""
    folder = run.path / "objects"
    folder.mkdir(exist_ok=True)
    paths = []
    for row in Manifest.read(run.manifest, config.data.root).rows:
        path = folder / f"{hashlib.sha256(row.instance.encode()).hexdigest()}.txt"
        path.write_text(f"{row.instance}\n")
        paths.append(path)
    return paths


@dataclass(frozen=True)
class Folder:
    """A destination that notes what it is asked for, and is away while a file `away` is there."""

    path: Path

    def store(self, paths: Sequence[Path]) -> None:
        with (self.path / "asked.log").open("a") as file:
            file.write("".join(f"{path.name}\n" for path in paths))
        if (self.path / "away").exists():
            raise AnomalyError("the destination is away: try again later")
        for path in paths:
            temporary = self.path / f"{path.name}.part"
            temporary.write_bytes(path.read_bytes())
            temporary.replace(self.path / path.name)


def die(_item: object) -> None:
    """End the process, as a decoder in native code may."""
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(Workers):
    """Processes that decode nothing and die, one for each item."""

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Iterator[tuple[Any, Any]]:
        return super().map(die, items)


if __name__ == "__main__":
    torch.set_num_threads(1)
    log_what_is_allowed()
    run_node(
        load_settings(Path(sys.argv[1])),
        torch.device("cpu"),
        objects=one_object_a_row,
        destination=Folder(Path(sys.argv[2])) if len(sys.argv) > 2 else None,
    )
