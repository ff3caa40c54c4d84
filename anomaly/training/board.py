"""TensorBoard files of a training run: curves and images."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from anomaly.files import writing

__all__ = ["Board", "quiet_board"]


class Board:
    """Writer of the TensorBoard files of one training run.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        _remove_host_names(folder)  # left by a run that was killed
        self._folder = folder
        self._writer = SummaryWriter(str(folder))

    def write(self, metrics: Mapping[str, Any], step: int) -> None:
        """Write every number under its nested name, such as ``health/parts/scale 1/share/3``.

        Raises
        ------
        AnomalyError
            If the files cannot be written.
        """
        with writing(self._folder):
            self._draw(metrics, step)

    def show(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Add a greyscale image (H, W)."""
        self._writer.add_image(name, picture[None], step)

    def close(self) -> None:
        """Close the files and remove the name of this machine from their names.

        Raises
        ------
        AnomalyError
            If the files cannot be written.
        """
        with writing(self._folder):
            self._writer.close()
            _remove_host_names(self._folder)

    def _draw(self, metrics: Mapping[str, Any], step: int) -> None:
        for name, value in metrics.items():
            if value is None:
                continue
            parts = dict(enumerate(value)) if isinstance(value, list) else value
            if isinstance(parts, Mapping):
                self._draw({f"{name}/{key}": part for key, part in parts.items()}, step)
            elif not isinstance(parts, str):  # names of dead parts
                self._writer.add_scalar(name, parts, step)


@contextmanager
def quiet_board() -> Iterator[None]:
    """Suppress disk errors in TensorBoard's thread; the training loop reports the same error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        of_board = type(failed.thread).__module__.startswith("tensorboard")
        if not (of_board and issubclass(failed.exc_type, OSError)):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _remove_host_names(folder: Path) -> None:
    """Rename event files, because TensorBoard puts the name of this machine in their names.

    Only closed files can be renamed: TensorBoard writes to them by name.
    """
    for path in folder.glob("events.out.tfevents.*"):
        plain = re.sub(r"(tfevents\.\d+)\..*\.(\d+\.\d+)$", r"\1.host.\2", path.name)
        path.rename(path.with_name(plain))
