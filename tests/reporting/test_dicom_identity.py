"""Whose the written objects are, what they are called, what is refused, how they lie on disk."""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

import anomaly
from anomaly.errors import AnomalyError, UnreadableScan, UnsupportedScan
from anomaly.reporting.dicom.objects import KINDS, Kind, object_uid, write_objects
from anomaly.types import DETECTOR_MODEL
from tests.reporting.dicom_cases import (
    FEW,
    THRESHOLD,
    errors,
    expected_kinds,
    items,
    make_case,
)
from tests.reporting.dicom_sources import NAME, SOURCES, computed_radiograph, ct_slice, save

NOON = datetime(2024, 5, 6, 12, 0, 0)


# Whose they are, and what they are called


@pytest.mark.parametrize("modality", SOURCES)
def test_identity_is_the_source_and_nothing_else_is(
    modality: str, tmp_path: Path, out: Path
) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    original = dcmread(source)
    for path in write_objects(make_case(source), expected_kinds(modality), out):
        found, written = dcmread(path), path.read_bytes()
        assert found.PatientName == NAME
        assert NAME.encode("iso8859-1") in written
        for keyword in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
            assert found[keyword].value == original[keyword].value
        assert found.StudyDescription == "Schädel"
        assert found.SeriesInstanceUID != original.SeriesInstanceUID
        assert (found.Manufacturer, found.ManufacturerModelName) == ("anomaly", DETECTOR_MODEL)
        assert found.SeriesDescription.endswith("research use only")
        assert b"secret of the maker" not in written
        assert str(tmp_path).encode() not in written
        assert b"in.dcm" not in written
        (ours,) = (
            item
            for item in found.ContributingEquipmentSequence
            if item.ManufacturerModelName == DETECTOR_MODEL
        )
        assert ours.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Processing Equipment"
        assert "ab" * 32 in ours.ContributionDescription


def test_a_name_in_two_scripts_survives(tmp_path: Path, out: Path) -> None:
    dataset = computed_radiograph()
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    dataset.ReferringPhysicianName = dataset.StudyDescription = ""
    source = save(dataset, tmp_path / "in.dcm")
    for path in write_objects(make_case(source), expected_kinds("CR"), out):
        assert dcmread(path).PatientName == "Yamada^Tarou=山田^太郎=やまだ^たろう"
        assert errors("dcentvfy", source, path) == []


def test_a_tag_that_breaks_the_rules_warns_nobody(
    tmp_path: Path, out: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """What a warning says of a tag may quote it, and warnings end up on screens and in logs."""
    dataset = computed_radiograph()
    dataset.AccessionNumber = "longer than the sixteen characters that it may have"
    source = save(dataset, tmp_path / "in.dcm")
    case = make_case(source)
    recwarn.clear()
    paths = write_objects(case, ["report", "overlay"], out)
    assert [object_uid(case, kind) + ".dcm" for kind in FEW] == [path.name for path in paths]
    assert recwarn.list == []
    assert dcmread(paths[0]).AccessionNumber == dataset.AccessionNumber


def test_synthetic_data_stays_marked(tmp_path: Path, out: Path) -> None:
    dataset = computed_radiograph()
    dataset.SyntheticData = "YES"
    source = save(dataset, tmp_path / "in.dcm")
    for path in write_objects(make_case(source), KINDS[:4], out):
        assert dcmread(path).SyntheticData == "YES"


@pytest.mark.parametrize("modality", ["MG", "CT", "enhanced"])
def test_two_writings_differ_in_time_at_most(modality: str, tmp_path: Path) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    case, kinds = make_case(source), expected_kinds(modality)
    first, second, later = (tmp_path / name for name in ("first", "second", "later"))
    for folder, now in ((first, NOON), (second, NOON), (later, NOON.replace(hour=13))):
        folder.mkdir()
        write_objects(case, kinds, folder, now=now)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(object_uid(case, kind) + ".dcm" for kind in kinds)
    assert names == sorted(path.name for path in later.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        one, other = dcmread(first / name), dcmread(later / name)
        differs = {element.keyword for element in one if element != other.get(element.tag)}
        assert differs
        assert differs <= {
            *("ContentTime", "InstanceCreationTime", "PresentationCreationTime"),
            *("TimeOfSecondaryCapture", "ContributingEquipmentSequence"),
        }


def test_another_bundle_alpha_frame_or_scan_has_another_name(tmp_path: Path) -> None:
    source = save(SOURCES["enhanced"](), tmp_path / "in.dcm")
    other = save(SOURCES["enhanced"](2), tmp_path / "in2.dcm")
    case = make_case(source)
    cases = [
        case,
        replace(case, bundle="cd" * 32),
        replace(case, verdict=replace(case.verdict, alpha=0.1)),
        replace(case, frame=1),
        replace(case, source=other),
    ]
    names = {object_uid(each, kind) for each in cases for kind in KINDS}
    assert len(names) == len(cases) * len(KINDS)
    assert all(name.startswith("2.25.") and len(name) <= 44 for name in names)


def test_a_study_has_one_series_for_each_kind(tmp_path: Path, out: Path) -> None:
    series = []
    for number in (1, 2):
        source = save(ct_slice(number), tmp_path / f"in{number}.dcm")
        paths = write_objects(make_case(source), KINDS, out)
        series.append([dcmread(path).SeriesInstanceUID for path in paths])
    assert series[0] == series[1]
    assert len(set(series[0])) == len(KINDS)


def test_a_series_lies_in_one_frame_of_reference(tmp_path: Path, out: Path) -> None:
    study, series = [], []
    for number in (1, 2):
        dataset = ct_slice(number)
        dataset.SeriesInstanceUID = f"2.25.1002{number}"
        dataset.FrameOfReferenceUID = f"2.25.1004{number}"
        source = save(dataset, tmp_path / f"in{number}.dcm")
        paths = write_objects(make_case(source), KINDS, out)
        series += [dcmread(path).SeriesInstanceUID for path in paths]
        study += [source, *paths]
    assert len(set(series)) == len(series)
    assert errors("dcentvfy", *study) == []


def test_names_are_what_their_definition_says(tmp_path: Path, out: Path) -> None:
    """Another version has other names: what it lays out otherwise must not pass for the old."""

    def name(*of: str | int) -> str:
        said = json.dumps(["ab" * 32, "0.05", anomaly.__version__, *of])
        return f"2.25.{int(hashlib.sha256(said.encode()).hexdigest()[:32], 16)}"

    source = save(ct_slice(), tmp_path / "in.dcm")
    header = dcmread(source)
    found = [dcmread(path) for path in write_objects(make_case(source), KINDS, out)]
    assert [each.SOPInstanceUID for each in found] == [
        name(header.SOPInstanceUID, 0, kind) for kind in KINDS
    ]
    assert [each.SeriesInstanceUID for each in found] == [
        name(header.StudyInstanceUID, header.FrameOfReferenceUID, "series", kind) for kind in KINDS
    ]


def test_the_frame_of_a_multiframe_source_is_named(tmp_path: Path, out: Path) -> None:
    source = save(SOURCES["enhanced"](), tmp_path / "in.dcm")
    case = make_case(source, frame=2)
    report, overlay = (dcmread(path) for path in write_objects(case, FEW, out))
    frames = [
        item.ReferencedSOPSequence[0].ReferencedFrameNumber
        for item in items(report)
        if item.ValueType == "IMAGE"
    ]
    assert len(frames) == 1 + len(case.verdict.regions)
    assert set(frames) == {3}
    assert overlay.SourceImageSequence[0].ReferencedFrameNumber == 3


# What is refused


@pytest.mark.parametrize("modality", ["CR", "DX", "MG"])
def test_no_place_in_the_patient_is_made_up(modality: str, tmp_path: Path, out: Path) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    with pytest.raises(UnsupportedScan, match="take a heatmap instead") as caught:
        write_objects(make_case(source), ["report", "parametric_map"], out)
    assert caught.value.reason == "no frame of reference"
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(FEW)))
def test_many_frames_take_a_report_and_an_overlay(kind: Kind, tmp_path: Path, out: Path) -> None:
    source = save(SOURCES["enhanced"](), tmp_path / "in.dcm")
    with pytest.raises(UnsupportedScan, match="has 3 frame") as caught:
        write_objects(make_case(source), [kind], out)
    assert caught.value.reason == "multi-frame"


def test_a_frame_that_is_not_there(source: Path, out: Path) -> None:
    with pytest.raises(UnsupportedScan, match=r"has 1 frame\(s\); frame 1") as caught:
        write_objects(make_case(source, frame=1), FEW, out)
    assert caught.value.reason == "no such frame"


def test_evidence_of_another_size(source: Path, out: Path) -> None:
    turned = make_case(source)
    evidence = np.ascontiguousarray(turned.evidence.T)
    verdict = replace(turned.verdict, scan=replace(turned.verdict.scan, evidence=evidence))
    with pytest.raises(ValueError, match=r"does not fit an image of \(37, 52\)"):
        replace(turned, verdict=verdict)
    with pytest.raises(UnsupportedScan, match="37 rows and 52 columns") as caught:
        write_objects(replace(turned, verdict=verdict, image=evidence), FEW, out)
    assert caught.value.reason == "another size"


def test_an_empty_colour_scale(source: Path) -> None:
    with pytest.raises(ValueError, match="0 < threshold < ceiling"):
        make_case(source, evidence_ceiling=THRESHOLD)


def test_a_source_that_is_gone(source: Path, out: Path) -> None:
    case = make_case(source)
    source.unlink()
    with pytest.raises(UnreadableScan, match="cannot be read as DICOM"):
        write_objects(case, FEW, out)


def test_a_colour_source_carries_no_grey_presentation_state(out: Path) -> None:
    source = Path(str(get_testdata_file("SC_rgb_rle.dcm")))
    evidence = np.ones((100, 100), dtype=np.float32)
    with pytest.raises(UnsupportedScan, match="single sample per pixel") as caught:
        write_objects(make_case(source, evidence), ["contours"], out)
    assert caught.value.reason == "not expressible"


# How they come to lie on disk


def test_files_are_the_owner_s_alone(source: Path, out: Path) -> None:
    (path,) = write_objects(make_case(source), ["report"], out)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [path] == list(out.iterdir())
    assert path.name == dcmread(path).SOPInstanceUID + ".dcm"


def test_writing_again_replaces_the_file(source: Path, out: Path) -> None:
    case = make_case(source)
    (path,) = write_objects(case, ["overlay"], out)
    path.write_bytes(b"half of")
    assert write_objects(case, ["overlay"], out) == [path]
    assert dcmread(path).Columns == 52


def test_a_folder_that_cannot_be_written_to(source: Path, tmp_path: Path) -> None:
    with pytest.raises(AnomalyError, match="could not be written"):
        write_objects(make_case(source), ["report"], tmp_path / "nowhere")
