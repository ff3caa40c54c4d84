"""One door for every kind of file: its content decides first, then its extension."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from pathlib import Path

from anomaly.data.readers.dicom import is_dicom, open_dicom
from anomaly.data.readers.frames import Frames, decoding, refuse_special_file
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.raster import kind_by_name, open_image
from anomaly.data.readers.zips import file_of, on_disk
from anomaly.errors import ScanError, UnreadableScan, UnsupportedScan
from anomaly.files import file_hash
from anomaly.types import Scan

__all__ = ["content_hash", "kind_of", "open_frames", "read_frames", "read_scan"]


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
    with decoding(path):
        refuse_special_file(path)
        if is_dicom(path):
            return "dicom"
        # A DICOM file cut off in its preamble still has to be reported as damaged DICOM.
        return "dicom" if path.suffix.lower() in (".dcm", ".dicom") else kind_by_name(path)


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
    if kind:
        return open_image(path, policy)
    raise UnsupportedScan(
        "not an image", f"{path} is neither DICOM by content nor a known image by extension."
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
        raise UnreadableScan("unreadable", f"{path} cannot be read: {error}.") from error


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
                    "changed",
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
