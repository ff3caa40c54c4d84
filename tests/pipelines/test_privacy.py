"""Nothing that names a person, a place or a file leaves by an output that is meant to be shared."""

from __future__ import annotations

import csv
import logging
import platform
import socket
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from openpyxl import load_workbook

from anomaly.data.table.manifest import Manifest
from anomaly.logs import AllowList
from anomaly.pipelines.run import RunFolder
from anomaly.scoring.leases import Leases
from tests.pipelines.road import Road, done, refused

CANARY = "CANARY"
PRIVATE = {"manifest.parquet", "site.key", "config.yaml", "feedback.sqlite"}
"""Files of a run that are its owner's."""

FOR_THE_ARCHIVE = "dicom"
"""Folder of objects that carry the patient by necessity."""

TEXT = {"PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE"}
IDENTIFYING = (
    *("PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "PatientAddress"),
    *("AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "StationName"),
    *("ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName", "RequestingPhysician"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "AdditionalPatientHistory"),
    *("DeviceSerialNumber", "ImageComments", "RequestingService", "PatientBirthName"),
    *("ViewPosition", "ImageLaterality", "BodyPartExamined"),
)
DATES = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")


def plant(source: Path, target: Path, number: int) -> None:
    """Copy a DICOM file with the canary in every tag that may identify, and in every UID."""
    dataset = pydicom.dcmread(source)
    for name in IDENTIFYING:
        dataset.add_new(name, pydicom.datadict.dictionary_VR(name), f"{CANARY}{number}")
    for name in DATES:
        dataset.add_new(name, "DA", "17760704")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        dataset.add_new(name, "UI", f"1.2.17760704.{number % 3}.{number}")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for element in dataset:
        if element.VR in TEXT and element.keyword not in ("SoftwareVersions", "Manufacturer"):
            element.value = f"{CANARY}{number}"
    dataset.PatientID = f"={CANARY}{number}"  # a formula, to a spreadsheet
    dataset.add_new(0x00091001, "LO", f"{CANARY} private")
    dataset.save_as(target)


@pytest.fixture(scope="module")
def archive(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / f"{CANARY}_ward" / f"{CANARY}_patient"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(road.scans.rglob("*.dcm"))[:6]):
        plant(path, folder / f"{CANARY}_{number}.dcm", number)
    (folder / f"{CANARY}_cut.dcm").write_bytes((folder / f"{CANARY}_0.dcm").read_bytes()[:3000])
    (folder / f"{CANARY}.txt").write_text(CANARY)
    return folder.parent


@pytest.fixture(scope="module")
def run(
    road: Road, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, str]:
    """Every command on such an archive, on a machine of such a name; what they printed."""
    run = RunFolder(tmp_path_factory.mktemp("out") / "run")
    bundle = ("--bundle", road.run.bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: f"{CANARY}host")
        patch.setattr(platform, "node", lambda: f"{CANARY}host")
        patch.setenv("HOSTNAME", f"{CANARY}host")
        patch.setenv("USER", CANARY)
        sites = "data.sites={north: ['*_patient/*']}"
        said = [done("score", archive, *bundle, "--out", run.path, "--set", sites)]
        lease = Leases().claim(run.results.folder / "part-99999.lease")
        assert lease is not None
        (run.path / "lease.txt").write_bytes(lease.path.read_bytes())
        lease.release()
        said.append(done("report", run.path))
        said.append(done("dicom", run.path))
        said.append(done("status", run.path))
        for table in ("scores", "studies", "patients"):
            said.append(done("query", run.path, f"SELECT * FROM {table}"))  # noqa: S608
        for name in ("shared.csv", "shared.xlsx"):
            said.append(done("export", run.path, run.path / name))
        refused("query", run.path, "SELECT nothing FROM scores")
    return run, "".join(part.out + part.err for part in said)


def text_of(path: Path) -> str:
    """Everything that a file says, unpacked."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return f"{table.to_pylist()} {table.schema.metadata}"
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return " ".join(arrays)
    if path.suffix == ".xlsx":
        book = load_workbook(path)
        names = f"{book.properties.creator} {book.properties.lastModifiedBy}"
        return names + str([[cell.value for cell in row] for row in book.active.rows])
    return path.read_bytes().decode("latin-1")


def test_no_canary_sings_in_what_may_be_shared(run: tuple[RunFolder, str]) -> None:
    folder, said = run
    files = [
        path
        for path in folder.path.rglob("*")
        if path.is_file() and path.name not in PRIVATE and path.parent.name != FOR_THE_ARCHIVE
    ]
    names = {path.name for path in files}
    assert {"scores.csv", "index.html", "run.jsonl", "shared.csv", "shared.xlsx"} <= names
    assert {"part-00000.parquet", "maps-00000.npz", "job.json", "lease.txt"} <= names
    texts = {path.name: text_of(path) for path in files} | {"printed": said, "names": str(names)}
    for name, text in texts.items():
        for secret in (CANARY, CANARY.lower(), "17760704", "1776-07-04"):
            assert secret not in text, f"{name} holds {secret}"
    rows = folder.results.read()[0]
    assert sum(row.status == "scored" for row in rows) == 6
    assert {row.view for row in rows if row.status == "scored"} == {"other"}
    assert {row.site for row in rows} == {"north"}


def test_the_mapping_is_for_its_owner_alone(run: tuple[RunFolder, str]) -> None:
    folder, _ = run
    for path in (folder.manifest, folder.site_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    by_key = {row.key: row for row in Manifest.read(folder.manifest).rows}
    for row in folder.results.read()[0]:
        assert CANARY in by_key[row.key].path  # it does map


def test_objects_carry_the_patient_and_nothing_else_that_is_private(
    run: tuple[RunFolder, str], archive: Path
) -> None:
    folder, _ = run
    paths = sorted((folder.path / FOR_THE_ARCHIVE).glob("*.dcm"))
    assert paths
    for path in paths:
        made = pydicom.dcmread(path)
        assert CANARY in str(made.PatientName)
        content = path.read_bytes()
        assert f"{CANARY} private".encode() not in content
        assert str(archive).encode() not in content
        assert f"{CANARY}host".encode() not in content
        assert "OperatorsName" not in made
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_identifiers_are_there_when_asked_for(
    suffix: str, run: tuple[RunFolder, str], tmp_path: Path
) -> None:
    folder, _ = run
    out = tmp_path / f"named.{suffix}"
    said = done("export", folder.path, out, "--with-identifiers")
    assert "do not share it" in said.out
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    if suffix == "csv":
        with out.open(newline="", encoding="utf-8") as file:
            head, *lines = list(csv.reader(file))
    else:
        head, *lines = [[cell.value for cell in row] for row in load_workbook(out).active.rows]
    by_key = {row.key: row for row in Manifest.read(folder.manifest).rows}
    found = [dict(zip(head, line, strict=True)) for line in lines]
    assert [line["key"] for line in found] == [row.key for row in folder.results.read()[0]]
    for line in found:
        row = by_key[line["key"]]
        assert line["source_path"] == row.path
        # What a spreadsheet would compute has a quote before it in CSV.
        assert (line["source_patient"] or "").removeprefix("'") == row.patient
        assert (line["source_instance"] or "") == row.instance


def test_a_name_is_no_formula(run: tuple[RunFolder, str], tmp_path: Path) -> None:
    folder, _ = run
    done("export", folder.path, tmp_path / "t.xlsx", "--with-identifiers")
    (sheet,) = load_workbook(tmp_path / "t.xlsx").worksheets
    cells = [cell for row in sheet.rows for cell in row]
    assert sum(str(cell.value).startswith("=") for cell in cells) == 6
    assert "f" not in {cell.data_type for cell in cells}


def test_an_export_of_what_is_not_scored_or_unknown_is_refused(
    run: tuple[RunFolder, str], tmp_path: Path
) -> None:
    folder, _ = run
    assert "expected .csv or .xlsx" in refused("export", folder.path, tmp_path / "t.txt")
    assert "no is no folder" in refused("export", folder.path, tmp_path / "no" / "t.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_feedback_is_kept_beside_the_results(run: tuple[RunFolder, str]) -> None:
    folder, _ = run
    before = folder.results.part(0).read_bytes()
    key = folder.results.read()[0][0].key
    done("feedback", folder.path, key, "disagree", "--comment", "a clip", "--reader", "r1")
    said = done("query", folder.path, "SELECT key, opinion, comment, reader FROM feedback")
    assert list(csv.reader(said.out.splitlines()))[1:] == [[key, "disagree", "a clip", "r1"]]
    assert folder.results.part(0).read_bytes() == before
    assert stat.S_IMODE(folder.feedback.stat().st_mode) == 0o600
    assert "expected one of" in refused("feedback", folder.path, key, "maybe")
    assert "no row of" in refused("feedback", folder.path, "0000", "agree")


def test_the_commands_log_through_the_allow_list(run: tuple[RunFolder, str]) -> None:
    handlers = logging.getLogger().handlers
    assert any(isinstance(part, AllowList) for handler in handlers for part in handler.filters)
