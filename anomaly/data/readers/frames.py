"""A file as a sequence of frames, and error handling for decoding untrusted bytes.

If a file opens, each of its frames is a `Scan` or the `ScanError` that explains why it is not; if
it does not open, opening raises. Every reader returns `Frames`, so a bad slice affects only that
slice, and reading one frame does not decode the others.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from anomaly.errors import Reason, ScanError, UnreadableScan, UnsupportedScan
from anomaly.types import Scan

__all__ = [
    "MAX_FILE_PIXELS",
    "MAX_FRAMES",
    "MAX_FRAME_PIXELS",
    "Frames",
    "check_size",
    "check_varied",
    "decoding",
    "refuse_special_file",
]

logger = logging.getLogger(__name__)

# The largest radiographs, mammograms and stitched spines, have about 3e7 pixels. Three times that
# needs 800 MB as float64; a header that claims more is damaged or hostile.
MAX_FRAME_PIXELS = 100_000_000

# A whole-body CT of 3000 slices of 512 x 512 has 8e8 pixels.
MAX_FILE_PIXELS = 1_000_000_000

# Every frame is a scan and has a row in every table.
MAX_FRAMES = 10_000


@dataclass(frozen=True)
class Frames:
    """The frames of one open file.

    Attributes
    ----------
    count : int
        Number of frames, pages or slices, at least 1.
    decode : callable
        ``decode(index) -> Scan``; raises the `ScanError` of that frame.
    path : Path
        For error messages.
    """

    count: int
    decode: Callable[[int], Scan]
    path: Path

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Scan:
        """Decode one frame.

        Parameters
        ----------
        index : int in [0, count)

        Raises
        ------
        ScanError
            The frame cannot be used, or the file has no such frame (reason ``"no such frame"``).
        """
        if not 0 <= index < self.count:
            raise UnsupportedScan(
                Reason.NO_SUCH_FRAME,
                f"{self.path} has {self.count} frame(s); frame {index} was asked for "
                "(they count from 0).",
            )
        return self.decode(index)

    def __iter__(self) -> Iterator[Scan | ScanError]:
        """Decode the frames one at a time, in order; yield the error of a frame that fails."""
        for index in range(self.count):
            try:
                yield self.read(index)
            except ScanError as error:
                yield error


@contextmanager
def decoding(path: Path) -> Iterator[list[warnings.WarningMessage]]:
    """Convert any exception that a decoder raises on untrusted bytes into `UnreadableScan`.

    Warnings of the decoders (values that violate the standard, excess padding) are counted in the
    debug log and not shown, because they repeat per file and may quote patient data. The readers
    check the important conditions themselves. The warning filters apply to the whole process while
    a frame is decoded, so decode in processes, not in threads.

    Yields
    ------
    list of warnings.WarningMessage
        The warnings so far, for readers that need to check them.

    Raises
    ------
    UnreadableScan
        ``"unreadable"``: the operating system refused; ``"truncated"``: the data end early;
        ``"out of memory"``: a decoder requested too much; ``"undecodable"``: the decoder raised
        anything else.
    UnsupportedScan
        Passed through if the body raises it.
    """
    with warnings.catch_warnings(record=True) as caught, _as_they_are():
        warnings.simplefilter("always")
        try:
            yield caught
        except (ScanError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except MemoryError as error:
            raise UnreadableScan(
                Reason.OUT_OF_MEMORY, f"{path} asks for more memory than a scan may have."
            ) from error
        except EOFError as error:
            raise UnreadableScan(
                Reason.TRUNCATED, f"{path} ends before its data do ({error}); copy it again."
            ) from error
        except BaseException as error:
            # The only place that catches everything: a damaged file can make a decoder raise
            # anything (a panic in Rust code is not an `Exception`), and must fail one row and not
            # the run. Errors of the operating system have an errno; pillow raises OSError without
            # one for bad data.
            if isinstance(error, OSError) and error.errno is not None:
                raise UnreadableScan(
                    Reason.UNREADABLE, f"{path} cannot be read: {error}."
                ) from error
            raise UnreadableScan(
                Reason.UNDECODABLE,
                f"{path} cannot be decoded ({type(error).__name__}: {error}); "
                "the file is damaged, or breaks its standard.",
            ) from error
    if caught:
        logger.debug("%d decoder warning(s) in one file", len(caught))


@contextmanager
def _as_they_are() -> Iterator[None]:
    """Make pillow refuse images that end early, even if a library has changed its settings.

    Importing WeasyPrint makes pillow fill in missing data, in the whole process. Missing data of a
    scan must never be invented.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def refuse_special_file(path: Path) -> None:
    """Refuse a device, pipe or socket, which could block a reader or never end.

    Raises
    ------
    UnsupportedScan
        ``"not a file"``.
    OSError
        The operating system does not return the file's type.
    """
    if path.exists() and not path.is_file():
        raise UnsupportedScan(Reason.NOT_A_FILE, f"{path} is not a regular file.")


def check_size(path: Path, rows: int, columns: int, count: int = 1) -> None:
    """Refuse a file that is too large or empty by its header, before decoding.

    Parameters
    ----------
    path : Path
    rows, columns, count : int
        Size of a frame, and number of frames.

    Raises
    ------
    UnsupportedScan
        ``"too large"``: more than `MAX_FRAME_PIXELS` per frame, or than `MAX_FILE_PIXELS` or
        `MAX_FRAMES` per file; ``"empty"``: no pixels.
    """
    if rows < 1 or columns < 1:
        raise UnsupportedScan(Reason.EMPTY, f"{path} has {rows} rows and {columns} columns.")
    whole = rows * columns * count
    if rows * columns > MAX_FRAME_PIXELS or whole > MAX_FILE_PIXELS or count > MAX_FRAMES:
        raise UnsupportedScan(
            Reason.TOO_LARGE,
            f"{path} claims {count} frame(s) of {rows} x {columns} pixels; at most {MAX_FRAMES:,} "
            f"frames, {MAX_FRAME_PIXELS:,} pixels a frame and {MAX_FILE_PIXELS:,} a file are read.",
        )


def check_varied(path: Path, pixels: NDArray[np.float32]) -> None:
    """Refuse an image whose pixels all have the same value.

    Parameters
    ----------
    path : Path
    pixels : ndarray, any shape
        Without padding.

    Raises
    ------
    UnsupportedScan
        ``"constant"``.
    """
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise UnsupportedScan(
            Reason.CONSTANT,
            f"{path} shows the same grey at every pixel, so it holds no image; "
            "if a window is set, it may lie outside the values.",
        )
