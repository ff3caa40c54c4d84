"""`anomaly report --pdf KEY`: one study of a run on paper, and nobody's name on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image

from anomaly.data.table.manifest import Manifest
from anomaly.pipelines.run import RunFolder
from anomaly.store.results import ScoreRow
from tests.pipelines.road import Road, damage_map, done, refused

try:
    import weasyprint  # noqa: F401
except (ImportError, OSError) as error:
    pytest.skip(f"WeasyPrint cannot be used here: {error}", allow_module_level=True)
pypdf = pytest.importorskip("pypdf")


@pytest.fixture(scope="module")
def studies(road: Road, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a scored run: a study of three scans, one cut off since it was listed; another study;
    an image that names none, and so does a file that never could be read.
    """
    root = tmp_path_factory.mktemp("studies")
    scans = root / "scans"
    scans.mkdir()
    sources = sorted((road.scans / "abnormal").rglob("*.dcm"))[:4]
    first = pydicom.dcmread(sources[0])
    for number, source in enumerate(sources):
        dataset = pydicom.dcmread(source)
        if number < 3:
            dataset.StudyInstanceUID = first.StudyInstanceUID
            dataset.PatientID, dataset.PatientName = first.PatientID, first.PatientName
        dataset.save_as(scans / f"{number}.dcm")
    Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (96, 1))).save(scans / "x.png")
    (scans / "y.dcm").write_bytes((scans / "0.dcm").read_bytes()[:-500])
    run = RunFolder(root / "run")
    command = ("score", scans, "--bundle", road.run.bundle, "--out", run.path)
    done(*command)
    (scans / "2.dcm").write_bytes((scans / "2.dcm").read_bytes()[:-500])
    run.results.forget(0)
    done(*command)
    return run


def three(run: RunFolder) -> list[ScoreRow]:
    """Rows of the study of three scans."""
    rows = run.results.read()[0]
    named = [row.study for row in rows if row.study]
    return [row for row in rows if row.study == max(named, key=named.count)]


def paper(run: RunFolder, key: str, *options: str) -> tuple[Path, Any]:
    """Make a PDF; return where the command says it is, and its reader."""
    said = done("report", run.path, "--pdf", key, *options)
    path = Path(said.out.splitlines()[0])
    return path, pypdf.PdfReader(path)


def text(reader: Any) -> str:
    return re.sub(r"\s+", " ", " ".join(page.extract_text() for page in reader.pages))


def test_a_study_is_found_by_its_key_and_by_that_of_a_scan_in_it(studies: RunFolder) -> None:
    rows = three(studies)
    study = rows[0].study
    assert [row.status for row in rows].count("scored") == 2
    files = []
    for key in (study, *(row.key for row in rows)):
        path, reader = paper(studies, key)
        assert path == studies.path / "studies" / f"{study}.pdf"
        files.append(path.read_bytes())
    assert len(set(files)) == 1
    assert len(reader.pages) == 3
    said = text(reader)
    scored = sorted(
        (row for row in rows if row.status == "scored"), key=lambda r: (r.p_value, -(r.score or 0))
    )
    for number, row in enumerate(scored, 1):
        assert f"Study {study} · scan {number} of 2" in said
        assert f"Scan {row.key}" in reader.pages[number - 1].extract_text()
    (lost,) = (row for row in rows if row.status != "scored")
    assert f"{lost.key} PA {lost.reason}" in said
    assert said.count("not scored and of no known study: 1 of the run's files;") == 3
    assert not any(row.key in said for row in studies.results.read()[0] if row.study != study)
    assert not studies.report.exists()  # the page is another command


def test_a_scan_of_no_study_stands_alone(studies: RunFolder) -> None:
    rows = studies.results.read()[0]
    (row,) = (row for row in rows if row.status == "scored" and not row.study)
    path, reader = paper(studies, row.key)
    assert path.name == f"{row.key}.pdf"
    assert len(reader.pages) == 1
    assert f"Study {row.key} · " in text(reader)


def test_without_images_there_are_none(studies: RunFolder) -> None:
    _, reader = paper(studies, three(studies)[0].key, "--no-images")
    assert [len(page.images) for page in reader.pages] == [0, 0, 0]
    assert "No patient identifiers and no images." in text(reader)


def test_a_damaged_map_costs_its_drawing(road: Road, run: RunFolder) -> None:
    row = next(row for row in road.rows if row.flagged)
    damage_map(run.results.maps(0), row.key)
    _, reader = paper(run, row.key)
    assert "The evidence map of this scan cannot be read (map damaged);" in text(reader)
    assert "▲ Flagged" in text(reader)
    assert "No map." in text(reader)
    assert len(reader.pages[0].images) == 2  # the scan, and a normal one like it


def test_no_name_uid_date_or_path_is_in_the_file(studies: RunFolder) -> None:
    rows = three(studies)
    path, reader = paper(studies, rows[0].key)
    everything = text(reader) + str(reader.metadata) + path.read_bytes().decode("latin-1")
    everything += reader.root_object["/Metadata"].get_data().decode()
    by_key = {scan.key: scan for scan in Manifest.read(studies.manifest).rows}
    secrets = {str(studies.path.parent), "weasyprint.org"}
    for row in rows[:2]:
        dataset = pydicom.dcmread(studies.path.parent / "scans" / by_key[row.key].path)
        names = ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDate")
        secrets |= {str(dataset[name].value) for name in names if dataset.get(name)}
    assert len(secrets) >= 6
    assert [secret for secret in secrets if secret in everything] == []
    assert not re.search(r"/(CreationDate|ModDate|Author)\b", everything)


@pytest.mark.parametrize("key", ["", "nobody", "../scores"])
def test_a_key_of_nobody_is_refused(studies: RunFolder, key: str) -> None:
    error = refused("report", studies.path, "--pdf", key)
    assert f"no scan and no study of {studies.path} has the pseudonym {key!r}" in error
    assert "scores.csv" in error


def test_a_pdf_is_one_file_anyway(studies: RunFolder) -> None:
    error = refused("report", studies.path, "--pdf", three(studies)[0].key, "--single-file")
    assert "leave --single-file away" in error


def test_a_run_without_scores_has_no_studies(road: Road) -> None:
    assert "run `anomaly" in refused("report", road.trained.path, "--pdf", "a")
