"""What was said is what is done: rates, devices, folders and stages that are run again."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly.config import load_config
from anomaly.data.table.manifest import Manifest
from anomaly.errors import ConfigError
from anomaly.pipelines.context import pick_device, process_place
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle
from tests.pipelines.road import Road, anomaly, copy, done, refused


@pytest.fixture(autouse=True)
def _messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# --- the operating point ----------------------------------------------------------------------


def flags(run: RunFolder) -> dict[str, bool]:
    return {r.key: bool(r.flagged) for r in run.results.read()[0] if r.status == "scored"}


def expected_flags(run: RunFolder, alpha: float) -> dict[str, bool]:
    return {r.key: (r.p_value or 1) <= alpha for r in run.results.read()[0] if r.status == "scored"}


def test_the_rate_of_the_calibration_is_the_rate_of_the_flags(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy(road.trained, tmp_path / "run")
    done("calibrate", run.path, "--set", "alpha=0.5")
    assert load_config(run.config).alpha == 0.1  # what the configuration says still
    done("score", run.path)
    assert "flagged at alpha = 0.5" in caplog.text
    assert run.results.provenance().alpha == 0.5
    assert flags(run) == expected_flags(run, 0.5)
    assert sum(flags(run).values()) > sum(expected_flags(run, 0.1).values())


def test_another_rate_raises_the_flags_anew_and_computes_nothing(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = {row.key: row for row in run.results.read()[0]}
    done("score", run.path, "--alpha", "0.5")
    assert "1 of 1 finished shards are flagged anew at alpha = 0.5" in caplog.text
    after = {row.key: row for row in run.results.read()[0]}
    assert flags(run) == expected_flags(run, 0.5)
    assert flags(run) != {key: bool(before[key].flagged) for key in flags(run)}
    for key, row in after.items():
        assert (row.score, row.p_value) == (before[key].score, before[key].p_value)
    done("score", run.path)
    again = {row.key: row for row in run.results.read()[0]}
    assert again == before


def test_a_rate_that_the_calibration_cannot_keep_is_refused(road: Road, run: RunFolder) -> None:
    n = len(read_bundle(run.bundle).calibration().scores.scores)
    before = flags(run)
    said = refused("score", run.path, "--alpha", "0.001")
    assert f"{n} calibration scans cannot support a false-alarm rate of 0.001" in said
    assert "999" in said
    assert flags(run) == before
    assert "not calibrated" in refused("score", road.trained.path, "--alpha", "0.2")


def test_new_scans_are_flagged_at_the_rate_of_the_bundle(road: Road, tmp_path: Path) -> None:
    command = ("score", road.scans / "abnormal", "--bundle", road.run.bundle, "--out")
    done(*command, tmp_path / "a")
    run = RunFolder(tmp_path / "a")
    assert run.results.provenance().alpha == 0.1
    assert flags(run) == expected_flags(run, 0.1)
    # The README's own line.
    done(*command, tmp_path / "b", "--set", "alpha=0.3")
    assert flags(RunFolder(tmp_path / "b")) == expected_flags(RunFolder(tmp_path / "b"), 0.3)


# --- a stage that is run again ----------------------------------------------------------------


def test_training_again_leaves_the_calibration(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_bundle(run.bundle).hash
    done("train", run.path, "--device", "cpu")
    assert "nothing to do" in caplog.text
    assert read_bundle(run.bundle).hash == before
    assert read_bundle(run.bundle).calibrated is not None


def test_looking_more_often_is_no_other_training(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_bundle(run.bundle).hash
    often = ("--set", "training.checkpoint_every=7", "--set", "training.validate_every=5")
    done("train", run.path, "--device", "cpu", *often, "--set", "name=another name")
    assert "nothing to do" in caplog.text
    assert read_bundle(run.bundle).hash == before


def test_a_bundle_that_is_half_copied_is_copied_again(road: Road, tmp_path: Path) -> None:
    command = (
        "score",
        road.scans / "abnormal",
        "--bundle",
        road.run.bundle,
        "--out",
        tmp_path / "a",
    )
    done(*command)
    run = RunFolder(tmp_path / "a")
    (run.bundle / "weights.safetensors").write_bytes(b"half of it")
    run.results.forget(0)
    done(*command)
    assert read_bundle(run.bundle).hash == read_bundle(road.run.bundle).hash
    assert sorted(p.name for p in run.path.glob("*bundle*")) == ["bundle"]


def test_another_detector_is_fitted_and_the_lost_calibration_said(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    said = done("train", run.path, "--device", "cpu", "--set", "features.draws=2").out
    assert "calibrate it again" in caplog.text
    assert read_bundle(run.bundle).calibrated is None
    assert f"the bundle is {run.bundle}; next: anomaly calibrate {run.path}" in said


def test_calibrating_again_changes_nothing(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_bundle(run.bundle).hash
    done("calibrate", run.path)
    assert "nothing to do" in caplog.text
    assert read_bundle(run.bundle).hash == before


def test_preparing_again_needs_the_same_scans(road: Road, run: RunFolder, tmp_path: Path) -> None:
    done("prepare", run.path, "--config", road.config, "--data", road.scans)
    shutil.copytree(road.scans, tmp_path / "fewer")
    next((tmp_path / "fewer" / "normal").rglob("*.dcm")).unlink()
    said = refused("prepare", run.path, "--config", road.config, "--data", tmp_path / "fewer")
    assert "another table of scans" in said
    assert Manifest.read(run.manifest).hash == road.manifest.hash


def test_two_folders_of_one_name_do_not_share_their_scores(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(road.scans.rglob("*.dcm"))[:4]
    for site, part in (("siteA", files[:2]), ("siteB", files[2:])):
        (tmp_path / site / "scans").mkdir(parents=True)
        for path in part:
            shutil.copy(path, tmp_path / site / "scans")
    monkeypatch.chdir(tmp_path)
    done("score", "siteA/scans", "--bundle", road.run.bundle)
    run = RunFolder(Path("runs/scans-scores"))
    before = flags(run)
    done("feedback", run.path, min(before), "agree")
    said = refused("score", "siteB/scans", "--bundle", road.run.bundle)
    assert "holds the scores of" in said
    assert "siteA/scans" in said
    assert flags(run) == before
    assert "agree" in done("query", run.path, "SELECT * FROM feedback").out
    done("score", "siteB/scans", "--bundle", road.run.bundle, "--out", "runs/b")
    assert not flags(RunFolder(Path("runs/b"))).keys() & before.keys()


def test_resuming_with_other_settings_lists_again(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(road.scans / "abnormal", scans / "north")
    command = ("score", scans, "--bundle", road.run.bundle, "--out", tmp_path / "run")
    done(*command)
    run = RunFolder(tmp_path / "run")
    run.results.forget(0)  # as if it had been broken off
    done(*command, "--set", "data.sites={north: [north/*]}")
    assert "data.sites differ" in caplog.text
    assert {row.site for row in run.results.read()[0]} == {"north"}
    run.results.forget(0)
    done(*command, "--set", "data.sites={north: [north/*]}")
    assert "going on with the list of scans" in caplog.text


def test_two_trainings_in_one_folder_are_refused(road: Road, tmp_path: Path) -> None:
    from anomaly.scoring.leases import Leases

    run = copy(road.prepared, tmp_path / "run")
    lease = Leases().claim(run.path / "training.lease")
    assert lease is not None
    with lease:
        assert "another training is at work" in refused("train", run.path, "--device", "cpu")


# --- devices and numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["foo", "cuda:", "cuda:x", "cuda:-1", "gpu", ""])
def test_a_device_that_is_none_is_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda, cuda:N or mps"):
        pick_device(name, {})


def cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_the_device_that_is_named_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, 4)
    assert pick_device("cuda:3", {}) == torch.device("cuda", 3)
    assert pick_device("cuda", {"LOCAL_RANK": "2", "WORLD_SIZE": "4"}) == torch.device("cuda", 2)
    assert pick_device("auto", {}) == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="there are 4 CUDA devices here"):
        pick_device("cuda:7", {})
    with pytest.raises(ConfigError, match="every process on one device"):
        pick_device("cuda:1", {"WORLD_SIZE": "2"})
    cuda(monkeypatch, 0)
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        pick_device("cuda:0", {})
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="mps"):
        pick_device("mps", {})


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "x"},
        {"RANK": "3", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": ""},
        {"RANK": "1"},
    ],
)
def test_a_place_among_processes_that_is_none_is_one_sentence(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="nset"):
        process_place(environment)


def test_nonsense_of_the_environment_is_no_traceback(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(road.prepared, tmp_path / "run")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "many")
    assert "WORLD_SIZE is 'many'" in refused("train", run.path, "--device", "cpu")


@pytest.mark.parametrize(
    "arguments", [("report", "--max-images", "-5"), ("figures", "--scans", "1")]
)
def test_numbers_out_of_range_are_refused(run: RunFolder, arguments: tuple[str, ...]) -> None:
    said = anomaly(arguments[0], run.path, *arguments[1:])
    assert said.code == 2
    assert "greater than or equal" in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--query", "PatientID=1"), "--query has no effect here"),
        (("--out", "elsewhere"), "--out has no effect here"),
        (("--scans", ".", "--data", "."), "--data has no effect here"),
        (("--calling", "SCANNER"), "--calling has no effect here"),
        (("--send", "https://127.0.0.1:1", "--calling", "SCANNER"), "--calling has no effect here"),
        (("--shard", "1/2", "--ray", "2"), "--shard has no effect here"),
    ],
)
def test_an_option_without_effect_is_refused(
    run: RunFolder, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused("score", run.path, *arguments)


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("train", "data.seed=9"),
        ("train", "data.labels.normal=[abnormal/*]"),
        ("train", "data.sites={x: ['*']}"),
        ("train", "gate.modalities=[CR]"),
        ("calibrate", "data.splits={train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}"),
        ("calibrate", "features.draws=4"),
        ("calibrate", "training.steps=9"),
        ("score", "data.patient_pattern='(P[0-9]+)'"),
        ("score", "data.masks=others"),
        ("score", "look_alikes=9"),
        ("score", "detector.nuisance_copies=4"),
    ],
)
def test_a_setting_that_a_stage_does_not_heed_is_refused_and_not_noted_down(
    run: RunFolder, stage: str, setting: str
) -> None:
    before = run.config.read_text()
    name = setting.partition("=")[0]
    said = refused(stage, run.path, "--set", setting)
    assert "has no effect here" in said
    assert ".".join(name.split(".")[:2]) in said
    assert run.config.read_text() == before


def test_a_folder_that_is_named_is_the_one_that_is_scored(road: Road, tmp_path: Path) -> None:
    command = (
        "score",
        road.scans / "abnormal",
        "--bundle",
        road.run.bundle,
        "--out",
        tmp_path / "a",
    )
    for setting in (f"data.root={road.scans}", f"data={{root: {road.scans}}}"):
        said = refused(*command, "--set", setting)
        assert "has no effect here" in said
    assert "training.steps has no effect" in refused(*command, "--set", "training.steps=3")


def test_a_rate_is_set_once(run: RunFolder) -> None:
    assert "alpha is set twice" in refused(
        "score", run.path, "--alpha", "0.2", "--set", "alpha=0.3"
    )


def test_images_that_are_not_shown_are_not_counted(run: RunFolder) -> None:
    assert "--max-images has no effect" in refused(
        "report", run.path, "--no-images", "--max-images", 3
    )


# --- what must not be lost --------------------------------------------------------------------


def test_preparing_again_with_other_settings_is_refused(
    road: Road, run: RunFolder, tmp_path: Path
) -> None:
    before = run.config.read_text()
    prepare = ("prepare", run.path, "--config", road.config, "--data", road.scans, "--set")
    for setting in ("data.sites={north: ['*']}", "preprocessing.size=32", "alpha=0.2"):
        assert "made with other settings" in refused(*prepare, setting)
    assert run.config.read_text() == before
    done(*prepare, "data.workers=1")


def test_the_rate_of_a_calibration_outlives_the_next_one(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    done("calibrate", run.path, "--set", "alpha=0.2")
    done("calibrate", run.path)
    assert "calibrating at alpha = 0.2 as before; the configuration says 0.1" in caplog.text
    assert calibrated_rate(run) == 0.2
    done("calibrate", run.path, "--set", "alpha=0.1")
    assert calibrated_rate(run) == 0.1


def calibrated_rate(run: RunFolder) -> float:
    calibrated = read_bundle(run.bundle).calibrated
    assert calibrated is not None
    return calibrated.alpha


def test_no_folder_of_scans_is_made_one_of_results(
    road: Road, run: RunFolder, tmp_path: Path
) -> None:
    """A mark in it would hide its scans from then on."""
    scans = tmp_path / "scans"
    shutil.copytree(road.scans / "abnormal", scans)
    bundle = ("--bundle", road.run.bundle)
    refused("dicom", run.path, "--out", scans)
    refused("score", scans, *bundle, "--out", scans)
    refused("prepare", scans, "--config", road.config, "--data", scans)
    done("score", scans, *bundle, "--out", tmp_path / "out")
    assert flags(RunFolder(tmp_path / "out"))


def test_figures_go_beside_others_and_touch_none(
    road: Road, run: RunFolder, tmp_path: Path
) -> None:
    """A paper's own folder has figures of its own, and scans may lie there too."""
    paper = tmp_path / "paper"
    shutil.copytree(road.scans / "abnormal", paper / "scans")
    (paper / "figure1.png").write_bytes(b"mine")
    done("figures", run.path, "--out", paper)
    assert (paper / "figure1.png").read_bytes() == b"mine"
    done("score", paper, "--bundle", road.run.bundle, "--out", tmp_path / "out")
    assert flags(RunFolder(tmp_path / "out"))
    drawn = (paper / "scores.png").read_bytes()
    done("figures", run.path, "--out", paper)
    (paper / "scores.png").write_bytes(b"mine too")
    assert "scores.png is there, and may be yours" in refused("figures", run.path, "--out", paper)
    assert (paper / "scores.png").read_bytes() == b"mine too" != drawn


@pytest.mark.parametrize(
    "entries", [["NOTES.md"], ["slurm-1.out"], ["lost+found/"], ["tex/paper.tex", "a.svg"], ["raw"]]
)
def test_what_is_no_scan_keeps_no_run_from_a_folder(
    road: Road, tmp_path: Path, entries: list[str]
) -> None:
    folder = tmp_path / "run"
    for entry in entries:
        (folder / entry).parent.mkdir(parents=True, exist_ok=True)
        if entry.endswith("/"):
            (folder / entry).mkdir()
        else:
            (folder / entry).write_text("no scan")
    done("score", road.scans / "abnormal", "--bundle", road.run.bundle, "--out", folder)


@pytest.mark.parametrize("name", ["deep/er/scan", "a.PNG", "vol.nii.gz", "x.zip"])
def test_what_may_be_a_scan_does(road: Road, tmp_path: Path, name: str) -> None:
    scan = tmp_path / "run" / name
    scan.parent.mkdir(parents=True)
    shutil.copy(next(road.scans.rglob("*.dcm")), scan)
    said = refused(
        "score", road.scans / "abnormal", "--bundle", road.run.bundle, "--out", tmp_path / "run"
    )
    assert f"holds {name} and is no folder of results" in said


def test_a_link_that_leads_elsewhere_by_now_is_another_folder(road: Road, tmp_path: Path) -> None:
    files = sorted(road.scans.rglob("*.dcm"))[:2]
    for name, path in zip(("a", "b"), files, strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(path, tmp_path / name)
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "a")
    command = ("score", link, "--bundle", road.run.bundle, "--out", tmp_path / "out")
    done(*command)
    before = flags(RunFolder(tmp_path / "out"))
    link.unlink()
    link.symlink_to(tmp_path / "b")
    assert "holds the scores of" in refused(*command)
    assert flags(RunFolder(tmp_path / "out")) == before


def test_scores_by_another_bundle_take_no_place(road: Road, run: RunFolder, tmp_path: Path) -> None:
    other = ("--bundle", "zhanglab")
    command = ("score", road.scans / "abnormal", "--out", tmp_path / "out", "--bundle")
    done(*command, road.run.bundle)
    done("feedback", tmp_path / "out", min(flags(RunFolder(tmp_path / "out"))), "agree")
    assert "scores by another bundle" in refused(*command, "zhanglab")
    assert "has a bundle of its own" in refused("score", road.run.path, *other)
    assert "trained a bundle of its own" in refused("calibrate", road.run.path, *other)


def test_scores_by_the_same_detector_calibrated_anew_are_raised_anew(
    road: Road, run: RunFolder, tmp_path: Path
) -> None:
    """Who scores a folder every day recalibrates now and then."""
    command = ("score", road.scans / "abnormal", "--out", tmp_path / "out", "--bundle")
    done(*command, road.run.bundle)
    before = {row.key: row for row in RunFolder(tmp_path / "out").results.read()[0]}
    done("calibrate", run.path, "--set", "alpha=0.4")
    done(*command, run.bundle)
    rows, provenance = RunFolder(tmp_path / "out").results.read()
    assert provenance.alpha == 0.4
    assert [row.score for row in rows] == [before[row.key].score for row in rows]
    assert sum(row.flagged or False for row in rows) >= sum(
        row.flagged or False for row in before.values()
    )


def test_the_rate_of_a_bundle_from_elsewhere_is_not_that_of_the_run(
    road: Road, tmp_path: Path
) -> None:
    """`calibrate` goes on at the rate that the run's own bundle has, not at another's."""
    config = tmp_path / "config.yaml"
    config.write_text(road.config.read_text())
    done(
        "prepare", tmp_path / "new", "--config", config, "--data", road.scans, "--set", "alpha=0.3"
    )
    said = done("calibrate", tmp_path / "new", "--bundle", road.run.bundle).err
    assert "as before" not in said
    assert read_bundle(tmp_path / "new" / "bundle").calibration().alpha == 0.3


def test_a_table_is_not_changed_under_a_training(road: Road, tmp_path: Path) -> None:
    from anomaly.scoring.leases import Leases

    run = copy(road.prepared, tmp_path / "run")
    lease = Leases().claim(run.path / "training.lease")
    assert lease is not None
    with lease:
        said = refused("prepare", run.path, "--config", road.config, "--data", road.scans)
    assert "a training is at work" in said


# --- where the scans are ----------------------------------------------------------------------


def test_a_relative_folder_means_the_same_everywhere(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same commands in another folder, where other scans lie under the same names."""
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(road.scans, here / "archive")
    monkeypatch.chdir(here)
    done("prepare", "run", "--config", road.config, "--data", "archive")
    run = RunFolder(here / "run")
    assert load_config(run.config).data.root == here / "archive"
    shutil.copytree(road.trained.bundle, run.bundle)
    shutil.copytree(here / "archive", there / "archive")
    for path in (there / "archive").rglob("*.dcm"):
        path.write_bytes(b"other")
    monkeypatch.chdir(there)
    done("calibrate", run.path)
    done("score", run.path)
    reasons = {row.reason for row in run.results.read()[0] if row.status != "scored"}
    assert reasons == {row.reason for row in road.rows if row.status != "scored"}
    metrics = json.loads(road.run.metrics.read_text())
    done("evaluate", run.path)
    assert json.loads(run.metrics.read_text())["auroc"] == metrics["auroc"]


def test_every_stage_takes_the_folder_where_the_scans_are_now(road: Road, tmp_path: Path) -> None:
    run = copy(road.run, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(road.scans, moved)
    config = load_config(run.config)
    gone = replace(config.data, root=tmp_path / "gone")
    from anomaly.config import dump

    run.config.write_text(dump(replace(config, data=gone)))
    run.results.forget(0)
    assert "mounted" in refused("score", run.path)
    done("score", run.path, "--data", moved)
    for stage in ("evaluate", "report", "figures", "dicom", "calibrate"):
        done(stage, run.path, "--data", moved)
    assert list(run.report.parent.glob("images/*.png"))
    assert np.isfinite(json.loads(run.metrics.read_text())["auroc"]["value"])
