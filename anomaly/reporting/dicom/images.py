"""The evidence as image objects in the pixel geometry of the source.

::

    overlay         Secondary Capture, RGB    (1 - o) grey + o colour, colour scale of the report;
                                              the spread of the score below it, in blue
    segmentation    SEG, BINARY               evidence >= threshold
    heatmap         SEG, FRACTIONAL           min(evidence, ceiling) / ceiling, in steps of 1/255
    parametric_map  Parametric Map            evidence, float32
    contours        Presentation State        edges of the regions with the largest peaks

No text is drawn over the pixels of the source, because it would hide anatomy. Viewers of archives
do not show tags, so the overlay has a caption below the image with the result and the intended use;
the contours have it as text.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from highdicom import pm, pr, sc, seg
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from anomaly.dicom.geometry import shutter_tags
from anomaly.dicom.grey import is_inverted, presentation_grey
from anomaly.errors import Reason, UnsupportedScan
from anomaly.reporting.dicom.case import SEEN, DicomCase, Kind
from anomaly.reporting.dicom.source import SourceImage
from anomaly.reporting.dicom.structured_report import EVIDENCE, private_code
from anomaly.reporting.outlines import region_outlines
from anomaly.reporting.plots.figures import overlay_rgba, spread_rgba
from anomaly.types import NOTICE

__all__ = [
    "contours_object",
    "heatmap_object",
    "overlay_object",
    "parametric_map_object",
    "segmentation_object",
]


def overlay_object(source: SourceImage) -> sc.SCImage:
    """Return the grey image with the evidence as a colour overlay, which any viewer shows."""
    case = source.case
    rgba = overlay_rgba(case.evidence, case.evidence_threshold, case.evidence_ceiling)
    pixels = np.rint(255 * case.image).astype(np.uint8)[..., None].repeat(3, axis=2)
    layers = [] if case.verdict.spread is None else [spread_rgba(case.verdict.spread)]
    _blend(pixels, case.image, [*layers, rgba])
    caption = _caption(case, pixels.shape[1])
    made = sc.SCImage.from_ref_dataset(
        source.reference,
        pixel_array=np.concatenate([pixels, caption]),
        photometric_interpretation=hd.PhotometricInterpretationValues.RGB,
        bits_allocated=8,
        # The constructor requires an orientation; `write_objects` sets that of the source.
        coordinate_system=hd.CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "P"),
        **source.arguments("overlay"),
    )
    if "PixelSpacing" in source.plane:
        made.PixelSpacing = source.plane.PixelSpacing
    elif source.aspect_ratio != [1, 1]:
        made.PixelAspectRatio = source.aspect_ratio
    made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    # De-identification relies on a NO, which only the source can state for its pixels.
    if source.header.get("BurnedInAnnotation"):
        made.BurnedInAnnotation = source.header.BurnedInAnnotation
    made.DerivationDescription = (
        f"Evidence from {case.evidence_threshold:.6g} (faint) to {case.evidence_ceiling:.6g} "
        f"(bright) in colour over the source. {NOTICE}"
    )
    made.ImageComments = NOTICE.upper()
    made.SourceImageSequence = [_reference(source)]
    return made


def _blend(
    pixels: NDArray[np.uint8], image: NDArray[np.float32], layers: Sequence[NDArray[np.uint8]]
) -> None:
    """Draw layers (H, W, 4) over an image in [0, 1], into pixels (H, W, 3)."""
    # Radiographs have many pixels, few of them with evidence.
    lit = np.any([layer[..., 3] > 0 for layer in layers], axis=0)
    colour = 255 * image[lit, None].astype(np.float64)
    for layer in layers:
        opacity = layer[lit, 3:] / 255
        colour = (1 - opacity) * colour + opacity * layer[lit, :3]
    pixels[lit] = np.rint(colour)


def _caption(case: DicomCase, width: int) -> NDArray[np.uint8]:
    """Return the caption of the overlay, white on black, (height, width, 3)."""
    verdict = case.verdict
    flag = "Flagged" if verdict.flagged else "Not flagged"
    count = len(verdict.regions)
    text = (
        f"{NOTICE.upper()} {flag} at a false-alarm rate of {verdict.alpha:g}: p = "
        f"{verdict.p_value:.2g}. {count} region{'' if count == 1 else 's'} beyond chance."
        + (f" {verdict.scan.explanation}" if verdict.flagged else "")
        + (f" {SEEN}" if case.seen else "")
    )
    size = max(9, width // 45)
    font = ImageFont.load_default(size)
    measure = ImageDraw.Draw(Image.new("L", (1, 1)))
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if measure.textlength(longer, font) <= width - size or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    image = Image.new("L", (width, (len(lines) + 1) * size * 5 // 4))
    place, caption = (size // 2, size // 2), "\n".join(lines)
    ImageDraw.Draw(image).multiline_text(place, caption, fill=255, font=font, spacing=size // 4)
    return np.asarray(image)[..., None].repeat(3, axis=2)


def _reference(source: SourceImage) -> Dataset:
    """Return an item of Source Image Sequence (PS3.3 table 10-3, C.7.6.1)."""
    item = Dataset()
    item.ReferencedSOPClassUID = source.header.SOPClassUID
    item.ReferencedSOPInstanceUID = source.header.SOPInstanceUID
    if source.frame_numbers:
        item.ReferencedFrameNumber = source.frame_numbers
    item.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return item


def segmentation_object(source: SourceImage) -> seg.Segmentation | None:
    """Return the pixels of all regions as one segment; None if there is no region."""
    mask = source.case.evidence >= source.case.evidence_threshold
    if not mask.any():
        return None
    label = f"Evidence >= {source.case.evidence_threshold:.6g}"
    return _segmentation(source, "segmentation", mask.astype(np.uint8), label)


def heatmap_object(source: SourceImage) -> seg.Segmentation:
    """Return the evidence as a fraction of the ceiling.

    DICOM defines two meanings of a fraction (PS3.3 C.8.20.2.3), and neither fits evidence.
    OCCUPANCY is used because PROBABILITY would suggest a calibrated probability per pixel.
    """
    share = np.clip(source.case.evidence / np.float32(source.case.evidence_ceiling), 0, 1)
    return _segmentation(source, "heatmap", share, "Evidence / ceiling, not a probability")


def _segmentation(
    source: SourceImage, kind: Kind, pixels: NDArray[np.generic], label: str
) -> seg.Segmentation:
    _refuse_multiframe(source, kind)
    segment = seg.SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=EVIDENCE,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=source.algorithm,
        tracking_uid=source.uid(kind, "segment"),
        tracking_id=label,
    )
    is_mask = pixels.dtype == np.uint8
    types = seg.SegmentationTypeValues
    return seg.Segmentation(
        [source.reference],
        pixel_array=pixels[None],
        segmentation_type=types.BINARY if is_mask else types.FRACTIONAL,
        segment_descriptions=[segment],
        fractional_type=None if is_mask else seg.SegmentationFractionalTypeValues.OCCUPANCY,
        max_fractional_value=255,
        content_label=kind.upper(),
        content_description=NOTICE,
        omit_empty_frames=False,
        **source.arguments(kind),
    )


def parametric_map_object(source: SourceImage) -> pm.ParametricMap:
    """Return the unscaled evidence in the plane of the source.

    Raises
    ------
    UnsupportedScan
        The source has no frame of reference (reason ``"no frame of reference"``), which the object
        requires (PS3.3 A.75) and which is never invented, or it has several frames.
    """
    _refuse_multiframe(source, "parametric_map")
    if not source.frame_of_reference:
        raise UnsupportedScan(
            Reason.NO_FRAME_OF_REFERENCE,
            f"{source.case.source} does not say where in the patient its plane lies (Frame of "
            "Reference UID, Image Position and Orientation, Pixel Spacing): a parametric map needs "
            "all of them; take a heatmap instead",
        )
    evidence, ceiling = source.case.evidence, source.case.evidence_ceiling
    values = pm.RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation="Evidence; 1 is rare. " + NOTICE,
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, float(max(evidence.max(), ceiling))),
        slope=1.0,
        intercept=0.0,
        quantity_definition=EVIDENCE,
    )
    window = hd.VOILUTTransformation(window_center=ceiling / 2, window_width=ceiling)
    return pm.ParametricMap(
        [source.reference],
        pixel_array=evidence[None],
        # Identifying features of the source may be visible in its evidence.
        contains_recognizable_visual_features=source.header.get("RecognizableVisualFeatures")
        == "YES",
        real_world_value_mappings=[values],
        voi_lut_transformations=[window],
        content_label="EVIDENCE",
        content_description=NOTICE,
        **source.arguments("parametric_map"),
    )


def contours_object(source: SourceImage) -> pr.GrayscaleSoftcopyPresentationState:
    """Return the outlines of the regions on the source image, with the notice at the bottom.

    Raises
    ------
    UnsupportedScan
        The source has several frames: their windows can differ, which one state cannot express.
    AnomalyError
        The regions do not belong to the evidence at the threshold.
    """
    _refuse_multiframe(source, "contours")
    case = source.case
    layer = pr.GraphicLayer("ANOMALY", order=1, description=NOTICE)
    annotation = _outlines(source, layer)
    shapes = hd.PresentationLUTShapeValues
    inverted = is_inverted(source.header)
    made = pr.GrayscaleSoftcopyPresentationState(
        [source.reference],
        content_label="ANOMALY",
        content_description=NOTICE,
        concept_name=private_code("contours", "Outlines of places unlike normal scans"),
        graphic_annotations=[annotation],
        graphic_layers=[layer],
        # A state replaces the photometric interpretation, so it must invert (PS3.4 N.2.1).
        presentation_lut_transformation=hd.PresentationLUTTransformation(
            shapes.INVERSE if inverted else shapes.IDENTITY
        ),
        **source.arguments("contours"),
    )
    # The constructor assumes square pixels, and viewers use the state's aspect ratio.
    made.update(presentation_grey(source.header, case.spread))
    made.update(shutter_tags(source.header))
    for area in made.DisplayedAreaSelectionSequence:
        area.PresentationPixelAspectRatio = source.aspect_ratio
    return made


def _outlines(source: SourceImage, layer: pr.GraphicLayer) -> pr.GraphicAnnotation:
    """Outlines of the listed regions, and the notice."""
    case = source.case
    listed, count = case.listed_regions, len(case.verdict.regions)
    traced = region_outlines(case.evidence, case.evidence_threshold, listed)
    graphics = [
        pr.GraphicObject(
            pr.GraphicTypeValues.POLYLINE,
            outline,
            pr.AnnotationUnitsValues.PIXEL,
            tracking_id=f"region {number}",
            tracking_uid=source.uid("contours", "region", str(number)),
        )
        for number, loops in enumerate(traced, 1)
        for outline in loops
    ]
    more = f" {SEEN}" if case.seen else ""
    more += f" {len(listed)} of {count} regions are outlined." if count > len(listed) else ""
    notice = pr.TextObject(
        NOTICE + more,
        pr.AnnotationUnitsValues.DISPLAY,
        bounding_box=(0.0, 0.95, 1.0, 1.0),
        text_justification=pr.TextJustificationValues.LEFT,
    )
    return pr.GraphicAnnotation(
        [source.reference], layer, graphic_objects=graphics, text_objects=[notice]
    )


def _refuse_multiframe(source: SourceImage, kind: Kind) -> None:
    if source.is_multiframe:
        raise UnsupportedScan(
            Reason.MULTI_FRAME,
            f"{source.case.source} has {source.frames} frame(s) in one object: expected a "
            f"single-frame image for kind {kind}; take a report and an overlay instead",
        )
