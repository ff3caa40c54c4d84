"""What is listed under a folder, and what is left out with a row that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.table.folders import list_files
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import Manifest
from anomaly.errors import ManifestError
from anomaly.files import holds_results, make_results_folder


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (6, 5)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def build(root: Path) -> Manifest:
    inspection = Inspection(root, IntensityPolicy(), b"k" * 32)
    return build_manifest(inspection, PathNames(labels={"normal": ["*"]}))


@pytest.mark.parametrize("mark", ["made", "site.key", "bundle.json"])
def test_own_results_among_the_scans_are_left_out_with_a_row(tmp_path: Path, mark: str) -> None:
    picture(tmp_path / "scans" / "a.png")
    run = tmp_path / "scans" / "run"
    picture(run / "samples" / "step-000010.png", 1)
    picture(run / "report" / "images" / "b.png", 2)
    if mark == "made":
        make_results_folder(run)
    else:
        (run / mark).write_text("x")
    rows = build(tmp_path / "scans").rows
    assert [(row.path, row.reason) for row in rows] == [("a.png", ""), ("run", "own results")]
    assert holds_results(run)


def test_a_folder_of_results_is_no_folder_of_scans(tmp_path: Path) -> None:
    picture(make_results_folder(tmp_path / "run") / "a.png")
    with pytest.raises(ManifestError, match="results; expected the folder that holds the scans"):
        list_files(tmp_path / "run")


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "b.png", 1)
    root = tmp_path / "scans"
    picture(root / "a.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "twice").symlink_to(tmp_path / "elsewhere")
    (root / "back").symlink_to(root)
    rows = build(root).rows
    assert [(row.path, row.reason) for row in rows] == [
        ("a.png", ""),
        ("back", "link"),
        ("linked/b.png", ""),
        ("twice", "link"),
    ]


def test_two_links_that_lead_to_each_other_end(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "2.png", 1)
    (tmp_path / "a" / "to-b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to-a").symlink_to(tmp_path / "a")
    rows = build(tmp_path).rows
    assert sorted(row.path for row in rows if row.status == "ok") == ["a/1.png", "b/2.png"]
    assert sum(row.reason == "link" for row in rows) == 2


def test_a_folder_keeps_its_own_name_whatever_links_lead_to_it(tmp_path: Path) -> None:
    """Patients are told apart by the names of real folders, not by that of a link before them."""
    picture(tmp_path / "P2" / "1.png")
    (tmp_path / "A-link").symlink_to(tmp_path / "P2")
    rows = build(tmp_path).rows
    assert [(row.path, row.reason) for row in rows] == [("A-link", "link"), ("P2/1.png", "")]


def test_a_link_to_results_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "scans" / "a.png")
    picture(make_results_folder(tmp_path / "run") / "b.png", 1)
    (tmp_path / "scans" / "results").symlink_to(tmp_path / "run")
    rows = build(tmp_path / "scans").rows
    assert [(row.path, row.reason) for row in rows] == [("a.png", ""), ("results", "own results")]
