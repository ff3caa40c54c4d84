"""The verdict as a structured report: Comprehensive 3D SR with TID 1500 (PS3.16).

::

    Imaging Measurement Report
      observer: the bundle, as a device                                            TID 1002
      image:    score, p-value, threshold, false-alarm rate, n, number of
                regions; flagged or not                                            TID 1501
      region:   closed polyline on the image, peak evidence, area in mm2           TID 1410

The `MAX_REGIONS` regions with the largest peaks have a measurement group each. The report is
PRELIMINARY and UNVERIFIED, because nobody has reviewed it. Concepts without a DICOM code use our
private coding scheme 99ANOM; numbers without a unit have the UCUM unit ``{no units}``.
"""

from __future__ import annotations

from typing import TypeAlias

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes

from anomaly import __version__
from anomaly.reporting.dicom.case import SEEN
from anomaly.reporting.dicom.source import ALGORITHM, MANUFACTURER, SourceImage
from anomaly.reporting.outlines import region_outlines
from anomaly.types import DETECTOR_MODEL, NOTICE, Region

__all__ = ["EVIDENCE", "SCHEME", "private_code", "report_object"]

SCHEME = "99ANOM"

_Group: TypeAlias = (
    sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations
)


def private_code(value: str, meaning: str) -> sr.CodedConcept:
    """Return a code of the private scheme."""
    return sr.CodedConcept(value, SCHEME, meaning)


EVIDENCE = private_code("evidence", "Evidence of departure from normal scans")

_SCORE = private_code("score", "Anomaly score, higher is more unusual")
_P_VALUE = private_code("p-value", "Conformal p-value against normal scans")
_THRESHOLD = private_code("threshold", "Score at and above which a scan is flagged")
_ALPHA = private_code("alpha", "Stated false-alarm rate on normal scans")
_CALIBRATION = private_code("calibration", "Number of held-out normal scans behind the p-value")
_REGIONS = private_code("regions", "Number of regions beyond chance")
_PEAK = private_code("peak", "Largest evidence inside the region")
_FLAGGED = private_code("flagged", "Flagged as unusual at the stated false-alarm rate")
_USE = private_code("use", "Intended use")
_RESEARCH = private_code("research", NOTICE)
_VALIDITY = private_code("validity", "Whether the p-value is valid for this scan")
_SEEN = private_code("seen", SEEN)
_ORIGIN = private_code("origin", "Where the score comes from")
_ORIGINS = {
    "whole": private_code("origin-whole", "The image as a whole: texture of many places"),
    "place": private_code("origin-place", "A single place, see the regions"),
    "guard": private_code("origin-guard", "The acquisition: noise, sharpness or contrast"),
}
_UNUSUAL = private_code("unusual", "Place unlike normal scans")


def report_object(source: SourceImage) -> sr.Comprehensive3DSR:
    """Return the report with score, p-value, regions and observer, in the structure of TID 1500.

    Raises
    ------
    AnomalyError
        The regions do not belong to the evidence at the threshold.
    """
    regions = source.case.listed_regions
    traced = region_outlines(source.case.evidence, source.case.evidence_threshold, regions)
    groups: list[_Group] = [_image_group(source)]
    for number, (region, loops) in enumerate(zip(regions, traced, strict=True), 1):
        # TID 1410 requires one closed line: the outer edge. Holes only affect the area.
        graphic = sr.ImageRegion(sr.GraphicTypeValues.POLYLINE, loops[0], _place(source))
        groups.append(_region_group(source, number, region, graphic))
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=source.device_uid,
        name=ALGORITHM,
        manufacturer_name=MANUFACTURER,
        model_name=DETECTOR_MODEL,
        serial_number=source.case.bundle[:16],
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=codes.cid100.ImagingProcedure,
        imaging_measurements=groups,
    )
    return sr.Comprehensive3DSR(
        evidence=[source.reference],
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name="anomaly, private codes", responsible_organization=MANUFACTURER
            )
        ],
        **source.arguments("report"),
    )


def _place(source: SourceImage) -> sr.SourceImageForRegion:
    header = source.header
    return sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID, source.frame_numbers)


def _algorithm(source: SourceImage) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        ALGORITHM,
        __version__,
        parameters=[f"bundle={source.case.bundle}"],
        family=codes.cid7162.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def _number(name: sr.CodedConcept, value: float) -> sr.Measurement:
    return sr.Measurement(name, float(value), codes.UCUM.NoUnits)


def _image_group(source: SourceImage) -> sr.MeasurementsAndQualitativeEvaluations:
    verdict, header = source.case.verdict, source.header
    answer = codes.SCT.Yes if verdict.flagged else codes.SCT.No
    origin = _ORIGINS.get(verdict.scan.part) if verdict.flagged else None
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(source.uid("report", "image"), "whole image"),
        algorithm_id=_algorithm(source),
        measurements=[
            _number(_SCORE, verdict.scan.score),
            _number(_P_VALUE, verdict.p_value),
            _number(_THRESHOLD, verdict.threshold),
            _number(_ALPHA, verdict.alpha),
            _number(_CALIBRATION, source.case.calibration_scans),
            _number(_REGIONS, len(verdict.regions)),
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(_FLAGGED, answer),
            sr.QualitativeEvaluation(_USE, _RESEARCH),
            *([sr.QualitativeEvaluation(_ORIGIN, origin)] if origin is not None else []),
            *([sr.QualitativeEvaluation(_VALIDITY, _SEEN)] if source.case.seen else []),
        ],
        source_images=[
            sr.SourceImageForMeasurementGroup(
                header.SOPClassUID, header.SOPInstanceUID, source.frame_numbers
            )
        ],
    )


def _region_group(
    source: SourceImage, number: int, region: Region, graphic: sr.ImageRegion
) -> sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    measurements = [_number(_PEAK, region.peak)]
    if region.area_mm2 is not None:
        area = sr.Measurement(codes.SCT.Area, float(region.area_mm2), codes.UCUM.SquareMillimeter)
        measurements.append(area)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(source.uid("report", "region", str(number)), f"region {number}"),
        referenced_region=graphic,
        finding_type=_UNUSUAL,
        algorithm_id=_algorithm(source),
        measurements=measurements,
    )
