"""One door for every kind of file: its content decides first, then its extension.

To add a kind, write a function that opens its files and register it with its endings. Processes
that decode are started anew: they know a reader where the module that registers it is among those
of the entry points ``anomaly.readers`` of an installed package; without, decode in the calling
process (``data.workers: 0``).
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from anomaly.data.readers.dicom import is_dicom, open_dicom
from anomaly.data.readers.frames import Frames, decoding, refuse_special_file
from anomaly.data.readers.image_files import open_image
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.raster import IMAGE_KINDS, kind_by_name
from anomaly.data.readers.zips import file_of, on_disk
from anomaly.errors import ConfigError, Reason, ScanError, UnreadableScan, UnsupportedScan
from anomaly.files import file_hash
from anomaly.types import Scan

__all__ = ["content_hash", "kind_of", "open_frames", "read_frames", "read_scan", "register_reader"]


def kind_of(path: Path) -> str:
    """Say what a file is: ``"dicom"`` by content, else ``"png"``, ``"jpeg"``, ... by extension.

    Returns
    -------
    str
        Empty where the file is of no known kind.

    Raises
    ------
    UnreadableScan
        ``"unreadable"``: the operating system refuses the file.
    UnsupportedScan
        ``"not a file"``: a device, pipe or socket.
    """
    _load_plugins()  # outside: a package that is broken is no fault of this file
    with decoding(path):
        refuse_special_file(path)
        if is_dicom(path):
            return "dicom"
        for kind, reader in _REGISTERED.items():
            if path.name.lower().endswith(reader.endings):
                return kind
        # A DICOM file cut off in its preamble still has to be reported as damaged DICOM.
        return "dicom" if path.suffix.lower() in (".dcm", ".dicom") else kind_by_name(path)


def _decoded(frames: Frames, index: int) -> Scan:
    """Decode a frame by a reader that need not know of `decoding`."""
    with decoding(frames.path):
        return frames.decode(index)


class Reader(NamedTuple):
    """How files of a kind are known, by the ends of their names, and opened."""

    endings: tuple[str, ...]
    open: Callable[[Path, IntensityPolicy], Frames]


_REGISTERED: dict[str, Reader] = {}


def register_reader(
    kind: str, endings: tuple[str, ...], open_file: Callable[[Path, IntensityPolicy], Frames]
) -> None:
    """Add a kind of file.

    Parameters
    ----------
    kind : str
        Its name, as the table of scans has it.
    endings : tuple of str
        Ends of its files' names, in lower case, such as ``(".mha",)``.
    open_file : callable
        ``open_file(path, policy)``: the `Frames` of a file. What it raises on damaged bytes is
        turned into the `ScanError` of that file.

    Raises
    ------
    ConfigError
        If there is a kind of that name, or one of such an ending, or an ending has no dot.
    """
    if not endings or any(not ending.startswith(".") for ending in endings):
        raise ConfigError(f"endings are {endings}: expected ends of names such as '.mha'")
    known = [
        ".dcm",
        ".dicom",
        ".zip",
        *(e for reader in _REGISTERED.values() for e in reader.endings),
    ]
    known_endings = [e for e in endings if e in known or kind_by_name(Path(f"x{e}"))]
    if kind in (*_REGISTERED, *IMAGE_KINDS, "dicom") or known_endings:
        raise ConfigError(f"there is a reader {kind!r}, or one of {endings}, already")
    _REGISTERED[kind] = Reader(endings, open_file)


@cache
def _load_plugins() -> None:
    for point in entry_points(group="anomaly.readers"):
        try:
            point.load()
        except Exception as error:  # somebody else's module: it may raise anything
            raise ConfigError(
                f"the reader {point.name} ({point.value}) of an installed package cannot be loaded "
                f"({type(error).__name__}: {error}): mend or remove that package"
            ) from error


def open_frames(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a scan file of any known kind; its frames decode one at a time.

    Parameters
    ----------
    path : Path
    policy : IntensityPolicy

    Returns
    -------
    Frames

    Raises
    ------
    ScanError
        The whole file cannot be used: those of `open_dicom` and `open_image`, and
        ``"not an image"`` for any other kind of file.
    """
    kind = kind_of(path)
    if kind == "dicom":
        return open_dicom(path, policy)
    if kind in _REGISTERED:
        with decoding(path):
            frames = _REGISTERED[kind].open(path, policy)
        return Frames(frames.count, partial(_decoded, frames), path)
    if kind:
        return open_image(path, policy)
    raise UnsupportedScan(
        Reason.NOT_AN_IMAGE, f"{path} is neither DICOM by content nor a known image by extension."
    )


def read_frames(path: Path, policy: IntensityPolicy) -> list[Scan | ScanError]:
    """Read every frame of a scan file; see `open_frames`.

    Returns
    -------
    list of Scan or ScanError
        One entry a frame; an error stands where a frame cannot be used.
    """
    return list(open_frames(path, policy))


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Raises
    ------
    UnreadableScan
        ``"unreadable"``.
    """
    try:
        return file_hash(path)
    except OSError as error:
        raise UnreadableScan(Reason.UNREADABLE, f"{path} cannot be read: {error}.") from error


def read_scan(
    path: Path, frame: int, policy: IntensityPolicy, *, sha256: str | None = None
) -> Scan:
    """Read one frame of a scan file, also one in a zip archive (`anomaly.data.readers.zips`).

    No other frame is decoded where the format allows.

    Parameters
    ----------
    path : Path
    frame : int
        From 0.
    policy : IntensityPolicy
    sha256 : str, optional
        `content_hash` of the file when it was listed. A path may hold another patient's scan by
        now; a pseudonym, a label and a verdict belong to bytes. None reads what is there.

    Returns
    -------
    Scan

    Raises
    ------
    ScanError
        The file or this frame cannot be used; ``"changed"``: it is not the file that was listed.
    """
    return _HELD.open(path, policy, sha256).read(frame)


class _Held:
    """The last file of several frames stays open: its frames are asked for one after another.

    Opening means to read all of it, and for a member of a zip archive to unpack it first.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._frames: Frames | None = None
        self._files = ExitStack()

    def open(self, path: Path, policy: IntensityPolicy, sha256: str | None) -> Frames:
        file = file_of(path)
        with decoding(path):
            state = file.stat()
        key = (path, policy, sha256, state.st_ino, state.st_mtime_ns, state.st_size)
        if self._frames is not None and key == self._key:
            return self._frames
        self.close()
        try:
            local = self._files.enter_context(on_disk(path))
            if sha256 is not None and content_hash(local) != sha256:
                raise UnreadableScan(
                    Reason.CHANGED,
                    f"{path} has changed since it was listed: prepare, or list it, again.",
                )
            frames = open_frames(local, policy)
        except ScanError:
            self.close()
            raise
        self._key, self._frames = key, frames
        return frames

    def close(self) -> None:
        """Let go of the file, and of what was unpacked for it."""
        self._frames = None
        self._files.close()


_HELD = _Held()
atexit.register(_HELD.close)
