"""Studies go into a real archive and come back; what dies on the way is made up for."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID, BasicTextSRStorage, RLELossless

from anomaly.errors import ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.pacs.client.dicomweb import DicomWeb, search, store
from anomaly.pacs.client.instances import Instance
from anomaly.pipelines.pacs import fetch_studies, store_results
from tests.data.dicom_samples import make_dataset, write_dicom
from tests.pacs.archives import ROOT, Killing, Orthanc, make_studies, uid


def found(web: DicomWeb, **query: str) -> set[str]:
    return {instance.instance for instance in web.search(query)}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- search -----------------------------------------------------------------------------------


def test_search_by_keys_of_each_level(web: DicomWeb, fifty: list[Path]) -> None:
    everything = {uid(50, number) for number in range(50)}
    assert found(web, PatientID="P50") == everything
    assert found(web, PatientID="P50", Modality="CR") == everything
    assert found(web, PatientID="P50", Modality="MR") == set()
    assert found(web, PatientID="P50", ModalitiesInStudy="CR") == everything
    assert found(web, AccessionNumber="A50-7") == {uid(50, 7)}
    assert found(web, StudyInstanceUID=f"{ROOT}.50.9") == {uid(50, 9)}
    assert found(web, PatientID="P50", SOPInstanceUID=uid(50, 3)) == {uid(50, 3)}
    # Study n is of the day n % 28 + 1: the first and second of January hold 0, 28 and 1, 29.
    days = found(web, PatientID="P50", StudyDate="20260101-20260102")
    assert days == {uid(50, number) for number in (0, 28, 1, 29)}
    assert found(web, PatientID="nobody") == set()


def test_search_goes_on_to_the_last_page(
    orthanc: Orthanc, fifty: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "PAGE", 7)
    counted = Killing()
    web = DicomWeb(orthanc.url, attempts=counted)
    listed = [instance.instance for instance in web.search({"PatientID": "P50"})]
    assert sorted(listed) == sorted(uid(50, number) for number in range(50))
    # 50 studies fill 8 pages of 7 and a ninth is empty; each has a page and an empty one of series,
    # and the same of instances.
    assert len(counted.asked) == 9 + 50 * (2 + 2)


def test_an_unknown_key_is_refused_with_the_nearest(web: DicomWeb) -> None:
    with pytest.raises(ConfigError, match=r"'PatientId'.*'PatientID'"):
        list(web.search({"PatientId": "P50"}))


def test_holds(web: DicomWeb, fifty: list[Path]) -> None:
    assert web.holds(f"{ROOT}.50.4", uid(50, 4))
    assert not web.holds(f"{ROOT}.50.4", uid(50, 5))  # another study
    assert not web.holds(f"{ROOT}.99.9.9", uid(50, 4))  # no such study


# --- fetch and store --------------------------------------------------------------------------


def test_fifty_studies_come_back_as_they_went(
    web: DicomWeb, fifty: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "studies"
    first = fetch_studies(web, {"PatientID": "P50"}, folder)
    assert (first.listed, first.fetched, first.already, dict(first.failed)) == (50, 50, 0, {})
    for number, sent in enumerate(fifty):
        path = folder / f"{ROOT}.50.{number}" / f"{ROOT}.50.{number}.1" / f"{uid(50, number)}.dcm"
        got, was = dcmread(path), dcmread(sent)
        assert got == was
        assert got.PixelData == was.PixelData
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    again = fetch_studies(web, {"PatientID": "P50"}, folder)
    assert (again.listed, again.fetched, again.already) == (50, 0, 50)
    assert len(files(folder)) == 50


def test_compressed_pixels_are_not_transcoded(web: DicomWeb, tmp_path: Path) -> None:
    values = np.arange(1024).reshape(32, 32)
    dataset = make_dataset(values, kind="CR", patient="P51")
    sent = write_dicom(tmp_path / "rle.dcm", dataset, RLELossless)
    web.store([sent])
    (instance,) = web.search({"PatientID": "P51"})
    web.fetch(instance, tmp_path / "back.dcm")
    back = dcmread(tmp_path / "back.dcm")
    assert back.file_meta.TransferSyntaxUID == RLELossless
    assert back.PixelData == dcmread(sent).PixelData


def test_what_holds_no_image_is_left_out(web: DicomWeb, tmp_path: Path) -> None:
    (image,) = make_studies(tmp_path / "sent", 1, series=52)
    report = dcmread(image)
    del report.PixelData
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = UID(f"{ROOT}.52.0.2.1")
    report.SeriesInstanceUID, report.Modality = f"{ROOT}.52.0.2", "SR"
    web.store([image, write_dicom(tmp_path / "sent" / "report", report)])
    assert len(found(web, PatientID="P52")) == 2
    assert fetch_studies(web, {"PatientID": "P52"}, tmp_path / "got").listed == 1
    assert [path.stem for path in files(tmp_path / "got")] == [uid(52, 0)]


def test_results_are_stored_in_the_same_studies_once(
    web: DicomWeb, orthanc: Orthanc, tmp_path: Path
) -> None:
    studies = make_studies(tmp_path / "studies", 4, series=53)
    web.store(studies)
    results = []
    for number, path in enumerate(studies):
        result = dcmread(path)
        result.SeriesInstanceUID = f"{ROOT}.53.{number}.2"
        result.SOPInstanceUID = f"{ROOT}.53.{number}.2.1"
        result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
        results.append(write_dicom(tmp_path / f"result{number}", result))
    assert store_results(web, results) == 4
    assert store_results(web, results) == 4
    both = sorted(uid(53, n) for n in range(4)) + [f"{ROOT}.53.{n}.2.1" for n in range(4)]
    assert orthanc.instances("P53") == sorted(both)
    assert found(web, StudyInstanceUID=f"{ROOT}.53.2") == {uid(53, 2), f"{ROOT}.53.2.2.1"}


def test_only_what_is_missing_is_sent(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH", 2)
    paths = make_studies(tmp_path, 5, series=54)
    counted = Killing()
    web = DicomWeb(orthanc.url, attempts=counted)
    web.store(paths[:2])
    before = len(counted.asked)
    web.store(paths)
    # One request asks of each, and the three that are not there go in batches of two.
    assert len(counted.asked) - before == 5 + 2
    assert len(orthanc.instances("P54")) == 5


def test_a_file_that_is_no_dicom_costs_itself(web: DicomWeb, tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 1, series=55)
    (tmp_path / "notes.txt").write_text("not a scan")
    with pytest.raises(
        ArchiveError, match=r"refused 1 of 2 instances \(1 x not sent, not readable"
    ):
        web.store([*paths, tmp_path / "notes.txt"])
    assert len(found(web, PatientID="P55")) == 1


def test_what_the_archive_lacks_costs_an_error(web: DicomWeb, tmp_path: Path) -> None:
    gone = Instance(f"{ROOT}.1", f"{ROOT}.1.1", f"{ROOT}.1.1.1", f"{ROOT}.2")
    with pytest.raises(ArchiveError, match="HTTP 404") as caught:
        web.fetch(gone, tmp_path / "gone.dcm")
    assert caught.value.reason == "HTTP 404"
    assert files(tmp_path) == []


# --- an archive that dies ---------------------------------------------------------------------


def test_killed_while_fetching(orthanc: Orthanc, fifty: list[Path], tmp_path: Path) -> None:
    # Listing 50 studies asks 2 pages of studies, 2 of series and 2 of instances of each: 202.
    dying = DicomWeb(orthanc.url, attempts=Killing(kill=orthanc.kill, at=202 + 21))
    try:
        with pytest.raises(ArchiveUnreachable, match=r"is gone.*20 of 50 are here; run again"):
            fetch_studies(dying, {"PatientID": "P50"}, tmp_path)
    finally:
        orthanc.start()
    assert len(files(tmp_path)) == 20
    again = fetch_studies(DicomWeb(orthanc.url), {"PatientID": "P50"}, tmp_path)
    assert (again.listed, again.fetched, again.already) == (50, 30, 20)
    assert [path.stem for path in files(tmp_path)] == sorted(uid(50, n) for n in range(50))
    assert all(dcmread(path).pixel_array.shape == (32, 32) for path in files(tmp_path))


def test_killed_while_storing(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH", 5)
    paths = make_studies(tmp_path, 50, series=56)
    # One request asks of each instance that is not there; the fifth batch meets a dead archive.
    dying = DicomWeb(orthanc.url, attempts=Killing(kill=orthanc.kill, at=50 + 5))
    try:
        with pytest.raises(ArchiveUnreachable, match=r"in 5 attempt.*run again"):
            dying.store(paths)
    finally:
        orthanc.start()
    assert len(orthanc.instances("P56")) == 20
    DicomWeb(orthanc.url).store(paths)
    assert orthanc.instances("P56") == sorted(uid(56, number) for number in range(50))


@pytest.mark.skipif(which("dciodvfy") is None, reason="needs Debian's package dicom3tools")
def test_what_comes_back_is_dicom_to_a_foreign_reader(
    web: DicomWeb, fifty: list[Path], tmp_path: Path
) -> None:
    (instance,) = web.search({"AccessionNumber": "A50-0"})
    web.fetch(instance, tmp_path / "back.dcm")
    said = [
        subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        for path in (tmp_path / "back.dcm", fifty[0])
    ]
    assert "CRImage" in said[0]
    assert said[0].count("Error") == said[1].count("Error")
