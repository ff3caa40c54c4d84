"""Folder layout of a node, file permissions, and the files that remain of a finished batch.

::

    FOLDER/node.sqlite               instances and batches (`anomaly.pacs.node.spool`)
    FOLDER/node.lock                 lock held by the node that uses the folder
    FOLDER/audit.jsonl               log of associations (`anomaly.pacs.node.audit`)
    FOLDER/spool/HASH.dcm            instances of studies that may be incomplete
    FOLDER/batches/000001/scans/     instances of one study that form a batch
    FOLDER/batches/000001/run/       scoring results; only RECORD after delivery
    FOLDER/unknown/                  files that are no instance (`anomaly.pacs.node.rebuild`)

Everything here except RECORD identifies patients, so only the owner can read it (folders 0700,
files 0600). File names are hashes; no text from the network becomes part of a path.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from anomaly.errors import AnomalyError
from anomaly.files import TEMPORARY, sync_folder

__all__ = ["RECORD", "NodeFolder", "file_name"]

RECORD = ("run.jsonl", "scores.csv")
"""Small files that remain of a delivered run: scores by pseudonym, and how they were computed."""


def file_name(uid: str) -> str:
    """File name of an instance."""
    return hashlib.sha256(uid.encode()).hexdigest()[:40] + ".dcm"


class NodeFolder:
    """The files of a node.

    Parameters
    ----------
    path : Path
        Created if it does not exist; its parent must exist.

    Raises
    ------
    AnomalyError
        If it exists, is not a node's folder, is not empty and can be read by other users.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            self._take()
        for folder in (self.spool, self._batches):
            folder.mkdir(mode=0o700, exist_ok=True)

    def _take(self) -> None:
        """Use an existing folder; change its mode only if it is empty."""
        mode = self.path.stat().st_mode & 0o777
        if not mode & 0o077 or self.database.exists():
            return
        if any(self.path.iterdir()):
            raise AnomalyError(
                f"{self.path} holds other things and is open to others (mode {mode:03o}): expected "
                "a folder for scans of patients alone. Name one that does not exist yet"
            )
        self.path.chmod(0o700)

    @property
    def database(self) -> Path:
        """Database of instances and batches."""
        return self.path / "node.sqlite"

    @property
    def lock(self) -> Path:
        """Lock file of the node that uses the folder."""
        return self.path / "node.lock"

    @property
    def spool(self) -> Path:
        """Folder of the instances without a batch, or whose batch was not started."""
        return self.path / "spool"

    @property
    def _batches(self) -> Path:
        return self.path / "batches"

    def batch(self, number: int) -> Path:
        """Folder of a batch."""
        return self._batches / f"{number:06d}"

    def assemble(self, number: int, names: Sequence[str]) -> None:
        """Move the scans of a batch into its folder; continue an interrupted move.

        Raises
        ------
        OSError
            If the disk fails.
        """
        batch = self.batch(number)
        scans = batch / "scans"
        for folder in (batch, scans):
            folder.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            waiting = self.spool / name
            if waiting.exists():  # otherwise an earlier attempt moved it
                waiting.replace(scans / name)
        for folder in (self.spool, scans, batch, self._batches):
            sync_folder(folder)

    def has(self, number: int | None, name: str) -> bool:
        """Whether the file of a scan exists, in its batch or in the spool."""
        if number is not None and (self.batch(number) / "scans" / name).exists():
            return True
        return (self.spool / name).exists()

    def has_record(self, number: int) -> bool:
        """Whether a batch has scores."""
        return (self.batch(number) / "run" / RECORD[-1]).exists()

    def batches(self) -> list[int]:
        """Numbers of the batches that have a folder."""
        return sorted(int(path.name) for path in self._batches.iterdir() if path.name.isdigit())

    def scans(self, number: int) -> list[Path]:
        """List the scans in the folder of a batch, in order."""
        folder = self.batch(number) / "scans"
        return sorted(folder.iterdir()) if folder.exists() else []

    def waiting(self) -> list[Path]:
        """Files of the waiting instances; partial files of a killed process are deleted."""
        for path in list(self.spool.iterdir()):
            if path.name.startswith(".") and path.name.endswith(TEMPORARY):
                path.unlink()
        return sorted(self.spool.iterdir())

    def set_aside(self, path: Path) -> None:
        """Move an unknown file to a folder from which nothing is deleted."""
        folder = self.path / "unknown"
        folder.mkdir(mode=0o700, exist_ok=True)
        aside, copies = folder / path.name, 1
        while aside.exists():
            copies += 1
            aside = folder / f"{path.name}.{copies}"
        path.rename(aside)

    def made(self, number: int) -> int:
        """Size of the scoring results of a batch in bytes."""
        run = self.batch(number) / "run"
        return sum(path.lstat().st_size for path in run.rglob("*") if not path.is_dir())

    def clear(self, number: int, kept: Collection[str]) -> None:
        """Delete the scans of a batch except those in `kept`, and all of its run except `RECORD`.

        Raises
        ------
        OSError
            If the disk fails.
        """
        batch = self.batch(number)
        for folder, names in ((batch / "scans", kept), (batch / "run", RECORD)):
            if not folder.exists():
                continue
            for path in list(folder.iterdir()):
                if path.name in names:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            if not names:
                folder.rmdir()
