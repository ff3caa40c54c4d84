"""Reading DICOM: every number below follows from the stored values by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.uid import (
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
)

from anomaly.data.readers import dicom_header, dicom_pixels, frames
from anomaly.data.readers.dicom import decodable_transfer_syntaxes, is_dicom, read_dicom
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.errors import ConfigError, ScanError, UnreadableScan, UnsupportedScan
from anomaly.grey import to_unit
from anomaly.types import DETECTOR_MODEL, Scan
from tests.data.dicom_samples import lut_item, make_dataset, write_dicom, write_sample

FULL = IntensityPolicy()
FILE = IntensityPolicy(voi="file")
RAMP = [[0, 1024], [2048, 4095]]


def read_one(path: Path, policy: IntensityPolicy = FULL) -> Scan:
    (scan,) = read_dicom(path, policy)
    if isinstance(scan, ScanError):
        raise scan
    return scan


def refusal(path: Path, policy: IntensityPolicy = FULL) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read_one(path, policy)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "scan"  # no extension, as on most DICOM media


# --- grey -------------------------------------------------------------------------------------


def test_twelve_bits_in_sixteen(file: Path) -> None:
    scan = read_one(write_sample(file, RAMP))
    # 12 bits stored: white is 4095 and not 65535
    assert_allclose(scan.pixels, np.array([[0, 1024], [2048, 4095]]) / 4095, atol=1e-7)
    assert scan.pixels.dtype == np.float32
    assert scan.levels == 4096


def test_monochrome1_twin_is_identical(tmp_path: Path) -> None:
    values = np.array([[0, 7, 100], [4095, 2000, 1]])
    white = read_one(write_sample(tmp_path / "a", values, photometric="MONOCHROME2"))
    black = read_one(write_sample(tmp_path / "b", 4095 - values, photometric="MONOCHROME1"))
    assert_allclose(black.pixels, white.pixels, atol=1e-7)
    assert "inverted" in black.intensity
    assert "inverted" not in white.intensity


def test_inversion_is_about_the_range_and_not_the_maximum(file: Path) -> None:
    scan = read_one(write_sample(file, [[0, 1000]], photometric="MONOCHROME1"))
    assert_allclose(scan.pixels, [[1, 1 - 1000 / 4095]], atol=1e-7)


def test_presentation_lut_shape_inverse_inverts_once(tmp_path: Path) -> None:
    for name, photometric in (("a", "MONOCHROME2"), ("b", "MONOCHROME1")):
        path = write_sample(
            tmp_path / name, RAMP, photometric=photometric, PresentationLUTShape="INVERSE"
        )
        assert read_one(path).pixels[0, 0] == 1


def test_signed_ct_full_range(file: Path) -> None:
    path = write_sample(
        file,
        [[-2048, 0, 2047]],
        kind="CT",
        signed=True,
        RescaleSlope=1,
        RescaleIntercept=0,
    )
    assert_allclose(read_one(path).pixels, [[0, 2048 / 4095, 1]], atol=1e-7)


def test_signed_without_sign_extension(file: Path) -> None:
    # 0x0FFF in 12 bits is -1, also where a writer left the upper four bits at zero
    path = write_sample(file, [[0x0FFF, 0x0800, 0x07FF]], kind="CT", signed=True)
    assert_allclose(read_one(path).pixels, [[2047 / 4095, 0, 1]], atol=1e-7)


def test_hounsfield_window(file: Path) -> None:
    # stored 1024 is 0 HU; centre 40, width 400 spans -160 to 240 HU
    stored = 1024 + np.array([[-500, -160, -60, 40, 240, 900]])
    path = write_sample(file, stored, kind="CT", RescaleSlope=1, RescaleIntercept=-1024)
    scan = read_one(path, IntensityPolicy(window=(40, 400)))
    assert_allclose(scan.pixels, [[0, 0, 0.25, 0.5, 1, 1]], atol=1e-7)
    assert "window 40 / 400 as configured" in scan.intensity


def test_negative_slope_maps_the_range(file: Path) -> None:
    path = write_sample(file, [[0, 4095]], kind="CT", RescaleSlope=-2, RescaleIntercept=10)
    assert_allclose(read_one(path).pixels, [[1, 0]], atol=1e-7)


def test_full_ignores_the_window_of_the_file(file: Path) -> None:
    tags = {"WindowCenter": 2048, "WindowWidth": 100}
    scan = read_one(write_sample(file, RAMP, **tags))
    assert_allclose(scan.pixels[0, 1], 1024 / 4095, atol=1e-7)


def test_file_window_linear(file: Path) -> None:
    # PS3.3 C.11.2.1.2.1 with c = 2048, w = 4096: 0 at c - 0.5 - (w - 1) / 2 = 0, 1 at 4095
    scan = read_one(write_sample(file, RAMP, WindowCenter=[2048, 1], WindowWidth=[4096, 2]), FILE)
    assert_allclose(scan.pixels, np.array(RAMP) / 4095, atol=1e-7)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_file_window_agrees_with_pydicom(file: Path, function: str) -> None:
    values = np.arange(4096).reshape(64, 64)
    tags: dict[str, Any] = {"WindowCenter": 1000.5, "WindowWidth": 777, "VOILUTFunction": function}
    dataset = make_dataset(values, **tags)
    expected = apply_windowing(values.astype(np.uint16), dataset) / 4095
    assert_allclose(read_one(write_dicom(file, dataset), FILE).pixels, expected, atol=1e-6)


def test_window_of_width_one_is_a_step(file: Path) -> None:
    path = write_sample(file, [[9, 10, 11]], WindowCenter=10.5, WindowWidth=1)
    assert_array_equal(read_one(path, FILE).pixels, [[0, 0, 1]])  # x <= c - 0.5 is black


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 10, "WindowWidth": 0},
        {"WindowCenter": 10, "WindowWidth": 5, "VOILUTFunction": "CUBIC"},
    ],
)
def test_impossible_file_window_counts_as_absent_and_is_noted(
    file: Path, tags: dict[str, Any]
) -> None:
    scan = read_one(write_sample(file, RAMP, **tags), FILE)
    assert_allclose(scan.pixels, np.array(RAMP) / 4095, atol=1e-7)
    assert "full range" in scan.intensity
    assert len(scan.notes) == 1
    assert "not used" in scan.notes[0]
    assert scan.display.source.startswith("percentiles")


def test_modality_lut(file: Path) -> None:
    # below the first mapped value 10: first entry; above the last: last entry
    item = lut_item(10, 8, [0, 51, 255])
    path = write_sample(file, [[0, 10, 11, 12, 4000]], ModalityLUTSequence=[item])
    assert_allclose(read_one(path).pixels, [[0, 0, 0.2, 1, 1]], atol=1e-7)


def test_voi_lut_of_8_bits_does_not_wrap_its_index(file: Path) -> None:
    # 4096 entries of 8 bits: indexing in uint8 would wrap at 256
    item = lut_item(0, 8, np.arange(4096) // 16)
    path = write_sample(file, RAMP, VOILUTSequence=[item])
    assert_allclose(read_one(path, FILE).pixels, np.array([[0, 64], [128, 255]]) / 255, atol=1e-7)


def test_luts_agree_with_pydicom(file: Path) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 4096, (32, 32))
    dataset = make_dataset(
        values,
        ModalityLUTSequence=[lut_item(0, 16, np.arange(4096) * 16)],
        VOILUTSequence=[lut_item(0, 16, random.integers(0, 65536, 65535))],
    )
    expected = apply_voi(apply_modality_lut(values.astype(np.uint16), dataset), dataset) / 65535
    assert_allclose(read_one(write_dicom(file, dataset), FILE).pixels, expected, atol=1e-6)


def test_wrong_lut_of_the_modality_is_refused_and_one_of_the_display_noted(tmp_path: Path) -> None:
    table = [lut_item(0, 8, [0, 300])]
    path = write_sample(tmp_path / "a", RAMP, ModalityLUTSequence=table)
    assert refusal(path).reason == "lut"
    scan = read_one(write_sample(tmp_path / "b", RAMP, VOILUTSequence=table), FILE)
    assert_allclose(scan.pixels, np.array(RAMP) / 4095, atol=1e-7)
    assert "300" in scan.notes[0]


def test_behind_a_broken_table_the_window_counts(file: Path) -> None:
    tags = {"WindowCenter": 2048, "WindowWidth": 4096}
    table = [lut_item(0, 8, [0, 300])]
    scan = read_one(write_sample(file, RAMP, VOILUTSequence=table, **tags), FILE)
    assert "window 2048 / 4096 of the file" in scan.intensity
    assert "300" in scan.notes[0]
    assert "window 2048" in scan.display.source


@pytest.mark.parametrize("written", ["20,5", "abcd"])
def test_a_window_that_is_no_number_counts_as_absent_and_is_noted(file: Path, written: str) -> None:
    path = write_sample(file, RAMP, WindowCenter="1234", WindowWidth="4096")
    path.write_bytes(path.read_bytes().replace(b"1234", written.encode()))
    scan = read_one(path, FILE)
    assert_allclose(scan.pixels, np.array(RAMP) / 4095, atol=1e-7)
    assert "not used: its values are no numbers" in scan.notes[0]


@pytest.mark.parametrize("keyword", ["NumberOfFrames", "HighBit", "PixelPaddingValue"])
def test_a_side_tag_of_another_kind_condemns_no_pixels(file: Path, keyword: str) -> None:
    dataset = make_dataset(RAMP)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    dataset[tag] = pydicom.DataElement(tag, "LO", "several, 7")
    assert_allclose(read_one(write_dicom(file, dataset)).pixels, np.array(RAMP) / 4095, atol=1e-7)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("hides", ["shutter", "padding"])
def test_what_is_hidden_has_no_part_in_what_is_displayed(
    file: Path, photometric: str, hides: str
) -> None:
    """10 bits in 16, half of the image hidden: what is left fills the screen."""
    values = 30000 + np.arange(1024).reshape(32, 32)
    tags: dict[str, Any] = {"PixelPaddingValue": 0}
    if hides == "shutter":
        edges = {
            "LeftVertical": 1,
            "RightVertical": 16,
            "UpperHorizontal": 1,
            "LowerHorizontal": 32,
        }
        tags = {f"Shutter{name}Edge": value for name, value in edges.items()}
        tags["ShutterShape"] = "RECTANGULAR"
    else:
        values[:, 16:] = 0
    scan = read_one(write_sample(file, values, bits=16, photometric=photometric, **tags))
    seen = scan.display(scan.pixels)[:, :16]
    assert np.ptp(seen) == 1
    assert 0.45 < seen.mean() < 0.55


def test_a_window_beyond_the_values_is_not_used_for_display(file: Path) -> None:
    scan = read_one(write_sample(file, RAMP, WindowCenter=50000, WindowWidth=400))
    assert scan.display.source.startswith("percentiles")
    assert "window 50000 / 400 of the file, LINEAR not used for display" in scan.notes[0]


def test_the_first_usable_window_counts(file: Path) -> None:
    path = write_sample(file, RAMP, WindowCenter=[0, 2048], WindowWidth=[0, 4096])
    scan = read_one(path, FILE)
    assert_allclose(scan.pixels, np.array(RAMP) / 4095, atol=1e-7)
    assert "window 0 / 0" in scan.notes[0]
    tables = [lut_item(0, 8, []), lut_item(0, 8, np.arange(4096) // 16)]
    scan = read_one(write_sample(file, RAMP, VOILUTSequence=tables), FILE)
    assert_allclose(scan.pixels, np.array([[0, 64], [128, 255]]) / 255, atol=1e-7)


@pytest.mark.parametrize(("bits", "top"), [(16, 1023), (16, 4095), (12, 255)])
def test_a_table_of_fewer_bits_than_it_declares_is_not_black(
    file: Path, bits: int, top: int
) -> None:
    item = lut_item(0, bits, np.linspace(0, top, 4096).round())
    scan = read_one(write_sample(file, RAMP, VOILUTSequence=[item]))
    assert_allclose(scan.display(scan.pixels), np.array(RAMP) / 4095, atol=1 / top)
    assert f"entries up to {top} where {bits} bits are declared" in scan.notes[0]


def test_padding_written_as_a_negative_number_is_found(file: Path) -> None:
    dataset = make_dataset([[0, 100, 200, 65036]], bits=16)
    dataset.add_new("PixelPaddingValue", "SS", -500)
    scan = read_one(write_dicom(file, dataset))
    assert scan.pixels[0, 3] == 0
    assert scan.display(scan.pixels)[0, 2] == 1


@pytest.mark.parametrize("tag", ["RescaleSlope", "RescaleIntercept"])
def test_half_a_rescale_is_none(file: Path, tag: str) -> None:
    scan = read_one(write_sample(file, RAMP, **{tag: 2}))
    assert_allclose(scan.pixels, np.array(RAMP) / 4095, atol=1e-7)


@pytest.mark.parametrize("keyword", ["PixelRepresentation", "SamplesPerPixel"])
def test_what_a_header_may_leave_open_is_taken_as_usual(file: Path, keyword: str) -> None:
    dataset = make_dataset(RAMP)
    del dataset[keyword]
    assert_allclose(read_one(write_dicom(file, dataset)).pixels, np.array(RAMP) / 4095, atol=1e-7)


def test_zero_slope_is_refused(file: Path) -> None:
    path = write_sample(file, RAMP, RescaleSlope=0, RescaleIntercept=0)
    assert refusal(path).reason == "rescale"


# --- padding ----------------------------------------------------------------------------------


def test_padding_is_black_after_inversion_too(file: Path) -> None:
    path = write_sample(file, [[0, 0, 1000, 3000]], photometric="MONOCHROME1", PixelPaddingValue=0)
    assert_allclose(read_one(path).pixels, [[0, 0, 1 - 1000 / 4095, 1 - 3000 / 4095]], atol=1e-7)


def test_padding_range_and_signed_padding_outside_the_stored_bits(file: Path) -> None:
    # -30000 does not fit 12 bits, but padding is not image
    dataset = make_dataset([[-30000, -29990, -1, 2047]], kind="CT", signed=True)
    dataset.add_new("PixelPaddingValue", "SS", -30000)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -29980)
    pixels = read_one(write_dicom(file, dataset)).pixels
    assert_allclose(pixels, [[0, 0, 2047 / 4095, 1]], atol=1e-7)


def test_signed_padding_written_as_unsigned(file: Path) -> None:
    dataset = make_dataset([[-2000, 0, 2047]], kind="CT", signed=True)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    pixels = read_one(write_dicom(file, dataset), IntensityPolicy(window=(0, 10000))).pixels
    assert_allclose(pixels, [[0, 0.5, 0.7047]], atol=1e-6)  # without padding, -2000 would be 0.3


def test_constant_but_for_padding_is_refused(file: Path) -> None:
    path = write_sample(file, [[0, 0, 500, 500]], PixelPaddingValue=0)
    assert refusal(path).reason == "constant"


def test_constant_is_refused(file: Path) -> None:
    path = write_sample(file, np.full((4, 4), 77))
    assert refusal(path).reason == "constant"


def test_values_outside_the_stored_bits_are_refused(file: Path) -> None:
    path = write_sample(file, [[0, 0x1001]])
    error = refusal(path)
    assert isinstance(error, UnsupportedScan)
    assert error.reason == "out of range"
    assert "4097" in error.message


# --- coding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=["RLE", "J2K", "JPEG-LS"]
)
def test_lossless_codings_equal_raw(tmp_path: Path, syntax: Any, bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    values = np.random.default_rng(bits).integers(low, low + 2**bits, (70, 65))
    values[0, :2] = low, low + 2**bits - 1
    options = {"kind": "CT", "bits": bits, "allocated": 8 if bits == 8 else 16, "signed": signed}
    raw = read_one(write_sample(tmp_path / "raw", values, **options))
    coded = read_one(write_sample(tmp_path / "coded", values, syntax=syntax, **options))
    assert_array_equal(coded.pixels, raw.pixels)
    assert_allclose(raw.pixels, (values - low) / (2**bits - 1), atol=1e-7)


def test_big_endian_lut_and_pixels(file: Path) -> None:
    # the same words, each with its bytes swapped
    dataset = make_dataset([[10, 11, 12]])
    dataset.PixelData = np.array([10, 11, 12], dtype=">u2").tobytes()
    item = lut_item(10, 8, [0, 51, 255])
    item["LUTData"].value = np.array([0, 51, 255], dtype=">u2").tobytes()
    dataset.VOILUTSequence = [item]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    assert_allclose(read_one(file, FILE).pixels, [[0, 0.2, 1]], atol=1e-7)


@pytest.mark.parametrize("part", [0.5, 0.8, 0.98])
@pytest.mark.parametrize(
    "syntax",
    [None, RLELossless, JPEG2000Lossless, JPEGLSLossless],
    ids=["raw", "RLE", "J2K", "JLS"],
)
def test_truncated_file_is_never_half_an_image(file: Path, syntax: Any, part: float) -> None:
    values = np.random.default_rng(1).integers(0, 4096, (64, 64))
    write_sample(file, values, syntax=syntax)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    error = refusal(file)
    assert isinstance(error, UnreadableScan)
    assert error.reason == "truncated"


def test_doctor_table() -> None:
    table = decodable_transfer_syntaxes()
    assert table["Explicit VR Little Endian"] == ["numpy"]
    assert "pylibjpeg" in table["High-Throughput JPEG 2000 Image Compression (Lossless Only)"]
    assert table["MPEG2 Main Profile / Main Level"] == []


def test_no_decoder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(file, RAMP, syntax=RLELossless)
    assert read_one(file).levels == 4096
    monkeypatch.setattr(dicom_header, "decoders", lambda _syntax: [])
    assert refusal(file).reason == "no decoder"


def test_twelve_bit_jpeg_needs_the_optional_decoder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_header, "decoders", lambda _syntax: ["gdcm", "pillow"])
    dataset = make_dataset(RAMP)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    assert refusal(write_dicom(file, dataset)).reason == "no decoder"


# --- what is refused --------------------------------------------------------------------------


def test_not_dicom(file: Path) -> None:
    file.write_bytes(b"\x89PNG" + b"\0" * 200)
    assert not is_dicom(file)
    assert refusal(file).reason == "not dicom"


def test_empty_file(file: Path) -> None:
    file.write_bytes(b"")
    assert refusal(file).reason == "not dicom"


def test_missing_transfer_syntax(file: Path) -> None:
    dataset = make_dataset(RAMP)
    del dataset.file_meta.TransferSyntaxUID
    dataset.save_as(file, implicit_vr=False, little_endian=True)
    raw = file.read_bytes()
    if raw[128:132] != b"DICM":
        file.write_bytes(b"\0" * 128 + b"DICM" + raw)
    error = refusal(file)
    assert isinstance(error, UnreadableScan)
    assert error.reason == "no transfer syntax"


def test_no_pixel_data(file: Path) -> None:
    dataset = make_dataset(RAMP)
    del dataset.PixelData
    error = refusal(write_dicom(file, dataset))
    assert isinstance(error, UnreadableScan)
    assert error.reason == "no pixel data"


def test_other_sop_classes(tmp_path: Path) -> None:
    dataset = make_dataset(RAMP)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    assert refusal(write_dicom(tmp_path / "a", dataset)).reason == "sop class"
    del dataset.PixelData
    assert refusal(write_dicom(tmp_path / "b", dataset)).reason == "not an image"


@pytest.mark.parametrize(
    ("values", "photometric", "expected"),
    [
        (
            [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]],
            "RGB",
            [0.299, 0.587, 0.114, 1],
        ),
        ([[[77, 77, 77], [0, 0, 0]]], "RGB", [77 / 255, 0]),
        # Y, Cb, Cr of red by PS3.3 C.7.6.3.1.2, rounded
        ([[[76, 85, 255], [150, 128, 128]]], "YBR_FULL", [0.299, 150 / 255]),
    ],
)
def test_luminance(file: Path, values: Any, photometric: str, expected: list[float]) -> None:
    options = {"bits": 8, "allocated": 8, "photometric": photometric}
    write_sample(file, values, **options)
    scan = read_one(file, IntensityPolicy(colour="luminance"))
    assert_allclose(scan.pixels, [expected], atol=2 / 255 if photometric == "YBR_FULL" else 1e-6)
    assert scan.intensity == f"luminance of {photometric}."
    assert scan.levels == 256


def test_luminance_of_a_palette(file: Path) -> None:
    dataset = make_dataset([[0, 1], [2, 3]], bits=8, allocated=8, photometric="PALETTE COLOR")
    for colour, entries in (
        ("Red", [0, 65535, 0, 0]),
        ("Green", [0, 0, 65535, 0]),
        ("Blue", [0, 0, 0, 65535]),
    ):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(
            dataset,
            f"{colour}PaletteColorLookupTableData",
            np.array(entries, dtype="<u2").tobytes(),
        )
    write_dicom(file, dataset)
    scan = read_one(file, IntensityPolicy(colour="luminance"))
    assert_allclose(scan.pixels, [[0, 0.299], [0.587, 0.114]], atol=1e-6)


def test_a_result_of_ours_is_no_scan(file: Path) -> None:
    write_sample(file, [[0, 1]], ManufacturerModelName=DETECTOR_MODEL)
    assert refusal(file).reason == "own result"


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "PALETTE COLOR"])
def test_colour(file: Path, photometric: str) -> None:
    values = np.zeros((4, 4) if photometric.startswith("PAL") else (4, 4, 3))
    path = write_sample(file, values, photometric=photometric, bits=8, allocated=8)
    assert refusal(path).reason == "colour"


def test_unknown_photometric(file: Path) -> None:
    path = write_sample(file, RAMP, PhotometricInterpretation="HSV")
    assert refusal(path).reason == "photometric"


@pytest.mark.parametrize("tags", [{"HighBit": 15}, {"BitsAllocated": 32}, {"BitsStored": 17}])
def test_bit_depth(file: Path, tags: dict[str, int]) -> None:
    assert refusal(write_sample(file, RAMP, **tags)).reason == "bit depth"


def test_too_large_is_refused_before_decoding(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sample(file, np.zeros((2, 2)), Rows=40000, Columns=40000)
    monkeypatch.setattr(dicom_pixels, "_decoded", lambda *_a, **_k: pytest.fail("decoded"))
    error = refusal(file)
    assert error.reason == "too large"
    assert "40000 x 40000" in error.message
    assert frames.MAX_FRAME_PIXELS < 40000 * 40000


def test_too_many_frames(file: Path) -> None:
    write_sample(file, np.zeros((2, 2)), Rows=1000, Columns=1000, NumberOfFrames=2_000_000)
    assert refusal(file).reason == "too large"


def test_missing_rows_is_a_reason_and_not_a_crash(file: Path) -> None:
    dataset = make_dataset(RAMP)
    del dataset.Rows
    error = refusal(write_dicom(file, dataset))
    assert error.reason == "undecodable"
    assert error.__cause__ is not None


def test_policy_is_checked() -> None:
    for wrong in ((0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ConfigError, match="window"):
            IntensityPolicy(window=wrong)
    with pytest.raises(ConfigError, match="voi"):
        IntensityPolicy(voi="auto")  # type: ignore[arg-type]


def test_to_unit_keeps_neighbours_of_16_bits_apart() -> None:
    assert np.unique(to_unit(np.arange(65536), 0, 65535)).size == 65536


# --- tags -------------------------------------------------------------------------------------


def test_identity_and_tags(file: Path) -> None:
    dataset = make_dataset(
        RAMP,
        patient=" A17 ",
        ViewPosition="PA",
        ImageLaterality="U",
        BurnedInAnnotation="YES",
        SyntheticData="YES",
        PixelSpacing=[0.2, 0.1],
        ImagerPixelSpacing=[0.3, 0.3],
    )
    scan = read_one(write_dicom(file, dataset))
    assert scan.identity.patient == "A17"
    assert scan.identity.instance == dataset.SOPInstanceUID
    assert scan.identity.study == dataset.StudyInstanceUID
    assert scan.identity.series == dataset.SeriesInstanceUID
    assert (scan.modality, scan.view, scan.laterality) == ("DX", "PA", "U")
    assert scan.burned_in
    assert scan.synthetic
    assert (scan.spacing, scan.spacing_source) == ((0.2, 0.1), "PixelSpacing")


def test_imager_spacing_is_named_as_such(file: Path) -> None:
    scan = read_one(write_sample(file, RAMP, ImagerPixelSpacing=[0.14, 0.15]))
    assert (scan.spacing, scan.spacing_source) == ((0.14, 0.15), "ImagerPixelSpacing")


@pytest.mark.parametrize("tags", [{}, {"PixelSpacing": [0, 0]}])
def test_no_spacing(file: Path, tags: dict[str, Any]) -> None:
    scan = read_one(write_sample(file, RAMP, **tags))
    assert (scan.spacing, scan.spacing_source) == (None, "none")
    assert not scan.burned_in
    assert not scan.synthetic


# --- frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_multi_frame_gives_one_scan_a_frame(file: Path, syntax: Any) -> None:
    values = np.arange(3 * 2 * 5).reshape(3, 2, 5)
    scans = read_dicom(write_sample(file, values, kind="OT", syntax=syntax), FULL)
    assert len(scans) == 3
    for index, scan in enumerate(scans):
        assert isinstance(scan, Scan)
        assert scan.identity.frame == index
        assert_allclose(scan.pixels, values[index] / 4095, atol=1e-7)


def test_constant_frame_costs_that_frame_only(file: Path) -> None:
    values = np.arange(8).reshape(2, 2, 2)
    values[1] = 3
    first, second = read_dicom(write_sample(file, values, kind="OT"), FULL)
    assert isinstance(first, Scan)
    assert isinstance(second, UnsupportedScan)
    assert second.reason == "constant"


def group(keyword: str, **tags: Any) -> Dataset:
    item, outer = Dataset(), Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    setattr(outer, keyword, [item])
    return outer


def test_enhanced_ct_functional_groups(file: Path) -> None:
    # spacing is shared; frame 0 has intercept 0 and frame 1 has intercept 100
    rescale = "PixelValueTransformationSequence"
    path = write_sample(
        file,
        np.array([[[0, 100]], [[0, 100]]]),
        kind="ECT",
        SharedFunctionalGroupsSequence=[group("PixelMeasuresSequence", PixelSpacing=[0.7, 0.6])],
        PerFrameFunctionalGroupsSequence=[
            group(rescale, RescaleSlope=1, RescaleIntercept=0),
            group(rescale, RescaleSlope=1, RescaleIntercept=100),
        ],
    )
    first, second = read_dicom(path, IntensityPolicy(window=(100, 200)))
    assert isinstance(first, Scan)
    assert isinstance(second, Scan)
    assert_allclose(first.pixels, [[0, 0.5]], atol=1e-7)
    assert_allclose(second.pixels, [[0.5, 1]], atol=1e-7)
    assert (second.spacing, second.spacing_source) == ((0.7, 0.6), "PixelSpacing")
