"""A JPEG that ends early is `truncated`; a decoder would fill it up with grey, and it be normal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.jpeg import jpeg_warnings
from anomaly.data.readers.registry import read_frames
from anomaly.errors import ScanError
from anomaly.types import Scan
from tests.data.dicom_samples import make_dataset, write_dicom

GREY = IntensityPolicy()
END = b"\xff\xd9"
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 128), dtype=np.uint8)
"""Noise: every block has data to lose."""

CODINGS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "progressive": {"progressive": True},
    "with restart markers": {"restart_marker_rows": 1},
    "colour": {"mode": "RGB"},
    "colour, fewer samples of it": {"mode": "RGB", "subsampling": 2},
}
SHARES = (0.999, 0.9, 0.5, 0.2)


def jpeg(mode: str = "L", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def cut(content: bytes, share: float) -> bytes:
    """Keep a share of what follows the headers, and end it as a JPEG ends."""
    start = content.index(b"\xff\xda") + 20
    return content[: start + int(share * (len(content) - 2 - start))] + END


def read(path: Path) -> Scan | ScanError:
    try:
        (scan,) = read_frames(path, GREY)
    except ScanError as error:
        return error
    return scan


def fault(path: Path) -> str:
    error = read(path)
    assert isinstance(error, ScanError), error
    return error.reason


@pytest.mark.parametrize("coding", CODINGS)
def test_a_jpeg_file_that_ends_early_is_truncated(coding: str, tmp_path: Path) -> None:
    content, path = jpeg(**CODINGS[coding]), tmp_path / "scan.jpg"
    path.write_bytes(content)
    assert isinstance(read(path), Scan)
    for share in SHARES:
        path.write_bytes(cut(content, share))
        assert fault(path) == "truncated", share
        path.write_bytes(cut(content, share)[:-2])
        assert fault(path) == "truncated", share


def test_data_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    """Bit rot in the coded data derails the code of what follows."""
    content, path = bytearray(jpeg()), tmp_path / "scan.jpg"
    start = content.index(b"\xff\xda") + 20
    reasons = set()
    for place in range(start, len(content) - 2, len(content) // 40):
        damaged = bytearray(content)
        damaged[place] = damaged[place] ^ 0x55 if damaged[place] not in (0, 0xAA, 0xFF) else 0x12
        path.write_bytes(damaged)
        scan = read(path)
        reasons.add(scan.reason if isinstance(scan, ScanError) else "read")
    assert reasons & {"truncated", "undecodable"}


def test_bytes_behind_the_picture_harm_nothing(tmp_path: Path) -> None:
    content, path = jpeg(), tmp_path / "scan.jpg"
    path.write_bytes(content)
    intact = read(path)
    assert isinstance(intact, Scan)
    for more in (content[:-2] + b"\x12\x34" + END, content + b"\0" * 512, content + b"a comment"):
        path.write_bytes(more)
        scan = read(path)
        assert isinstance(scan, Scan)
        np.testing.assert_array_equal(scan.pixels, intact.pixels)


@pytest.mark.parametrize("coding", ["sequential", "progressive", "with restart markers"])
@pytest.mark.parametrize("share", SHARES)
def test_a_coded_frame_that_ends_early_is_truncated(
    coding: str, share: float, tmp_path: Path
) -> None:
    content = jpeg(**CODINGS[coding])
    for data, expected in ((content, ""), (cut(content, share), "truncated")):
        dataset = make_dataset(PICTURE, bits=8, allocated=8)
        dataset.file_meta.TransferSyntaxUID = (
            JPEGExtended12Bit if coding == "progressive" else JPEGBaseline8Bit
        )
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].VR = "OB"
        scan = read(write_dicom(tmp_path / "scan.dcm", dataset))
        assert (scan.reason if isinstance(scan, ScanError) else "") == expected


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_lossless_frame_that_ends_early_is_truncated(
    bits: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(1).integers(0, 2**bits, (64, 80))
    native = write_dicom(tmp_path / "native.dcm", make_dataset(values, bits=bits))
    coded = tmp_path / "coded.dcm"
    command = [str(Path(sys.executable).with_name("gdcmconv")), "--jpeg", str(native), str(coded)]
    subprocess.run(command, check=True, capture_output=True)
    assert isinstance(read(coded), Scan)
    dataset = dcmread(coded)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    for share in SHARES:
        dataset.PixelData = encapsulate([cut(frame.rstrip(b"\0"), share)])
        assert fault(write_dicom(coded, dataset)) == "truncated", share
    assert "Corrupt JPEG data" not in capfd.readouterr().err


def test_a_coded_page_that_ends_early_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    Image.fromarray(PICTURE).save(path, compression="jpeg", quality=92)
    assert isinstance(read(path), Scan)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0].aspage()
        start, length = page.dataoffsets[-1], page.databytecounts[-1]
    content = bytearray(path.read_bytes())
    # The strip keeps its length: its picture ends, and filling follows.
    middle = start + length // 2
    content[middle : start + length] = END + bytes(start + length - middle - 2)
    path.write_bytes(content)
    assert fault(path) == "truncated"


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_remark_on_the_revision_hides_no_damage(share: float, tmp_path: Path) -> None:
    content, path = jpeg(), tmp_path / "scan.jpg"
    place = content.index(b"JFIF\0") + 5
    content = content[:place] + b"\2\1" + content[place + 2 :]
    path.write_bytes(content if share == 1 else cut(content, share))
    scan = read(path)
    assert (scan.reason if isinstance(scan, ScanError) else "") == (
        "" if share == 1 else "truncated"
    )


def test_what_else_a_decoder_prints_is_passed_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with jpeg_warnings(tmp_path):
        os.write(2, b"a word of another library\n")
    assert capfd.readouterr().err == "a word of another library\n"
