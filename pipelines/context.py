"""The context of a command: the run's configuration, the device, and the process's rank."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from anomaly.config import Config, load_config, plain
from anomaly.data.table.manifest import Manifest
from anomaly.errors import ConfigError
from anomaly.pipelines.run import RunFolder

__all__ = [
    "WHERE_AND_HOW",
    "changed_settings",
    "overrides_name",
    "pick_device",
    "process_place",
    "refuse_idle_settings",
    "run_config",
]

WHERE_AND_HOW = ("data.root", "data.workers", "data.seconds")
"""Settings that do not change results: where the scans are, and how they are read."""

_OF_THE_LIST = (
    *("data.labels", "data.sites", "data.normal", "data.patient_pattern", "data.masks"),
    *("data.splits", "data.seed", "gate"),
)
"""Settings that have no effect after `prepare`, which used them to build the table of scans."""

_EFFECTIVE = {
    "calibrate": ("alpha", "detector.calibrate_under_nuisance", "detector.seed"),
    "refit": ("features", "heatmap", "detector", "alpha", "look_alikes", "name"),
    "score": ("alpha", "results"),
    "score a folder": (
        *("alpha", "results", "name", "gate", "intensity", "preprocessing"),
        *("data.labels", "data.sites", "data.normal", "data.patient_pattern", "data.masks"),
    ),
}
"""Settings that a stage uses, besides `WHERE_AND_HOW`; all others come from the bundle."""


def pick_device(name: str, environment: Mapping[str, str] = os.environ) -> torch.device:
    """Return the named device; "auto" is CUDA if available.

    If torchrun started several processes, "cuda" is the device of this process.

    Raises
    ------
    ConfigError
        The name is not a device, or this machine has no such device.
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
    """Rank of this process and the number that torchrun started; 0 and 1 without torchrun.

    Raises
    ------
    ConfigError
        RANK and WORLD_SIZE contradict each other or are not numbers.
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
    """Whether one of the ``a.b=c`` overrides sets a key."""
    return any(text.partition("=")[0] == key for text in overrides)


def changed_settings(before: Config, after: Config) -> list[str]:
    """Names of the settings that differ between two configurations, as ``a.b``, sorted."""
    flat = [dict(_flat(plain(config), "")) for config in (before, after)]
    return sorted(k for k in flat[0].keys() | flat[1].keys() if flat[0].get(k) != flat[1].get(k))


def _flat(value: object, where: str) -> Iterator[tuple[str, str]]:
    # Labels and sites each count as one setting, because their names can contain any character.
    if isinstance(value, Mapping) and where.count(".") == 0:
        for key, inner in value.items():
            yield from _flat(inner, f"{where}.{key}" if where else str(key))
    else:
        yield where, repr(value)


def refuse_idle_settings(before: Config, after: Config, stage: str) -> None:
    """Refuse overrides that have no effect in a stage.

    Parameters
    ----------
    before, after : Config
        Configuration without and with the overrides.
    stage : {"train", "calibrate", "score", "score a folder"}

    Raises
    ------
    ConfigError
    """
    for name in changed_settings(before, after):
        if stage == "train":
            idle = name.startswith(_OF_THE_LIST)
            why = "the scans are listed and dealt already: prepare a new run with it"
        else:
            idle = not name.startswith((*_EFFECTIVE[stage], *WHERE_AND_HOW))
            why = "it is the bundle's, or the list of scans was made with it"
        if idle:
            raise ConfigError(f"--set {name} has no effect here ({stage}): {why}")


def run_config(
    run: RunFolder, overrides: Sequence[str], data: Path | None = None, *, stage: str = "train"
) -> Config:
    """Read the run's configuration with overrides; the folder of its scans becomes absolute.

    Parameters
    ----------
    run : RunFolder
    overrides : sequence of str
    data : Path, optional
        Current folder of the scans; default: their folder when they were listed.
    stage : str
        Stage that uses the configuration; see `refuse_idle_settings`.

    Raises
    ------
    ConfigError
    """
    config = load_config(run.need(run.config, "prepare"), list(overrides))
    refuse_idle_settings(load_config(run.config), config, stage)
    root = config.data.root if data is None else data
    if data is None and not root.is_absolute() and not overrides_name(overrides, "data.root"):
        # Earlier versions wrote a relative path, and the current folder may have changed since.
        root = Manifest.read(run.need(run.manifest, "prepare")).root
    return replace(config, data=replace(config.data, root=root.absolute()))
