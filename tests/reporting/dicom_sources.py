"""Complete DICOM images of each kind that the toolkit reads, without an error of their own.

`dciodvfy` judges what is made of them, and must find nothing that they brought along.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

NAME = "Gró\"ß^Éva's^^Dr."
"""With an umlaut or two, quotes and carets: what archives hold."""

STUDY = "2.25.1001"


def _base(sop_class: str, modality: str, number: int, shape: tuple[int, int]) -> FileDataset:
    """Patient, study, series, equipment and 12-bit pixels of an image."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = f"2.25.1003{number}"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientName = NAME
    dataset.PatientID = "MRN 4711"
    dataset.PatientBirthDate = "19500203"
    dataset.PatientSex = "F"
    dataset.PatientAge = "070Y"
    dataset.StudyInstanceUID = STUDY
    dataset.SeriesInstanceUID = "2.25.1002"
    dataset.StudyDate = dataset.SeriesDate = "20200102"
    dataset.AcquisitionDate = dataset.ContentDate = "20200102"
    dataset.StudyTime = dataset.SeriesTime = "101112"
    dataset.AcquisitionTime = dataset.ContentTime = "101112"
    dataset.StudyID = "7"
    dataset.AccessionNumber = "A-0815"
    dataset.ReferringPhysicianName = "Weiß^Anna"
    dataset.StudyDescription = "Schädel"
    dataset.Modality = modality
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    dataset.Manufacturer = "Maker"
    dataset.ManufacturerModelName = "Model"
    dataset.DeviceSerialNumber = "12"
    dataset.SoftwareVersions = "1"
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.PatientOrientation = ["L", "F"]
    _store(dataset, ramp(shape))
    # The private block of a maker: it may be large, and is nobody else's business.
    block = dataset.private_block(0x0029, "MAKER", create=True)
    block.add_new(0x10, "OB", b"secret of the maker " * 512)
    return dataset


def ramp(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Grey values of 12 bits that rise along the rows and the columns."""
    rows, columns = np.indices(shape)
    grey: NDArray[np.uint16] = (rows * 37 + columns * 19).astype(np.uint16) % 4096
    return grey


def _store(dataset: Dataset, pixels: NDArray[np.uint16]) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def computed_radiograph(number: int = 1, shape: tuple[int, int] = (37, 52)) -> FileDataset:
    """CR: no frame of reference, spacing at the detector alone."""
    dataset = _base(ComputedRadiographyImageStorage, "CR", number, shape)
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "PA"
    dataset.ImagerPixelSpacing = [0.2, 0.2]
    return dataset


def _digital(dataset: FileDataset, *, inverse: bool) -> FileDataset:
    """Modules that DX and MG share (PS3.3 A.26, A.27)."""
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = 1 if inverse else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.LossyImageCompression = "00"
    dataset.DetectorType = "SCINTILLATOR"
    dataset.ImagerPixelSpacing = [0.2, 0.1]
    dataset.PixelSpacing = [0.2, 0.1]
    dataset.AcquisitionContextSequence = []
    return dataset


def digital_radiograph(number: int = 1, shape: tuple[int, int] = (37, 52)) -> FileDataset:
    """DX, MONOCHROME1, pixels that are not square."""
    dataset = _digital(
        _base(DigitalXRayImageStorageForPresentation, "DX", number, shape), inverse=True
    )
    dataset.BodyPartExamined = "CHEST"
    dataset.AnatomicRegionSequence = [_code("43799004", "SCT", "Thoracic cavity")]
    dataset.ImageLaterality = "U"
    dataset.ViewPosition = "PA"
    dataset.ViewCodeSequence = [_code("272460009", "SCT", "postero-anterior")]
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.PositionerType = ""
    return dataset


def mammogram(number: int = 1, shape: tuple[int, int] = (53, 40)) -> FileDataset:
    """MG of the right breast for an odd number, of the left one for an even one."""
    dataset = _digital(
        _base(DigitalMammographyXRayImageStorageForPresentation, "MG", number, shape),
        inverse=False,
    )
    dataset.BodyPartExamined = "BREAST"
    dataset.AnatomicRegionSequence = [_code("76752008", "SCT", "Breast")]
    dataset.ImageLaterality = "R" if number % 2 else "L"
    dataset.PatientOrientation = ["P", "F"] if number % 2 else ["A", "F"]
    dataset.ViewCodeSequence = [_code("399162004", "SCT", "cranio-caudal")]
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dataset.PositionerType = "MAMMOGRAPHIC"
    dataset.PositionerPrimaryAngle = 0
    dataset.OrganExposed = "BREAST"
    dataset.BreastImplantPresent = "NO"
    dataset.PartialView = "NO"
    return dataset


def _place(dataset: FileDataset, number: int) -> FileDataset:
    """A plane in the patient, 5 mm from its neighbour."""
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.FrameOfReferenceUID = "2.25.1004"
    dataset.PositionReferenceIndicator = ""
    dataset.ImagePositionPatient = [-20.0, -18.5, 5.0 * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PatientPosition = "HFS"
    dataset.PixelSpacing = [0.8, 0.8]
    dataset.SliceThickness = 5
    dataset.BodyPartExamined = "HEAD"
    dataset.AcquisitionNumber = 1
    del dataset.PatientOrientation  # the vectors above say it
    return dataset


def ct_slice(number: int = 1, shape: tuple[int, int] = (37, 52)) -> FileDataset:
    dataset = _place(_base(CTImageStorage, "CT", number, shape), number)
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = -1024, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.KVP = 120
    return dataset


def mr_slice(number: int = 1, shape: tuple[int, int] = (37, 52)) -> FileDataset:
    dataset = _place(_base(MRImageStorage, "MR", number, shape), number)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "SE"]
    dataset.ScanningSequence, dataset.SequenceVariant = "SE", "NONE"
    dataset.ScanOptions, dataset.MRAcquisitionType = "", "2D"
    dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = 500, 10, 1
    dataset.MagneticFieldStrength = 1.5
    return dataset


def enhanced_ct(number: int = 1, shape: tuple[int, int] = (37, 52)) -> Dataset:
    """Three CT slices in one enhanced object."""
    slices = [ct_slice(1 + index, shape) for index in range(3)]
    made: Dataset = hd.legacy.LegacyConvertedEnhancedCTImage(
        slices,
        series_instance_uid="2.25.1005",
        series_number=2,
        sop_instance_uid=f"2.25.1006{number}",
        instance_number=number,
    )
    del made.ReferencedSeriesSequence  # names the slices that it was made from, which are no more
    return made


SOURCES: dict[str, Callable[..., Any]] = {
    "CR": computed_radiograph,
    "DX": digital_radiograph,
    "MG": mammogram,
    "CT": ct_slice,
    "MR": mr_slice,
    "enhanced": enhanced_ct,
}


def save(dataset: Dataset, path: Path) -> Path:
    """Write the bytes and prove that they can be read."""
    dataset.save_as(path, enforce_file_format=True)
    assert dcmread(path).SOPInstanceUID == dataset.SOPInstanceUID
    return path
