"""Phantom studies on disk: DX DICOM files with masks, laid out like a hospital export.

::

    folder/normal/PHANTOM0001/IM0001.dcm
    folder/abnormal/PHANTOM0123/IM0001.dcm
    folder/masks/abnormal/PHANTOM0123/IM0001.dcm.png      8 bits, 255 where the lesion is visible

The files vary like real ones (12 or 16 bits, MONOCHROME1 or 2, plain or RLE, one visit or two),
and their headers state that they are synthetic. The same arguments give the same bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
)

from anomaly.data.readers.isolation import Lost, map_in_processes
from anomaly.data.synthetic.phantom import (
    LESION_KINDS,
    LesionKind,
    Phantom,
    draw_phantom,
    is_visible,
)
from anomaly.data.synthetic.phantom_thorax import FIELD_HEIGHT
from anomaly.errors import ConfigError

__all__ = ["PhantomStudies", "write_phantom_studies"]

SECOND_VISIT = 1 / 8
"""Share of patients with a second film."""

# Purposes of generators, which are seeded by [seed, patient number, purpose, visit]. Never 0: for
# NumPy, seeds that differ only in trailing zeros are equal.
PATIENT, FILM, FILE, VISITS, ATTEMPT = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class PhantomStudies:
    """Paths of the files.

    Attributes
    ----------
    folder : Path
    normal, abnormal : tuple of Path
        DICOM files, relative to `folder`, in order of patient and visit.
    masks : tuple of Path
        PNG files, relative to `folder`, one for each of `abnormal` in the same order.
    """

    folder: Path
    normal: tuple[Path, ...]
    abnormal: tuple[Path, ...]
    masks: tuple[Path, ...]


def write_phantom_studies(
    folder: Path,
    *,
    normals: int,
    abnormals: int,
    seed: int,
    size: tuple[int, int] = (256, 224),
    visible_at: int | None = None,
    workers: int = 0,
) -> PhantomStudies:
    """Write synthetic chest radiographs as DX DICOM files, with a mask for each abnormal one.

    Parameters
    ----------
    folder : Path
        New or empty; created if missing.
    normals, abnormals : int
        Numbers of patients; about one patient in eight has two files. Lesion kinds alternate.
    seed : int, >= 0
    size : (int, int)
        Height and width of the images in pixels.
    visible_at : int, optional
        Redraw an abnormal patient until the lesion is visible in an image with this many rows
        (`anomaly.data.synthetic.phantom.is_visible`); None accepts every lesion, including
        invisible ones.
    workers : int
        Drawing processes, or 0 for the calling one; the files do not depend on it.

    Returns
    -------
    PhantomStudies

    Raises
    ------
    ConfigError
        If a count is negative, or the folder is not empty.
    """
    if min(normals, abnormals, seed) < 0:
        raise ConfigError(
            f"normals={normals}, abnormals={abnormals} and seed={seed}: none may be negative"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; name a new folder for the phantom studies")
    lesions: list[LesionKind | None] = [None] * normals
    lesions += [LESION_KINDS[i % len(LESION_KINDS)] for i in range(abnormals)]
    write = partial(_write_patient, folder, seed, size, visible_at)
    normal: list[Path] = []
    abnormal: list[Path] = []
    for (number, lesion), files in map_in_processes(write, list(enumerate(lesions, 1)), workers):
        if isinstance(files, Lost):
            raise ConfigError(f"phantom {number} was not drawn ({files.reason}): is memory short?")
        (normal if lesion is None else abnormal).extend(files)
    masks = tuple(_mask_of(file) for file in abnormal)
    return PhantomStudies(folder, tuple(normal), tuple(abnormal), masks)


def _mask_of(file: Path) -> Path:
    return Path("masks", file.with_name(file.name + ".png"))


def _write_patient(
    folder: Path,
    seed: int,
    size: tuple[int, int],
    visible_at: int | None,
    who: tuple[int, LesionKind | None],
) -> list[Path]:
    """Draw and write one patient's files; return their paths relative to the folder."""
    number, lesion = who
    visits = 1 + int(np.random.default_rng([seed, number, VISITS]).random() < SECOND_VISIT)
    patient = _choose_patient(seed, number, size, lesion, visible_at)
    files = []
    for visit in range(1, visits + 1):
        label = "normal" if lesion is None else "abnormal"
        file = Path(label, f"PHANTOM{number:04d}", f"IM{visit:04d}.dcm")
        phantom = _draw_visit(patient, visit, size, lesion)
        _write_dicom(folder / file, phantom, patient, visit)
        if lesion is not None:
            _write_mask(folder / _mask_of(file), phantom.mask)
        files.append(file)
    return files


def _choose_patient(
    seed: int, number: int, size: tuple[int, int], lesion: LesionKind | None, visible_at: int | None
) -> tuple[int, ...]:
    """Seed of the patient: the first whose lesion is visible, if that is required."""
    patient: tuple[int, ...] = (seed, number)
    attempt = 0
    while lesion is not None and visible_at is not None:
        if is_visible(_draw_visit(patient, 1, size, lesion), visible_at):
            break
        attempt += 1
        patient = (seed, number, ATTEMPT, attempt)
    return patient


def _draw_visit(
    patient: tuple[int, ...], visit: int, size: tuple[int, int], lesion: LesionKind | None
) -> Phantom:
    return draw_phantom(
        np.random.default_rng([*patient, PATIENT]),
        size,
        lesion,
        film=np.random.default_rng([*patient, FILM, visit]),
    )


def _write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(path)


def _write_dicom(path: Path, phantom: Phantom, patient: tuple[int, ...], visit: int) -> None:
    number = patient[1]
    rng = np.random.default_rng([*patient, FILE, visit])
    bits = int(rng.choice([12, 16]))
    inverse = bool(rng.random() < 0.5)
    packed = bool(rng.random() < 0.3)
    # The identity includes everything that the pixels depend on, so UIDs differ if pixels do.
    identity = f"{patient} {visit} {phantom.lesion} {phantom.image.shape}"
    dataset = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    _describe_patient(dataset, number, visit, identity)
    _describe_image(dataset, phantom.image.shape)
    _store_pixels(dataset, phantom.image, bits, inverse)
    _finish(dataset, packed)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _uid(name: str) -> UID:
    """UID under 2.25 that depends only on `name`."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, 'anomaly phantom ' + name).int}")


def _describe_patient(dataset: Dataset, number: int, visit: int, identity: str) -> None:
    """Set the attributes of patient, study, series and equipment."""
    date, time = f"2000{visit:02d}01", "120000"
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid("instance " + identity)
    dataset.SyntheticData = "YES"
    dataset.PatientName = f"PHANTOM^{number:04d}"
    dataset.PatientID = f"PHANTOM{number:04d}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Synthetic; there was never a patient"
    dataset.StudyInstanceUID = _uid("study " + identity)
    dataset.SeriesInstanceUID = _uid("series " + identity)
    dataset.StudyID = str(visit)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDate = dataset.SeriesDate = date
    dataset.AcquisitionDate = dataset.ContentDate = date
    dataset.StudyTime = dataset.SeriesTime = time
    dataset.AcquisitionTime = dataset.ContentTime = time
    dataset.StudyDescription = "Synthetic chest"
    dataset.Modality = "DX"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = "anomaly"
    dataset.ManufacturerModelName = "chest phantom"


def _describe_image(dataset: Dataset, shape: tuple[int, ...]) -> None:
    """Set the attributes of the image and its simulated acquisition."""
    pixel = f"{FIELD_HEIGHT / shape[0]:.6g}"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.DerivationDescription = "Synthetic phantom; not a patient"
    dataset.BodyPartExamined = "CHEST"
    dataset.AnatomicRegionSequence = Sequence([_code("43799004", "SCT", "Thoracic cavity")])
    dataset.ImageLaterality = "U"
    dataset.ViewPosition = "PA"
    dataset.ViewCodeSequence = Sequence([_code("272460009", "SCT", "postero-anterior")])
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([])
    dataset.PatientOrientation = ["L", "F"]
    dataset.PositionerType = ""
    dataset.AcquisitionContextSequence = Sequence([])
    dataset.DetectorType = "SCINTILLATOR"
    dataset.ImagerPixelSpacing = [pixel, pixel]
    dataset.PixelSpacing = [pixel, pixel]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _store_pixels(dataset: Dataset, image: NDArray[np.float32], bits: int, inverse: bool) -> None:
    """Quantise `image` to `bits`; `inverse` stores white as 0 (MONOCHROME1)."""
    top = 2**bits - 1
    stored = np.rint(image.astype(np.float64) * top).astype("<u2")
    if inverse:
        stored = np.asarray(top - stored, dtype="<u2")
    dataset.SamplesPerPixel = 1
    # Both elements agree, as the standard requires: a reader inverts once.
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.PixelIntensityRelationship = "LOG"
    # -1: larger stored values mean less X-ray intensity, as bright bones do in MONOCHROME2.
    dataset.PixelIntensityRelationshipSign = 1 if inverse else -1
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = 16
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept = 0
    dataset.RescaleSlope = 1
    dataset.RescaleType = "US"
    # With the linear VOI function this window is the identity on 0 ... top.
    dataset.WindowCenter = 2 ** (bits - 1)
    dataset.WindowWidth = 2**bits
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"


def _finish(dataset: FileDataset, packed: bool) -> None:
    """Complete the file meta information, and compress if `packed`."""
    meta = dataset.file_meta
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Fixed, so that another version of pydicom does not change the bytes.
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "ANOMALY_PHANTOM"
    if packed:
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
