"""Real DICOM bytes for the tests: small objects with chosen bits, photometrics and codings."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    generate_uid,
)

from anomaly.data.readers.frames import decoding
from anomaly.data.table.gate import Gate
from anomaly.types import Scan

SOP_CLASSES = {
    "DX": DigitalXRayImageStorageForPresentation,
    "CR": ComputedRadiographyImageStorage,
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "ECT": EnhancedCTImageStorage,
    "OT": MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
}


def make_dataset(
    values: Any,
    *,
    kind: str = "DX",
    bits: int = 12,
    allocated: int = 16,
    signed: bool = False,
    photometric: str = "MONOCHROME2",
    patient: str = "P1",
    **tags: Any,
) -> FileDataset:
    """Build a native little endian object; `values` is (rows, columns) or (frames, ...)."""
    code = ("i" if signed else "u") + str(allocated // 8)
    array = np.asarray(values)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = SOP_CLASSES[kind]
    dataset.SOPInstanceUID = tags.pop("SOPInstanceUID", generate_uid())
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientID = patient
    dataset.PatientName = "Test^Subject"
    dataset.Modality = kind.removeprefix("E")
    if array.ndim == 3 and photometric.startswith("MONO"):
        dataset.NumberOfFrames = array.shape[0]
        dataset.Rows, dataset.Columns = array.shape[1:]
    else:
        dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = 1 if photometric.startswith(("MONO", "PAL")) else 3
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = array.astype(f"<{code}").tobytes()
    if len(dataset.PixelData) % 2:
        dataset.PixelData += b"\0"
    dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def lut_item(first: int, bits: int, entries: Any) -> Dataset:
    """Item of a Modality or VOI LUT Sequence; entries are written as 16-bit words."""
    item = Dataset()
    table = np.asarray(entries, dtype="<u2")
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [table.size, first, bits])
    item.add_new("LUTData", "OW", table.tobytes())
    if bits == 8:
        item.LUTExplanation = "test"
    return item


def write_dicom(path: Path, dataset: FileDataset, syntax: UID | None = None) -> Path:
    """Write to `path`, compressed first where a transfer syntax is given."""
    if syntax is not None:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_sample(path: Path, values: Any, **options: Any) -> Path:
    """Build and write in one step."""
    syntax = options.pop("syntax", None)
    return write_dicom(path, make_dataset(values, **options), syntax)


def misbehave(number: int) -> int:
    """Square a number; 7 ends the process as a failing native decoder would, 13 never returns."""
    if number == 7:
        os._exit(1)
    if number == 11:
        raise ValueError("eleven")
    while number == 13:
        time.sleep(60)
    return number * number


def leave_behind(name: str) -> str:
    """Unpack something, and hang where asked to."""
    path = Path(tempfile.mkdtemp()) / name
    path.write_text("a scan")
    while name == "hang":
        time.sleep(60)
    return str(path)


def tell_pid(path: str) -> None:
    """Write down which process this is."""
    Path(path).write_text(str(os.getpid()))


def wait_for_ever(pipe: str) -> None:
    """Open a pipe that nobody writes to, as a damaged file system may make of a scan."""
    with Path(pipe).open("rb"):
        pass


@dataclass(frozen=True)
class Trap(Gate):
    """A gate that does to the process what a damaged file may do."""

    kind: str = ""

    def check(self, scan: Scan) -> None:
        if self.kind == "crash":
            os._exit(1)
        if self.kind == "memory":
            with decoding(Path("trap")):
                bytearray(2**40)
        time.sleep(60)
