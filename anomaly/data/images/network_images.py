"""Network images of the rows of a manifest, with the maps back to the source.

The order is kept, nothing is dropped, and failures are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.data.images.blanks import blank_pixels
from anomaly.data.images.transforms import (
    Frame,
    Preprocessing,
    frame_scan,
    network_image,
)
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import Lost, map_in_processes
from anomaly.data.readers.registry import read_scan
from anomaly.data.table.manifest import ManifestRow
from anomaly.errors import Reason, ScanError, UnsupportedScan
from anomaly.types import Scan

__all__ = [
    "Change",
    "ImageReader",
    "ListedReader",
    "NetworkImage",
    "NetworkImages",
    "framed_images",
    "network_images",
    "read_images",
    "view_scan",
]

Change: TypeAlias = Callable[[NDArray[np.float32], ManifestRow], NDArray[np.float32]]

_Read = TypeVar("_Read")

# The first process takes more than a second to start, because it imports torch.
SCANS_WORTH_A_PROCESS = 500


@dataclass(frozen=True)
class NetworkImage:
    """A scan as network input, and the map back to its source.

    Attributes
    ----------
    row : ManifestRow
    image : ndarray (1, size, size) float32 in [-1, 1], quantized
        Not a tensor: tensors passed between processes use files in shared memory, which run out.
    blank : ndarray (size, size) bool
        Pixels without evidence (`anomaly.data.images.blanks`).
    frame : Frame
    spacing : tuple of float or None
        Height and width of a source pixel, mm.
    """

    row: ManifestRow
    image: NDArray[np.float32]
    blank: NDArray[np.bool_]
    frame: Frame
    spacing: tuple[float, float] | None


@dataclass(frozen=True)
class NetworkImages:
    """N scans as network input.

    Attributes
    ----------
    images : Tensor (N, 1, size, size) in [-1, 1]
    blank : ndarray (N, size, size) bool
        As in `NetworkImage`.
    """

    images: Tensor
    blank: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)

    def split(self, size: int) -> Iterator[NetworkImages]:
        """Yield parts of at most `size` scans, in order."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield NetworkImages(self.images[part], self.blank[part])


@dataclass(frozen=True)
class ImageReader:
    """Reads one scan as network input; picklable.

    Attributes
    ----------
    root : Path
    intensity : IntensityPolicy
    preprocessing : Preprocessing
    change : callable, optional
        ``change(pixels, row)`` alters the source's pixels (H, W) before framing.
    """

    root: Path
    intensity: IntensityPolicy
    preprocessing: Preprocessing
    change: Change | None = None

    def __call__(self, row: ManifestRow) -> NetworkImage | ScanError:
        """Read a scan; return a `ScanError` instead of raising it, as it affects only this scan."""
        try:
            return self.view(self.read(row), row)
        except ScanError as error:
            return error

    def view(self, scan: Scan, row: ManifestRow) -> NetworkImage:
        """Return the network image of a scan in memory.

        Raises
        ------
        UnsupportedScan
            ``"constant"``, ``"blank"``: the network image would be empty.
        """
        framed, frame = frame_scan(scan, self.preprocessing)
        blank = _blank(scan, framed, frame)
        image = network_image(framed, self.preprocessing).numpy()
        return NetworkImage(row, image, blank, frame, scan.spacing)

    def framed(self, row: ManifestRow) -> tuple[Scan, Tensor, Frame]:
        """Decode, alter and frame a scan.

        Returns
        -------
        Scan
        Tensor (1, 2 size, 2 size) float32 in [0, 1]
        Frame
            The map back to the source.

        Raises
        ------
        ScanError
        """
        scan = self.read(row)
        return scan, *frame_scan(scan, self.preprocessing)

    def read(self, row: ManifestRow) -> Scan:
        """Decode and alter a scan.

        Raises
        ------
        ScanError
        """
        scan = read_scan(self.root / row.path, row.frame, self.intensity, sha256=row.sha256)
        if self.change is not None:
            scan = replace(scan, pixels=self.change(scan.pixels, row))
        return scan


@dataclass(frozen=True)
class ListedReader:
    """Reads a (group, row) pair of a table of scans; picklable.

    It is in this module because a decoding process that imports little starts faster.
    """

    reader: ImageReader

    def __call__(self, item: tuple[int, ManifestRow]) -> NetworkImage | ScanError:
        """Read the row, or return the reason why it has no image."""
        _, row = item
        if row.status == "ok":
            return self.reader(row)
        return UnsupportedScan(
            Reason(row.reason), "it could not be used when the archive was listed"
        )


def view_scan(scan: Scan, preprocessing: Preprocessing) -> None:
    """Check that a scan can be used as network input.

    Raises
    ------
    UnsupportedScan
        ``"constant"``, ``"blank"``: the network image would be empty.
    """
    _blank(scan, *frame_scan(scan, preprocessing))


def _blank(scan: Scan, framed: Tensor, frame: Frame) -> NDArray[np.bool_]:
    blank = blank_pixels(scan.pixels, framed, frame)
    if blank.all():
        raise UnsupportedScan(Reason.BLANK, "the scan shows nothing but borders and marks")
    return blank


def read_images(reader: ImageReader, rows: Sequence[ManifestRow], workers: int) -> NetworkImages:
    """Read every row as network input, in order; arguments and errors as in `framed_images`."""
    items = list(_read_all(reader, rows, workers))
    return NetworkImages(
        torch.from_numpy(np.stack([item.image for item in items])),
        np.stack([item.blank for item in items]),
    )


def framed_images(reader: ImageReader, rows: Sequence[ManifestRow], workers: int) -> Tensor:
    """Decode and frame every row, in order: (N, 1, 2 size, 2 size) float32 in [0, 1].

    Parameters
    ----------
    reader : ImageReader
    rows : sequence of ManifestRow
    workers : int
        Decoding processes.

    Raises
    ------
    ScanError
        If a row cannot be read: `anomaly prepare` has read it before, so the archive has changed.
    """
    framed = _read_all(partial(_framed, reader), rows, workers)
    return torch.stack([torch.from_numpy(image) for image in framed])


def _read_all(
    read: Callable[[ManifestRow], _Read | ScanError], rows: Sequence[ManifestRow], workers: int
) -> Iterator[_Read]:
    # Processes, not threads: see `anomaly.data.readers.frames.decoding`.
    workers = min(workers, len(rows) // SCANS_WORTH_A_PROCESS)
    for _, result in map_in_processes(read, rows, workers):
        if isinstance(result, Lost):
            raise result.error()
        if isinstance(result, ScanError):
            raise result
        yield result


def _framed(reader: ImageReader, row: ManifestRow) -> NDArray[np.float32]:
    return reader.framed(row)[1].numpy()


def network_images(framed: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return network images (N, 1, size, size) in [-1, 1] of framed ones, without augmentation."""
    return torch.stack([network_image(image, preprocessing) for image in framed])
