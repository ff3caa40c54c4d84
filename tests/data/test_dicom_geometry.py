"""Spacing, orientation and shutters, against positions worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom import Dataset

from anomaly.data.readers.dicom import read_dicom
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import read_scan
from anomaly.dicom.geometry import orientation, spacing
from anomaly.errors import UnsupportedScan
from anomaly.types import Orientation, Scan
from tests.data.dicom_samples import make_dataset, write_dicom, write_sample

FULL = IntensityPolicy()


def read(path: Path, values: Any, **tags: Any) -> Scan:
    return read_scan(write_sample(path, values, **tags), 0, FULL)


# --- spacing ----------------------------------------------------------------------------------


def test_magnification_divides_the_spacing_of_the_detector() -> None:
    tags: dict[str, Any] = {
        "ImagerPixelSpacing": [0.3, 0.2],
        "EstimatedRadiographicMagnificationFactor": 1.25,
    }
    found, source = spacing(make_dataset([[0, 1]], **tags), 0)
    assert found is not None
    assert_allclose(found, (0.24, 0.16))
    assert source == "ImagerPixelSpacing / magnification"


def test_pixel_spacing_needs_no_magnification() -> None:
    tags: dict[str, Any] = {
        "PixelSpacing": [0.5, 0.4],
        "ImagerPixelSpacing": [0.3, 0.2],
        "EstimatedRadiographicMagnificationFactor": 1.25,
    }
    assert spacing(make_dataset([[0, 1]], **tags), 0) == ((0.5, 0.4), "PixelSpacing")


def test_spacing_turns_with_the_pixels(tmp_path: Path) -> None:
    tags = {"PixelSpacing": [0.5, 0.4], "PatientOrientation": ["F", "L"]}
    scan = read(tmp_path / "a", [[0, 1, 2]], **tags)
    assert scan.pixels.shape == (3, 1)
    assert scan.spacing == (0.4, 0.5)


# --- orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        (["L", "F"], Orientation()),
        (["R", "F"], Orientation(mirrored=True)),
        (["L", "H"], Orientation(upside_down=True)),
        (["R", "H"], Orientation(upside_down=True, mirrored=True)),
        (["F", "L"], Orientation(transposed=True)),
        (["F", "R"], Orientation(transposed=True, mirrored=True)),
        (["H", "L"], Orientation(transposed=True, upside_down=True)),
        (["LP", "FA"], Orientation()),  # the first letter leads
        (["A", "F"], Orientation()),  # a lateral is never mirrored
        (["P", "F"], Orientation()),
        (["P", "H"], Orientation(upside_down=True)),
        (["H", "A"], Orientation(transposed=True, upside_down=True)),
        (["L", "P"], Orientation()),
        (["L", "A"], Orientation(upside_down=True)),
        (["L", "L"], Orientation()),  # contradictions turn nothing
        (["L", "R"], Orientation()),
        (["X", "F"], Orientation()),
        (["", ""], Orientation()),
    ],
)
def test_patient_orientation(letters: list[str], expected: Orientation) -> None:
    assert orientation(make_dataset([[0, 1]], PatientOrientation=letters), 0) == expected


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], Orientation()),  # axial, on the back
        ([-1, 0, 0, 0, -1, 0], Orientation(upside_down=True, mirrored=True)),  # on the belly
        ([1, 0, 0, 0, 0, -1], Orientation()),  # coronal
        ([0, 1, 0, 0, 0, -1], Orientation()),  # sagittal, front on the left
        ([0, -1, 0, 0, 0, -1], Orientation(mirrored=True)),
        ([0.9, 0.3, -0.1, -0.3, 0.9, 0.2], Orientation()),  # oblique
        ([0, 0, 0, 0, 0, 0], Orientation()),
    ],
)
def test_image_orientation(cosines: list[float], expected: Orientation) -> None:
    dataset = make_dataset([[0, 1]], kind="CT", ImageOrientationPatient=cosines)
    dataset.PatientOrientation = ["F", "R"]  # the cosines win
    assert orientation(dataset, 0) == expected


def test_a_corner_marker_goes_where_the_tags_say(tmp_path: Path) -> None:
    """Stored with rows leading to the feet and columns to the right: the marker is left, below."""
    stored = np.zeros((2, 3), dtype=np.uint16)
    stored[0, 2] = 9  # first column position along "R" = most left; last along "F" = lowest
    stored[1, 0] = 4
    scan = read(tmp_path / "a", stored, bits=4, PatientOrientation=["F", "R"])
    expected = np.zeros((3, 2), dtype=np.float32)
    expected[2, 1] = 9 / 15  # shown: the patient's left is on the right
    expected[0, 0] = 4 / 15
    assert_array_equal(scan.pixels, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("upside_down", [False, True])
@pytest.mark.parametrize("mirrored", [False, True])
def test_store_undoes_show(transposed: bool, upside_down: bool, mirrored: bool) -> None:
    turn = Orientation(transposed, upside_down, mirrored)
    stored = np.arange(6).reshape(2, 3)
    assert_array_equal(turn.store(turn.show(stored)), stored)
    assert turn.show(stored).shape == ((3, 2) if transposed else (2, 3))


# --- shutters ---------------------------------------------------------------------------------

PICTURE = np.arange(1, 31).reshape(5, 6)


def hidden(path: Path, **tags: Any) -> list[list[int]]:
    """Rows and columns that are black, from 0."""
    scan = read(path, PICTURE, bits=5, **tags)
    assert scan.intensity.endswith("display shutter.")
    return np.argwhere(scan.pixels == 0).tolist()


RECTANGLE = {
    "ShutterUpperHorizontalEdge": 2,
    "ShutterLowerHorizontalEdge": 4,
    "ShutterLeftVerticalEdge": 1,
    "ShutterRightVerticalEdge": 5,
}


def test_rectangular_shutter(tmp_path: Path) -> None:
    found = hidden(tmp_path / "a", ShutterShape="RECTANGULAR", **RECTANGLE)
    expected = [[r, c] for r in range(5) for c in range(6) if r in (0, 4) or c == 5]
    assert found == expected


def test_circular_shutter(tmp_path: Path) -> None:
    found = hidden(
        tmp_path / "a",
        ShutterShape="CIRCULAR",
        CenterOfCircularShutter=[3, 3],
        RadiusOfCircularShutter=2,
    )
    seen = {(2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (0, 2), (1, 2), (3, 2), (4, 2)}
    seen |= {(1, 1), (1, 3), (3, 1), (3, 3)}
    assert found == [[r, c] for r in range(5) for c in range(6) if (r, c) not in seen]


def test_polygonal_shutter(tmp_path: Path) -> None:
    found = hidden(
        tmp_path / "a",
        ShutterShape="POLYGONAL",
        VerticesOfThePolygonalShutter=[1, 1, 1, 5, 5, 5, 5, 1],
    )
    assert found == [[row, 5] for row in range(5)]


def test_several_shutters_leave_what_all_leave(tmp_path: Path) -> None:
    found = hidden(
        tmp_path / "a",
        ShutterShape=["RECTANGULAR", "CIRCULAR"],
        CenterOfCircularShutter=[3, 3],
        RadiusOfCircularShutter=10,
        **RECTANGLE,
    )
    assert len(found) == 30 - 3 * 5


@pytest.mark.parametrize("shape", ["RECTANGULAR", "CIRCULAR", "POLYGONAL", "OVAL"])
def test_a_shutter_without_edges_covers_nothing_and_is_noted(tmp_path: Path, shape: str) -> None:
    plain = read(tmp_path / "a", PICTURE)
    scan = read(tmp_path / "b", PICTURE, ShutterShape=shape)
    assert_array_equal(scan.pixels, plain.pixels)
    assert shape in scan.notes[0]
    assert not plain.notes


# --- overlays ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags",
    [
        {
            "ShutterShape": "CIRCULAR",
            "CenterOfCircularShutter": [2, 2],
            "RadiusOfCircularShutter": 0,
        }
        | {"CenterOfCircularShutter": [90, 90]},
        {"ShutterShape": "RECTANGULAR"}
        | {f"Shutter{edge}Edge": 0 for edge in ("LeftVertical", "RightVertical")}
        | {f"Shutter{edge}Edge": 0 for edge in ("UpperHorizontal", "LowerHorizontal")},
    ],
    ids=["circle", "rectangle"],
)
def test_a_shutter_that_leaves_nothing_open_covers_nothing_and_is_noted(
    tmp_path: Path, tags: dict[str, Any]
) -> None:
    scan = read(tmp_path / "a", np.arange(12).reshape(3, 4), **tags)
    assert scan.pixels.max() > 0
    assert "leaves nothing open" in scan.notes[0]


def test_every_frame_has_its_own_shutter(tmp_path: Path) -> None:
    values = 100 + np.arange(32).reshape(2, 4, 4)
    dataset = make_dataset(values, kind="ECT")
    groups = []
    for right in (2, 3):
        shutter, group = Dataset(), Dataset()
        shutter.ShutterShape = "RECTANGULAR"
        shutter.ShutterLeftVerticalEdge, shutter.ShutterRightVerticalEdge = 1, right
        shutter.ShutterUpperHorizontalEdge, shutter.ShutterLowerHorizontalEdge = 1, 4
        group.FrameDisplayShutterSequence = [shutter]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    scans = read_dicom(write_dicom(tmp_path / "a", dataset), IntensityPolicy())
    for scan, right in zip(scans, (2, 3), strict=True):
        assert isinstance(scan, Scan)
        assert scan.pixels[:, :right].all()
        assert not scan.pixels[:, right:].any()


def overlay(dataset: Dataset, position: int, data: bytes | None = None) -> Dataset:
    dataset.add_new(0x60000010, "US", 2)
    dataset.add_new(0x60000011, "US", 2)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 16 if data is None else 1)
    dataset.add_new(0x60000102, "US", position)
    if data is not None:
        dataset.add_new(0x60003000, "OW", data)
    return dataset


def test_overlays_are_not_drawn(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [7, 100]])
    plain = read(tmp_path / "plain", values)
    apart = overlay(make_dataset(values), 0, b"\xff\xff")
    apart.save_as(tmp_path / "apart", enforce_file_format=True)
    inside = overlay(make_dataset(values | 0x8000), 15)
    inside.save_as(tmp_path / "inside", enforce_file_format=True)
    for name in ("apart", "inside"):
        assert_array_equal(read_scan(tmp_path / name, 0, FULL).pixels, plain.pixels)


def test_an_undeclared_bit_is_refused(tmp_path: Path) -> None:
    dataset = overlay(make_dataset(np.array([[0, 0x8FFF]])), 14)
    dataset.save_as(tmp_path / "a", enforce_file_format=True)
    with pytest.raises(UnsupportedScan, match="outside"):
        read_scan(tmp_path / "a", 0, FULL)
