"""`import anomaly`: what it exports, and that it says what the commands say, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomaly
from anomaly.data.table.manifest import Manifest
from anomaly.errors import TooFewCalibrationScans, UnsupportedScan
from anomaly.pipelines.run import RunFolder
from tests.data.dicom_samples import write_sample
from tests.pipelines.road import Road, done

EXPORTED = {
    *("load", "read_scan", "Detector", "Verdict", "StudyVerdict", "Region", "Scan"),
    *("AnomalyError", "BundleError", "CalibrationError", "ConfigError"),
    *("NotCalibrated", "ScanError", "__version__"),
}


def test_exactly_these_names_are_exported() -> None:
    assert set(anomaly.__all__) == EXPORTED
    assert set(dir(anomaly)) == EXPORTED
    assert all(getattr(anomaly, name) is not None for name in EXPORTED)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        anomaly.lode  # noqa: B018


def test_importing_loads_no_torch() -> None:
    code = "import sys, anomaly; assert not {'torch', 'numpy', 'pydicom'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def scored(road: Road, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """Score a folder by the command: DICOM, PNG, several frames, and what is none."""
    folder = tmp_path_factory.mktemp("door") / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for path in sorted(road.scans.rglob("*.dcm"))[:6]:
        (folder / path.name.replace("IM", path.parent.name)).write_bytes(path.read_bytes())
    frames = rng.integers(0, 4096, (3, 40, 30))
    write_sample(folder / "frames.dcm", frames, kind="ECT")
    Image.fromarray(rng.integers(0, 256, (50, 60), dtype=np.uint8)).save(folder / "noise.png")
    (folder / "text.png").write_text("no scan")
    run = RunFolder(folder.parent / "run")
    done("score", folder, "--bundle", road.run.bundle, "--out", run.path)
    return folder, run


def test_the_door_says_what_the_command_says_to_the_last_bit(
    road: Road, scored: tuple[Path, RunFolder]
) -> None:
    folder, run = scored
    rows = {row.key: row for row in run.results.read()[0]}
    listed = {
        (str(folder / row.path), row.frame): rows[row.key]
        for row in Manifest.read(run.manifest, folder).rows
    }
    detector = anomaly.load(road.run.bundle)
    verdicts = list(detector.score_many(sorted(folder.iterdir())))
    assert {(verdict.path, verdict.frame) for verdict in verdicts} == listed.keys()
    assert len({verdict.reason for verdict in verdicts}) > 1
    for verdict in verdicts:
        row = listed[verdict.path, verdict.frame]
        assert (verdict.score, verdict.p_value, verdict.flag) == (
            row.score,
            row.p_value,
            row.flagged,
        )
        assert verdict.evidence_peak == row.evidence_peak
        assert (verdict.reason or "") == row.reason
        assert verdict.seen == row.seen
        if row.status == "scored":
            assert len(verdict.regions) == row.regions
            assert {k: float(np.float32(v)) for k, v in verdict.features.items()} == row.features
            kept = run.results.evidence(row)
            assert verdict.evidence is not None
            assert kept is None or verdict.evidence.max() == np.float32(verdict.evidence_peak)


def test_one_scan_by_its_path_its_pixels_and_its_array(
    road: Road, scored: tuple[Path, RunFolder]
) -> None:
    folder, _ = scored
    detector = anomaly.load(road.run.bundle)
    path = folder / "noise.png"
    by_path = detector.score(path)
    by_scan = detector.score(anomaly.read_scan(path, 0, detector.bundle.config.intensity))
    by_array = detector.score(np.asarray(Image.open(path)), value_range=(0, 255))
    assert by_path.score == by_scan.score == by_array.score
    assert by_path.p_value == by_array.p_value
    assert by_path.evidence is not None
    assert by_path.evidence.shape == (50, 60)
    assert by_array.evidence is not None
    np.testing.assert_array_equal(by_path.evidence, by_array.evidence)


def test_an_unscored_scan_is_neither_normal_nor_abnormal(
    road: Road, scored: tuple[Path, RunFolder]
) -> None:
    folder, _ = scored
    detector = anomaly.load(road.run.bundle)
    with pytest.raises(anomaly.ScanError, match="cannot be decoded"):
        detector.score(folder / "text.png")
    (verdict,) = detector.score_many([folder / "text.png"], workers=0)
    assert (verdict.reason, verdict.score, verdict.p_value) == ("undecodable", None, None)
    with pytest.raises(anomaly.ScanError, match="was not scored"):
        _ = verdict.flagged
    with pytest.raises(anomaly.ScanError, match="has 3 frames"):
        detector.score(folder / "frames.dcm")


@pytest.mark.parametrize(
    ("array", "value_range", "reason"),
    [
        (np.zeros((4, 4)), None, "range"),
        (np.zeros((4, 4)), (1, 1), "range"),
        (np.full((4, 4), 2.0), (0, 1), "range"),
        (np.zeros((4, 4, 3)), (0, 1), "dimensions"),
        (np.zeros((0, 4)), (0, 1), "empty"),
        (np.full((4, 4), np.nan), (0, 1), "not finite"),
        (np.zeros((4, 4)), (0, 1), "blank"),
    ],
)
def test_an_array_that_is_no_scan_is_refused(
    road: Road, array: np.ndarray, value_range: tuple[float, float] | None, reason: str
) -> None:
    with pytest.raises(UnsupportedScan) as caught:
        anomaly.load(road.run.bundle).score(array, value_range=value_range)
    assert caught.value.reason in (reason, "constant")


def test_a_study_is_judged_as_the_table_of_studies_judges_it(
    road: Road, scored: tuple[Path, RunFolder]
) -> None:
    folder, run = scored
    table = run.results.query("SELECT p_value, flagged, images FROM studies WHERE images = 3")
    (expected,) = table.to_pylist()
    study = anomaly.load(road.run.bundle).score_study([folder / "frames.dcm"])
    assert (study.p_value, study.flagged) == (expected["p_value"], expected["flagged"])
    nothing = anomaly.load(road.run.bundle).score_study([folder / "text.png"], workers=0)
    assert nothing.p_value is None
    with pytest.raises(anomaly.NotCalibrated):
        _ = nothing.flagged


def test_a_detector_is_calibrated_and_saved(road: Road, tmp_path: Path) -> None:
    detector = anomaly.load(road.trained.bundle)
    rows = Manifest.read(road.trained.manifest, road.scans).select(split="calibration")
    normals = [road.scans / row.path for row in rows]
    scan = road.scans / road.manifest.select(split="test")[0].path
    assert detector.score(scan).p_value is None
    with pytest.raises(anomaly.NotCalibrated):
        _ = detector.score(scan).flagged
    with pytest.raises(TooFewCalibrationScans):
        detector.calibrate(normals[:3], alpha=0.05)
    calibrated = detector.calibrate(normals, alpha=0.2)
    calibrated.save(tmp_path / "bundle")
    again = anomaly.load(tmp_path / "bundle")
    assert again.alpha == 0.2
    # p-values by hand: the share of normals, and of the scan, that score at least as high
    scores = [verdict.score for verdict in detector.score_many(normals)]
    verdict = again.score(scan)
    assert verdict.score is not None
    at_least = sum(score is not None and score >= verdict.score for score in scores)
    assert verdict.p_value == (1 + at_least) / (1 + len(scores))
    assert verdict.flagged == (verdict.p_value <= 0.2)
    assert again.at(0.5).score(scan).flagged == (verdict.p_value <= 0.5)
    seen = anomaly.read_scan(normals[0], 0, again.bundle.config.intensity)
    assert again.score(seen).seen  # by its pixels alone
    assert not detector.score(seen).seen
    learned = Manifest.read(road.trained.manifest, road.scans).select(split="train")[0]
    with pytest.raises(anomaly.CalibrationError, match="took part in training"):
        detector.calibrate([*normals, road.scans / learned.path], alpha=0.2)
    with pytest.raises(anomaly.CalibrationError, match="shows what another scan of the list shows"):
        detector.calibrate([*normals, normals[0]], alpha=0.2)
    with pytest.raises(anomaly.CalibrationError, match="cannot be used"):
        detector.calibrate([*normals, road.scans / "notes.txt"], alpha=0.2)
