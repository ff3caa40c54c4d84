"""The pictures of a page on disk, beside it or inside of it."""

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

_KINDS = ("image", "evidence", "expected", "look-alike")


@dataclass(frozen=True)
class Pictures:
    """The pictures of one page: files in a folder beside it, or data addresses inside of it.

    Attributes
    ----------
    staging : Path or None
        Folder that they are written to before the page is; None puts them into the page.
    folder : Path or None
        The folder ``images`` beside the page, which they are moved to; None without a page.
    """

    staging: Path | None = None
    folder: Path | None = None

    @classmethod
    @contextmanager
    def beside(cls, page: Path, *, single_file: bool) -> Iterator[Pictures]:
        """Return the pictures of a new page, which `settle` puts in the place of earlier ones.

        Until then an earlier page and its pictures stay as they are: a full disk costs the new
        page alone.

        Raises
        ------
        AnomalyError
            The folder of pictures is a link.
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
        """Move the pictures to the folder beside the page, and remove those of an earlier page."""
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
            Pseudonym of the scan, which names the file.
        what : str
            ``"image"``, ``"evidence"``, ``"expected"`` or ``"look-alike"``.
        array : ndarray (H, W) or (H, W, 4) uint8
        """
        if self.staging is None or self.folder is None:
            return data_address(array)
        name = f"{file_stem(key)}-{what}.png"
        (self.staging / name).write_bytes(png_bytes(array))
        return f"{self.folder.name}/{name}"


def data_address(array: NDArray[np.uint8]) -> str:
    """Return a picture as a data address, (H, W) or (H, W, 4) uint8."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(array)).decode("ascii")


def file_stem(key: str) -> str:
    """Name files after a pseudonym; any other text is hashed, it may be no name for a file."""
    if re.fullmatch(r"[0-9a-z]{1,64}", key):
        return key
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
