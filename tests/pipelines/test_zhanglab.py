"""The paediatric chest X-ray archive, where it is present: labels, patients, splits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anomaly.config import load_config
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.splits import SPLITS
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT.parent / "shared" / "data" / "zhanglab"

pytestmark = pytest.mark.skipif(
    not (ARCHIVE / "train" / "NORMAL").is_dir(),
    reason="the archive (doi 10.17632/rscbjbr9sj) is not beside the repository",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Prepare forty of the archive's images by the shipped configuration."""
    root = tmp_path_factory.mktemp("zhanglab")
    for folder, count in (("train/NORMAL", 28), ("dev/PNEUMONIA", 12)):
        (root / "scans" / folder).mkdir(parents=True)
        for path in sorted((ARCHIVE / folder).iterdir())[:count]:
            (root / "scans" / folder / path.name).symlink_to(path)
    overrides = [f"data.root={root / 'scans'}", "data.workers=0"]
    config = load_config(ROOT / "configs" / "zhanglab-64.yaml", overrides)
    run = RunFolder(root / "run")
    made = prepare(run, config)
    assert Manifest.read(run.manifest) == made
    return made


def test_every_image_can_be_used_and_has_its_label(manifest: Manifest) -> None:
    assert manifest.select(status="skipped") == ()
    assert len(manifest.rows) == 40
    for row in manifest.rows:
        assert row.label == ("normal" if row.path.startswith("train/NORMAL/") else "pneumonia")


def test_the_patient_is_the_number_in_the_name(manifest: Manifest) -> None:
    for row in manifest.rows:
        name = Path(row.path).name
        assert name.startswith(row.patient)
        assert name[len(row.patient)] in "_-"
        assert row.patient[-1].isdigit()


def test_no_patient_is_in_two_splits(manifest: Manifest) -> None:
    splits: dict[str, set[str]] = {}
    for row in manifest.rows:
        splits.setdefault(row.patient, set()).add(row.split)
    assert all(len(where) == 1 for where in splits.values())
    assert {row.split for row in manifest.rows} == set(SPLITS)


def test_pneumonia_is_in_the_test_split_alone(manifest: Manifest) -> None:
    assert {row.split for row in manifest.select(label="pneumonia")} == {"test"}
    for split in ("train", "validation", "calibration"):
        assert {row.label for row in manifest.select(split=split)} == {"normal"}


def test_the_whole_archive_names_a_patient_for_every_file() -> None:
    """The pattern of the configuration matches every name, so no scan is left out."""
    pattern = load_config(ROOT / "configs" / "zhanglab-64.yaml").data.patient_pattern
    assert pattern is not None
    names = [path.name for path in ARCHIVE.rglob("*.jpeg")]
    assert len(names) > 1000
    assert [name for name in names if not re.search(pattern, name)] == []
