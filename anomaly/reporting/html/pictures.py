"""The pictures of a page, in a folder beside it or embedded in it."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import AnomalyError
from anomaly.files import temporary_name
from anomaly.reporting.plots.figures import png_bytes

__all__ = ["Pictures", "data_address", "file_stem"]

_KINDS = ("image", "evidence", "spread", "expected", "look-alike")


@dataclass(frozen=True)
class Pictures:
    """The pictures of one page: files in a folder beside it, or data addresses in the page.

    Attributes
    ----------
    staging : Path or None
        Temporary folder for the pictures until the page is written; None embeds them.
    folder : Path or None
        The folder ``images`` beside the page, to which they are moved; None without a page.
    """

    staging: Path | None = None
    folder: Path | None = None

    @classmethod
    @contextmanager
    def beside(cls, page: Path, *, single_file: bool) -> Iterator[Pictures]:
        """Return the pictures of a new page; `settle` replaces earlier ones with them.

        Until then an earlier page and its pictures do not change, so a full disk affects only the
        new page.

        Raises
        ------
        AnomalyError
            The folder of pictures is a symbolic link.
        """
        folder = page.parent / "images"
        if folder.is_symlink():
            raise AnomalyError(
                f"{folder} is a link: pictures would be written and removed elsewhere. Remove it"
            )
        staging = temporary_name(folder)
        try:
            if not single_file:
                staging.mkdir()
            yield cls(None if single_file else staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def settle(self) -> None:
        """Move the pictures to the folder beside the page and delete those of an earlier page."""
        if self.folder is None:
            return
        for old in (old for what in _KINDS for old in self.folder.glob(f"*-{what}.png")):
            old.unlink()
        if self.staging is None:
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()
            return
        self.folder.mkdir(exist_ok=True)
        for picture in self.staging.iterdir():
            picture.rename(self.folder / picture.name)

    def place(self, key: str, what: str, array: NDArray[np.uint8]) -> str:
        """Store a picture and return its address for the page.

        Parameters
        ----------
        key : str
            Pseudonym of the scan, used in the file name.
        what : str
            ``"image"``, ``"evidence"``, ``"spread"``, ``"expected"`` or ``"look-alike"``.
        array : ndarray (H, W) or (H, W, 4) uint8
        """
        if self.staging is None or self.folder is None:
            return data_address(array)
        name = f"{file_stem(key)}-{what}.png"
        (self.staging / name).write_bytes(png_bytes(array))
        return f"{self.folder.name}/{name}"


def data_address(array: NDArray[np.uint8]) -> str:
    """Return a (H, W) or (H, W, 4) uint8 picture as a data address."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(array)).decode("ascii")


def file_stem(key: str) -> str:
    """Return the stem of file names for a key; unless it is a pseudonym, it is hashed."""
    if re.fullmatch(r"[0-9a-z]{1,64}", key):
        return key
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
