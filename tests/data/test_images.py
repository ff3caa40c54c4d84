"""Reading PNG, JPEG, TIFF and NIfTI: grey values, refusals, pages and slices."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from anomaly.data.readers import frames
from anomaly.data.readers.image_files import read_image
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.raster import kind_by_name
from anomaly.errors import ScanError, UnreadableScan, UnsupportedScan
from anomaly.types import DRAWN_PNG, FIGURE_PNG, Scan

FULL = IntensityPolicy()
GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)


def read_one(path: Path, policy: IntensityPolicy = FULL) -> Scan:
    (scan,) = read_image(path, policy)
    if isinstance(scan, ScanError):
        raise scan
    return scan


def refusal(path: Path, policy: IntensityPolicy = FULL) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read_one(path, policy)
    return caught.value


def save(path: Path, array: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# --- PNG and JPEG -----------------------------------------------------------------------------


def test_png_of_8_bits(tmp_path: Path) -> None:
    scan = read_one(save(tmp_path / "a.png", GREY))
    assert_allclose(scan.pixels, GREY / 255, atol=1e-7)
    assert (scan.levels, scan.modality, scan.spacing_source) == (256, "PNG", "none")
    assert scan.identity.instance == ""


def test_png_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 65535]], dtype=np.uint16)
    scan = read_one(save(tmp_path / "a.PNG", values))
    assert_allclose(scan.pixels, values / 65535, atol=1e-9)
    assert scan.levels == 65536


def test_png_of_1_bit(tmp_path: Path) -> None:
    scan = read_one(save(tmp_path / "a.png", np.array([[True, False]])))
    assert_array_equal(scan.pixels, [[1, 0]])
    assert scan.levels == 2


def test_png_ignores_the_window(tmp_path: Path) -> None:
    scan = read_one(save(tmp_path / "a.png", GREY), IntensityPolicy(window=(10, 5)))
    assert_allclose(scan.pixels, GREY / 255, atol=1e-7)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_in_other_modes_is_grey(tmp_path: Path, mode: str) -> None:
    scan = read_one(save(tmp_path / "a.png", GREY, mode))
    assert_allclose(scan.pixels, GREY / 255, atol=1e-7)
    assert scan.levels == 256


def test_grey_jpeg_saved_as_rgb(tmp_path: Path) -> None:
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
    as_rgb = read_one(save(tmp_path / "rgb.jpg", grey, "RGB", quality=100))
    as_l = read_one(save(tmp_path / "l.jpeg", grey, quality=100))
    assert_allclose(as_rgb.pixels, as_l.pixels, atol=1.5 / 255)
    assert_allclose(as_l.pixels, grey / 255, atol=2.5 / 255)
    assert as_rgb.modality == "JPEG"


def test_one_coloured_pixel_is_colour(tmp_path: Path) -> None:
    rgb = np.repeat(GREY[..., None], 3, axis=2)
    rgb[1, 1, 2] += 1
    error = refusal(save(tmp_path / "a.png", rgb))
    assert isinstance(error, UnsupportedScan)
    assert error.reason == "colour"


def test_coloured_palette_is_colour(tmp_path: Path) -> None:
    rgb = np.zeros((2, 2, 3), dtype=np.uint8)
    rgb[0, 0] = 255, 0, 0
    assert refusal(save(tmp_path / "a.png", rgb, "P")).reason == "colour"


def test_cmyk_is_colour(tmp_path: Path) -> None:
    assert refusal(save(tmp_path / "a.jpg", GREY, "CMYK")).reason == "colour"


def test_transparency_is_refused(tmp_path: Path) -> None:
    alpha = np.dstack([GREY, np.full_like(GREY, 254)])
    assert refusal(save(tmp_path / "a.png", alpha)).reason == "alpha"
    assert refusal(save(tmp_path / "b.png", GREY, transparency=51)).reason == "alpha"


def test_16_bit_colour_png_is_not_quietly_cut_to_8(tmp_path: Path) -> None:
    # one row of two grey pixels in RGB of 16 bits, which pillow would open at 8 bits
    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">6H", 1, 1, 1, 65535, 65535, 65535))
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    )
    assert refusal(path).reason == "bit depth"


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    scan = read_one(save(tmp_path / "a.png", GREY, exif=exif))
    assert_allclose(scan.pixels, GREY[::-1, ::-1] / 255, atol=1e-7)


def test_constant_png(tmp_path: Path) -> None:
    assert refusal(save(tmp_path / "a.png", np.zeros((3, 3), np.uint8))).reason == "constant"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_image(
    tmp_path: Path, name: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another library in the process may have made pillow lenient: WeasyPrint does.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    values = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    path = save(tmp_path / name, values)
    path.write_bytes(path.read_bytes()[:1500])
    assert isinstance(refusal(path), UnreadableScan)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("content", [b"", b"not what the name says" * 20])
def test_nonsense(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert isinstance(refusal(tmp_path / name), UnreadableScan)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / name, GREY) for name in ("a.png", "a.tif")]
    volume = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    nibabel.save(volume, tmp_path / "a.nii")
    monkeypatch.setattr(frames, "MAX_FRAME_PIXELS", 3)
    for path in (*paths, tmp_path / "a.nii"):
        assert refusal(path).reason == "too large"


def test_kind_by_name() -> None:
    names = ("a.PNG", "b.jpeg", "c.tif", "d.nii.gz", "e.txt", "png")
    assert [kind_by_name(Path(name)) for name in names] == ["png", "jpeg", "tiff", "nifti", "", ""]


# --- TIFF -------------------------------------------------------------------------------------


def test_tiff_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 65535]], dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    scan = read_one(tmp_path / "a.tif")
    assert_allclose(scan.pixels, values / 65535, atol=1e-9)
    assert (scan.levels, scan.modality) == (65536, "TIFF")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_with_white_zero_is_inverted(tmp_path: Path, dtype: Any) -> None:
    white = np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, white]], dtype), photometric="miniswhite")
    assert_array_equal(read_one(tmp_path / "a.tif").pixels, [[1, 0]])


def test_tiff_lzw(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    scan = read_one(save(tmp_path / "a.tif", values, compression="tiff_lzw"))
    assert_allclose(scan.pixels, values / 65535, atol=1e-9)


def test_tiff_pages(tmp_path: Path) -> None:
    pages = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    pages[1] = 9
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    first, second = read_image(tmp_path / "a.tif", FULL)
    assert isinstance(first, Scan)
    assert_allclose(first.pixels, pages[0] / 255, atol=1e-7)
    assert isinstance(second, UnsupportedScan)
    assert second.reason == "constant"


def test_float_tiff_uses_the_range_of_the_file_or_the_window(tmp_path: Path) -> None:
    # both pages share the range -1000 to 1000
    pages = np.array([[[-1000, 0]], [[0, 1000]]], dtype=np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    first, second = read_image(tmp_path / "a.tif", FULL)
    assert isinstance(first, Scan)
    assert isinstance(second, Scan)
    assert_allclose(first.pixels, [[0, 0.5]], atol=1e-7)
    assert_allclose(second.pixels, [[0.5, 1]], atol=1e-7)
    first, _ = read_image(tmp_path / "a.tif", IntensityPolicy(window=(-500, 1000)))
    assert isinstance(first, Scan)
    assert_allclose(first.pixels, [[0, 1]], atol=1e-7)


def test_tiff_colour_alpha_and_nan(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb")
    assert refusal(tmp_path / "rgb.tif").reason == "colour"
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="rgb")
    assert_allclose(read_one(tmp_path / "grey.tif").pixels, grey[..., 0] / 255, atol=1e-7)
    tifffile.imwrite(
        tmp_path / "alpha.tif",
        np.dstack([grey, grey[..., :1]]),
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    assert refusal(tmp_path / "alpha.tif").reason == "alpha"
    tifffile.imwrite(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32))
    assert refusal(tmp_path / "nan.tif").reason == "non-finite"


# --- NIfTI ------------------------------------------------------------------------------------


def nifti(path: Path, values: Any, affine: Any = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def test_nifti_is_shown_in_the_radiological_convention(tmp_path: Path) -> None:
    # canonical axes: x grows to the patient's right, y to anterior, z to superior
    values = np.zeros((3, 4, 2), dtype=np.int16)
    values[2, 3, 0] = 100  # right, anterior
    values[0, 0, 0] = 50  # left, posterior
    values[1, 1, 1] = 100
    path = nifti(tmp_path / "a.nii.gz", values, np.diag([0.5, 0.8, 3, 1]))
    low, high = read_image(path, FULL)
    assert isinstance(low, Scan)
    assert isinstance(high, Scan)
    assert low.pixels.shape == (4, 3)  # rows run along y
    assert low.pixels[0, 0] == 1  # anterior on top, the patient's right on the left
    assert low.pixels[3, 2] == 0.5
    assert low.spacing == pytest.approx((0.8, 0.5))  # float32 in the header
    assert low.spacing_source == "NIfTI"
    assert [scan.identity.frame for scan in (low, high)] == [0, 1]
    assert low.modality == "NIFTI"


def test_nifti_stored_in_other_axes_looks_the_same(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(np.int16)
    affine = np.diag([1.0, 2, 3, 1])
    straight = nibabel.Nifti1Image(values, affine)
    # the same volume with superior, left and posterior as its axes
    other = nibabel.orientations.axcodes2ornt(("S", "L", "P"))
    here = nibabel.orientations.io_orientation(affine)
    turned = straight.as_reoriented(nibabel.orientations.ornt_transform(here, other))
    assert turned.shape == (5, 3, 4)
    nibabel.save(straight, tmp_path / "a.nii")
    nibabel.save(turned, tmp_path / "b.nii")
    one, two = read_image(tmp_path / "a.nii", FULL), read_image(tmp_path / "b.nii", FULL)
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert isinstance(a, Scan)
        assert isinstance(b, Scan)
        assert_array_equal(a.pixels, b.pixels)
        assert a.spacing == b.spacing == (2, 1)


def test_nifti_range_is_of_the_volume(tmp_path: Path) -> None:
    values = np.array([[[0, 200]], [[100, 150]]], dtype=np.int16)  # (2, 1, 2)
    first, second = read_image(nifti(tmp_path / "a.nii", values), FULL)
    assert isinstance(first, Scan)
    assert isinstance(second, Scan)
    assert_allclose(first.pixels, [[0.5, 0]], atol=1e-7)
    assert_allclose(second.pixels, [[0.75, 1]], atol=1e-7)
    assert first.levels == 201
    windowed, _ = read_image(tmp_path / "a.nii", IntensityPolicy(window=(50, 100)))
    assert isinstance(windowed, Scan)
    assert_allclose(windowed.pixels, [[1, 0]], atol=1e-7)


def test_nifti_constant_slice_costs_that_slice_only(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    values[..., 1] = 5
    results = read_image(nifti(tmp_path / "a.nii", values), FULL)
    kinds = [r.reason if isinstance(r, ScanError) else "ok" for r in results]
    assert kinds == ["ok", "constant", "ok"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nifti_non_finite(tmp_path: Path, wrong: float) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    values[0, 1, 1] = wrong
    error = refusal(nifti(tmp_path / "a.nii", values))
    assert isinstance(error, UnreadableScan)
    assert error.reason == "non-finite"


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2, 3)])
def test_nifti_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    assert refusal(nifti(tmp_path / "a.nii", values)).reason == "dimensions"


def test_nifti_units(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(4, dtype=np.int16).reshape(2, 2, 1), np.eye(4) * 500)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii")
    assert read_one(tmp_path / "a.nii").spacing == (0.5, 0.5)


# --- what stands beside the picture -----------------------------------------------------------


def test_a_16_bit_png_with_a_transparent_grey_is_refused_as_one_of_8_bits_is(
    tmp_path: Path,
) -> None:
    values = np.array([[0, 1000], [2000, 65535]], dtype=np.uint16)
    assert refusal(save(tmp_path / "a.png", values, transparency=1000)).reason == "alpha"
    # A transparent grey that no pixel has hides nothing.
    scan = read_one(save(tmp_path / "b.png", values, transparency=7))
    assert_allclose(scan.pixels, values / 65535, atol=1e-7)


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_thumbnails_and_masks_of_a_tiff_are_no_scans(tmp_path: Path, kind: int) -> None:
    big = np.random.default_rng(0).integers(0, 256, (2, 12, 10)).astype(np.uint8)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(big[0])
        writer.write(big[0, ::2, ::2], subfiletype=1)
        writer.write(big[1])
    content, tag = path.read_bytes(), struct.pack("<HHI", 254, 4, 1)  # NewSubfileType, one LONG
    assert content.count(tag + struct.pack("<I", 1)) == 1
    path.write_bytes(content.replace(tag + struct.pack("<I", 1), tag + struct.pack("<I", kind)))
    scans = read_image(path, FULL)
    assert len(scans) == 2
    for scan, values in zip(scans, big, strict=True):
        assert isinstance(scan, Scan)
        assert_allclose(scan.pixels, values / 255, atol=1e-7)
    with tifffile.TiffWriter(path) as writer:
        writer.write(big[0], subfiletype=1)
    assert refusal(path).reason == "empty"


def test_a_nifti_that_does_not_say_which_way_it_lies_is_marked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (4, 5, 2)).astype(np.int16)
    known = nifti(tmp_path / "a.nii", values, np.eye(4))
    nibabel.save(nibabel.Nifti1Image(values, None), tmp_path / "b.nii")
    scan = read_image(known, FULL)[0]
    assert isinstance(scan, Scan)
    assert scan.notes == ()
    for scan in read_image(tmp_path / "b.nii", FULL):
        assert isinstance(scan, Scan)
        assert "orientation unknown" in scan.notes[0]


def test_a_nifti_of_one_volume_in_time_is_a_volume(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, (4, 5, 3, 1)).astype(np.int16)
    plain = read_image(nifti(tmp_path / "a.nii", values[..., 0]), FULL)
    found = read_image(nifti(tmp_path / "b.nii", values), FULL)
    assert len(found) == len(plain) == 3
    for scan, other in zip(found, plain, strict=True):
        assert isinstance(scan, Scan)
        assert isinstance(other, Scan)
        assert_array_equal(scan.pixels, other.pixels)


def test_a_nifti_of_one_volume_in_time_keeps_its_scale(tmp_path: Path) -> None:
    """Values are stored times slope plus intercept, however many axes of length 1 follow."""
    values = np.random.default_rng(0).integers(0, 100, (4, 5, 3)).astype(np.int16)
    for name, stored in (("a", values), ("b", values[..., None, None])):
        image = nibabel.Nifti1Image(stored, np.eye(4))
        image.header.set_slope_inter(-2.0, 7.0)
        nibabel.save(image, tmp_path / f"{name}.nii")
    plain, found = (read_image(tmp_path / f"{name}.nii", FULL) for name in "ab")
    assert len(found) == len(plain) == 3
    for scan, other in zip(found, plain, strict=True):
        assert isinstance(scan, Scan)
        assert isinstance(other, Scan)
        assert_array_equal(scan.pixels, other.pixels)


# --- siblings ---------------------------------------------------------------------------------


def patched(path: Path, **changes: Any) -> Path:
    """Volume of 4 x 5 x 3 voxels of 2, 2 and 3 mm, with fields of its header overwritten."""
    values = np.arange(60, dtype=np.int16).reshape(4, 5, 3)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2, 2, 3, 1])), path)
    content = bytearray(path.read_bytes())
    places = {"qform_code": (252, "<h"), "sform_code": (254, "<h"), "srow": (280, "<12f")}
    places |= {"pixdim": (80, "<3f"), "xyzt_units": (123, "<B")}
    for name, value in changes.items():
        place, form = places[name]
        struct.pack_into(form, content, place, *np.atleast_1d(value).tolist())
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("broken", [0.0, np.nan])
def test_behind_a_broken_sform_the_qform_counts(tmp_path: Path, broken: float) -> None:
    both = {"qform_code": 1, "sform_code": 1}
    expected = read_image(patched(tmp_path / "a.nii", **both), FULL)
    found = read_image(patched(tmp_path / "b.nii", **both, srow=[broken] * 12), FULL)
    for scan, other in zip(found, expected, strict=True):
        assert isinstance(scan, Scan)
        assert isinstance(other, Scan)
        assert_array_equal(scan.pixels, other.pixels)
        assert scan.spacing == other.spacing == (2, 2)
        assert scan.notes == ()


def test_a_volume_whose_place_cannot_be_read_is_marked(tmp_path: Path) -> None:
    none = {"qform_code": 0, "sform_code": 0}
    for scan in read_image(patched(tmp_path / "a.nii", **none, pixdim=[np.nan] * 3), FULL):
        assert isinstance(scan, Scan)
        assert "orientation unknown" in scan.notes[0]
    (scan, *_) = read_image(patched(tmp_path / "b.nii", **none), FULL)
    assert isinstance(scan, Scan)
    assert scan.spacing == (2, 2)


def test_a_unit_that_nobody_knows_is_no_spacing(tmp_path: Path) -> None:
    (scan, *_) = read_image(patched(tmp_path / "a.nii", xyzt_units=0x99), FULL)
    assert isinstance(scan, Scan)
    assert scan.spacing is None


@pytest.mark.parametrize("kind", [np.int32, np.float64])
def test_values_far_from_zero_keep_their_greys(tmp_path: Path, kind: Any) -> None:
    """float32 has 24 bits: of 2^30 + 0 to 59 it leaves a step of 64."""
    values = (2**30 + np.arange(60)).astype(kind).reshape(4, 5, 3)
    greys = [s.pixels for s in read_image(nifti(tmp_path / "a.nii", values), FULL) if s]  # type: ignore[union-attr]
    assert len(np.unique(greys)) == 60


def test_the_small_copy_in_a_multi_picture_jpeg_is_no_scan(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big, small = (
        Image.fromarray(rng.integers(0, 256, s).astype(np.uint8)) for s in ((48, 64), (12, 16))
    )
    big.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[small])
    assert read_one(tmp_path / "a.jpg").pixels.shape == (48, 64)


@pytest.mark.parametrize("imagej", [True, False])
def test_a_stack_behind_one_page_is_refused_and_not_cut(tmp_path: Path, imagej: bool) -> None:
    stack = np.random.default_rng(0).integers(0, 9999, (5, 12, 10)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=imagej, truncate=True)
    error = refusal(tmp_path / "a.tif")
    assert error.reason == "frames"
    assert "600 values" in error.message
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=imagej)
    assert len(read_image(tmp_path / "b.tif", FULL)) == 5


@pytest.mark.parametrize(("kind", "signed"), [("i1", 2), ("u4", 1)])
def test_packed_values_keep_their_sign(tmp_path: Path, kind: str, signed: int) -> None:
    values = np.linspace(-100, 90, 120).reshape(12, 10).astype("i8")
    if kind == "u4":
        values = (values + 100) * 2**24
    other = values.astype(kind).view({"i1": "u1", "u4": "i4"}[kind])  # as pillow knows it
    path = tmp_path / "a.tif"
    Image.fromarray(other).save(path, compression="tiff_lzw", tiffinfo={339: signed})
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        struct.pack_into(
            "<H", content, tiff.pages[0].aspage().tags["SampleFormat"].valueoffset, signed
        )
    path.write_bytes(content)
    grey = (values - values.min()) / (values.max() - values.min())
    assert_allclose(read_one(path).pixels, grey, atol=1e-6)


def test_a_bad_page_of_real_numbers_costs_itself(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).random((3, 12, 10)).astype(np.float32)
    pages[1, 0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    found = read_image(tmp_path / "a.tif", FULL)
    assert [getattr(scan, "reason", "") for scan in found] == ["", "non-finite", ""]
    low, high = pages[[0, 2]].min(), pages[[0, 2]].max()
    assert isinstance(found[2], Scan)
    assert_allclose(found[2].pixels, (pages[2] - low) / (high - low), atol=1e-6)


@pytest.mark.parametrize("text", [DRAWN_PNG, FIGURE_PNG], ids=lambda text: next(iter(text)))
def test_pictures_that_the_toolkit_has_drawn_are_no_scans(
    tmp_path: Path, text: dict[str, str]
) -> None:
    """Wherever they were copied to: samples would be learned from as normal."""
    info = PngInfo()
    for name, said in text.items():
        info.add_text(name, said)
    path = save(tmp_path / "a.png", GREY, pnginfo=info)
    assert refusal(path).reason == "own result"
