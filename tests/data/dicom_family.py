"""One picture written in every way that must read the same: kinds, codings, bits, orientations."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.data.dicom_samples import lut_item, make_dataset

BITS = 12
TOP = 2**BITS - 1
KINDS = ("CR", "DX", "MG", "CT", "MR", "EMR")
_OTHER_CLASSES = {
    "MG": DigitalMammographyXRayImageStorageForPresentation,
    "EMR": EnhancedMRImageStorage,
}
# Rows lead to the left, columns to the feet: as such an image is looked at.
UPRIGHT = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]

Make = Callable[[str, NDArray[Any]], FileDataset]


def member(kind: str, values: NDArray[Any], plane: list[float] | None = None, **tags: Any) -> Any:
    """Return a dataset of a kind, with the plane where the kind keeps it."""
    plane = plane or UPRIGHT
    base = {"MG": "DX", "EMR": "MR"}.get(kind, kind)
    dataset = make_dataset(values[None] if kind == "EMR" else values, kind=base, bits=BITS, **tags)
    if kind in _OTHER_CLASSES:
        dataset.SOPClassUID = _OTHER_CLASSES[kind]
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.Modality = kind.removeprefix("E")
    if kind in ("CT", "MR"):
        dataset.ImageOrientationPatient = plane
    elif kind == "EMR":
        group, orientation = Dataset(), Dataset()
        orientation.ImageOrientationPatient = plane
        group.PlaneOrientationSequence = Sequence([orientation])
        dataset.SharedFunctionalGroupsSequence = Sequence([group])
        dataset.PerFrameFunctionalGroupsSequence = Sequence([Dataset()])
    elif kind != "MG":
        letters = {(1, 0): "L", (-1, 0): "R", (1, 2): "H", (-1, 2): "F"}
        rows, columns = np.array(plane[:3]), np.array(plane[3:])
        dataset.PatientOrientation = [
            letters[int(cosines[np.abs(cosines).argmax()]), int(np.abs(cosines).argmax())]
            for cosines in (rows, columns)
        ]
    return dataset


def recoded(syntax: UID) -> Make:
    def make(kind: str, values: NDArray[Any]) -> FileDataset:
        dataset: FileDataset = member(kind, values)
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset

    return make


def unpacked_as(syntax: UID) -> Make:
    def make(kind: str, values: NDArray[Any]) -> FileDataset:
        dataset: FileDataset = member(kind, values)
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = values.astype(">u2").tobytes()
        return dataset

    return make


def negative(kind: str, values: NDArray[Any]) -> FileDataset:
    made: FileDataset = member(kind, TOP - values, photometric="MONOCHROME1")
    return made


def signed(kind: str, values: NDArray[Any]) -> FileDataset:
    half = 2 ** (BITS - 1)
    tags = {"RescaleSlope": 1, "RescaleIntercept": half}
    made: FileDataset = member(kind, values.astype(np.int16) - half, signed=True, **tags)
    return made


def through_lut(kind: str, values: NDArray[Any]) -> FileDataset:
    """The LUT turns the stored order round, and the stored values are turned round for it."""
    table = lut_item(0, BITS, np.arange(TOP, -1, -1))
    made: FileDataset = member(kind, TOP - values, ModalityLUTSequence=Sequence([table]))
    return made


def lossless_jpeg(kind: str, values: NDArray[Any]) -> FileDataset:
    """Coded by GDCM, as pydicom has no encoder for it."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(write(Path(folder) / "raw", member(kind, values)))
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(path)
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(path)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return pydicom.dcmread(path)


def turned(plane: list[float], turn: Callable[[NDArray[Any]], NDArray[Any]]) -> Make:
    def make(kind: str, values: NDArray[Any]) -> FileDataset:
        made: FileDataset = member(kind, np.ascontiguousarray(turn(values)), plane)
        return made

    return make


MEMBERS: dict[str, Make] = {
    "negative": negative,
    "signed": signed,
    "lut": through_lut,
    "implicit": unpacked_as(ImplicitVRLittleEndian),
    "big endian": unpacked_as(ExplicitVRBigEndian),
    "deflated": unpacked_as(DeflatedExplicitVRLittleEndian),
    "rle": recoded(RLELossless),
    "jpeg-ls": recoded(JPEGLSLossless),
    "jpeg 2000": recoded(JPEG2000Lossless),
    "lossless jpeg": lossless_jpeg,
}
TURNED: dict[str, Make] = {
    "transposed": turned([0, 0, -1, 1, 0, 0], lambda v: v.T),
    "mirrored": turned([-1, 0, 0, 0, 0, -1], lambda v: v[:, ::-1]),
    "upside down": turned([1, 0, 0, 0, 0, 1], lambda v: v[::-1]),
    "turned left": turned([0, 0, -1, -1, 0, 0], lambda v: np.rot90(v, 1)),
    "turned right": turned([0, 0, 1, 1, 0, 0], lambda v: np.rot90(v, -1)),
}


def write(path: Path, dataset: FileDataset) -> Path:
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path
