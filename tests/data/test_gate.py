"""The gate: what the tags say may keep a scan out; what they leave open does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.table.gate import Gate
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import ManifestRow
from anomaly.errors import ConfigError
from tests.data.dicom_samples import write_sample

CHEST = Gate(("DX", "CR"), ("CHEST",), ("PA", "AP"))


def row_of(root: Path, gate: Gate, **tags: str) -> ManifestRow:
    write_sample(root / "a", [[0, 1]], **tags)
    policy = IntensityPolicy()
    inspection = Inspection(root, policy, b"k" * 32, gate=gate)
    (row,) = build_manifest(inspection, PathNames()).rows
    return row


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, ""),
        ({"BodyPartExamined": "CHEST", "ViewPosition": "PA"}, ""),
        ({"BodyPartExamined": "KNEE"}, "body part"),
        ({"ViewPosition": "LL"}, "view"),
        ({"Modality": "CT"}, "modality"),
        ({"Modality": "MG", "BodyPartExamined": "BREAST"}, "modality"),
    ],
)
def test_the_gate(tmp_path: Path, tags: dict[str, str], reason: str) -> None:
    found = row_of(tmp_path, CHEST, **tags)
    assert (found.status, found.reason) == ("skipped" if reason else "ok", reason)


def test_an_open_gate_lets_everything_pass(tmp_path: Path) -> None:
    assert row_of(tmp_path, Gate(), BodyPartExamined="KNEE").status == "ok"


@pytest.mark.parametrize(("most", "reasons"), [(3, ["", "", ""]), (2, ["too many frames"])])
def test_a_file_of_too_many_frames_is_one_row(
    tmp_path: Path, most: int, reasons: list[str]
) -> None:
    write_sample(tmp_path / "a", [[[0, 1]], [[2, 3]], [[4, 5]]], kind="ECT")
    gate = Gate(max_frames=most)
    inspection = Inspection(tmp_path, IntensityPolicy(), b"k" * 32, gate=gate)
    manifest = build_manifest(inspection, PathNames())
    assert [row.reason for row in manifest.rows] == reasons


@pytest.mark.parametrize("most", [0, 10_001])
def test_a_number_of_frames_that_no_file_may_have_is_refused(most: int) -> None:
    with pytest.raises(ConfigError, match=f"max_frames is {most}: expected 1 to 10,000"):
        Gate(max_frames=most)
