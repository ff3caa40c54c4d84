"""Headers that make pydicom and highdicom raise what nobody listed: one refusal each, no crash."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from anomaly.errors import Reason, UnreadableScan, UnsupportedScan
from anomaly.reporting.dicom.objects import KINDS, _refusing, object_uid, write_objects
from tests.reporting.dicom_cases import make_case
from tests.reporting.dicom_sources import ct_slice, save


def nested(path: Path) -> None:
    """Put a sequence into a sequence, more often than Python can follow."""
    opened = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    whole = path.read_bytes()
    body = whole.index(b"\x08\x00\x05\x00CS")
    path.write_bytes(whole[:body] + 3000 * opened)


def deflated(path: Path) -> None:
    """Claim that what follows the meta information is compressed."""
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(path.read_bytes()[:400] + 400 * b"\xff")


def spacing(path: Path) -> None:
    """Give a sequence that ends within its first tag, where two numbers belong."""
    retyped(path, "PixelSpacing", b"\x01\x02", b"SQ\0\0\x02\0\0\0")


def retyped(path: Path, keyword: str, value: bytes, kind: bytes) -> None:
    dataset = dcmread(path)
    dataset.pop(keyword, None)
    setattr(dataset, keyword, None)
    tag = dataset[keyword].tag
    written = bytes([tag.group & 255, tag.group >> 8, tag.elem & 255, tag.elem >> 8])
    dataset.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    empty = written + dataset[keyword].VR.encode() + b"\0\0"
    assert whole.count(empty) == 1
    path.write_bytes(whole.replace(empty, written + kind + value))


@pytest.mark.parametrize(
    ("damage", "raised"),
    [
        (nested, RecursionError),
        (deflated, zlib.error),
    ],
)
def test_a_header_that_cannot_be_read(
    damage: Callable[[Path], None], raised: type[Exception], tmp_path: Path, out: Path
) -> None:
    source = save(ct_slice(), tmp_path / "in.dcm")
    case = make_case(source)
    damage(source)
    for use in (lambda: object_uid(case, "report"), lambda: write_objects(case, ["report"], out)):
        with pytest.raises(UnreadableScan, match="cannot be read as DICOM") as caught:
            use()
        assert caught.value.reason == "unreadable"
        assert isinstance(caught.value.__cause__, raised)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_tag_that_cannot_be_used(kind: str, tmp_path: Path, out: Path) -> None:
    source = save(ct_slice(), tmp_path / "in.dcm")
    case = make_case(source)
    spacing(source)
    with pytest.raises(UnsupportedScan, match=f"an object of kind {kind}") as caught:
        write_objects(case, [kind], out)
    assert caught.value.reason == "not expressible"
    assert isinstance(caught.value.__cause__, OSError)
    assert list(out.iterdir()) == []


def test_two_names_are_no_name(tmp_path: Path, out: Path) -> None:
    dataset = ct_slice()
    dataset.StudyInstanceUID = ["2.25.1", "2.25.2"]
    source = save(dataset, tmp_path / "in.dcm")
    with pytest.raises(UnsupportedScan, match="StudyInstanceUID, or several") as caught:
        write_objects(make_case(source), ["report"], out)
    assert caught.value.reason == "no identity"


@pytest.mark.parametrize("stops", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_what_stops_a_process_is_no_refusal(stops: type[BaseException]) -> None:
    with pytest.raises(stops), _refusing(lambda what: UnreadableScan(Reason.UNREADABLE, what)):
        raise stops
