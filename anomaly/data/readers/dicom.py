"""Reader of DICOM images, the only one in the package.

::

    header -> checked and completed                   (anomaly.data.readers.dicom_header)
    coded frame -> stored values or brightness        (anomaly.data.readers.dicom_pixels)
        -> grey in [0, 1], inverted where 0 is white  (anomaly.dicom.grey)
        -> shutter and padding black -> upright       (anomaly.dicom.geometry)

Overlay planes are not drawn, because they hold annotations and not anatomy. Only tested kinds of
image are read; all others raise `UnsupportedScan` with a short reason.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import FileDataset, dcmread
from pydicom import misc as pydicom_misc
from pydicom import uid as uids

from anomaly.data.readers.dicom_header import check_header, is_coloured
from anomaly.data.readers.dicom_pixels import brightness, coded_header, decoders, stored_values
from anomaly.data.readers.frames import Frames, check_varied, decoding
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.dicom.geometry import open_to_view, orientation, spacing, unreadable_tags
from anomaly.dicom.grey import GradedValues, apply_modality, display_curve, file_voi, is_inverted
from anomaly.dicom.tags import text
from anomaly.errors import Reason, ScanError, UnreadableScan
from anomaly.grey import GreyCurve, percentile_curve, to_unit, window_range
from anomaly.types import Scan, ScanIdentity

__all__ = [
    "IntensityPolicy",
    "decodable_transfer_syntaxes",
    "instance_uid",
    "is_dicom",
    "open_dicom",
    "read_dicom",
]

_ONE_GREY = 2 / 255  # a smaller range of displayed grey looks flat


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content: ``DICM`` after a preamble of 128 bytes.

    Files without the preamble do not count as DICOM: the standard requires it for interchange, and
    guessing would also accept files that merely resemble DICOM.

    Raises
    ------
    OSError
        The file cannot be opened.
    """
    return pydicom_misc.is_dicom(path)


def read_dicom(path: Path, policy: IntensityPolicy) -> list[Scan | ScanError]:
    """Read every frame of a DICOM file; see `open_dicom`.

    Returns
    -------
    list of Scan or ScanError
        One entry per frame: the scan, or the error if the frame cannot be used.
    """
    return list(open_dicom(path, policy))


def instance_uid(path: Path) -> str:
    """SOP Instance UID of a file, even if other tags are damaged; empty if it cannot be read."""
    try:
        with decoding(path):
            return text(dcmread(path, specific_tags=["SOPInstanceUID"]), "SOPInstanceUID")
    except ScanError:
        return ""


def open_dicom(path: Path, policy: IntensityPolicy) -> Frames:
    """Open a DICOM image and check its header; frames are decoded later, on request.

    Parameters
    ----------
    path : Path
    policy : IntensityPolicy

    Returns
    -------
    Frames
        Each frame decodes to a `Scan`, float32 in [0, 1], 0 = black, turned upright:
        ``(Rows, Columns)`` as stored, or transposed (`Scan.orientation`). Pixels marked by
        PixelPaddingValue or covered by a display shutter are 0. `Scan.levels` is
        ``2 ** BitsStored`` under every policy.

    Raises
    ------
    UnreadableScan
        ``"not dicom"``, ``"no transfer syntax"``, ``"no pixel data"``, ``"truncated"``,
        ``"no decoder"``, ``"undecodable"``, ``"unreadable"``.
    UnsupportedScan
        ``"not an image"``, ``"media directory"``, ``"sop class"``, ``"own result"``,
        ``"colour"``, ``"photometric"``, ``"bit depth"``, ``"too large"``, ``"empty"``; decoding a
        frame also raises ``"out of range"``, ``"constant"``, ``"rescale"``, ``"window"``,
        ``"lut"``, ``"shutter"``.
    """
    with decoding(path) as warned:
        if not is_dicom(path):
            raise UnreadableScan(
                Reason.NOT_DICOM, f"{path} is not DICOM: bytes 128 to 131 are not 'DICM'."
            )
        dataset = dcmread(path)
        # pydicom only warns about a file that ends early, and returns the part it could read.
        ends = [str(warning.message) for warning in warned if "nd of file" in str(warning.message)]
        if ends:
            raise UnreadableScan(Reason.TRUNCATED, f"{path} is cut off ({ends[0]}); copy it again.")
        counts = check_header(path, dataset, policy)
    return Frames(counts[0], partial(_read_frame, path, dataset, policy, counts), path)


def decodable_transfer_syntaxes() -> dict[str, list[str]]:
    """Transfer syntaxes that pydicom knows, with the installed decoders of each.

    Returns
    -------
    dict of str to list of str
        Name of the transfer syntax -> names of plugins; an empty list means that this installation
        cannot decode such files.
    """
    return {uid.name: decoders(uid) for uid in uids.AllTransferSyntaxes}


def _read_frame(
    path: Path, dataset: FileDataset, policy: IntensityPolicy, counts: tuple[int, int], index: int
) -> Scan:
    count, present = counts
    if index >= present:
        raise UnreadableScan(
            Reason.TRUNCATED,
            f"{path} has {present} of the {count} frames it states. Copy it again.",
        )
    with decoding(path):
        coded = coded_header(path, dataset, present, index)
        voi: GreyCurve | None = None
        notes: tuple[str, ...] = ()
        if is_coloured(dataset):
            pixels, hidden, steps = brightness(path, dataset, index, coded)
        else:
            stored, hidden, notes = stored_values(path, dataset, index, coded)
            rescaled = apply_modality(path, dataset, index, stored)
            pixels, steps, voi, more = _grey(dataset, index, rescaled, policy)
            notes += more
        seen, shutter_notes = open_to_view(dataset, index)
        if seen is not None:
            hidden, steps = hidden | ~seen, (*steps, "display shutter")
        check_varied(path, pixels[~hidden])
        if voi is not None and np.ptp(voi(pixels[~hidden])) < _ONE_GREY:
            notes, voi = (*notes, f"{voi.source} not used for display: it shows one grey"), None
        visible = percentile_curve(pixels[~hidden]) if hidden.any() else None
        pixels[hidden] = 0
        grey = _Grey(pixels, steps, voi, visible, (*notes, *shutter_notes))
        return _scan(dataset, index, grey, count)


class _Grey(NamedTuple):
    """Grey values of a frame in stored orientation, and how they were computed."""

    pixels: NDArray[np.float32]
    steps: tuple[str, ...]
    voi: GreyCurve | None
    visible: GreyCurve | None
    notes: tuple[str, ...]


def _scan(dataset: FileDataset, index: int, grey: _Grey, count: int) -> Scan:
    """Build the scan of a frame: upright pixels and metadata from its tags."""
    turn = orientation(dataset, index)
    size, source = spacing(dataset, index)
    return Scan(
        pixels=np.ascontiguousarray(turn.show(grey.pixels)),
        levels=2 ** int(dataset.BitsStored),
        identity=ScanIdentity(
            patient=text(dataset, "PatientID"),
            study=text(dataset, "StudyInstanceUID"),
            series=text(dataset, "SeriesInstanceUID"),
            instance=text(dataset, "SOPInstanceUID"),
            frame=index,
        ),
        modality=text(dataset, "Modality"),
        spacing=size[::-1] if size is not None and turn.transposed else size,
        spacing_source=source,
        intensity=", ".join(grey.steps) + ".",
        view=text(dataset, "ViewPosition"),
        body_part=text(dataset, "BodyPartExamined"),
        laterality=text(dataset, "ImageLaterality") or text(dataset, "Laterality"),
        burned_in=text(dataset, "BurnedInAnnotation").upper() == "YES",
        synthetic=text(dataset, "SyntheticData").upper() == "YES",
        orientation=turn,
        voi=grey.voi,
        visible=grey.visible,
        frame_count=count,
        notes=(*grey.notes, *unreadable_tags(dataset, index)),
    )


def _grey(
    dataset: FileDataset, index: int, rescaled: GradedValues, policy: IntensityPolicy
) -> tuple[NDArray[np.float32], tuple[str, ...], GreyCurve | None, tuple[str, ...]]:
    """Grey values under the policy, the steps taken, the file's display curve, and notes."""
    inverted = is_inverted(dataset)
    usable, notes = file_voi(dataset, index)
    display = None
    if policy.window is not None:
        step = "window {:g} / {:g} as configured".format(*policy.window)
        pixels = to_unit(rescaled.values, *window_range(*policy.window), inverted=inverted)
        display = GreyCurve.identity(step)
    elif policy.voi == "file" and usable is not None:
        step = usable.name
        pixels = usable.apply(rescaled, inverted=inverted)
        display = GreyCurve.identity(step)
    else:
        step = f"full range {rescaled.low:g} to {rescaled.high:g}"
        pixels = to_unit(rescaled.values, rescaled.low, rescaled.high, inverted=inverted)
        if usable is not None:
            display = display_curve(usable, rescaled, inverted=inverted)
    steps = (*rescaled.steps, step, *(("inverted",) if inverted else ()))
    return pixels, steps, display, notes
