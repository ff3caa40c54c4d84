"""A written presentation state shows a source as the source shows itself, by another's eyes.

DCMTK's `dcmp2pgm` renders the source alone and the source under the state.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import XRayAngiographicImageStorage

from anomaly.data.readers.dicom import read_dicom
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.dicom.grey import presentation_grey
from anomaly.types import Scan
from tests.reporting.dicom_cases import errors, make_case, write
from tests.reporting.dicom_sources import (
    computed_radiograph,
    ct_slice,
    digital_radiograph,
    ramp,
    save,
)

SHAPE = (37, 52)


def table(first: int, bits: int, count: int, *, signed: bool = False) -> Dataset:
    """A curve that no window can be: a root."""
    item = Dataset()
    entries = np.sqrt(np.linspace(0, 1, count)) * (2**bits - 1)
    item.add_new("LUTDescriptor", "SS" if signed else "US", [count, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def plain() -> FileDataset:
    dataset = computed_radiograph(shape=SHAPE)
    del dataset.WindowCenter, dataset.WindowWidth
    return dataset


def with_voi_lut(bits: int) -> FileDataset:
    dataset = plain()
    dataset.VOILUTSequence = [table(0, bits, 4096)]
    return dataset


def with_modality_lut() -> FileDataset:
    dataset = plain()
    dataset.ModalityLUTSequence = [table(0, 10, 4096)]
    dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    dataset.WindowCenter, dataset.WindowWidth = 512, 700
    return dataset


def with_negative_voi_lut(*, signed: bool) -> FileDataset:
    """Rescaled to -1024 to 3071; the table's first value is below zero, or written as unsigned."""
    dataset = ct_slice(shape=SHAPE)
    del dataset.WindowCenter, dataset.WindowWidth
    first = -1024 if signed else 2**16 - 1024
    dataset.VOILUTSequence = [table(first, 12, 4096, signed=signed)]
    return dataset


def sigmoid() -> FileDataset:
    dataset = plain()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 1500, 900, "SIGMOID"
    return dataset


def inverted(photometric: str, shape: str | None) -> FileDataset:
    dataset = digital_radiograph(shape=SHAPE)
    dataset.PhotometricInterpretation = photometric
    del dataset.PresentationLUTShape
    if shape is not None:
        dataset.PresentationLUTShape = shape
    return dataset


SOURCES: dict[str, Callable[[], FileDataset]] = {
    "window": lambda: computed_radiograph(shape=SHAPE),
    "window in HU": lambda: ct_slice(shape=SHAPE),
    "VOI LUT of 8 bits": lambda: with_voi_lut(8),
    "VOI LUT of 10 bits": lambda: with_voi_lut(10),
    "VOI LUT of 12 bits": lambda: with_voi_lut(12),
    "VOI LUT of 16 bits": lambda: with_voi_lut(16),
    "VOI LUT from below zero": lambda: with_negative_voi_lut(signed=True),
    "VOI LUT from below zero, as unsigned": lambda: with_negative_voi_lut(signed=False),
    "modality LUT and window": with_modality_lut,
    "sigmoid": sigmoid,
    "MONOCHROME1": lambda: inverted("MONOCHROME1", None),
    "MONOCHROME1, INVERSE": lambda: inverted("MONOCHROME1", "INVERSE"),
    "MONOCHROME2, INVERSE": lambda: inverted("MONOCHROME2", "INVERSE"),
    "MONOCHROME2, IDENTITY": lambda: inverted("MONOCHROME2", "IDENTITY"),
}


def rendered(source: Path, state: Path | None = None) -> NDArray[np.float64]:
    """8-bit grey by DCMTK, of the source's own pixels."""
    if shutil.which("dcmp2pgm") is None:
        pytest.skip("dcmp2pgm is not installed: apt-get install dcmtk")
    target = source.with_suffix(".pgm")
    options = [] if state is None else ["--pstate", str(state)]
    subprocess.run(["dcmp2pgm", *options, source, target], check=True, capture_output=True)
    with Image.open(target) as image:
        return np.asarray(image, dtype=float)[: SHAPE[0], : SHAPE[1]]


@pytest.mark.parametrize("name", SOURCES)
def test_source_and_source_under_its_state_look_the_same(name: str, tmp_path: Path) -> None:
    source = save(SOURCES[name](), tmp_path / "source.dcm")
    evidence = np.zeros(SHAPE, dtype=np.float32)  # no outline is drawn over the pixels
    made = write(make_case(source, evidence), "contours", tmp_path)
    state = Path(str(made.filename))
    alone, under = rendered(source), rendered(source, state)
    assert alone.std() > 20  # a picture, not a black one
    # The notice stands in the lowest twentieth.
    visible = slice(0, SHAPE[0] - 4)
    assert np.abs(alone[visible] - under[visible]).max() <= 1


@pytest.mark.parametrize(
    "name", sorted(SOURCES.keys() - {"sigmoid"})
)  # dcmp2pgm draws a line for it
def test_the_reader_shows_what_others_show(name: str, tmp_path: Path) -> None:
    source = save(SOURCES[name](), tmp_path / "source.dcm")
    (scan,) = read_dicom(source, IntensityPolicy())
    assert isinstance(scan, Scan)
    if scan.voi is None:
        pytest.skip("the source asks for no display")
    # DCMTK renders 8 bits by way of its own tables.
    assert np.abs(scan.orientation.store(scan.voi(scan.pixels)) * 255 - rendered(source)).max() <= 2


def test_an_identity_beside_monochrome1_is_inverted_by_reader_and_state(tmp_path: Path) -> None:
    """The two contradict each other; what is read and what is written must not."""
    source = save(inverted("MONOCHROME1", "IDENTITY"), tmp_path / "source.dcm")
    made = write(make_case(source), "contours", tmp_path)
    (scan,) = read_dicom(source, IntensityPolicy())
    assert made.PresentationLUTShape == "INVERSE"
    assert isinstance(scan, Scan)
    stored = scan.orientation.store(scan.pixels)
    assert stored[0, 0] > stored[0, 50]  # the ramp rises along the rows
    assert ramp(SHAPE)[0, 0] < ramp(SHAPE)[0, 50]


@pytest.mark.parametrize("relation", ["LOG", "DISP"])
def test_a_modality_lut_for_linear_intensity_is_not_for_display(
    relation: str, tmp_path: Path
) -> None:
    """X-ray angiography, PS3.3 C.8.7.1.1.2."""
    plain_source = plain()
    plain_source.SOPClassUID = XRayAngiographicImageStorage
    plain_source.file_meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    (expected,) = read_dicom(save(plain_source, tmp_path / "plain.dcm"), IntensityPolicy())
    plain_source.PixelIntensityRelationship = relation
    plain_source.ModalityLUTSequence = [table(0, 16, 4096)]
    path = save(plain_source, tmp_path / "source.dcm")
    (scan,) = read_dicom(path, IntensityPolicy())
    assert isinstance(expected, Scan)
    assert isinstance(scan, Scan)
    assert np.array_equal(scan.pixels, expected.pixels)
    assert "not for display" in scan.intensity
    assert "ModalityLUTSequence" not in presentation_grey(dcmread(path))
    plain_source.RescaleSlope, plain_source.RescaleIntercept = 2, -100  # belongs to the table
    assert "RescaleSlope" not in presentation_grey(dcmread(save(plain_source, path)))
    del plain_source.RescaleSlope, plain_source.RescaleIntercept
    plain_source.PixelIntensityRelationship = "LIN"
    (linear,) = read_dicom(save(plain_source, path), IntensityPolicy())
    assert "ModalityLUTSequence" in presentation_grey(dcmread(path))
    assert isinstance(linear, Scan)
    assert not np.array_equal(linear.pixels, expected.pixels)


def unusable(**tags: object) -> FileDataset:
    """12 bits in 16 without a usable window: what it says of its display would be black."""
    dataset = plain()
    dataset.BitsStored, dataset.HighBit = 16, 15
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


WITHOUT: dict[str, Callable[[], FileDataset]] = {
    "no window": unusable,
    "no window, MONOCHROME1": lambda: unusable(PhotometricInterpretation="MONOCHROME1"),
    "no window, rescaled": lambda: unusable(RescaleSlope="0.5", RescaleIntercept="-100"),
    "a window beyond the values": lambda: unusable(WindowCenter=60000, WindowWidth=100),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_where_a_file_says_nothing_the_state_shows_what_the_page_shows(
    name: str, tmp_path: Path
) -> None:
    source = save(WITHOUT[name](), tmp_path / "source.dcm")
    (scan,) = read_dicom(source, IntensityPolicy())
    assert isinstance(scan, Scan)
    assert scan.voi is None
    grey = scan.display.grey
    spread = (float(grey[0]), float(grey[-1]))
    evidence = np.zeros(SHAPE, dtype=np.float32)
    made = write(make_case(source, evidence, spread=spread), "contours", tmp_path)
    shown = scan.orientation.store(scan.display(scan.pixels)) * 255
    under = rendered(source, Path(str(made.filename)))
    visible = slice(0, SHAPE[0] - 4)
    assert shown.std() > 50
    assert np.abs(shown[visible] - under[visible]).max() <= 2


def test_a_state_keeps_the_shutter_of_its_source(tmp_path: Path) -> None:
    """A state without one would take it off (PS3.3 A.33.1.2)."""
    dataset = inverted("MONOCHROME1", None)
    dataset.ShutterShape = ["RECTANGULAR", "CIRCULAR"]  # of the second nothing else is known
    dataset.ShutterLeftVerticalEdge, dataset.ShutterRightVerticalEdge = 10, 40
    dataset.ShutterUpperHorizontalEdge, dataset.ShutterLowerHorizontalEdge = 1, SHAPE[0]
    source = save(dataset, tmp_path / "source.dcm")
    made = write(make_case(source, np.zeros(SHAPE, dtype=np.float32)), "contours", tmp_path)
    assert made.ShutterShape == "RECTANGULAR"  # dcmp2pgm renders none
    assert made.ShutterPresentationValue == 0  # black, whatever is inverted
    assert (made.ShutterLeftVerticalEdge, made.ShutterRightVerticalEdge) == (10, 40)
    assert (made.ShutterUpperHorizontalEdge, made.ShutterLowerHorizontalEdge) == (1, SHAPE[0])
    assert errors("dciodvfy", Path(str(made.filename))) == []
