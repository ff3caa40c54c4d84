"""What an object says of its pixels because the source says it of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from anomaly.reporting.dicom.objects import Kind, write_objects
from tests.reporting.dicom_cases import errors, expected_kinds, make_case, write
from tests.reporting.dicom_sources import SOURCES, computed_radiograph, save


def oblong(dataset: Dataset, group: Dataset) -> None:
    """Give a frame's group pixels twice as high as wide, and rows that lead to the back."""
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing = [0.8, 0.4]
    plane.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [plane]
    for other in (
        *dataset.SharedFunctionalGroupsSequence,
        *dataset.PerFrameFunctionalGroupsSequence,
    ):
        if other is not group:
            other.pop("PixelMeasuresSequence", None)
            other.pop("PlaneOrientationSequence", None)


# Burned-in text


@pytest.mark.parametrize("said", ["YES", "NO"])
def test_burned_in_text_is_what_the_source_says(said: str, tmp_path: Path, out: Path) -> None:
    dataset = computed_radiograph()
    dataset.BurnedInAnnotation = said
    source = save(dataset, tmp_path / "in.dcm")
    assert write(make_case(source), "overlay", out).BurnedInAnnotation == said


@pytest.mark.parametrize("empty", [True, False])
def test_nobody_is_told_that_no_text_is_burned_in_where_nobody_looked(
    empty: bool, tmp_path: Path, out: Path
) -> None:
    dataset = computed_radiograph()
    del dataset.BurnedInAnnotation
    if empty:
        dataset.BurnedInAnnotation = ""
    source = save(dataset, tmp_path / "in.dcm")
    (path,) = write_objects(make_case(source), ["overlay"], out)
    assert "BurnedInAnnotation" not in dcmread(path)
    assert errors("dciodvfy", path) == []


# Lossy compression


@pytest.mark.parametrize("modality", ["CR", "DX", "CT", "enhanced"])
def test_once_lossy_always_lossy(modality: str, tmp_path: Path, out: Path) -> None:
    dataset = SOURCES[modality]()
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionRatio = [10.5, 3]
    dataset.LossyImageCompressionMethod = ["ISO_10918_1", "ISO_15444_1"]
    source = save(dataset, tmp_path / "in.dcm")
    assert errors("dciodvfy", source) == []
    for path in write_objects(make_case(source), expected_kinds(modality), out):
        found = dcmread(path)
        if "Rows" in found:
            assert found.LossyImageCompression == "01"
            assert found.LossyImageCompressionRatio == [10.5, 3]
            assert found.LossyImageCompressionMethod == ["ISO_10918_1", "ISO_15444_1"]
        else:
            assert "LossyImageCompression" not in found
        assert errors("dciodvfy", path) == []


@pytest.mark.parametrize("kind", ["segmentation", "heatmap"])
def test_what_was_never_lossy_stays_so(kind: Kind, source: Path, out: Path) -> None:
    found = write(make_case(source), kind, out)
    assert found.LossyImageCompression == "00"
    assert "LossyImageCompressionRatio" not in found


# Size and direction of pixels


@pytest.mark.parametrize("shared", [True, False])
def test_the_judged_frame_of_many_keeps_its_pixels_and_its_direction(
    shared: bool, tmp_path: Path, out: Path
) -> None:
    dataset = SOURCES["enhanced"]()
    frames = dataset.PerFrameFunctionalGroupsSequence
    oblong(dataset, dataset.SharedFunctionalGroupsSequence[0] if shared else frames[1])
    source = save(dataset, tmp_path / "in.dcm")
    (path,) = write_objects(make_case(source, frame=1), ["overlay"], out)
    overlay = dcmread(path)
    assert overlay.PixelSpacing == [0.8, 0.4]
    # A row leads along +y, to the back; a column along -z, to the feet (PS3.3 C.7.6.2.1.1).
    assert overlay.PatientOrientation == ["P", "F"]
    assert errors("dciodvfy", path) == []
    other = write(make_case(source, frame=0), "overlay", out)
    assert other.get("PixelSpacing") == ([0.8, 0.4] if shared else None)


@pytest.mark.parametrize(
    ("cosines", "letters"),
    [
        ([1, 0, 0, 0, 1, 0], ["L", "P"]),
        ([-1, 0, 0, 0, 0, -1], ["R", "F"]),
        # 0.8 to the left and 0.6 to the head; 0.8 to the back and a rounding error.
        ([0.8, 0, 0.6, 0.00001, 1, 0], ["LH", "P"]),
        ([0, 0, 0, 0, 0, 0], ""),
    ],
)
def test_vectors_become_letters(
    cosines: list[float], letters: list[str] | str, tmp_path: Path, out: Path
) -> None:
    dataset = SOURCES["CT"]()
    dataset.ImageOrientationPatient = cosines
    source = save(dataset, tmp_path / "in.dcm")
    assert write(make_case(source), "overlay", out).PatientOrientation == letters


def test_letters_of_the_source_go_before_vectors(tmp_path: Path, out: Path) -> None:
    dataset = SOURCES["CT"]()
    dataset.PatientOrientation = ["A", "F"]
    source = save(dataset, tmp_path / "in.dcm")
    assert write(make_case(source), "overlay", out).PatientOrientation == ["A", "F"]


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
@pytest.mark.parametrize("spacing", [[0, 0], [0.2, 0], [-0.2, 0.1], ["1e300", "1e-300"], [0.2]])
def test_a_spacing_that_no_pixel_has_is_unknown(
    keyword: str, spacing: list[Any], tmp_path: Path, out: Path
) -> None:
    dataset = computed_radiograph()
    del dataset.ImagerPixelSpacing
    setattr(dataset, keyword, spacing)
    source = save(dataset, tmp_path / "in.dcm")
    kinds = expected_kinds("CR")
    paths = write_objects(make_case(source), kinds, out)
    found = {kind: dcmread(path) for kind, path in zip(kinds, paths, strict=True)}
    (area,) = found["contours"].DisplayedAreaSelectionSequence
    assert area.PresentationPixelAspectRatio == [1, 1]
    assert not {"PixelSpacing", "PixelAspectRatio"} & set(found["overlay"].dir())
    assert "PixelMeasuresSequence" not in found["segmentation"].SharedFunctionalGroupsSequence[0]
    assert [errors("dciodvfy", path) for path in paths] == [[]] * len(paths)


def test_a_ratio_speaks_where_the_spacing_does_not(tmp_path: Path, out: Path) -> None:
    dataset = computed_radiograph()
    dataset.ImagerPixelSpacing, dataset.PixelAspectRatio = [0, 0], [4, 3]
    source = save(dataset, tmp_path / "in.dcm")
    assert write(make_case(source), "overlay", out).PixelAspectRatio == [4, 3]
