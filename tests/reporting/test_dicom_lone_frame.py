"""NumberOfFrames of 1: one image, whatever the class of its object may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    NuclearMedicineImageStorage,
    RTImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)

from anomaly.errors import UnsupportedScan
from anomaly.reporting.dicom.objects import Kind
from tests.reporting.dicom_cases import errors, expected_kinds, make_case, write
from tests.reporting.dicom_sources import computed_radiograph, save

CLASSES = [
    ComputedRadiographyImageStorage,
    SecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    UltrasoundMultiFrameImageStorage,
    NuclearMedicineImageStorage,
    RTImageStorage,
]


def references(made: Dataset, instance: str) -> list[Dataset]:
    return [
        item
        for element in made.iterall()
        if element.VR == "SQ"
        for item in element.value
        if item.get("ReferencedSOPInstanceUID") == instance
    ]


@pytest.mark.parametrize("kind", expected_kinds("CR"))
@pytest.mark.parametrize("sop_class", CLASSES, ids=lambda uid: uid.name)
def test_one_frame_takes_every_object_and_is_named_without_a_number(
    sop_class: str, kind: Kind, tmp_path: Path
) -> None:
    dataset = computed_radiograph()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    dataset.NumberOfFrames = 1
    made = write(make_case(save(dataset, tmp_path / "source.dcm")), kind, tmp_path)
    found = references(made, dataset.SOPInstanceUID)
    assert found
    assert {item.ReferencedSOPClassUID for item in found} == {sop_class}
    assert not any("ReferencedFrameNumber" in item for item in found)
    assert errors("dciodvfy", Path(str(made.filename))) == []


def test_more_frames_than_the_header_states_are_named_by_number(tmp_path: Path) -> None:
    dataset = computed_radiograph()
    dataset.SOPClassUID = XRayAngiographicImageStorage
    dataset.file_meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    dataset.NumberOfFrames = 1
    dataset.PixelData = np.tile(dataset.pixel_array, (3, 1, 1)).tobytes()
    case = make_case(save(dataset, tmp_path / "source.dcm"), frame=2, frame_count=3)
    made = write(case, "report", tmp_path)
    with pytest.raises(UnsupportedScan, match="3 frame"):
        write(make_case(case.source, frame_count=3), "contours", tmp_path)
    numbers = {
        item.get("ReferencedFrameNumber") for item in references(made, dataset.SOPInstanceUID)
    }
    assert 3 in numbers
