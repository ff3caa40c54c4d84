"""Registry of readers: selects one for a file by its content first, then by its extension.

To add a kind of file, write a function that opens it and register that function with its file
extensions. Worker processes are new interpreters: they find a reader only if the module that
registers it is an ``anomaly.readers`` entry point of an installed package. Otherwise, decode in the
calling process (``data.workers: 0``).
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
    """Kind of a file: ``"dicom"`` by content, else ``"png"``, ``"jpeg"``, ... by extension.

    Returns
    -------
    str
        Empty if the kind is unknown.

    Raises
    ------
    UnreadableScan
        ``"unreadable"``: the operating system refuses the file.
    UnsupportedScan
        ``"not a file"``: a device, pipe or socket.
    """
    _load_plugins()  # not under `decoding`: a broken package is not an error of this file
    with decoding(path):
        refuse_special_file(path)
        if is_dicom(path):
            return "dicom"
        for kind, reader in _REGISTERED.items():
            if path.name.lower().endswith(reader.endings):
                return kind
        # A DICOM file truncated in its preamble must still be reported as damaged DICOM.
        return "dicom" if path.suffix.lower() in (".dcm", ".dicom") else kind_by_name(path)


def _decoded(frames: Frames, index: int) -> Scan:
    """Decode a frame with a registered reader, which need not use `decoding` itself."""
    with decoding(frames.path):
        return frames.decode(index)


class Reader(NamedTuple):
    """File extensions of a kind, and the function that opens its files."""

    endings: tuple[str, ...]
    open: Callable[[Path, IntensityPolicy], Frames]


_REGISTERED: dict[str, Reader] = {}


def register_reader(
    kind: str, endings: tuple[str, ...], open_file: Callable[[Path, IntensityPolicy], Frames]
) -> None:
    """Register a reader for a kind of file.

    Parameters
    ----------
    kind : str
        Name of the kind in the table of scans.
    endings : tuple of str
        File extensions in lower case, such as ``(".mha",)``.
    open_file : callable
        ``open_file(path, policy)`` returns the `Frames` of a file. Its exceptions on damaged bytes
        are converted to the `ScanError` of that file.

    Raises
    ------
    ConfigError
        The kind or an extension is already registered, or an extension has no dot.
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
        except Exception as error:  # third-party code may raise anything
            raise ConfigError(
                f"the reader {point.name} ({point.value}) of an installed package cannot be loaded "
                f"({type(error).__name__}: {error}): mend or remove that package"
            ) from error


def open_frames(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a scan file of any known kind; frames are decoded one at a time.

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
        The whole file cannot be used: the errors of `open_dicom` and `open_image`, and
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
        One entry per frame: the scan, or the error if the frame cannot be used.
    """
    return list(open_frames(path, policy))


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

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
    """Read one frame of a scan file, which may be in a zip file (`anomaly.data.readers.zips`).

    No other frame is decoded if the format allows it.

    Parameters
    ----------
    path : Path
    frame : int
        From 0.
    policy : IntensityPolicy
    sha256 : str, optional
        `content_hash` of the file when it was listed, to detect that the path now holds another
        patient's scan: a pseudonym, a label and a verdict belong to content, not to a path. None
        reads the file without this check.

    Returns
    -------
    Scan

    Raises
    ------
    ScanError
        The file or this frame cannot be used; ``"changed"``: the file is not the one listed.
    """
    return _HELD.open(path, policy, sha256).read(frame)


class _Held:
    """Cache of the last opened file, since its frames are usually read one after another.

    Opening a file reads all of it; a member of a zip file must also be unpacked first.
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
        """Close the file and remove its unpacked copy."""
        self._frames = None
        self._files.close()


_HELD = _Held()
atexit.register(_HELD.close)
