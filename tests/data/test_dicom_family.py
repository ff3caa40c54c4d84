"""Pairs of objects that must agree do: equal pixels, whatever kind, coding or orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import read_scan
from anomaly.types import Orientation
from tests.data.dicom_family import KINDS, MEMBERS, TOP, TURNED, member, write

FULL = IntensityPolicy()


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint16]:
    rng = np.random.default_rng(0)
    found: NDArray[np.uint16] = rng.integers(0, TOP + 1, (38, 52)).astype(np.uint16)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MEMBERS)
def test_members_agree(name: str, kind: str, values: NDArray[np.uint16], tmp_path: Path) -> None:
    plain = read_scan(write(tmp_path / "plain", member(kind, values)), 0, FULL)
    assert_array_equal(plain.pixels, (values / TOP).astype(np.float32))
    path = write(tmp_path / "other", MEMBERS[name](kind, values))
    assert_array_equal(read_scan(path, 0, FULL).pixels, plain.pixels)


def test_a_lossless_jpeg_is_one(values: NDArray[np.uint16], tmp_path: Path) -> None:
    path = write(tmp_path / "j", MEMBERS["lossless jpeg"]("CR", values))
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.70"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "MG"])
@pytest.mark.parametrize("name", TURNED)
def test_what_lies_another_way_round_is_turned(
    name: str, kind: str, values: NDArray[np.uint16], tmp_path: Path
) -> None:
    dataset = TURNED[name](kind, values)
    scan = read_scan(write(tmp_path / "turned", dataset), 0, FULL)
    assert_array_equal(scan.pixels, (values / TOP).astype(np.float32))
    assert scan.orientation != Orientation()
    stored = scan.orientation.store(scan.pixels)
    assert_array_equal(stored, dataset.pixel_array.squeeze() / np.float32(TOP))


def test_a_mammogram_stays_as_it_is_stored(values: NDArray[np.uint16], tmp_path: Path) -> None:
    dataset = member("MG", values, PatientOrientation=["P", "L"])
    assert read_scan(write(tmp_path / "m", dataset), 0, FULL).orientation == Orientation()
