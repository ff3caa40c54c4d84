"""The files that pydicom carries: each is a scan or a reason, and decodes as DCMTK decodes it."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from anomaly.data.readers.dicom import is_dicom, read_dicom
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.errors import ScanError
from anomaly.types import Scan

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
POLICY = IntensityPolicy(colour="luminance")


@cache
def outcome(path: Path) -> tuple[Scan | ScanError, ...]:
    try:
        return tuple(read_dicom(path, POLICY))
    except ScanError as error:
        return (error,)


def files() -> list[Path]:
    return sorted(path for path in FOLDER.rglob("*") if path.is_file())


def test_each_is_scans_or_a_reason() -> None:
    counts: Counter[str] = Counter()
    for path in files():
        assert outcome(path), path
        for found in outcome(path):
            if isinstance(found, Scan):
                assert found.pixels.ndim == 2
                assert 0 <= found.pixels.min() < found.pixels.max() <= 1
            else:
                assert found.reason
            counts["ok" if isinstance(found, Scan) else found.reason] += 1
    scored = [path for path in files() if isinstance(outcome(path)[0], Scan)]
    assert len(scored) >= 50, counts
    for reason in ("truncated", "no transfer syntax", "codestream", "not an image", "sop class"):
        assert counts[reason] >= 1, counts


TOOLS = {"JPEG": "dcmdjpeg", "JPEG-LS": "dcmdjpls", "RLE": "dcmdrle"}


def syntax_of(path: Path) -> UID:
    return UID(str(read_file_meta_info(path).get("TransferSyntaxUID", "")))


def tool_for(syntax: UID) -> str:
    """DCMTK's decoder; empty for JPEG 2000, which it lacks, and for what is not compressed."""
    if not syntax.is_encapsulated or "2000" in syntax.name:
        return ""
    return TOOLS[
        "JPEG-LS" if "JPEG-LS" in syntax.name else "RLE" if "RLE" in syntax.name else "JPEG"
    ]


PACKED = [p for p in files() if is_dicom(p) and syntax_of(p) and tool_for(syntax_of(p))]


@pytest.mark.parametrize("path", PACKED, ids=lambda path: path.name)
def test_dcmtk_decodes_the_same(path: Path, tmp_path: Path) -> None:
    syntax = syntax_of(path)
    tool = tool_for(syntax)
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: apt-get install dcmtk")
    if not isinstance(outcome(path)[0], Scan):
        pytest.skip("the reader does not take this file")
    raw = tmp_path / "raw.dcm"
    done = subprocess.run([tool, path, raw], capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"{tool} does not decode this file")
    theirs = read_dicom(raw, POLICY)
    assert len(theirs) == len(outcome(path))
    for mine, other in zip(outcome(path), theirs, strict=True):
        assert isinstance(mine, Scan)
        assert isinstance(other, Scan)
        if syntax in ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"):
            # The inverse cosine transform of lossy JPEG may round either way. Of colours the reader
            # takes Y; theirs went through red, green and blue, which clip what is out of gamut.
            error = abs(mine.pixels - other.pixels)
            coloured = "luminance" in mine.intensity
            assert error.max() <= (10 if coloured else 2.5) / 255
            assert error.mean() <= 0.5 / 255
        else:
            assert_array_equal(mine.pixels, other.pixels)


J2K = [p for p in files() if is_dicom(p) and "2000" in syntax_of(p).name]


@pytest.mark.parametrize("path", J2K, ids=lambda path: path.name)
def test_two_decoders_of_jpeg_2000_agree(path: Path) -> None:
    """DCMTK has none: GDCM's against the one that the reader prefers."""
    if not isinstance(outcome(path)[0], Scan):
        pytest.skip("the reader does not take this file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one, other = (
            pixel_array(path, index=0, raw=True, decoding_plugin=plugin)
            for plugin in ("gdcm", "pylibjpeg")
        )
    assert_array_equal(one, other)
