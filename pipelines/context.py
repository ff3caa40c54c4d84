"""What a command works with: the run's configuration, with overrides, and a device."""

from __future__ import annotations

import os

import torch

from anomaly.config import Config, load_config
from anomaly.errors import ConfigError
from pipelines.run import RunFolder

__all__ = ["pick_device", "run_config"]


def pick_device(name: str) -> torch.device:
    """Return the device named; "auto" is CUDA where there is one.

    Raises
    ------
    ConfigError
        If CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(f"--device {name}: PyTorch sees no CUDA device here; use cpu or auto")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(name)


def run_config(run: RunFolder, overrides: list[str]) -> Config:
    """Read the run's own configuration, with overrides."""
    return load_config(run.need(run.config, "prepare"), overrides)
