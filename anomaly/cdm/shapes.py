"""Checks of the shape of a network and the size of its images."""

from __future__ import annotations

from torch import Tensor

from anomaly.errors import ConfigError

__all__ = ["check_size", "refuse_less"]


def refuse_less(settings: object, *names: str) -> None:
    """Refuse counts below 1 and empty lists among the named settings.

    Raises
    ------
    ConfigError
    """
    for name in names:
        value = getattr(settings, name)
        if not value or min(value if isinstance(value, tuple | list) else [value]) < 1:
            raise ConfigError(f"network.{name} is {value}: expected 1 or more")


def check_size(x: Tensor, stride: int) -> None:
    """Refuse images whose sides are not multiples of the stride.

    Raises
    ------
    ConfigError
    """
    height, width = x.shape[-2:]
    if height % stride or width % stride:
        raise ConfigError(
            f"images are {height}x{width}: this network needs sides that are multiples of {stride}"
        )
