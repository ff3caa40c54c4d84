"""`prepare` says what it made of a folder, and what the stages after it will not do with it."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly.config import load_config, override, parse_config
from anomaly.data.table.manifest import Manifest
from tests.pipelines.road import Road, done

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def lines(caplog: pytest.LogCaptureFixture) -> str:
    """Messages as a person reads them, with single spaces."""
    return "\n".join(re.sub(r" +", " ", record.getMessage()) for record in caplog.records)


def test_scans_and_patients_of_every_label_and_split(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done("prepare", tmp_path / "run", "--config", road.config, "--data", road.scans)
    rows = Manifest.read(tmp_path / "run" / "manifest.parquet").select()
    for label, split in {(row.label, row.split) for row in rows}:
        cell = [row for row in rows if (row.label, row.split) == (label, split)]
        patients = {row.patient for row in cell}
        assert f"{label}, {split} {len(cell)} {len(patients)}" in lines(caplog)
    # Of twelve and some patients the detector has its ten normals, and alpha = 0.1 its nine.
    assert "needs" not in lines(caplog)


def test_scans_without_a_label_and_patterns_without_a_scan_are_said(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(road.scans, tmp_path / "scans")
    (tmp_path / "scans" / "other").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (40, 30)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "scans" / "other" / f"{number}.png")
    sites = "data.sites={north: [nrth/*], south: ['*']}"
    done(
        *("prepare", tmp_path / "run", "--config", road.config, "--data", tmp_path / "scans"),
        *("--set", sites, "--set", "data.labels.abnormal=[abnormal/*, ill/*]"),
    )
    said = lines(caplog)
    assert "3 scans have no label" in said
    assert "(none), test 3 3" in said
    assert "data.labels.abnormal: no file matches ill/*" in said
    assert "data.sites.north: no file matches nrth/*" in said
    assert "south" not in said


def test_a_pattern_that_another_has_taken_the_files_of_is_said(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Abnormal scans would be learned from as normal."""
    labels = "data.labels={normal: ['*'], abnormal: [abnormal/*]}"
    command = ("prepare", tmp_path / "run", "--config", road.config, "--data", road.scans)
    done(*command, "--set", labels)
    said = "data.labels.abnormal: no file matches abnormal/* that no pattern before it does"
    assert said in lines(caplog)


@pytest.mark.parametrize("spelled", ["masks/", "./masks"])
def test_masks_are_no_scans_however_their_folder_is_spelled(
    road: Road, tmp_path: Path, spelled: str
) -> None:
    command = ("prepare", tmp_path / "run", "--config", road.config, "--data", road.scans)
    done(*command, "--set", f"data.masks={spelled}", "--set", "data.labels.normal=['*']")
    rows = Manifest.read(tmp_path / "run" / "manifest.parquet").rows
    assert not any(row.path.startswith("masks/") for row in rows)


def test_a_folder_of_masks_that_is_not_there_is_said(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ("prepare", tmp_path / "run", "--config", road.config, "--data", road.scans)
    done(*command, "--set", "data.masks=Masks")
    assert "data.masks is Masks, and the scans have no such folder" in lines(caplog)


def test_sites_of_new_scans_that_match_nothing_are_said(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ("score", road.scans / "abnormal", "--bundle", road.run.bundle)
    done(*command, "--out", tmp_path / "out", "--set", "data.sites={x: [nowhere/*]}")
    assert "data.sites.x: no file matches nowhere/*" in lines(caplog)


def test_splits_that_will_not_do_are_said_before_the_work(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done(
        *("prepare", tmp_path / "run", "--config", road.config, "--data", road.scans),
        *("--set", "data.splits={train: 0.9, calibration: 0.1}", "--set", "alpha=0.01"),
        *("--set", "detector={candidates: [{use: [energy]}]}"),
    )
    said = lines(caplog)
    assert "the validation split holds no normal scan" in said
    assert "is fitted on 0 normal scans (validation), and needs 10" in said
    assert "cannot support a false-alarm rate of 0.01: expected at least 99" in said


def test_scans_that_no_network_could_see_are_rows(
    road: Road, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(road.scans, tmp_path / "scans")
    flat = np.zeros((96, 84), dtype=np.uint8)
    flat[:4, :4] = 200  # 99 % of the pixels are equal
    Image.fromarray(flat).save(tmp_path / "scans" / "normal" / "flat.png")
    done("prepare", tmp_path / "run", "--config", road.config, "--data", tmp_path / "scans")
    rows = Manifest.read(tmp_path / "run" / "manifest.parquet").rows
    assert [row.reason for row in rows if row.path.endswith("flat.png")] == ["constant"]
    assert "1 not used: constant" in lines(caplog)


# --- what the documentation says of settings --------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = sorted(
    {
        (page.name, setting.strip("'\""))
        for page in PAGES
        for setting in re.findall(
            r"--set[ =]((?:\"[^\"]+\"|'[^']+'|[^\s`'\"]+)(?:'[^']*')?)", page.read_text()
        )
    }
)


@pytest.mark.parametrize(("page", "setting"), SETTINGS)
def test_every_setting_that_a_page_names_can_be_set(page: str, setting: str) -> None:
    if setting == "a.b=c":  # the form, not a setting
        return
    config = parse_config({"name": "x"})
    changed = override(config, [setting.replace("='", "=").rstrip("'")])
    assert changed != config, (page, setting)


def test_the_pages_name_settings() -> None:
    assert {"alpha=0.01", "a.b=c"} <= {setting for _, setting in SETTINGS}
    assert len(SETTINGS) >= 4


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_configuration_that_is_shipped_is_one(path: Path) -> None:
    assert load_config(path).name
