"""Listing of the files under a folder, and of the folders that are left out, with reasons.

Hidden names (a leading dot) are left out. Links to folders are followed, but each folder is listed
only once: otherwise its scans would be listed twice, and a link to a parent folder would never end.
Folders with results of this toolkit are left out, because their pictures and samples look like
scans.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from anomaly.errors import ManifestError, Reason
from anomaly.files import holds_results, results_mark

__all__ = ["FolderListing", "LeftOut", "list_files"]


class LeftOut(NamedTuple):
    """A folder that is not listed: its path, a short reason, and a sentence."""

    path: str
    reason: Reason
    detail: str


class FolderListing(NamedTuple):
    """Files under a folder and folders that are left out; relative paths, sorted."""

    files: list[str]
    left_out: list[LeftOut]


def list_files(root: Path) -> FolderListing:
    """List all files under a folder.

    Raises
    ------
    ManifestError
        The folder does not exist, contains results of this toolkit or contains no file; or one of
        its folders cannot be listed.
    """
    if not root.is_dir():
        raise ManifestError(f"{root} is not a folder; expected the folder that holds the scans.")
    if holds_results(root):
        raise ManifestError(
            f"{root} is a folder of this toolkit's results; expected the folder that holds the "
            f"scans. (Its file {results_mark(root)} says so: remove it where that is wrong.)"
        )

    def fail(error: OSError) -> None:
        raise ManifestError(f"{error.filename} cannot be listed: {error}.") from error

    listing = FolderListing([], [])
    seen: set[tuple[int, int]] = set()
    # Links are followed after all real folders, so that a folder is listed under its own name.
    waiting = [root]
    while waiting:
        top = waiting.pop(0)
        if _identity(top) in seen:
            listing.left_out.append(_left_out(root, top, Reason.LINK))
            continue
        for place, folders, names in os.walk(top, onerror=fail):
            here = Path(place)
            seen.add(_identity(here))
            inner = [here / name for name in sorted(folders) if not name.startswith(".")]
            own = [path for path in inner if holds_results(path)]
            listing.left_out.extend(_left_out(root, path, Reason.OWN_RESULTS) for path in own)
            links = [path for path in inner if path.is_symlink() and path not in own]
            waiting += links
            folders[:] = [path.name for path in inner if path not in own and path not in links]
            visible = (here / name for name in names if not name.startswith("."))
            listing.files.extend(path.relative_to(root).as_posix() for path in visible)
    if not listing.files:
        raise ManifestError(f"{root} holds no files; expected scans in it or in its folders.")
    return FolderListing(sorted(listing.files), sorted(listing.left_out))


_SENTENCES = {
    Reason.OWN_RESULTS: "holds results of this toolkit: no scans are read there.",
    Reason.LINK: "leads to a folder that is read under another name.",
}


def _left_out(root: Path, path: Path, reason: Reason) -> LeftOut:
    relative = path.relative_to(root).as_posix()
    return LeftOut(relative, reason, f"{relative} {_SENTENCES[reason]}")


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino
