"""Where a coded frame and the header contradict each other, nothing is scored as garbage."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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

from anomaly.data.readers.dicom import open_dicom, read_dicom
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.errors import ScanError
from anomaly.grey import to_unit
from anomaly.types import Scan
from tests.data.dicom_samples import make_dataset, write_dicom

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
    for name, value in change.items():
        setattr(dataset, name, value)
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
    for name, value in change.items():
        setattr(dataset, name, value)
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


@pytest.mark.parametrize(
    ("syntax", "coded_as"),
    [(JPEGBaseline8Bit, JPEG2000Lossless), (JPEG2000Lossless, JPEGLSLossless)],
    ids=lambda uid: uid.name,
)
def test_another_coding_than_the_transfer_syntax_names_is_refused(
    syntax: UID, coded_as: UID, tmp_path: Path
) -> None:
    dataset = coded(coded_as)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == JPEGBaseline8Bit:
        dataset.BitsStored, dataset.HighBit = 8, 7
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "codestream"
    name = {JPEG2000Lossless: "JPEG 2000", JPEGLSLossless: "JPEG-LS"}[coded_as]
    assert f"the codestream is {name}" in error.message
    assert syntax.name in error.message


def test_a_frame_without_a_header_of_its_coding_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(PICTURE)
    with_frames(dataset, [b"no codestream " * 20], JPEG2000Lossless)
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "undecodable"
    assert "no header of a JPEG 2000 codestream" in error.message


@pytest.mark.parametrize("boxes", [0, 3000])
def test_a_jp2_file_in_a_frame_is_compared_with_the_header(boxes: int, tmp_path: Path) -> None:
    """However long what stands before its codestream, such as a profile of colours."""
    dataset = coded(JPEG2000Lossless)
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    signature = b"\0\0\0\x0cjP  \r\n\x87\n"
    free = (8 + boxes).to_bytes(4, "big") + b"free" + bytes(boxes)
    frame = signature + free + b"\0\0\0\0jp2c" + stream
    with_frames(dataset, [frame], JPEG2000Lossless)
    dataset.Rows, dataset.Columns = 80, 48
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "codestream"
    assert "48 x 80 pixels" in error.message


def test_what_is_coded_beyond_the_bits_stored_is_seen_and_not_masked(tmp_path: Path) -> None:
    """A baseline JPEG of 8 bits under a header of 7; its decoder would cut the eighth."""
    values = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    dataset = make_dataset(values, bits=7, allocated=8)
    with_frames(dataset, [jpeg(values)], JPEGBaseline8Bit)
    error = fault(write_dicom(tmp_path / "a", dataset))
    assert error.reason == "out of range"
    assert "BitsStored 7" in error.message


def test_fewer_samples_of_colour_are_no_rgb(tmp_path: Path) -> None:
    """A JPEG of 4:2:0 without any marker, labelled RGB."""
    frame = jpeg(RGB, subsampling=2)
    assert frame[2:4] == b"\xff\xe0"  # JFIF, left out
    frame = frame[:2] + frame[4 + int.from_bytes(frame[4:6], "big") :]
    dataset = colour(RGB, "RGB")
    with_frames(dataset, [frame], JPEGBaseline8Bit)
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, LUMINANCE, atol=4 / 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_of_8_bits_in_words_are_as_bright_as_in_bytes(bits: int, tmp_path: Path) -> None:
    index = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
    dataset = make_dataset(index, bits=8, allocated=8, photometric="PALETTE COLOR")
    dataset.SOPClassUID = UltrasoundImageStorage
    for name in ("Red", "Green", "Blue"):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, bits])
        entries = np.arange(256, dtype="<u2").tobytes()
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", entries)
    scan = only(write_dicom(tmp_path / "a", dataset), COLOUR)
    assert_allclose(scan.pixels, index / 255, atol=1e-6)


# --- offset tables ----------------------------------------------------------------------------


def stacked(*contents: bytes, table: Any = (), syntax: UID = JPEG2000Lossless) -> FileDataset:
    """Put fragments behind an offset table as it is given."""
    dataset = angiogram()
    dataset.file_meta.TransferSyntaxUID = syntax
    items = [np.asarray(table, dtype="<u4").tobytes(), *(c + bytes(len(c) % 2) for c in contents)]
    data = b"".join(b"\xfe\xff\0\xe0" + len(c).to_bytes(4, "little") + c for c in items)
    dataset.PixelData = data + b"\xfe\xff\xdd\xe0\0\0\0\0"
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dataset


def codestreams(syntax: UID = JPEG2000Lossless) -> list[bytes]:
    singles = [coded(syntax, frame) for frame in STACK]
    return [next(generate_frames(s.PixelData, number_of_frames=1)) for s in singles]


def same_frames(found: list[Scan | ScanError]) -> bool:
    return [isinstance(scan, Scan) for scan in found] == [True] * 3 and all(
        np.array_equal(scan.pixels, to_unit(values, 0, 4095))
        for scan, values in zip(found, STACK, strict=True)
        if isinstance(scan, Scan)
    )


@pytest.mark.parametrize("wrong", ["zeros", "turned", "shifted", "one more"])
def test_an_offset_table_that_contradicts_the_fragments_is_not_believed(
    wrong: str, tmp_path: Path
) -> None:
    frames = codestreams()
    places = [0, *np.cumsum([8 + len(f) + len(f) % 2 for f in frames])[:2]]
    table = {
        "zeros": [0, 0, 0],
        "turned": places[::-1],
        "shifted": [place + 8 for place in places],
        "one more": [*places, places[1] + 2],
    }[wrong]
    dataset = stacked(*frames, table=table)
    assert same_frames(read(write_dicom(tmp_path / "a", dataset)))


@pytest.mark.parametrize("lengths", ["right", "wrong"])
def test_an_extended_table_of_zeros_is_not_believed(lengths: str, tmp_path: Path) -> None:
    frames = codestreams()
    dataset = stacked(*frames)
    dataset.ExtendedOffsetTable = bytes(24)
    known = [len(f) for f in frames] if lengths == "right" else [10, 10, 10]
    dataset.ExtendedOffsetTableLengths = np.array(known, dtype="<u8").tobytes()
    assert same_frames(read(write_dicom(tmp_path / "a", dataset)))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("where", ["first", "last"])
def test_an_empty_fragment_at_an_end_is_no_frame(where: str, syntax: UID, tmp_path: Path) -> None:
    frames = codestreams(syntax)
    contents = [b"", *frames] if where == "first" else [*frames, b""]
    assert same_frames(read(write_dicom(tmp_path / "a", stacked(*contents, syntax=syntax))))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("content", [b"", b"damaged " * 10])
def test_a_frame_that_cannot_be_read_costs_itself_and_keeps_its_place(
    content: bytes, syntax: UID, tmp_path: Path
) -> None:
    first, _, last = codestreams(syntax)
    found = read(write_dicom(tmp_path / "a", stacked(first, content, last, syntax=syntax)))
    assert [isinstance(scan, Scan) for scan in found] == [True, False, True]
    assert isinstance(found[2], Scan)
    assert_array_equal(found[2].pixels, to_unit(STACK[2], 0, 4095))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=lambda uid: uid.name)
def test_frames_that_are_stated_and_not_there_are_rows(syntax: UID, tmp_path: Path) -> None:
    dataset = stacked(*codestreams(syntax), syntax=syntax)
    dataset.NumberOfFrames = 5
    found = read(write_dicom(tmp_path / "a", dataset))
    assert same_frames(found[:3])
    assert [getattr(error, "reason", "") for error in found[3:]] == ["truncated"] * 2


@pytest.mark.parametrize("frames", [1, 3])
def test_zeros_as_long_as_a_frame_are_filling(frames: int, tmp_path: Path) -> None:
    dataset = make_dataset(STACK[0], kind="CR") if frames == 1 else angiogram()
    dataset.PixelData += bytes(40 * 40 * 2)
    assert len(read(write_dicom(tmp_path / "a", dataset))) == frames


def test_a_last_frame_that_ends_in_black_is_a_frame(tmp_path: Path) -> None:
    stack = STACK.copy()
    stack[2, 20:] = 0
    dataset = state(angiogram(stack), "absent")
    found = read(write_dicom(tmp_path / "a", dataset))
    assert len(found) == 3
