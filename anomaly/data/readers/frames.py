"""A file as a sequence of frames, and the boundary that untrusted bytes are decoded behind.

A file either opens, and then each of its frames is a `Scan` or the `ScanError` that says why not;
or it does not open at all, and opening raises. Every reader returns `Frames`, so that one bad
slice costs one slice, and reading one frame does not decode the others.
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

# The largest radiographs are mammograms and stitched spines near 3e7 pixels. Three times that fits
# in 800 MB while float64 is at work; a header that claims more is damaged or hostile.
MAX_FRAME_PIXELS = 100_000_000

# A whole-body CT of 3000 slices of 512 x 512 has 8e8 pixels.
MAX_FILE_PIXELS = 1_000_000_000

# Every frame is a scan, with a row in every table.
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
        For messages.
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
        """Yield each frame in order, decoded one at a time, or the reason why it cannot be used."""
        for index in range(self.count):
            try:
                yield self.read(index)
            except ScanError as error:
                yield error


@contextmanager
def decoding(path: Path) -> Iterator[list[warnings.WarningMessage]]:
    """Turn whatever a decoder raises on untrusted bytes into `UnreadableScan`.

    Warnings of the decoders (values against the standard, excess padding) are counted in the
    debug log, not shown: they repeat per file and may quote patient data. What matters of them
    the readers check themselves. The warning filters are process-wide while a frame is decoded, so
    decode in processes, not in threads.

    Yields
    ------
    list of warnings.WarningMessage
        The warnings so far, for a reader that has to look at them.

    Raises
    ------
    UnreadableScan
        ``"unreadable"``: the operating system refused; ``"truncated"``: the data end early;
        ``"out of memory"``: a decoder asked for too much; ``"undecodable"``: anything else that a
        decoder raised.
    UnsupportedScan
        Whatever the body itself raises passes through.
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
            # The one place that catches everything: a damaged file can make a decoder raise
            # anything at all (a panic of one written in Rust is no `Exception`), and must cost
            # one row and not the run. Errors of the operating system carry an errno; pillow
            # raises OSError without one for bad data.
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
    """Have pillow refuse images that end early, whatever a library made it do.

    WeasyPrint, once imported, lets pillow fill up what is missing, in the whole process. Of a scan
    nothing is made up.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def refuse_special_file(path: Path) -> None:
    """Refuse a device, pipe or socket: reading one would wait for ever, or never end.

    Raises
    ------
    UnsupportedScan
        ``"not a file"``.
    OSError
        The operating system refuses to say what it is.
    """
    if path.exists() and not path.is_file():
        raise UnsupportedScan(Reason.NOT_A_FILE, f"{path} is not a regular file.")


def check_size(path: Path, rows: int, columns: int, count: int = 1) -> None:
    """Refuse a file by the size in its header, before anything is decoded.

    Parameters
    ----------
    path : Path
    rows, columns, count : int
        Size of a frame, and number of frames.

    Raises
    ------
    UnsupportedScan
        ``"too large"``: above `MAX_FRAME_PIXELS` a frame, `MAX_FILE_PIXELS` or `MAX_FRAMES` a file;
        ``"empty"``: no pixels.
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
    """Refuse an image in which every pixel is the same.

    Parameters
    ----------
    path : Path
    pixels : ndarray, any shape
        Padding left out.

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
