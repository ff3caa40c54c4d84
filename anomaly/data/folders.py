"""What lies under a folder: its files, and what is left out of them and why.

Hidden names (a leading dot) are left out. A link to a folder is followed, once: a second way to a
folder would list every scan in it twice, and a link back would never end. A folder of this
toolkit's own results is no place for scans: its pictures and samples look like some.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from anomaly.errors import ManifestError
from anomaly.files import holds_results

__all__ = ["FolderListing", "LeftOut", "list_files"]


class LeftOut(NamedTuple):
    """A folder that is not gone into: its path, a short reason, and a sentence."""

    path: str
    reason: str
    detail: str


class FolderListing(NamedTuple):
    """Files under a folder, and folders that are left out; paths relative to it, sorted."""

    files: list[str]
    left_out: list[LeftOut]


def list_files(root: Path) -> FolderListing:
    """List all files under a folder.

    Raises
    ------
    ManifestError
        The folder does not exist, is one of results, or holds no file; or a folder in it cannot be
        listed.
    """
    if not root.is_dir():
        raise ManifestError(f"{root} is not a folder; expected the folder that holds the scans.")
    if holds_results(root):
        raise ManifestError(
            f"{root} is a folder of this toolkit's results; expected the folder that holds the "
            "scans."
        )

    def fail(error: OSError) -> None:
        raise ManifestError(f"{error.filename} cannot be listed: {error}.") from error

    files: list[str] = []
    left_out: list[LeftOut] = []
    seen = {_identity(root)}
    for place, folders, names in os.walk(root, onerror=fail, followlinks=True):
        here = Path(place)
        kept = []
        for name in sorted(folders):
            path = here / name
            relative = path.relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if holds_results(path):
                detail = (
                    f"{relative} is a folder of this toolkit's results: no scans are read there."
                )
                left_out.append(LeftOut(relative, "own results", detail))
            elif _identity(path) in seen:
                detail = f"{relative} leads to a folder that is read under another name."
                left_out.append(LeftOut(relative, "link", detail))
            else:
                seen.add(_identity(path))
                kept.append(name)
        folders[:] = kept
        files += [
            (here / name).relative_to(root).as_posix() for name in names if not name.startswith(".")
        ]
    if not files:
        raise ManifestError(f"{root} holds no files; expected scans in it or in its folders.")
    return FolderListing(sorted(files), sorted(left_out))


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino
