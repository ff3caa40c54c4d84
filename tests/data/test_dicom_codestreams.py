"""Where a coded frame and the header contradict each other, nothing is scored as garbage."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_samples import make_dataset, write_dicom
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)

from anomaly.data.dicom import open_dicom, read_dicom
from anomaly.data.intensity import IntensityPolicy
from anomaly.errors import ScanError
from anomaly.types import Scan

GREY = IntensityPolicy()
COLOUR = IntensityPolicy(colour="luminance")
PICTURE = np.random.default_rng(0).integers(0, 4096, (48, 80))
SYNTAXES = [JPEG2000Lossless, JPEGLSLossless]


def read(path: Path, policy: IntensityPolicy = GREY) -> list[Scan | ScanError]:
    try:
        return read_dicom(path, policy)
    except ScanError as error:
        return [error]


def only(path: Path, policy: IntensityPolicy = GREY) -> Scan:
    (scan,) = read(path, policy)
    assert isinstance(scan, Scan), scan
    return scan


def fault(path: Path, policy: IntensityPolicy = GREY) -> ScanError:
    (error,) = read(path, policy)
    assert isinstance(error, ScanError), error
    return error


def coded(syntax: UID, values: Any = PICTURE, **options: Any) -> FileDataset:
    dataset = make_dataset(values, **options)
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def jpeg(values: NDArray[np.uint8], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def with_frames(dataset: FileDataset, frames: list[bytes], syntax: UID, **options: Any) -> None:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames, **options)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


# --- size, depth and components ---------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    "change",
    [
        {"Rows": 80, "Columns": 48},
        {"Rows": 24},
        {"Columns": 81},
        {"Rows": 96, "Columns": 160},
        {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
    ],
    ids=["swapped", "shorter", "wider", "double", "shallower"],
)
def test_a_header_that_is_not_the_codestreams_is_refused_with_both(
    syntax: UID, change: dict[str, int], tmp_path: Path
) -> None:
    dataset = coded(syntax)
    only(write_dicom(tmp_path / "good", dataset))
    dataset.update(change)
    error = fault(write_dicom(tmp_path / "bad", dataset))
    assert error.reason == "codestream"
    assert "48 x 80 pixels" in error.message
    assert f"{dataset.Rows} x {dataset.Columns}" in error.message


def test_three_components_under_a_grey_header_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    dataset = make_dataset(values[..., 0], bits=8, allocated=8)
    with_frames(dataset, [jpeg(values)], JPEGBaseline8Bit)
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "codestream"
    assert "3 sample(s)" in error.message


def test_a_jpeg_of_8_bits_that_stands_for_12_is_refused_and_for_8_in_16_read(
    tmp_path: Path,
) -> None:
    values = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    dataset = make_dataset(values, bits=12)
    with_frames(dataset, [jpeg(values)], JPEGBaseline8Bit)
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "codestream"
    assert "of 8 bits" in error.message
    assert "of 12 bits" in error.message
    dataset.BitsStored, dataset.HighBit = 8, 7
    scan = only(write_dicom(tmp_path / "b", dataset))
    assert_allclose(scan.pixels, values / 255, atol=3 / 255)


def test_more_bits_in_the_coding_than_are_stored_change_nothing(tmp_path: Path) -> None:
    dataset = coded(JPEG2000Lossless, bits=16)
    expected = only(write_dicom(tmp_path / "a", dataset))
    dataset.BitsStored, dataset.HighBit = 12, 11
    scan = only(write_dicom(tmp_path / "b", dataset))
    assert_allclose(scan.pixels * 4095, expected.pixels * 65535, atol=1e-2)


@pytest.mark.parametrize("more", [2, 80, 48 * 80])
def test_native_data_that_are_too_long_are_refused(more: int, tmp_path: Path) -> None:
    dataset = make_dataset(PICTURE)
    dataset.PixelData += b"\1" * more
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "too long"
    assert str(48 * 80 * 2) in error.message
    assert str(48 * 80 * 2 + more) in error.message


def test_native_data_padded_with_zeros_are_read(tmp_path: Path) -> None:
    expected = only(write_dicom(tmp_path / "a", make_dataset(PICTURE)))
    dataset = make_dataset(PICTURE)
    dataset.PixelData += bytes(128)
    assert_array_equal(only(write_dicom(tmp_path / "b", dataset)).pixels, expected.pixels)


# --- colours ----------------------------------------------------------------------------------

RGB = np.stack(
    [np.tile(np.arange(0, 256, 8), (32, 1)), np.full((32, 32), 90), np.full((32, 32), 30)], -1
)
RGB = RGB.astype(np.uint8)
LUMINANCE = (RGB @ [0.299, 0.587, 0.114]) / 255


def colour(values: NDArray[np.uint8], photometric: str) -> FileDataset:
    dataset = make_dataset(values, bits=8, allocated=8, photometric="RGB")
    dataset.SOPClassUID = UltrasoundImageStorage
    dataset.PhotometricInterpretation = photometric
    return dataset


def to_ybr(rgb: NDArray[np.uint8], *, partial: bool) -> NDArray[np.uint8]:
    """PS3.3 C.7.6.3.1.2: BT.601 with 8 bits, full or 16 to 235."""
    with Image.fromarray(rgb) as image:
        full = np.asarray(image.convert("YCbCr"), dtype=float)
    if partial:
        full[..., 0] = 16 + full[..., 0] * 219 / 255
        full[..., 1:] = 128 + (full[..., 1:] - 128) * 224 / 255
    return np.rint(full).astype(np.uint8)


@pytest.mark.parametrize("partial", [False, True], ids=["YBR_FULL_422", "YBR_PARTIAL_422"])
def test_native_ybr_422_has_the_brightness_of_its_y(partial: bool, tmp_path: Path) -> None:
    ybr = to_ybr(RGB, partial=partial)
    packed = np.stack(  # Y1 Y2 B R
        [ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1
    )
    dataset = colour(RGB, "YBR_PARTIAL_422" if partial else "YBR_FULL_422")
    dataset.PixelData = packed.tobytes()
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, LUMINANCE, atol=1.5 / 219)


@pytest.mark.parametrize("stated", ["YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "RGB"])
def test_a_jpeg_has_the_brightness_of_its_y_whatever_its_label(stated: str, tmp_path: Path) -> None:
    dataset = colour(RGB, stated)
    with_frames(dataset, [jpeg(RGB)], JPEGBaseline8Bit)
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, LUMINANCE, atol=3 / 255)


@pytest.mark.parametrize("stated", ["YBR_RCT", "YBR_ICT", "YBR_FULL", "RGB"])
def test_mixed_components_of_jpeg_2000_are_decoded_to_colours_whatever_their_label(
    stated: str, tmp_path: Path
) -> None:
    dataset = colour(RGB, "YBR_RCT")
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.PhotometricInterpretation = stated
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, LUMINANCE, atol=3 / 255)


# --- number of frames -------------------------------------------------------------------------

STACK = np.random.default_rng(2).integers(0, 4096, (3, 40, 40))


def angiogram(frames: Any = STACK) -> FileDataset:
    dataset = make_dataset(frames)
    dataset.SOPClassUID = XRayAngiographicImageStorage
    return dataset


def state(dataset: FileDataset, number: int | str | None) -> FileDataset:
    if number == "absent":
        del dataset.NumberOfFrames
    else:
        dataset.NumberOfFrames = number
    return dataset


@pytest.mark.parametrize("stated", ["absent", None, 1, 2])
@pytest.mark.parametrize(
    "coding",
    [
        *("native", "RLE", "RLE, no offsets", "RLE, one offset"),
        *("J2K", "J2K, no offsets", "J2K, one offset", "J2K, extended"),
    ],
)
def test_every_frame_that_is_there_gets_its_row(
    coding: str, stated: int | str | None, tmp_path: Path
) -> None:
    expected = read(write_dicom(tmp_path / "good", angiogram()))
    dataset = angiogram()
    if coding != "native":
        syntax = RLELossless if "RLE" in coding else JPEG2000Lossless
        singles = [coded(syntax, frame) for frame in STACK]
        frames = [next(generate_frames(s.PixelData, number_of_frames=1)) for s in singles]
        with_frames(dataset, frames, syntax, has_bot="no offsets" not in coding)
        if "one offset" in coding:
            first = dataset.PixelData.index(b"\xfe\xff\x00\xe0", 4)  # of the first frame
            table = b"\xfe\xff\x00\xe0\x04\0\0\0" + bytes(4)
            dataset.PixelData = table + dataset.PixelData[first:]
        if "extended" in coding:
            data, offsets, lengths = encapsulate_extended(frames)
            dataset.PixelData = data
            dataset["PixelData"].is_undefined_length = True
            dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    scans = read(write_dicom(tmp_path / "a", state(dataset, stated)))
    assert len(scans) == 3
    for scan, other in zip(scans, expected, strict=True):
        assert isinstance(scan, Scan), scan
        assert isinstance(other, Scan)
        assert_array_equal(scan.pixels, other.pixels)


@pytest.mark.parametrize("stated", ["absent", 1])
def test_a_class_of_single_images_with_several_is_refused(
    stated: int | str, tmp_path: Path
) -> None:
    dataset = make_dataset(STACK, kind="CR")
    assert dataset.SOPClassUID == ComputedRadiographyImageStorage
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    error = fault(write_dicom(tmp_path / "a", state(dataset, stated)))
    assert "3 frames" in error.message


def test_one_frame_in_several_fragments_is_one(tmp_path: Path) -> None:
    dataset = angiogram(STACK[0])
    single = coded(JPEG2000Lossless, STACK[0])
    (frame,) = generate_frames(single.PixelData, number_of_frames=1)
    with_frames(dataset, [frame], JPEG2000Lossless, fragments_per_frame=3, has_bot=False)
    assert_array_equal(
        only(write_dicom(tmp_path / "a", dataset)).pixels,
        only(write_dicom(tmp_path / "b", make_dataset(STACK[0]))).pixels,
    )


# --- siblings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"Rows": 24}, {"Rows": 49}, {"Columns": 40}], ids=str)
@pytest.mark.parametrize("bits", [8, 12])
def test_run_lengths_of_another_size_are_refused(
    bits: int, change: dict[str, int], tmp_path: Path
) -> None:
    options = {"bits": bits, "allocated": 8 if bits == 8 else 16}
    dataset = coded(RLELossless, PICTURE % 2**bits, **options)
    only(write_dicom(tmp_path / "good", dataset))
    dataset.update(change)
    error = fault(write_dicom(tmp_path / "bad", dataset))
    assert error.reason == "codestream"
    assert f"{dataset.Rows} x {dataset.Columns}" in error.message


def test_run_lengths_that_zeros_fill_up_are_read(tmp_path: Path) -> None:
    dataset = make_dataset(PICTURE % 256, bits=8, allocated=8)
    expected = only(write_dicom(tmp_path / "a", dataset))
    dataset.compress(RLELossless, generate_instance_uid=False)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    with_frames(dataset, [frame + bytes(64)], RLELossless)
    assert_array_equal(only(write_dicom(tmp_path / "b", dataset)).pixels, expected.pixels)


def test_signed_samples_under_an_unsigned_header_are_refused(tmp_path: Path) -> None:
    """They would be read as 2048 too dark or too bright."""
    dataset = coded(JPEG2000Lossless, PICTURE - 2048, signed=True)
    only(write_dicom(tmp_path / "good", dataset))
    dataset.PixelRepresentation = 0
    error = fault(write_dicom(tmp_path / "bad", dataset))
    assert error.reason == "codestream"
    assert "12 bits, signed" in error.message
    assert "PixelRepresentation 0" in error.message


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_coded_colours_are_pixel_by_pixel_whatever_their_planar_configuration(
    syntax: UID, tmp_path: Path
) -> None:
    dataset = colour(RGB, "YBR_RCT" if syntax == JPEG2000Lossless else "YBR_FULL_422")
    if syntax == JPEG2000Lossless:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        with_frames(dataset, [jpeg(RGB)], syntax)
    dataset.PlanarConfiguration = 1
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, LUMINANCE, atol=3 / 255)


def adobe(frame: bytes, transform: int) -> bytes:
    """Say another transform in the Adobe marker (T.872 6.5.3)."""
    head = b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"
    assert frame.startswith(head)
    return head + bytes([transform]) + frame[len(head) + 1 :]


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("transform", [0, 1])
def test_the_colours_of_a_jpeg_are_those_of_its_adobe_marker(
    transform: int, stated: str, tmp_path: Path
) -> None:
    """A transform of 0 means RGB as it is, 1 means YCbCr; the label may say anything."""
    samples = RGB if transform == 0 else to_ybr(RGB, partial=False)
    frame = jpeg_of_samples(samples)
    dataset = colour(RGB, stated)
    with_frames(dataset, [adobe(frame, transform)], JPEGBaseline8Bit)
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, LUMINANCE, atol=4 / 255)


def jpeg_of_samples(samples: NDArray[np.uint8]) -> bytes:
    """Code three components as they are, under the names 1, 2 and 3."""
    frame = jpeg(samples, keep_rgb=True, subsampling=0)
    for name, number in zip(b"RGB", b"\1\2\3", strict=True):  # in SOF0 and SOS
        frame = _renamed(frame, b"\xff\xc0", name, number)
        frame = _renamed(frame, b"\xff\xda", name, number)
    return frame


def _renamed(frame: bytes, marker: bytes, name: int, number: int) -> bytes:
    start = frame.index(marker)
    place = frame.index(bytes([name]), start + (10 if marker == b"\xff\xc0" else 5))
    return frame[:place] + bytes([number]) + frame[place + 1 :]


def test_colours_above_the_bits_stored_are_refused(tmp_path: Path) -> None:
    dataset = colour(RGB, "RGB")
    dataset.BitsStored, dataset.HighBit = 6, 5
    error = fault(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert error.reason == "out of range"
    assert "248" in error.message


def test_a_frame_read_again_is_the_same(tmp_path: Path) -> None:
    """Reading changes nothing of the object: neither the same frame again nor the next."""
    ybr = to_ybr(RGB, partial=True)
    packed = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1)
    dataset = colour(RGB, "YBR_PARTIAL_422")
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.NumberOfFrames = 2
    dataset.PixelData = packed.tobytes() * 2
    frames = open_dicom(write_dicom(tmp_path / "a", dataset), COLOUR)
    for index in (0, 1, 0):
        assert_allclose(frames.read(index).pixels, LUMINANCE, atol=1.5 / 219)
