"""Evidence maps that rot on the disk cost their scans' pictures, never a page or a run."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest

from anomaly.config import load_config, write_config
from anomaly.data.table.manifest import Manifest
from anomaly.pipelines.run import RunFolder
from anomaly.store.results import ScoreRow
from tests.pipelines.road import damage_map, done


def page_rows(run: RunFolder) -> dict[str, dict[str, Any]]:
    page = run.report.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None
    return {row["key"]: row for row in json.loads(data[1])["rows"]}


def scored(run: RunFolder) -> list[ScoreRow]:
    return [row for row in run.results.read()[0] if row.status == "scored"]


@pytest.fixture
def one_damaged(run: RunFolder) -> tuple[RunFolder, str]:
    """Return a run whose most unusual scan has a damaged map, and that scan."""
    row = min(scored(run), key=lambda row: (row.p_value, -(row.score or 0)))
    assert row.flagged
    assert row.map_part is not None
    damage_map(run.results.maps(row.map_part), row.key)
    return run, row.key


def test_the_page_shows_a_scan_without_its_damaged_map(
    one_damaged: tuple[RunFolder, str],
) -> None:
    run, key = one_damaged
    done("report", run.path)
    rows = page_rows(run)
    regions = next(row.regions for row in scored(run) if row.key == key)
    # After the sentence that explains the score, which is kept with the row.
    assert rows[key]["note"].endswith(
        f" The evidence map of this scan cannot be read (map damaged); {regions} regions were "
        "beyond the limit when it was scored."
    )
    assert rows[key]["status"] == "flagged"
    assert rows[key]["regions"] == []
    assert rows[key]["figure"]["image"] == f"images/{key}-image.png"
    assert rows[key]["figure"]["overlay"] is None
    others = [row for row in rows.values() if row["status"] != "not scored" and row["key"] != key]
    assert len(others) == len(scored(run)) - 1
    assert all(row["figure"]["overlay"] for row in others)


def test_without_its_maps_file_a_run_still_has_a_page(run: RunFolder) -> None:
    run.results.maps(0).unlink()
    done("report", run.path)
    rows = [row for row in page_rows(run).values() if row["status"] != "not scored"]
    assert len(rows) == len(scored(run))
    assert all("cannot be read (map missing)" in row["note"] for row in rows)
    assert all(row["figure"]["overlay"] is None for row in rows)


def test_the_other_scans_get_their_dicom_objects(one_damaged: tuple[RunFolder, str]) -> None:
    run, _ = one_damaged
    said = done("dicom", run.path, "--objects", "report")
    assert f"{len(scored(run)) - 1} objects in" in said.out
    record = json.loads((run.path / "run.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert record["left_out"] == {"map damaged": 1}


def test_an_image_of_another_shape_is_not_shown(run: RunFolder, tmp_path: Path) -> None:
    """Another file lies where a scan was: its row stays, and its map is drawn over nothing."""
    row = scored(run)[0]
    moved = tmp_path / "archive"
    config = load_config(run.config)
    root = config.data.root
    shutil.copytree(root, moved)
    paths = {scan.key: scan.path for scan in Manifest.read(run.manifest).rows}
    dataset = pydicom.dcmread(moved / paths[row.key])
    dataset.PixelData = dataset.pixel_array[:-2].tobytes()
    dataset.Rows -= 2
    dataset.save_as(moved / paths[row.key])
    write_config(run.config, replace(config, data=replace(config.data, root=moved)))
    done("report", run.path)
    shown = page_rows(run)[row.key]
    assert shown["figure"] is None
    assert "The image can no longer be read (changed), so it is not shown." in shown["note"]
