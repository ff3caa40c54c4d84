"""What a command works with: the run's configuration, a device, its place among processes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from anomaly.config import Config, load_config
from anomaly.data.manifest import Manifest
from anomaly.errors import ConfigError
from pipelines.run import RunFolder

__all__ = ["overrides_name", "pick_device", "process_place", "run_config"]


def pick_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return the device named; "auto" is CUDA where there is one.

    Where torchrun started several processes, "cuda" is the one of this process.

    Raises
    ------
    ConfigError
        If there is no such device here, or the name is none.
    """
    known = re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", name)
    if known is None:
        raise ConfigError(f"--device is {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("--device mps: PyTorch sees no such device here; use cpu or auto")
    if not name.startswith("cuda"):
        return torch.device(name)
    if not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch sees no CUDA device here; use cpu or auto")
    count = torch.cuda.device_count()
    several = _number(environment, "WORLD_SIZE", 1) > 1
    if several and ":" in name:
        raise ConfigError(
            f"--device {name} would put every process on one device: use cuda, which gives each "
            "its own"
        )
    number = int(name[5:]) if ":" in name else _number(environment, "LOCAL_RANK", 0)
    if number >= count:
        raise ConfigError(
            f"--device {name}: there are {count} CUDA devices here, numbered from 0, and number "
            f"{number} is asked for"
        )
    return torch.device("cuda", number)


def process_place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's number, and how many torchrun started: 0 and 1 where it did not.

    Raises
    ------
    ConfigError
        If RANK and WORLD_SIZE contradict each other or are no numbers.
    """
    rank, world = _number(environment, "RANK", 0), _number(environment, "WORLD_SIZE", 1)
    if not 0 <= rank < world:
        raise ConfigError(
            f"RANK is {rank} and WORLD_SIZE {world}: expected a number below it. Unset both, or "
            "start by torchrun"
        )
    return rank, world


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ConfigError(f"{name} is {text!r}: expected a whole number. Unset it, or use torchrun")
    return int(text)


def overrides_name(overrides: Sequence[str], key: str) -> bool:
    """Whether one of ``a.b=c`` overrides sets a key."""
    return any(text.partition("=")[0] == key for text in overrides)


def run_config(run: RunFolder, overrides: Sequence[str], data: Path | None = None) -> Config:
    """Read the run's own configuration, with overrides; where its scans are is absolute.

    Parameters
    ----------
    run : RunFolder
    overrides : sequence of str
    data : Path, optional
        Where the scans are now; default: where they were when they were listed.
    """
    config = load_config(run.need(run.config, "prepare"), list(overrides))
    root = config.data.root if data is None else data
    if data is None and not root.is_absolute() and not overrides_name(overrides, "data.root"):
        # Written by an earlier version; the current folder may be another one by now.
        root = Manifest.read(run.need(run.manifest, "prepare")).root
    return replace(config, data=replace(config.data, root=root.absolute()))
