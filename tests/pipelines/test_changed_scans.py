"""The table is trusted, the bytes are not: what changed since it was listed is nobody's scan.

And a scan that the bundle has seen counts in no figure, whoever names it how.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from anomaly.config import load_config, write_config
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.pipelines.report import SEEN
from anomaly.pipelines.run import RunFolder
from anomaly.reporting.dicom.case import SEEN as MEANS_SEEN
from anomaly.store.bundle import read_bundle
from tests.pipelines.road import Road, copy, done, refused


@pytest.fixture(autouse=True)
def _messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def listed(road: Road, tmp_path: Path, stage: RunFolder) -> tuple[RunFolder, Path]:
    """Return a copy of a run with an archive of its own."""
    scans = tmp_path / "archive"
    shutil.copytree(road.scans, scans)
    run = copy(stage, tmp_path / "run")
    config = load_config(run.config)
    write_config(run.config, replace(config, data=replace(config.data, root=scans)))
    return run, scans


def exchange(scans: Path, row: ManifestRow, other: ManifestRow) -> None:
    """Put another patient's scan, of the same size, under a path."""
    content = (scans / other.path).read_bytes()
    assert dcmread(scans / row.path).Rows == dcmread(scans / other.path).Rows
    (scans / row.path).write_bytes(content)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_refuses_what_changed(road: Road, tmp_path: Path, split: str) -> None:
    run, scans = listed(road, tmp_path, road.prepared)
    first, second, *_ = road.manifest.select(split=split, label="normal")
    exchange(scans, first, second)
    assert "has changed since it was listed" in refused("train", run.path, "--device", "cpu")


def test_calibration_refuses_what_changed(road: Road, tmp_path: Path) -> None:
    run, scans = listed(road, tmp_path, road.trained)
    first, second, *_ = road.manifest.select(split="calibration")
    exchange(scans, first, second)
    assert "could not be read (changed)" in refused("calibrate", run.path)


def test_scoring_gives_what_changed_a_row_and_every_other_its_score(
    road: Road, tmp_path: Path
) -> None:
    run, scans = listed(road, tmp_path, road.run)
    first, second, *_ = road.manifest.select(split="test")
    exchange(scans, first, second)
    run.results.forget(0)  # scoring was broken off, and goes on
    done("score", run.path)
    before = {row.key: row for row in road.rows}
    for row in run.results.read()[0]:
        if row.key == first.key:
            assert (row.status, row.reason) == ("not scored", "changed")
        else:
            assert row == before[row.key]


def test_no_door_shows_another_patient_under_an_old_key(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, scans = listed(road, tmp_path, road.run)
    flagged = [r for r in road.rows if r.flagged]
    paths = {row.key: row for row in road.manifest.select()}
    target, other = paths[flagged[0].key], paths[flagged[1].key]
    exchange(scans, target, other)
    done("report", run.path)
    assert not list(run.report.parent.glob(f"images/*{target.key}*"))
    assert list(run.report.parent.glob(f"images/*{other.key}*"))
    assert "can no longer be read (changed)" in run.report.read_text()
    done("dicom", run.path, "--objects", "report,overlay")
    made = [dcmread(path, stop_before_pixels=True) for path in run.dicom.glob("*.dcm")]
    assert "2 objects left out: changed" in caplog.text
    assert len(made) == sum(1 + bool(r.flagged) for r in road.rows if r.status == "scored") - 2
    done("figures", run.path, "--scans", "64")
    assert "can no longer be read: changed" in caplog.text


@pytest.mark.parametrize("change", ["turned", "gone", "broken"])
def test_a_mask_that_changed_is_in_no_figure(road: Road, tmp_path: Path, change: str) -> None:
    run, scans = copy(road.run, tmp_path / "run"), tmp_path / "scans"
    shutil.copytree(road.scans, scans)
    done("evaluate", run.path, "--data", scans)
    for path in (scans / "masks").rglob("*.png"):
        if change == "turned":
            with Image.open(path) as image:
                image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
        elif change == "gone":
            path.unlink()
        else:
            path.write_bytes(b"no PNG")
    assert "is not what it was" in refused("evaluate", run.path, "--data", scans)


# --- seen scans -------------------------------------------------------------------------------


def test_scans_of_training_and_calibration_count_in_no_figure(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After `prepare` with another seed, most of the test split is not held out."""
    run = RunFolder(tmp_path / "run")
    splits = "data.splits={train: 0.1, validation: 0.1, calibration: 0.1, test: 0.7}"
    prepare = ("--config", road.config, "--data", road.scans, "--set", splits)
    done("prepare", run.path, *prepare, "--set", "data.seed=5")
    shutil.copytree(road.run.bundle, run.bundle)
    done("score", run.path)
    bundle = read_bundle(run.bundle)
    rows = {row.key: row for row in run.results.read()[0]}
    manifest = Manifest.read(run.manifest)
    held_out = {r.sha256 for r in road.manifest.select(split="test")}
    for scan in manifest.select(split="test"):
        assert rows[scan.key].seen == bundle.has_seen(scan)
        assert rows[scan.key].seen == (scan.sha256 not in held_out)
    seen = sum(row.seen for row in rows.values())
    normals = sum(
        r.label == "normal" and not rows[r.key].seen for r in manifest.select(split="test")
    )
    assert seen > 10
    assert normals > 0
    done("evaluate", run.path)
    metrics = json.loads(run.metrics.read_text())
    assert metrics["seen"] == seen
    assert metrics["scans"]["normal"] == normals
    assert f"{seen} of them took part in training or calibration" in caplog.text
    done("report", run.path)
    page = run.report.read_text()
    assert f"Not counted: {seen:,} that took part in training or calibration." in page
    done("figures", run.path)
    assert f"left out: {seen} scans" in caplog.text
    said = done("query", run.path, "SELECT count(*) AS n FROM scores WHERE seen").out
    assert said.split() == ["n", str(seen)]


def test_a_seen_scan_is_marked_at_every_door(road: Road, tmp_path: Path) -> None:
    """The whole archive, scored by the bundle that most of it has trained or calibrated."""
    run = RunFolder(tmp_path / "run")
    done("score", road.scans / "normal", "--bundle", road.run.bundle, "--out", run.path)
    rows = [row for row in run.results.read()[0] if row.status == "scored"]
    seen = {row.key for row in rows if row.seen}
    assert len(rows) > len(seen) > 20
    for count in ("SELECT sum(images) n FROM studies", "SELECT sum(images) n FROM patients"):
        assert done("query", run.path, count).out.split() == ["n", str(len(rows) - len(seen))]
    done("dicom", run.path)
    reports = [dcmread(path) for path in run.dicom.glob("*.dcm")]
    said = [str(report).count(MEANS_SEEN) for report in reports if report.Modality == "SR"]
    assert sorted(said) == [0] * (len(rows) - len(seen)) + [1] * len(seen)
    for option in ((), ("--no-images",)):
        done("report", run.path, *option)
        assert run.report.read_text().count(SEEN) == len(seen)


def test_training_scans_in_another_format_are_no_calibration(road: Road, tmp_path: Path) -> None:
    """Their pixels, saved as PNG, score as low as they did."""
    for number, row in enumerate(road.manifest.select(split="train")[:12]):
        dataset = dcmread(road.scans / row.path)
        values = dataset.pixel_array.astype(np.uint16) << (16 - int(dataset.BitsStored))
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            values = (2 ** int(dataset.BitsStored) - 1 - dataset.pixel_array).astype(np.uint16)
        path = tmp_path / "scans" / "normal" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    run = RunFolder(tmp_path / "run")
    only = "data.splits={calibration: 1.0}"
    settings = ("--config", road.config, "--data", tmp_path / "scans", "--set", only)
    done("prepare", run.path, *settings)
    said = refused("calibrate", run.path, "--bundle", road.run.bundle)
    assert "12 of 12 scans were used to train" in said


def test_the_bundle_remembers_what_it_was_calibrated_on(road: Road) -> None:
    bundle = read_bundle(road.run.bundle)
    for split in ("train", "validation", "calibration"):
        assert all(bundle.has_seen(row) for row in road.manifest.select(split=split))
    assert not any(bundle.has_seen(row) for row in road.manifest.select(split="test"))
