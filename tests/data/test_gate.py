"""The gate: what the tags say may keep a scan out; what they leave open does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_samples import write_sample

from anomaly.data.archive import build_manifest
from anomaly.data.gate import Gate
from anomaly.data.intensity import IntensityPolicy
from anomaly.data.manifest import ManifestRow

CHEST = Gate(("DX", "CR"), ("CHEST",), ("PA", "AP"))


def row_of(root: Path, gate: Gate, **tags: str) -> ManifestRow:
    write_sample(root / "a", [[0, 1]], **tags)
    policy = IntensityPolicy()
    (row,) = build_manifest(
        root,
        labels={},
        patient_pattern=None,
        policy=policy,
        site_key=b"k" * 32,
        gate=gate,
        workers=0,
    ).rows
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
