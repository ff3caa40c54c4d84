"""The archive in the loop: Orthanc's scans are scored, and the results lie in the same studies."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydicom import Dataset, dcmread

from anomaly.data.table.manifest import Manifest
from anomaly.errors import ConfigError
from anomaly.pacs.client.dicomweb import DicomWeb
from anomaly.pacs.client.instances import Instance
from anomaly.pipelines.pacs import query_of
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import choose_scans
from tests.pacs.archives import Orthanc, free_port
from tests.pipelines.road import Road, done, refused

ROOT = Path(__file__).parents[2]
COUNT = 50
QUERY = ("--query", "ModalitiesInStudy=DX")
SR = "1.2.840.10008.5.1.4.1.1.88.34"  # Comprehensive 3D SR Storage


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    (tmp_path / "orthanc").mkdir()
    server = Orthanc(tmp_path / "orthanc")
    yield server
    server.stop()


def push(road: Road, orthanc: Orthanc, count: int = COUNT) -> None:
    DicomWeb(orthanc.url).store(sorted(road.scans.rglob("*.dcm"))[:count])
    assert orthanc.ask("statistics")["CountInstances"] == count


def numbers(report: Dataset) -> dict[str, float]:
    """Measured values of the whole image in a report, by what they are."""
    found: dict[str, float] = {}
    waiting = list(report.ContentSequence)
    while waiting:
        item = waiting.pop(0)
        if item.ValueType == "NUM":
            value = item.MeasuredValueSequence[0]
            name = item.ConceptNameCodeSequence[0].CodeMeaning
            found.setdefault(name, float(value.get("FloatingPointValue", value.NumericValue)))
        waiting += item.get("ContentSequence", [])
    return found


def check_results(orthanc: Orthanc, run: RunFolder, folder: Path) -> None:
    """Each scored scan has one report in its study, which says what the run says."""
    by_key = {row.key: row for row in Manifest.read(run.manifest).rows}
    scored = [row for row in run.results.read()[0] if row.status == "scored"]
    web = DicomWeb(orthanc.url)
    reports: dict[str, list[Instance]] = {}
    for instance in web.search({"ModalitiesInStudy": "SR"}):
        if instance.sop_class == SR:
            reports.setdefault(instance.study, []).append(instance)
    assert sorted(reports) == sorted(by_key[row.key].study for row in scored)
    for row in scored:
        (instance,) = reports[by_key[row.key].study]
        path = folder / f"{instance.instance}.dcm"
        web.fetch(instance, path)
        report = dcmread(path)
        assert report.PatientID == by_key[row.key].patient
        said = numbers(report)
        assert row.score in said.values()
        assert row.p_value in said.values()
        (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
        source = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == by_key[row.key].instance


def test_results_come_to_lie_in_the_studies_once(
    road: Road, orthanc: Orthanc, tmp_path: Path
) -> None:
    push(road, orthanc)
    run = RunFolder(tmp_path / "run")
    command = ("score", run.path, "--dicomweb", orthanc.url, *QUERY)
    options = ("--bundle", road.run.bundle, "--send", orthanc.url)
    done(*command, *options)
    rows = run.results.read()[0]
    assert len(rows) == COUNT
    flagged = sum(bool(row.flagged) for row in rows)
    assert flagged > 0
    held = orthanc.ask("statistics")["CountInstances"]
    assert held == COUNT + COUNT + flagged  # scans, reports, overlays
    (tmp_path / "reports").mkdir()
    check_results(orthanc, run, tmp_path / "reports")
    # Again, now that the archive holds results too: they are taken for what they are.
    done(*command, *options)
    assert orthanc.ask("statistics")["CountInstances"] == held
    reasons = [row.reason for row in run.results.read()[0] if row.status != "scored"]
    assert reasons == ["own result"] * flagged
    assert orthanc.ask("statistics")["CountStudies"] == COUNT


def test_an_archive_that_is_killed_meanwhile_costs_nothing(
    road: Road, orthanc: Orthanc, tmp_path: Path
) -> None:
    push(road, orthanc)
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "anomaly", "score", str(run.path)]
    command += ["--dicomweb", orthanc.url, *QUERY, "--bundle", str(road.run.bundle)]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--send", orthanc.url],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    wait_until(lambda: len(list(run.spool.rglob("*.dcm"))) >= 5)
    orthanc.kill()
    kept = len(list(run.spool.rglob("*.dcm")))
    assert kept < COUNT
    orthanc.start()
    assert process.wait(300) == 0, log.read_text()
    assert len(list(run.spool.rglob("*.dcm"))) == COUNT
    (tmp_path / "reports").mkdir()
    check_results(orthanc, run, tmp_path / "reports")


def wait_until(happened: object, seconds: float = 120) -> None:
    assert callable(happened)
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_node_scores_what_a_modality_sends(road: Road, orthanc: Orthanc, tmp_path: Path) -> None:
    if shutil.which("storescu") is None:
        pytest.skip("needs Debian's package dcmtk")
    port = free_port()
    settings = {
        "bundle": str(road.run.bundle),
        "folder": str(tmp_path / "node"),
        "port": port,
        "quiet_seconds": 1,
        "destination": orthanc.url,
    }
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(settings))
    # storescu turns nothing compressed into anything else
    scans = [p for p in sorted(road.scans.rglob("*.dcm")) if not is_packed(p)][:4]
    log = tmp_path / "log"
    with log.open("wb") as out:
        node = subprocess.Popen(
            [sys.executable, "-m", "anomaly", "node", tmp_path / "node.yaml"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: b"listening on port" in log.read_bytes())
        for _ in range(2):  # the second time changes nothing
            sent = subprocess.run(
                ["storescu", "-aec", "ANOMALY", "127.0.0.1", str(port), *scans], check=False
            )
            assert sent.returncode == 0
        wait_until(lambda: len(list(DicomWeb(orthanc.url).search({"Modality": "SR"}))) >= 4)
        time.sleep(3)
    finally:
        node.terminate()
        assert node.wait(60) == 0
    listed = list(DicomWeb(orthanc.url).search({"ModalitiesInStudy": "SR"}))
    reports = [instance for instance in listed if instance.sop_class == SR]
    studies = sorted(str(dcmread(path).StudyInstanceUID) for path in scans)
    assert sorted(instance.study for instance in reports) == studies


def is_packed(path: Path) -> bool:
    return bool(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.is_compressed)


def test_an_archive_that_is_not_there_is_one_sentence(road: Road, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    command = ("score", tmp_path / "run", "--dicomweb", url, "--bundle", road.run.bundle)
    assert "--query" in refused(*command)
    assert "Modalitie" in refused(*command, "--query", "Modalitie=DX")


def test_objects_are_written_for_their_owner_alone(road: Road, run: RunFolder) -> None:
    said = done("dicom", run.path, "--objects", "report,overlay,parametric_map")
    files = sorted(run.dicom.glob("*.dcm"))
    rows = [row for row in run.results.read()[0] if row.status == "scored"]
    flagged = sum(bool(row.flagged) for row in rows)
    assert len(files) == len(rows) + flagged
    assert f"{len(files)} objects" in said.out
    record = json.loads((run.path / "run.jsonl").read_text().splitlines()[-1])
    assert record["left_out"] == {"no frame of reference": flagged}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert run.dicom.stat().st_mode & 0o777 == 0o700
    again = {path.name for path in files}
    done("dicom", run.path, "--objects", "report,overlay")
    assert {path.name for path in run.dicom.glob("*.dcm")} == again
    assert "none of report" in refused("dicom", run.path, "--objects", "rapport")
    with run.scores_csv.open() as file:
        assert len(list(csv.DictReader(file))) == len(run.results.read()[0])


def test_what_came_since_the_list_was_made_is_scored_too(road: Road, tmp_path: Path) -> None:
    """Fetched, listed and broken off; then the rest is fetched, and nothing may be forgotten."""
    run = RunFolder(tmp_path / "run")
    spool = run.spool
    spool.mkdir(parents=True)
    paths = sorted(road.scans.rglob("*.dcm"))[:6]
    for number, path in enumerate(paths[:4]):
        shutil.copy(path, spool / f"{number}.dcm")
    options = ("--bundle", road.run.bundle, "--scans", spool)
    done("score", run.path, *options)
    run.results.finished.unlink()  # as if it had been killed
    for number, path in enumerate(paths[4:], 4):
        shutil.copy(path, spool / f"{number}.dcm")
    old = choose_scans(run, spool, road.run.bundle, []).manifest
    new = choose_scans(run, spool, road.run.bundle, [], may_have_grown=True).manifest
    assert (len(old.rows), len(new.rows)) == (4, 6)


@pytest.mark.parametrize("query", [["StudyDate"], ["StudyDate="], ["=1"], ["A=1", "A=2"]])
def test_a_query_that_would_match_everything_is_refused(query: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"no value|twice"):
        query_of(query)
    assert query_of(["StudyDate=20260101-20260131", "PatientName=A=B"]) == {
        "StudyDate": "20260101-20260131",
        "PatientName": "A=B",
    }
