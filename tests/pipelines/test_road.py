"""The whole road by its commands, on a small phantom archive; and every way it can be left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anomaly.config import load_config
from anomaly.data.table.manifest import Manifest
from anomaly.detection.features import feature_groups
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle, write_bundle
from anomaly.training.checkpoint import read_checkpoint, read_metrics
from tests.pipelines.road import STEPS, Road, anomaly, copy, done, refused

# --- what the road leaves ---------------------------------------------------------------------


def test_every_file_of_the_test_split_is_a_row(road: Road) -> None:
    wanted = {row.key for row in road.manifest.select(split="test")}
    scored = [row.key for row in road.rows if row.status == "scored"]
    assert set(scored) == wanted
    assert len(scored) == len(wanted) > 8
    abnormal = {row.key for row in road.manifest.select(label="abnormal")}
    assert abnormal < wanted
    # what cannot be read is a row with a reason
    assert [(r.reason, r.score, r.flagged) for r in road.rows if r.status != "scored"] == [
        ("not an image", None, None)
    ]


def test_patients_are_in_one_split(road: Road) -> None:
    splits: dict[str, set[str]] = {}
    for row in road.manifest.select():
        splits.setdefault(row.patient, set()).add(row.split)
    assert len(splits) == 56
    assert all(len(where) == 1 for where in splits.values())


def test_a_flag_is_a_p_value_at_most_alpha(road: Road) -> None:
    calibrated = read_bundle(road.run.bundle).calibration().scores
    scored = [row for row in road.rows if row.status == "scored"]
    for row in scored:
        assert row.score is not None
        assert row.p_value is not None
        at_least = int((calibrated.scores >= row.score).sum())
        assert row.p_value == (1 + at_least) / (len(calibrated.scores) + 1)
        assert row.flagged == (row.p_value <= 0.1)
        assert np.isfinite(row.score)
    assert len({row.score for row in scored}) == len(scored)


def test_the_detector_has_not_seen_what_it_is_calibrated_and_tested_on(road: Road) -> None:
    calibration = road.manifest.select(split="calibration")
    bundle = read_bundle(road.run.bundle)
    assert len(bundle.calibration().scores.scores) == len(calibration)
    used = len(road.manifest.select(split="train")) + len(road.manifest.select(split="validation"))
    assert len(bundle.seen) == 2 * used  # of each scan its file and its picture


def test_the_detector_is_a_candidate_chosen_by_its_margin(road: Road) -> None:
    bundle = read_bundle(road.run.bundle)
    candidates = {str(c): c for c in bundle.config.detector.candidates}
    assert bundle.margins.keys() == candidates.keys()
    assert all(0 <= value <= 1 for value in bundle.margins.values())
    # Fitted on 28 images of phantoms: no more is asked than that one can tell changes apart.
    assert max(bundle.margins.values()) > 0.5
    chosen = candidates[bundle.chosen]
    assert max(bundle.margins.values()) - bundle.margins[bundle.chosen] < 0.2
    groups = feature_groups(bundle.config.features).items()
    own = chosen.features
    used = [n for group, names in groups for n in names if group in own or n in own]
    assert bundle.detector.names == tuple(used)
    assert bundle.detector.kind == chosen.kind


def test_evidence_is_kept_for_every_scored_scan(road: Road) -> None:
    size = read_bundle(road.run.bundle).config.preprocessing.size
    for row in road.rows:
        kept = road.run.results.evidence(row)
        assert (kept is not None) == (row.status == "scored")
        assert kept is None or kept.shape == (size, size)


def test_metrics_count_what_was_scored(road: Road) -> None:
    metrics = json.loads(road.run.metrics.read_text())
    flagged = {r.key for r in road.rows if r.flagged}
    normal = {r.key for r in road.manifest.select(split="test", label="normal")}
    abnormal = {r.key for r in road.manifest.select(label="abnormal")}
    assert metrics["scans"] == {"normal": len(normal), "abnormal": len(abnormal)}
    assert metrics["not_scored"] == 1
    assert metrics["false_alarms"]["count"] == len(flagged & normal)
    assert metrics["sensitivity"]["count"] == len(flagged & abnormal)
    assert metrics["alpha"] == 0.1
    assert metrics["pixels"]["scans"] == len(abnormal)
    assert metrics["notice"] == "Research use only. Not a diagnosis."
    scores = {r.key: r.score or 0.0 for r in road.rows}
    wins = [
        (scores[a] > scores[n]) + 0.5 * (scores[a] == scores[n]) for a in abnormal for n in normal
    ]
    assert metrics["auroc"]["value"] == pytest.approx(np.mean(wins))


def test_the_page_lists_every_row(road: Road) -> None:
    page = road.run.report.read_text(encoding="utf-8")
    assert all(row.key in page for row in road.rows)
    assert "Research use only" in page


def test_the_page_holds_its_pictures_if_asked_and_none_if_not(run: RunFolder) -> None:
    pictures = run.report.parent / "images"
    shown = "data:image/png"
    done("report", run.path)
    assert run.report.read_text(encoding="utf-8").count(shown) == 1  # the colour bar
    files = len(list(pictures.glob("*.png")))
    assert files > 0
    done("report", run.path, "--single-file")
    assert run.report.read_text(encoding="utf-8").count(shown) == files + 1
    assert not pictures.exists()
    done("report", run.path, "--no-images")
    assert run.report.read_text(encoding="utf-8").count(shown) == 1
    assert not list(pictures.glob("*.png"))
    done("report", run.path, "--max-images", 1)
    assert len(list(pictures.glob("*-image.png"))) == 1
    assert "those of the 1 most unusual" in run.report.read_text(encoding="utf-8")


def test_shared_outputs_identify_nobody(road: Road) -> None:
    secrets = {str(road.scans), "PHANTOM", "notes.txt", road.run.site_key.read_text().strip()}
    for row in road.manifest.rows:
        secrets |= {row.path, row.patient, row.study, row.series, row.instance, row.detail}
    secrets -= {""}
    assert len(secrets) > 200
    table = pq.read_table(road.run.results.part(0))
    with np.load(road.run.results.maps(0)) as maps:
        texts = {
            "part-00000.parquet": f"{table.to_pylist()} {table.schema.metadata}",
            "maps-00000.npz": " ".join(maps),
        }
    plain = [road.run.report, road.run.metrics, road.run.scores_csv, road.run.results.job]
    for path in [*plain, *road.run.bundle.iterdir()]:
        texts[path.name] = path.read_bytes().decode("latin-1")
    assert len(texts) == 12
    for name, text in texts.items():
        found = [secret for secret in secrets if secret in text]
        assert not found, f"{name} holds {found[:3]}"


def test_what_identifies_is_for_its_owner_alone(road: Road) -> None:
    for path in (road.run.manifest, road.run.site_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_sample_sheets_say_that_they_are_synthetic(road: Road) -> None:
    sheets = sorted((road.run.path / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000000.png", f"step-{STEPS:06d}.png"]
    for sheet in sheets:
        with Image.open(sheet) as image:
            assert "synthetic" in image.info["Source"]


def test_scoring_twice_gives_the_same_scores(road: Road, run: RunFolder) -> None:
    done("score", run.path)
    assert run.results.read() == road.run.results.read()


def test_the_configuration_kept_is_what_ran(road: Road) -> None:
    kept = load_config(road.run.config)
    assert kept.data.root == road.scans
    assert kept == load_config(road.config, [f"data.root={json.dumps(str(road.scans))}"])
    assert read_bundle(road.run.bundle).config.training == kept.training


# --- new scans --------------------------------------------------------------------------------


def archive_of_trouble(folder: Path, good: Path, other: Path) -> dict[str, str]:
    """Write one usable scan and every kind of file that is none: name -> reason expected."""
    folder.mkdir()
    shutil.copy(good, folder / "a.dcm")
    data = good.read_bytes()
    (folder / "cut.dcm").write_bytes(data[: len(data) // 2])
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "letter.txt").write_text("Dear colleague")
    (folder / "link.dcm").symlink_to(folder / "nowhere.dcm")
    Image.new("L", (30, 30), 77).save(folder / "flat.png")
    colour = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    Image.fromarray(colour).save(folder / "colour.png")
    values = np.random.default_rng(0).random((20, 20, 1)).astype(np.float32)
    values[3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "nan.nii")
    twin = pydicom.dcmread(other)
    twin.SOPInstanceUID = pydicom.dcmread(good).SOPInstanceUID
    twin.file_meta.MediaStorageSOPInstanceUID = twin.SOPInstanceUID
    twin.save_as(folder / "twin.dcm")
    return {
        "a.dcm": "",
        "cut.dcm": "truncated",
        "empty.dcm": "not dicom",
        "letter.txt": "not an image",
        "link.dcm": "unreadable",
        "flat.png": "constant",
        "colour.png": "colour",
        "nan.nii": "non-finite",
        "twin.dcm": "duplicate",
    }


def test_new_scans_each_get_a_row_and_a_reason(road: Road, tmp_path: Path) -> None:
    good, other = sorted((road.scans / "normal").rglob("*.dcm"))[:2]
    expected = archive_of_trouble(tmp_path / "new", good, other)
    new = RunFolder(tmp_path / "run")
    said = done("score", new.path, "--scans", tmp_path / "new", "--bundle", road.run.bundle)
    listed = Manifest.read(new.manifest).rows
    assert {row.path: row.reason for row in listed} == expected
    rows, provenance = new.results.read()
    # the twin shares the key of the scan that it repeats, hence pairs
    assert sorted((r.key, r.reason) for r in rows) == sorted((r.key, r.reason) for r in listed)
    (usable,) = [row.key for row in listed if row.path == "a.dcm"]
    assert [row.key for row in rows if row.status == "scored"] == [usable]
    assert all(row.score is None and row.flagged is None for row in rows if row.reason)
    assert provenance.bundle == read_bundle(road.run.bundle).hash
    assert "Traceback" not in said.err
    done("report", new.path)
    page = new.report.read_text(encoding="utf-8")
    assert all(row.key in page for row in rows)
    assert "labels" in refused("evaluate", new.path)


def test_a_scan_scores_the_same_alone_as_in_company(road: Road, tmp_path: Path) -> None:
    row = road.manifest.select(label="abnormal")[0]
    (tmp_path / "one").mkdir()
    shutil.copy(road.scans / row.path, tmp_path / "one" / "x.dcm")
    new = RunFolder(tmp_path / "run")
    # A folder of scans stands where a run would.
    done("score", tmp_path / "one", "--bundle", road.run.bundle, "--out", new.path)
    ((alone,), _) = new.results.read()
    (company,) = [r for r in road.rows if r.key == row.key]
    assert alone.key != company.key  # another site key gives another pseudonym
    assert alone.score == pytest.approx(company.score, rel=1e-4)


def test_new_scans_do_not_overwrite_a_prepared_run(road: Road, run: RunFolder) -> None:
    before = run.manifest.read_bytes(), run.config.read_bytes()
    message = refused("score", run.path, "--scans", road.scans / "normal")
    assert "prepared run" in message
    assert (run.manifest.read_bytes(), run.config.read_bytes()) == before


def test_settings_reach_new_scans(road: Road, tmp_path: Path) -> None:
    new = RunFolder(tmp_path / "run")
    arguments = ["--scans", road.scans / "abnormal", "--bundle", road.run.bundle]
    done("score", new.path, *arguments, "--set", "alpha=0.5")
    rows, provenance = new.results.read()
    assert provenance.alpha == 0.5
    assert all(row.flagged == (row.p_value <= 0.5) for row in rows if row.p_value is not None)
    assert "unknown configuration key" in refused(
        "score", tmp_path / "other", *arguments, "--set", "alhpa=0.5"
    )


# --- stages out of order ----------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["train", "calibrate", "score", "evaluate", "report"])
def test_a_stage_before_its_first_names_the_one_to_run(stage: str, tmp_path: Path) -> None:
    assert "run `anomaly prepare" in refused(stage, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("stage", ["calibrate", "score", "evaluate", "report"])
def test_a_stage_before_training_finds_no_bundle(stage: str, road: Road) -> None:
    assert "is no bundle" in refused(stage, road.prepared.path)


@pytest.mark.parametrize("stage", ["evaluate", "report"])
def test_a_stage_before_scoring_says_so(stage: str, run: RunFolder) -> None:
    shutil.rmtree(run.results.folder)
    assert "run `anomaly score` first" in refused(stage, run.path)


def test_without_calibration_there_are_scores_and_no_flags(road: Road, tmp_path: Path) -> None:
    run = copy(road.trained, tmp_path / "run")
    done("score", run.path)
    scored = [row for row in run.results.read()[0] if row.status == "scored"]
    calibrated = {row.key: row.score for row in road.rows}
    assert {row.key: row.score for row in scored}.items() <= calibrated.items()
    assert all((row.p_value, row.flagged, row.regions) == (None, None, None) for row in scored)
    for stage in ("report", "evaluate"):
        assert "is not calibrated" in refused(stage, run.path)
    assert not run.report.exists()


@pytest.mark.parametrize("stage", ["evaluate", "report"])
def test_scores_of_another_bundle_or_manifest_are_refused(stage: str, run: RunFolder) -> None:
    kept = run.bundle.parent / "kept"
    shutil.copytree(run.bundle, kept)
    done("calibrate", run.path, "--set", "alpha=0.2")
    assert "another manifest or bundle" in refused(stage, run.path)
    shutil.rmtree(run.bundle)
    kept.rename(run.bundle)
    done(stage, run.path)
    # The same scans under other pseudonyms would be strangers to all that was made of them.
    run.site_key.unlink()
    assert "site.key is gone" in refused("prepare", run.path, "--config", run.config)
    assert not run.site_key.exists()
    done(stage, run.path)


def test_figures_are_of_the_rate_that_the_flags_were_raised_at(run: RunFolder) -> None:
    done("score", run.path, "--set", "alpha=0.5")
    done("evaluate", run.path)
    done("report", run.path)
    metrics = json.loads(run.metrics.read_text())
    rows = [row for row in run.results.read()[0] if row.p_value is not None]
    assert metrics["alpha"] == 0.5
    flagged = sum(row.p_value <= 0.5 for row in rows if row.p_value is not None)
    assert metrics["false_alarms"]["count"] + metrics["sensitivity"]["count"] == flagged > 0


# --- calibration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "train"], "were used to train the network or the detector"),
        (["--split", "validation"], "were used to train the network or the detector"),
        (["--split", "test"], "are not labelled 'normal'"),
        (["--split", "tset"], "--split is 'tset': expected one of train, validation"),
        (["--set", "alpha=0.001"], "expected at least 999"),
        (["--set", "alpha=2"], "alpha is 2"),
    ],
)
def test_calibration_refuses_what_would_promise_too_much(
    options: list[str], said: str, run: RunFolder
) -> None:
    before = (run.bundle / "bundle.json").read_bytes()
    assert said in refused("calibrate", run.path, *options)
    assert (run.bundle / "bundle.json").read_bytes() == before


def test_calibration_refuses_to_leave_a_scan_out(road: Road, tmp_path: Path) -> None:
    scans = tmp_path / "archive"
    shutil.copytree(road.scans, scans)
    run = copy(road.trained, tmp_path / "run")
    row = road.manifest.select(split="calibration")[0]
    (scans / row.path).write_bytes(b"")
    message = refused("calibrate", run.path, "--set", f"data.root={scans}")
    assert row.key in message
    assert "would bend the false-alarm rate" in message


def test_scans_recognised_by_content_however_named(road: Road, tmp_path: Path) -> None:
    """Prepared anew under other names and another key, the training scans are still seen."""
    scans = tmp_path / "archive"
    for number, row in enumerate(road.manifest.select(split="train")):
        (scans / "normal" / f"{number}").mkdir(parents=True)
        shutil.copy(road.scans / row.path, scans / "normal" / f"{number}" / "x")
    other = tmp_path / "run"
    only = json.dumps({"calibration": 1.0})
    done("prepare", other, "--config", road.config, "--data", scans, "--set", f"data.splits={only}")
    assert "were used to train" in refused("calibrate", other, "--bundle", road.trained.bundle)


# --- settings ---------------------------------------------------------------------------------


def test_printing_the_configuration_does_nothing_else(road: Road, tmp_path: Path) -> None:
    odd = tmp_path / "a #b: c"  # a path is no YAML
    options = ["--data", odd, "--set", "training.steps=7", "--print-config"]
    said = done("prepare", tmp_path / "run", "--config", road.config, *options)
    (tmp_path / "printed.yaml").write_text(said.out)
    printed = load_config(tmp_path / "printed.yaml")
    assert printed.training.steps == 7
    assert printed.data.root == odd
    assert not (tmp_path / "run").exists()
    before = sorted(road.prepared.path.rglob("*"))
    said = done("train", road.prepared.path, "--set", "training.steps=9", "--print-config")
    assert yaml.safe_load(said.out)["training"]["steps"] == 9
    assert sorted(road.prepared.path.rglob("*")) == before
    assert load_config(road.prepared.config).training.steps == STEPS


@pytest.mark.parametrize("stage", ["train", "calibrate", "score"])
def test_an_unknown_setting_is_refused(stage: str, road: Road) -> None:
    message = refused(stage, road.run.path, "--set", "training.step=5")
    assert "did you mean training.steps?" in message


def test_a_folder_without_scans_is_refused(road: Road, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    prepare = ["prepare", tmp_path / "run", "--config", road.config, "--data"]
    assert "holds no files" in refused(*prepare, tmp_path / "empty")
    assert "is not a folder" in refused(*prepare, tmp_path / "gone")
    (tmp_path / "empty" / "letter.txt").write_text("x")
    assert "No usable scan has label 'normal'" in refused(*prepare, tmp_path / "empty")
    assert not (tmp_path / "run" / "manifest.parquet").exists()


def test_synthetic_scans_are_not_learned_from_unasked(road: Road, tmp_path: Path) -> None:
    options = ["--config", road.config, "--data", road.scans, "--set", "data.allow_synthetic=false"]
    assert "No usable scan" in refused("prepare", tmp_path / "run", *options)


def test_an_operating_system_error_is_one_sentence(road: Road, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = refused("prepare", tmp_path / "file", "--config", road.config, "--data", road.scans)
    assert "file" in message


def test_a_size_the_network_cannot_take_is_refused(road: Road, tmp_path: Path) -> None:
    run = copy(road.prepared, tmp_path / "run")
    message = refused("train", run.path, "--set", "preprocessing.size=18")
    assert "needs a multiple of 4" in message


# --- training ---------------------------------------------------------------------------------


def test_another_configuration_is_refused_and_changes_nothing(run: RunFolder) -> None:
    before = run.config.read_bytes(), (run.path / "checkpoint.pt").read_bytes()
    message = refused("train", run.path, "--set", "training.learning_rate=0.1")
    assert "belongs to another training: training.learning_rate was 0.008 and is 0.1" in message
    assert (run.config.read_bytes(), (run.path / "checkpoint.pt").read_bytes()) == before


@contextlib.contextmanager
def training(run: RunFolder) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "anomaly", "train", str(run.path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_an_interrupted_training_resumes_where_it_stopped(road: Road, tmp_path: Path) -> None:
    run = copy(road.prepared, tmp_path / "run")
    checkpoint = run.path / "checkpoint.pt"
    with training(run) as process:
        until = time.monotonic() + 180
        while not checkpoint.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, err
    step = read_checkpoint(checkpoint)["step"]
    assert 10 <= step < STEPS
    assert f"stopped at step {step}" in err
    assert "Traceback" not in err
    assert not run.bundle.exists()
    done("train", run.path, "--device", "cpu")
    assert read_checkpoint(checkpoint)["step"] == STEPS
    resumed = load_file(run.bundle / "weights.safetensors")
    straight = load_file(road.trained.bundle / "weights.safetensors")
    assert resumed.keys() == straight.keys()
    for name, tensor in straight.items():  # threads differ, hence the tolerance
        np.testing.assert_allclose(resumed[name], tensor, rtol=1e-3, atol=1e-4, err_msg=name)


# --- doctor and demo --------------------------------------------------------------------------


def test_the_doctor_knows_an_intact_bundle_from_a_damaged_one(run: RunFolder) -> None:
    said = done("doctor", "--bundle", run.bundle)
    assert f"intact, hash {read_bundle(run.bundle).hash[:12]}" in said.out
    assert "calibrated on" in said.out
    weights = run.bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said = anomaly("doctor", "--bundle", run.bundle)
    assert said.code == 1
    assert "weights.safetensors has changed" in said.out
    assert "intact" not in said.out
    assert "is no bundle" in refused("doctor", "--bundle", run.path / "nowhere")


def test_the_doctor_shows_which_parts_of_a_network_live(run: RunFolder) -> None:
    said = done("doctor", "--bundle", run.bundle)
    assert "scale 1" in said.out
    assert "scale 2" in said.out
    assert "DEAD" not in said.out
    bundle = read_bundle(run.bundle)
    torch.nn.init.zeros_(
        bundle.network.get_parameter("network.reads.1.weight")
    )  # its features reach no sum
    write_bundle(bundle, run.bundle)
    said = done("doctor", "--bundle", run.bundle)
    assert "scale 2: dead, with less than 4% of an even share at every noise level" in said.out


def test_training_records_the_health_of_its_network(road: Road) -> None:
    first, last = read_metrics(road.run.training_metrics)
    for record in (first, last):
        parts = record["health"]["parts"]
        assert set(parts) == {"scale 1", "scale 2"}
        shares = np.array([part["share"] for part in parts.values()])
        np.testing.assert_allclose(shares.sum(0), 1)
        assert record["health"]["dead"] == []
    assert set(last["update_to_weight"]) == {"scale 1", "scale 2"}
    assert all(0 < ratio < 1 for ratio in last["update_to_weight"].values())
    board = road.run.path / "tensorboard"
    names = [path.name for path in board.iterdir()]
    assert all(re.fullmatch(r"events\.out\.tfevents\.\d+\.host\.\d+\.\d+", name) for name in names)
    events = EventAccumulator(str(board)).Reload()
    drawn = events.Scalars("health/parts/scale 2/share/0")
    assert [event.step for event in drawn] == [first["step"], last["step"]]
    expected = [record["health"]["parts"]["scale 2"]["share"][0] for record in (first, last)]
    assert [event.value for event in drawn] == pytest.approx(expected)


def test_the_doctor_needs_no_bundle() -> None:
    said = done("doctor")
    assert "torch" in said.out
    assert "JPEG 2000" in said.out
    assert "Not a diagnosis" in said.out


def test_the_demo_goes_the_whole_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer phantoms and a smaller network, else as `make demo` does."""
    monkeypatch.setattr("anomaly.pipelines.demo.NORMALS", 48)
    monkeypatch.setattr("anomaly.pipelines.demo.ABNORMALS", 8)
    small = {
        "alpha": 0.2,
        "levels.steps": 20,
        "network.widths": [8, 8, 8],
        "training.steps": 20,
        "training.batch_size": 4,
        "features.draws": 1,
        "look_alikes": 5,
    }
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    said = done("demo", "--out", tmp_path / "demo", *settings)
    run = RunFolder(tmp_path / "demo")
    assert str(run.report) in said.out
    assert run.report.exists()
    assert 0 <= json.loads(run.metrics.read_text())["auroc"]["value"] <= 1
    assert len(Manifest.read(run.manifest).select()) >= 56
    assert done("verify", run.path).out


def test_the_demo_deletes_nothing_but_an_earlier_demo(tmp_path: Path) -> None:
    """A folder named "scans" is no proof of a demo: it may be an archive."""
    treasure = tmp_path / "project" / "scans" / "patient.dcm"
    treasure.parent.mkdir(parents=True)
    treasure.write_bytes(b"precious")
    assert "holds no demo" in refused("demo", "--out", tmp_path / "project")
    assert treasure.read_bytes() == b"precious"


def test_a_demo_that_cannot_begin_leaves_the_one_before(tmp_path: Path) -> None:
    mark = tmp_path / "demo" / "scans" / "normal" / "PHANTOM0001" / "a.dcm"
    mark.parent.mkdir(parents=True)
    mark.write_bytes(b"an earlier demo")
    said = refused("demo", "--out", tmp_path / "demo", "--set", "training.steps=many")
    assert "training.steps" in said
    assert mark.read_bytes() == b"an earlier demo"
