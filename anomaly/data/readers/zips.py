"""Zip files of studies, read as folders.

::

    exports/study.zip/series/IM1        names the member series/IM1 of exports/study.zip

Zip files are untrusted: their table of contents is read in a separate process
(`anomaly.data.readers.isolation`). A member is refused if its name points outside the zip file, or
if it is a link or encrypted; a zip file is refused if it would unpack to much more than scans ever
do. Each member is unpacked only when it is read, into a temporary folder.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from anomaly.data.readers.frames import decoding, refuse_special_file
from anomaly.errors import Reason, UnreadableScan, UnsupportedScan
from anomaly.files import MARKS

__all__ = ["Listing", "file_of", "is_zip", "list_members", "on_disk"]

MAX_MEMBERS = 200_000
MAX_MEMBER_BYTES = 4 * 2**30
MAX_BYTES = 2**40

# Uncompressed scans shrink by a factor of 10 at most, blank ones by 200. Deflate can reach 1000,
# and zip files with overlapping members have no limit.
MAX_RATIO = 200
_ALWAYS_FINE = 2**30
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SYSTEM = re.compile(r"(^|/)(\.|__MACOSX(/|$))")  # for names without "./"


@dataclass(frozen=True)
class Listing:
    """Contents of a zip file.

    Attributes
    ----------
    members : tuple of str
        Names of the members that can be read.
    refused : tuple of (str, Reason)
        Names of the members that cannot be read, and why.
    """

    members: tuple[str, ...]
    refused: tuple[tuple[str, Reason], ...]


def is_zip(path: Path) -> bool:
    """Whether a file is read as a zip file: its name ends in ``.zip``."""
    return path.suffix.lower() == ".zip"


def file_of(path: Path) -> Path:
    """File on disk that contains a scan: the path itself, or the zip file of the member."""
    return _parted(path)[0]


def list_members(path: Path) -> Listing:
    """Read the table of contents of a zip file; hidden members are left out.

    Raises
    ------
    UnreadableScan
        ``"undecodable"``, ``"unreadable"``: not a zip file, or a damaged one.
    UnsupportedScan
        ``"too large"``: too many members, or too large when unpacked; ``"not a file"``.
    """
    with decoding(path):
        refuse_special_file(path)
    with decoding(path), zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not _is_folder(info)]
        total = sum(info.file_size for info in infos)
        limit = min(max(_ALWAYS_FINE, MAX_RATIO * path.stat().st_size), MAX_BYTES)
        if len(infos) > MAX_MEMBERS or total > limit:
            raise UnsupportedScan(
                Reason.TOO_LARGE,
                f"{path} claims {len(infos):,} members of {total:,} bytes; at most {MAX_MEMBERS:,} "
                f"and {limit:,} are read: unpack it yourself if you trust it.",
            )
        members, refused = set(), []
        ours = _results_folders(map(_plain, infos))
        for info in infos:
            name = _plain(info)
            if any(folder in ours for folder in _folders(name)):
                continue
            reason = Reason.DUPLICATE_NAME if name in members else _fault(info)
            if reason is not None:
                refused.append((info.filename, reason))
            elif not _SYSTEM.search(name):
                members.add(name)
        refused += [(folder, Reason.OWN_RESULTS) for folder in ours]
    return Listing(tuple(sorted(members)), tuple(sorted(refused)))


@contextmanager
def on_disk(path: Path) -> Iterator[Path]:
    """Yield a file on disk that contains a scan: the path itself, or a temporary copy of a member.

    Raises
    ------
    UnreadableScan
        ``"missing"``: the zip file has no such member; ``"undecodable"``: it is damaged.
    UnsupportedScan
        ``"encrypted"``, ``"link"``, ``"outside"``, ``"too large"``, ``"compression"``.
    """
    file, member = _parted(path)
    if member is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="anomaly-") as folder:
        # Keep only the extension: the name is untrusted.
        unpacked = Path(folder) / f"member{_extension(member)}"
        with decoding(path):
            _unpack(path, file, member, unpacked)
        yield unpacked


def _parted(path: Path) -> tuple[Path, str | None]:
    """Split a path into its zip file and the member, or the path and None."""
    for parent in path.parents:
        # Path.is_file would raise if a mount is not responding.
        if is_zip(parent) and os.path.isfile(parent):  # noqa: PTH113
            return parent, path.relative_to(parent).as_posix()
    return path, None


def _folders(name: str) -> list[str]:
    """Parent folders of a member; the zip file itself is ``"."``."""
    return [parent.as_posix() for parent in PurePosixPath(name).parents]


def _results_folders(names: Iterable[str]) -> set[str]:
    """Outermost folders of a zip file that contain results of this toolkit."""
    marked = {place.parent.as_posix() for place in map(PurePosixPath, names) if place.name in MARKS}
    return {folder for folder in marked if marked.isdisjoint(_folders(folder))}


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(("/", "\\")) and not info.file_size


def _plain(info: zipfile.ZipInfo) -> str:
    """Name of a member as in a path, without ``./`` and double slashes.

    Some Windows programs write backslashes, contrary to the standard (APPNOTE 4.4.17.1).
    """
    return PurePosixPath(info.filename.replace("\\", "/")).as_posix()


def _extension(member: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", "".join(PurePosixPath(member).suffixes[-2:]).lower())[-12:]


def _unpack(path: Path, file: Path, member: str, target: Path) -> None:
    archive, infos = _HELD.open(file)
    info = infos.get(member)
    if info is None:
        raise UnreadableScan(Reason.MISSING, f"{file} holds no {member!r} any more.")
    if reason := _fault(info):
        raise UnsupportedScan(reason, f"{path} cannot be read from its archive: {reason}.")
    # zipfile stops at the size in the table of contents and then checks the CRC.
    with archive.open(info) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


class _Held:
    """Cache of the last opened zip file; rereading its contents per member would be quadratic."""

    def __init__(self) -> None:
        self._key: object = None
        self._archive: zipfile.ZipFile | None = None
        self._infos: dict[str, zipfile.ZipInfo] = {}

    def open(self, path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
        state = path.stat()
        key = (path, os.getpid(), state.st_ino, state.st_size, state.st_mtime_ns)
        if self._archive is None or key != self._key:
            self.close()
            archive = zipfile.ZipFile(path)
            # Of two members with one name, the first is used; listing refuses the other.
            infos = {_plain(info): info for info in reversed(archive.infolist())}
            self._key, self._archive, self._infos = key, archive, infos
        return self._archive, self._infos

    def close(self) -> None:
        """Close the zip file."""
        if self._archive is not None:
            self._archive.close()
        self._key, self._archive, self._infos = None, None, {}


_HELD = _Held()
atexit.register(_HELD.close)


def _fault(info: zipfile.ZipInfo) -> Reason | None:
    """Reason why a member is refused; None if it can be read."""
    name = _plain(info)
    if name.startswith("/") or re.match(r"[A-Za-z]:/", name):
        return Reason.ABSOLUTE_NAME
    if name in ("", ".") or ".." in PurePosixPath(name).parts:
        return Reason.OUTSIDE
    if re.search(r"[\x00-\x1f\x7f]", name):
        return Reason.CONTROL_CHARACTER_IN_NAME
    if stat.S_ISLNK(info.external_attr >> 16):
        return Reason.LINK
    if info.flag_bits & 0x1:
        return Reason.ENCRYPTED
    if info.compress_type not in _METHODS:
        return Reason.COMPRESSION
    return Reason.TOO_LARGE if info.file_size > MAX_MEMBER_BYTES else None
