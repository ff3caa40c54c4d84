"""The folder of a node: what is where, for whose eyes, and what is left of a batch in the end.

::

    FOLDER/node.sqlite               instances and batches (`anomaly.pacs.node.spool`)
    FOLDER/node.lock                 held by the one node that works here
    FOLDER/audit.jsonl               who called (`anomaly.pacs.node.audit`)
    FOLDER/spool/HASH.dcm            instances of studies that may not be complete yet
    FOLDER/batches/000001/scans/     instances of one study that were complete together
    FOLDER/batches/000001/run/       what scoring made of them; once delivered, RECORD alone
    FOLDER/unknown/                  files of no instance (`anomaly.pacs.node.rebuild`)

Everything here identifies patients, RECORD excepted: what a node makes is for its owner alone
(folders 0700, files 0600). File names are hashes; no text from the network becomes part of a path.
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
"""What is left of a run that was delivered: scores by pseudonym, and what made them; small."""


def file_name(uid: str) -> str:
    """Name of the file of an instance."""
    return hashlib.sha256(uid.encode()).hexdigest()[:40] + ".dcm"


class NodeFolder:
    """The files of a node.

    Parameters
    ----------
    path : Path
        Made where it does not exist; its parent must.

    Raises
    ------
    AnomalyError
        If it exists, is no node's, holds something and can be read by others.
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
        """Work in a folder that somebody else made: its mode is theirs while it holds anything."""
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
        """Instances and batches."""
        return self.path / "node.sqlite"

    @property
    def lock(self) -> Path:
        """Held by the one node that works here."""
        return self.path / "node.lock"

    @property
    def spool(self) -> Path:
        """Instances that are in no batch yet, or whose batch was not begun."""
        return self.path / "spool"

    @property
    def _batches(self) -> Path:
        return self.path / "batches"

    def batch(self, number: int) -> Path:
        """Folder of a batch."""
        return self._batches / f"{number:06d}"

    def assemble(self, number: int, names: Sequence[str]) -> None:
        """Move the scans of a batch into its folder, or go on with that.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        batch = self.batch(number)
        scans = batch / "scans"
        for folder in (batch, scans):
            folder.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            waiting = self.spool / name
            if waiting.exists():  # else an attempt before has moved it
                waiting.replace(scans / name)
        for folder in (self.spool, scans, batch, self._batches):
            sync_folder(folder)

    def has(self, number: int | None, name: str) -> bool:
        """Whether a scan is there: of a batch, gathered or not, or of none yet."""
        if number is not None and (self.batch(number) / "scans" / name).exists():
            return True
        return (self.spool / name).exists()

    def has_record(self, number: int) -> bool:
        """Whether there are scores of a batch."""
        return (self.batch(number) / "run" / RECORD[-1]).exists()

    def batches(self) -> list[int]:
        """Numbers of the batches that have a folder."""
        return sorted(int(path.name) for path in self._batches.iterdir() if path.name.isdigit())

    def scans(self, number: int) -> list[Path]:
        """List the scans in the folder of a batch, in order."""
        folder = self.batch(number) / "scans"
        return sorted(folder.iterdir()) if folder.exists() else []

    def waiting(self) -> list[Path]:
        """Files of instances that wait; what a killed process left half written is removed."""
        for path in list(self.spool.iterdir()):
            if path.name.startswith(".") and path.name.endswith(TEMPORARY):
                path.unlink()
        return sorted(self.spool.iterdir())

    def set_aside(self, path: Path) -> None:
        """Move a file that nothing is known of to where nothing removes it."""
        folder = self.path / "unknown"
        folder.mkdir(mode=0o700, exist_ok=True)
        aside, copies = folder / path.name, 1
        while aside.exists():
            copies += 1
            aside = folder / f"{path.name}.{copies}"
        path.rename(aside)

    def made(self, number: int) -> int:
        """Bytes that scoring a batch has left."""
        run = self.batch(number) / "run"
        return sum(path.lstat().st_size for path in run.rglob("*") if not path.is_dir())

    def clear(self, number: int, kept: Collection[str]) -> None:
        """Remove scans of a batch but those kept, and of its run all but `RECORD`.

        Raises
        ------
        OSError
            If the disk refuses.
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
