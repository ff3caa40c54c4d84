"""Written objects as a judge and a viewer meet them: bytes read back from disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread

import anomaly
from anomaly.data.readers.dicom import open_dicom
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.regions import find_regions
from anomaly.reporting.dicom.case import SEEN, DicomCase
from anomaly.reporting.dicom.objects import MAX_REGIONS, write_objects
from anomaly.reporting.plots.figures import overlay_rgba
from tests.reporting.dicom_cases import (
    CEILING,
    PLANAR,
    THRESHOLD,
    errors,
    expected_kinds,
    items,
    make_case,
    numbers,
    write,
)
from tests.reporting.dicom_sources import SOURCES, computed_radiograph, save

# What the judges say


@pytest.mark.parametrize("modality", SOURCES)
def test_no_object_has_an_error(modality: str, tmp_path: Path, out: Path) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    assert errors("dciodvfy", source) == []
    written = write_objects(make_case(source), expected_kinds(modality), out)
    assert len(written) == len(expected_kinds(modality))
    assert {path.name: errors("dciodvfy", path) for path in written} == {
        path.name: [] for path in written
    }


@pytest.mark.parametrize("modality", SOURCES)
def test_a_study_with_two_images_agrees_with_itself(
    modality: str, tmp_path: Path, out: Path
) -> None:
    study = []
    for number in (1, 2):
        source = save(SOURCES[modality](number), tmp_path / f"in{number}.dcm")
        study += [source, *write_objects(make_case(source), expected_kinds(modality), out)]
    assert len({dcmread(path).SOPInstanceUID for path in study}) == len(study)
    assert errors("dcentvfy", *study) == []


@pytest.mark.parametrize("seen", [True, False])
def test_a_scan_that_the_bundle_has_seen_is_said_to_be(seen: bool, source: Path, out: Path) -> None:
    kinds = ("report", "overlay", "contours")
    paths = write_objects(make_case(source, seen=seen), kinds, out)
    report, overlay, contours = (dcmread(path) for path in paths)
    assert (SEEN in str(report)) == (SEEN in str(contours)) == seen
    without = write(make_case(source), "overlay", out)
    assert (overlay.Rows > without.Rows) == seen  # a line more below the image
    assert [errors("dciodvfy", path) for path in paths] == [[], [], []]


def test_the_judges_see_an_error(source: Path, out: Path) -> None:
    (path,) = write_objects(make_case(source), ["overlay"], out)
    wrong = dcmread(path)
    del wrong.PatientOrientation
    wrong.PatientName = "Somebody^Else"
    wrong.save_as(path)
    assert "PatientOrientation" in errors("dciodvfy", path)[0]
    assert "PatientName" in errors("dcentvfy", source, path)[0]


# What a reader finds


def test_the_report_says_the_numbers_in_full(source: Path, out: Path) -> None:
    case = make_case(source, np.ones((37, 52), dtype=np.float32))
    report = write(case, "report", out)
    assert numbers(report) == {
        "score": 1.2345678901234567,
        "p-value": 0.0123456789012345,
        "threshold": 1.1,
        "alpha": 0.05,
        "calibration": 199,
        "regions": 0,
    }
    said = {
        item.ConceptNameCodeSequence[0].CodeValue: item.ConceptCodeSequence[0].CodeMeaning
        for item in items(report)
        if item.ValueType == "CODE"
    }
    assert said["flagged"] == "Yes"
    assert said["use"] == "Research use only. Not a diagnosis."
    assert said["111000"] == "Artificial Intelligence"  # Algorithm Family
    texts = {
        item.ConceptNameCodeSequence[0].CodeValue: item.TextValue
        for item in items(report)
        if item.ValueType == "TEXT"
    }
    assert texts["111001"] == "anomaly"  # Algorithm Name
    assert texts["111003"] == anomaly.__version__
    assert texts["111002"] == f"bundle={case.bundle}"  # Algorithm Parameters
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_a_scan_that_is_not_flagged_says_no(source: Path, out: Path) -> None:
    case = make_case(source)
    case = replace(case, verdict=replace(case.verdict, flagged=False))
    report = write(case, "report", out)
    (said,) = (
        item.ConceptCodeSequence[0].CodeMeaning
        for item in items(report)
        if item.ValueType == "CODE" and item.ConceptNameCodeSequence[0].CodeValue == "flagged"
    )
    assert said == "No"


def test_the_report_draws_each_region_where_it_is(source: Path, out: Path) -> None:
    case = make_case(source)
    report = hd.sr.srread(write_objects(case, ["report"], out)[0])
    assert isinstance(report.content, hd.sr.MeasurementReport)
    groups = report.content.get_planar_roi_measurement_groups()
    found = []
    for group in groups:
        region = group.roi
        assert region is not None
        assert region.graphic_type == hd.sr.GraphicTypeValues.POLYLINE
        found.append(
            (
                region.value.tolist(),
                [(m.name.value, m.value, m.unit.value) for m in group.get_measurements()],
            )
        )
    # Corners are (column, row); pixel (3, 30) begins at (30, 3). A pixel has 0.2 x 0.1 mm2.
    corner, block, diagonal = found  # by peak: 7.5, 4, 3.3
    assert corner[0] == [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]
    assert block[0] == [[30, 3], [34, 3], [34, 6], [30, 6], [30, 3]]
    assert diagonal[0][:4] == [[5, 20], [6, 20], [6, 21], [7, 21]]
    for (_, said), peak, pixels in zip(found, (7.5, 4.0, np.float32(3.3)), (1, 12, 2), strict=True):
        assert said[0] == ("peak", peak, "1")
        name, area, unit = said[1]
        assert (name, unit) == ("42798000", "mm2")
        assert area == pytest.approx(0.02 * pixels)


def test_the_regions_with_the_largest_peak_are_listed_and_all_are_counted(
    source: Path, out: Path
) -> None:
    evidence = np.ones((37, 52), dtype=np.float32)
    # 13 x 18 single pixels, two apart; peaks rise to the last one.
    evidence[::3, ::3] = np.linspace(3, 5, 13 * 18).reshape(13, 18)
    case = make_case(source, evidence)
    paths = write_objects(case, ["report", "contours"], out)
    report, contours = hd.sr.srread(paths[0]), dcmread(paths[1])
    assert isinstance(report.content, hd.sr.MeasurementReport)
    groups = report.content.get_planar_roi_measurement_groups()
    assert len(groups) == MAX_REGIONS == 100
    peaks = [group.get_measurements()[0].value for group in groups]
    assert peaks == sorted(evidence[::3, ::3].ravel().tolist(), reverse=True)[:100]
    first = groups[0].roi
    assert first is not None
    assert first.value.tolist()[0] == [51, 36]
    whole = dcmread(paths[0])
    assert numbers(whole)["regions"] == 13 * 18
    (annotation,) = contours.GraphicAnnotationSequence
    assert len(annotation.GraphicObjectSequence) == 100
    (text,) = annotation.TextObjectSequence
    assert text.UnformattedTextValue == (
        "Research use only. Not a diagnosis. 100 of 234 regions are outlined."
    )
    assert [errors("dciodvfy", path) for path in paths] == [[], []]


def test_a_region_of_unknown_size_has_no_area(source: Path, out: Path) -> None:
    case = make_case(source)
    regions = find_regions(case.evidence, THRESHOLD, None)
    case = replace(case, verdict=replace(case.verdict, regions=regions))
    assert "42798000" not in numbers(write(case, "report", out))


@pytest.mark.parametrize("modality", SOURCES)
def test_the_lit_pixels_of_the_overlay_are_those_of_the_source(
    modality: str, tmp_path: Path, out: Path
) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    case = make_case(source)
    whole = write(case, "overlay", out).pixel_array
    pixels, caption = np.split(whole, [len(case.image)])
    assert pixels.shape == (*case.image.shape, 3)
    assert (caption == caption[..., :1]).all()
    assert caption.max() > 200  # it says something, in white
    assert (caption[0] == 0).all()  # apart from the image
    lit = (pixels != pixels[..., :1]).any(axis=-1)
    assert np.argwhere(lit).tolist() == sorted(
        [[0, 0], [20, 5], [21, 6], *([row, col] for row in (3, 4, 5) for col in (30, 31, 32, 33))]
    )
    # At the ceiling the colour of the scale hides all grey; outside, grey is the image.
    assert pixels[0, 0].tolist() == overlay_rgba(np.array([[9.0]]), 2, 6)[0, 0, :3].tolist()
    # At (20, 5) evidence is the threshold: opacity is round(0.35 * 255) / 255 = 89 / 255.
    scale = overlay_rgba(np.array([[2.0]]), 2, 6)[0, 0]
    assert scale[3] == 89
    blend = (166 * 255 * np.float64(case.image[20, 5]) + 89.0 * scale[:3]) / 255
    assert pixels[20, 5].tolist() == np.rint(blend).tolist()
    assert pixels[~lit, 0].tolist() == np.rint(255 * case.image[~lit]).tolist()


def test_a_film_stored_as_monochrome1_is_shown_upright_and_positive(
    tmp_path: Path, out: Path
) -> None:
    """The road of a real scan: read, light one bright stored pixel, write, look."""
    dataset = SOURCES["DX"]()
    stored = np.full((37, 52), 4095, dtype="<u2")  # MONOCHROME1: black
    stored[5, 40] = 0  # white
    dataset.PixelData = stored.tobytes()
    source = save(dataset, tmp_path / "in.dcm")
    scan = open_dicom(source, IntensityPolicy()).read(0)
    image = np.ascontiguousarray(scan.orientation.store(scan.pixels))
    evidence = np.ones((37, 52), dtype=np.float32)
    evidence[5, 41] = 6.0
    pixels = write(make_case(source, evidence, image=image), "overlay", out).pixel_array[:37]
    assert pixels[5, 40].tolist() == [255, 255, 255]
    assert pixels[5, 39].tolist() == [0, 0, 0]
    lit = (pixels != pixels[..., :1]).any(axis=-1)
    assert np.argwhere(lit).tolist() == [[5, 41]]


def test_the_overlay_says_what_it_was_made_of(source: Path, out: Path) -> None:
    overlay = write(make_case(source), "overlay", out)
    original = dcmread(source)
    assert overlay.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
    assert overlay.SourceImageSequence[0].ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert overlay.BurnedInAnnotation == "NO"
    assert overlay.DerivationDescription.endswith("Research use only. Not a diagnosis.")


@pytest.mark.parametrize(
    ("modality", "orientation"), [("CR", ["L", "F"]), ("MG", ["P", "F"]), ("CT", ["L", "P"])]
)
def test_the_overlay_lies_as_its_source_says(
    modality: str, orientation: list[str], tmp_path: Path, out: Path
) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    assert write(make_case(source), "overlay", out).PatientOrientation == orientation


@pytest.mark.parametrize("modality", ["DX", "MG", "CT"])
def test_the_segmentation_is_the_mask(modality: str, tmp_path: Path, out: Path) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    case = make_case(source)
    found = write(case, "segmentation", out)
    assert found.SegmentationType == "BINARY"
    assert np.array_equal(np.squeeze(found.pixel_array) == 1, case.evidence >= THRESHOLD)
    assert found.SegmentSequence[0].SegmentLabel == "Evidence >= 2"


def test_where_nothing_stands_out_no_segmentation_is_written(source: Path, out: Path) -> None:
    case = make_case(source, np.ones((37, 52), dtype=np.float32))
    assert write_objects(case, ["segmentation"], out) == []
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("modality", ["DX", "MG", "MR"])
def test_the_heatmap_is_the_share_of_the_ceiling(modality: str, tmp_path: Path, out: Path) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    shape = SOURCES[modality]().pixel_array.shape
    evidence = np.random.default_rng(5).gamma(2.0, 1.0, shape).astype(np.float32)
    evidence[1, 2] = 60.0
    found = write(make_case(source, evidence), "heatmap", out)
    assert (found.SegmentationType, found.MaximumFractionalValue) == ("FRACTIONAL", 255)
    assert found.SegmentationFractionalType == "OCCUPANCY"
    assert "not a probability" in found.SegmentSequence[0].SegmentLabel
    share = np.squeeze(found.pixel_array) / 255
    assert share[1, 2] == 1
    assert np.abs(share - np.minimum(evidence / CEILING, 1)).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("modality", sorted(PLANAR))
def test_the_parametric_map_is_the_evidence_in_its_plane(
    modality: str, tmp_path: Path, out: Path
) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    evidence = np.random.default_rng(6).gamma(2.0, 1.0, (37, 52)).astype(np.float32)
    found = write(make_case(source, evidence), "parametric_map", out)
    values = np.frombuffer(found.FloatPixelData, dtype="<f4").reshape(37, 52)
    assert np.array_equal(values, evidence)
    groups = found.PerFrameFunctionalGroupsSequence[0]
    assert groups.PlanePositionSequence[0].ImagePositionPatient == [-20.0, -18.5, 5.0]
    assert found.FrameOfReferenceUID == dcmread(source).FrameOfReferenceUID


def test_contours_lie_on_pixel_edges_and_the_notice_is_shown(source: Path, out: Path) -> None:
    found = write(make_case(source), "contours", out)
    (annotation,) = found.GraphicAnnotationSequence
    corner, block, _ = annotation.GraphicObjectSequence
    assert corner.GraphicData == [0, 0, 1, 0, 1, 1, 0, 1, 0, 0]
    assert block.GraphicData == [30, 3, 34, 3, 34, 6, 30, 6, 30, 3]
    assert {item.GraphicAnnotationUnits for item in (corner, block)} == {"PIXEL"}
    (text,) = annotation.TextObjectSequence
    assert text.UnformattedTextValue == "Research use only. Not a diagnosis."


@pytest.mark.parametrize(("modality", "shape"), [("DX", "INVERSE"), ("MG", "IDENTITY")])
def test_contours_keep_the_polarity_of_the_source(
    modality: str, shape: str, tmp_path: Path, out: Path
) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    assert write(make_case(source), "contours", out).PresentationLUTShape == shape


@pytest.mark.parametrize(("modality", "ratio"), [("CR", [1, 1]), ("DX", [2, 1]), ("CT", [1, 1])])
def test_pixels_that_are_not_square_stay_so(
    modality: str, ratio: list[int], tmp_path: Path, out: Path
) -> None:
    source = save(SOURCES[modality](), tmp_path / "in.dcm")
    state = write(make_case(source), "contours", out)
    assert state.DisplayedAreaSelectionSequence[0].PresentationPixelAspectRatio == ratio
    spacing = dcmread(source).get("PixelSpacing")
    assert write(make_case(source), "overlay", out).get("PixelSpacing") == spacing
    found = write(make_case(source), "segmentation", out).SharedFunctionalGroupsSequence[0]
    measures = found.get("PixelMeasuresSequence")
    assert (measures[0].PixelSpacing if measures else None) == spacing


def test_spacing_at_the_detector_becomes_a_ratio_and_no_size(tmp_path: Path, out: Path) -> None:
    dataset = computed_radiograph()
    dataset.ImagerPixelSpacing = [0.15, 0.2]
    source = save(dataset, tmp_path / "in.dcm")
    (path,) = write_objects(make_case(source), ["overlay"], out)
    overlay = dcmread(path)
    assert overlay.PixelAspectRatio == [3, 4]
    assert "PixelSpacing" not in overlay
    assert errors("dciodvfy", path) == []


def test_contours_without_a_region_still_say_research_use_only(source: Path, out: Path) -> None:
    case = make_case(source, np.ones((37, 52), dtype=np.float32))
    (path,) = write_objects(case, ["contours"], out)
    assert "GraphicObjectSequence" not in dcmread(path).GraphicAnnotationSequence[0]
    assert errors("dciodvfy", path) == []


def test_behind_a_shutter_the_overlay_is_black_and_the_rest_keeps_its_place(
    tmp_path: Path, out: Path
) -> None:
    """A source of which only a part is shown: rows 6 to 30, columns 11 to 40 (from 1)."""
    dataset = SOURCES["DX"]()
    dataset.ShutterShape = "RECTANGULAR"
    dataset.ShutterUpperHorizontalEdge, dataset.ShutterLowerHorizontalEdge = 6, 30
    dataset.ShutterLeftVerticalEdge, dataset.ShutterRightVerticalEdge = 11, 40
    source = save(dataset, tmp_path / "in.dcm")
    scan = open_dicom(source, IntensityPolicy()).read(0)
    image = np.ascontiguousarray(scan.orientation.store(scan.pixels))
    evidence = np.ones((37, 52), dtype=np.float32)
    evidence[5, 10] = 6.0  # the first pixel that is shown
    pixels = write(make_case(source, evidence, image=image), "overlay", out).pixel_array[:37]
    lit = (pixels != pixels[..., :1]).any(axis=-1)
    assert np.argwhere(lit).tolist() == [[5, 10]]
    shown = np.zeros((37, 52), dtype=bool)
    shown[5:30, 10:40] = True
    assert pixels[~shown].max() == 0
    assert pixels[shown].max() > 0


def explained(case: DicomCase, part: str, whole: float, sentence: str) -> DicomCase:
    spread = np.zeros(case.image.shape, np.float32)
    spread[10:12, 10:12] = whole / 4
    scan = replace(
        case.verdict.scan,
        features={"part_whole": whole},
        spread=spread,
        part=part,
        explanation=sentence,
    )
    return replace(case, verdict=replace(case.verdict, scan=scan))


def test_objects_say_where_the_score_comes_from(source: Path, tmp_path: Path) -> None:
    plain = make_case(source)
    sentence = "Less texture than in normal scans, spread over the image; no single place decides."
    whole, place = (
        explained(plain, "whole", 1.5, sentence),
        explained(plain, "place", 0.2, "One place is darker."),
    )
    for name in ("plain", "whole", "place"):
        (tmp_path / name).mkdir()
    before, after = (
        write(case, "overlay", tmp_path / name).pixel_array
        for name, case in (("plain", plain), ("whole", whole))
    )
    rows = plain.image.shape[0]
    changed = (before[:rows] != after[:rows]).any(-1)
    assert changed[10:12, 10:12].all()
    assert changed.sum() == 4
    blue = after[10, 10].astype(int)
    assert blue[2] > blue[0]
    meanings = []
    for name, case in (("plain", plain), ("whole", whole), ("place", place)):
        texts = items(write(case, "report", tmp_path / name))
        meanings.append(
            [
                item.ConceptCodeSequence[0].CodeMeaning
                for item in texts
                if item.ValueType == "CODE"
                and item.ConceptNameCodeSequence[0].CodeValue == "origin"
            ]
        )
    assert meanings == [
        [],
        ["The image as a whole: texture of many places"],
        ["A single place, see the regions"],
    ]
