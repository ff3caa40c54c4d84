"""DICOMDIR: scans that a disc lists and does not hold get a row."""

from __future__ import annotations

import gc
import shutil
import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet
from pydicom.uid import UID

from anomaly.data.readers.dicom_media import listed_files
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import Manifest
from anomaly.errors import UnreadableScan, UnsupportedScan
from tests.data.dicom_samples import make_dataset


def build(root: Path) -> Manifest:
    return build_manifest(Inspection(root, IntensityPolicy(), b"k" * 32), PathNames())


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    files = FileSet()
    for number in range(3):
        dataset = make_dataset(
            [[number, 9]], patient=f"P{number}", StudyDate="20000101", StudyTime="12", StudyID="1"
        )
        dataset.AccessionNumber, dataset.SeriesNumber, dataset.InstanceNumber = "", 1, 1
        files.add(dataset)
    files.write(tmp_path / "disc")
    with warnings.catch_warnings():  # pydicom leaves its scratch folder to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        del files
        gc.collect()
    return tmp_path / "disc"


def test_a_whole_disc_has_no_gaps(disc: Path) -> None:
    names = [listed.name for listed in listed_files(disc / "DICOMDIR")]
    assert len(names) == 3
    rows = build(disc).rows
    assert [row.path for row in rows if row.status == "ok"] == sorted(names)
    assert [(row.path, row.reason) for row in rows if row.reason] == [
        ("DICOMDIR", "media directory")
    ]


def test_what_is_listed_and_not_there_gets_a_row(disc: Path, tmp_path: Path) -> None:
    lost, *_, kept = sorted(listed.name for listed in listed_files(disc / "DICOMDIR"))
    (disc / lost).unlink()
    (disc / kept).rename(disc / kept.lower().replace("/", "_"))
    (disc / Path(kept).parent).mkdir(exist_ok=True)
    shutil.move(disc / kept.lower().replace("/", "_"), disc / Path(kept).parent / "im000000")
    by_reason: dict[str, list[str]] = {}
    for row in build(tmp_path).rows:
        by_reason.setdefault(row.reason, []).append(row.path)
    assert by_reason["media directory"] == ["disc/DICOMDIR"]
    assert f"disc/{lost}" in by_reason["missing"]
    assert len(by_reason[""]) == 2


def test_a_file_under_another_name_is_known_by_its_uid(disc: Path) -> None:
    listed = listed_files(disc / "DICOMDIR")
    assert all(entry.instance for entry in listed)
    for number, entry in enumerate(listed):
        (disc / entry.name).rename(disc / f"copy-{number}.dcm")
    rows = build(disc).rows
    assert [row.reason for row in rows if row.reason] == ["media directory"]
    (disc / "copy-1.dcm").unlink()
    rows = build(disc).rows
    assert [row.path for row in rows if row.reason == "missing"] == [listed[1].name]


def test_a_disc_in_a_zip(disc: Path, tmp_path: Path) -> None:
    lost = min(listed_files(disc / "DICOMDIR")).name
    (disc / lost).unlink()
    (tmp_path / "zipped").mkdir()
    shutil.make_archive(str(tmp_path / "zipped" / "disc"), "zip", disc)
    rows = build(tmp_path / "zipped").rows
    assert [row.path for row in rows if row.reason == "missing"] == [f"disc.zip/{lost}"]
    assert sum(row.status == "ok" for row in rows) == 2


def test_names_lead_nowhere(disc: Path) -> None:
    dataset = pydicom.dcmread(disc / "DICOMDIR")
    images = [r for r in dataset.DirectoryRecordSequence if r.DirectoryRecordType == "IMAGE"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # these are no names, says pydicom too
        images[0].ReferencedFileID = ["..", "..", "etc", "passwd"]
        images[1].ReferencedFileID = "/etc/passwd"
        dataset.save_as(disc / "DICOMDIR")
    assert len(listed_files(disc / "DICOMDIR")) == 1


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    make_dataset([[0, 1]]).save_as(tmp_path / "a", enforce_file_format=True)
    with pytest.raises(UnsupportedScan, match="no DICOMDIR"):
        listed_files(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"\0" * 200)
    with pytest.raises(UnreadableScan):
        listed_files(tmp_path / "b")


@pytest.mark.parametrize("name", [["IMG", "A^B"], ["IMG", "SCAN(1)"], ["IMG", "A,B~1"], "DIR/IM9"])
def test_names_that_the_standard_does_not_know_are_missed_too(
    disc: Path, name: str | list[str]
) -> None:
    listing = pydicom.dcmread(disc / "DICOMDIR")
    record = next(r for r in listing.DirectoryRecordSequence if "ReferencedFileID" in r)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        record.ReferencedFileID, record.ReferencedSOPInstanceUIDInFile = name, "1.2.3.4"
        listing.save_as(disc / "DICOMDIR")
    whole = name if isinstance(name, str) else "/".join(name)
    missing = [row.path for row in build(disc).rows if row.reason == "missing"]
    assert missing == [whole]


def test_another_instance_in_the_place_of_a_listed_one_is_not_it(disc: Path) -> None:
    path = disc / listed_files(disc / "DICOMDIR")[0].name
    other = pydicom.dcmread(path)
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    other.save_as(path)
    rows = build(disc).rows
    assert {row.reason for row in rows} == {"", "media directory", "other instance"}
    # A disc that was anonymised: the scan is scored, and the row says why the listed one is not.
    named = [row for row in rows if row.path == str(path.relative_to(disc))]
    assert sorted(row.status for row in named) == ["ok", "skipped"]


def test_a_list_of_uids_is_none(disc: Path) -> None:
    listing = pydicom.dcmread(disc / "DICOMDIR")
    record = next(r for r in listing.DirectoryRecordSequence if "ReferencedFileID" in r)
    record.ReferencedSOPInstanceUIDInFile = ["1.2", "3.4"]
    listing.save_as(disc / "DICOMDIR")
    assert "" in {listed.instance for listed in listed_files(disc / "DICOMDIR")}
    assert "missing" not in {row.reason for row in build(disc).rows}
