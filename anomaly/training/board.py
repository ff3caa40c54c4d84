"""The board of a training: its curves and pictures in TensorBoard's files."""

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
    """TensorBoard's files of one training.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        _remove_host_names(folder)  # of a training that was killed
        self._folder = folder
        self._writer = SummaryWriter(str(folder))

    def write(self, metrics: Mapping[str, Any], step: int) -> None:
        """Draw every number under its path of names: ``health/parts/scale 1/share/3``.

        Raises
        ------
        AnomalyError
            If the disk refuses.
        """
        with writing(self._folder):
            self._draw(metrics, step)

    def show(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Add a grey picture (H, W)."""
        self._writer.add_image(name, picture[None], step)

    def close(self) -> None:
        """End the files; they no longer name this machine.

        Raises
        ------
        AnomalyError
            If the disk refuses.
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
            elif not isinstance(parts, str):  # names of dead parts are no curve
                self._writer.add_scalar(name, parts, step)


@contextmanager
def quiet_board() -> Iterator[None]:
    """Keep the board's own thread from a traceback: the loop meets the same disk, and says so."""
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
    """Rename event files that TensorBoard named after this machine, which a run may be shared by.

    It writes them by name, so not before they are closed.
    """
    for path in folder.glob("events.out.tfevents.*"):
        plain = re.sub(r"(tfevents\.\d+)\..*\.(\d+\.\d+)$", r"\1.host.\2", path.name)
        path.rename(path.with_name(plain))
