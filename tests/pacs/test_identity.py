"""UIDs read from encoded data sets: as pydicom reads them, and nothing worse than ValueError."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from anomaly.pacs.identity import (
    check_whole,
    is_uid,
    read_file_identity,
    read_identity,
    read_syntax,
)
from tests.data.dicom_samples import make_dataset

STUDY, INSTANCE = "1.2.826.1", "1.2.826.2"
SHORT = ("MR_truncated.dcm", "rtplan_truncated.dcm")


def encoded(dataset: Dataset, *, implicit: bool, little_endian: bool = True) -> bytes:
    plain = Dataset(dataset)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, plain, implicit_vr=implicit, little_endian=little_endian)
    return stream.getvalue()


def sample() -> Dataset:
    dataset = make_dataset([[1, 2]], StudyInstanceUID=STUDY, SOPInstanceUID=INSTANCE)
    item = Dataset()
    item.SOPInstanceUID = item.StudyInstanceUID = "9.9"  # of another one: not to be taken
    deep = Dataset()
    deep.ReferencedSeriesSequence = [item]
    dataset.ReferencedStudySequence = [deep, Dataset(), item]
    dataset.add_new(0x00091001, "UN", b"\xff" * 6)
    return dataset


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_what_is_nested_is_not_taken(implicit: bool, little: bool, undefined: bool) -> None:
    dataset = sample()
    dataset["ReferencedStudySequence"].is_undefined_length = undefined
    for item in dataset.ReferencedStudySequence:
        item.is_undefined_length_sequence_item = undefined
    stream = encoded(dataset, implicit=implicit, little_endian=little)
    identity = read_identity(stream, implicit=implicit, little_endian=little)
    assert identity[:2] == (INSTANCE, STUDY)
    assert identity.series == dataset.SeriesInstanceUID
    assert (identity.sop_class, identity.patient) == (dataset.SOPClassUID, "P1")


def test_unknown_vr_of_undefined_length_holds_implicit_items() -> None:
    # By hand, PS3.5 6.2.2: (0008,1110) UN, undefined length, one item of undefined length.
    uid = b"9.9\0"
    inner = (
        struct.pack("<HHI", 0x0008, 0x0018, len(uid)) + uid + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
    )
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1110, b"UN", 0, 0xFFFFFFFF)
    sequence += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner
    sequence += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    first = struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", 4) + b"1.2\0"
    last = struct.pack("<HH2sH", 0x0020, 0x000D, b"UI", 4) + b"3.44"
    identity = read_identity(first + sequence + last, implicit=False, little_endian=True)
    assert identity == ("1.2", "3.44", "", "", "")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of files that are odd on purpose
def test_the_same_as_pydicom_on_every_file_that_it_bundles() -> None:
    compared = 0
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm")):
        start = _dataset_starts(path)
        if start is None:
            continue
        try:
            dataset = pydicom.dcmread(path)
            expected = dataset.SOPInstanceUID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID
            patient = str(dataset.get("PatientID", "") or "").strip()
        except Exception:  # noqa: S112 - broken on purpose, or without one of the two
            continue
        if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            continue
        if path.name == "SC_rgb_jpeg.dcm":  # in implicit VR, and says explicit
            assert read_file_identity(path.read_bytes())[:3] == expected
            continue
        implicit, little = dataset.original_encoding  # of some it is not what they say
        stream = path.read_bytes()[start:]
        found = read_identity(stream, implicit=bool(implicit), little_endian=bool(little))
        assert found[:3] == expected, path.name
        assert found.patient == patient, path.name
        assert read_file_identity(path.read_bytes()) == found, path.name
        if path.name in SHORT:
            with pytest.raises(ValueError, match="beyond the end"):
                check_whole(path.read_bytes())
        else:
            check_whole(path.read_bytes())
        compared += 1
    assert compared > 50


def _dataset_starts(path: Path) -> int | None:
    """Where the data set begins, by the group length of the meta information (PS3.10 7.1)."""
    head = path.read_bytes()[:144]
    if head[128:132] != b"DICM" or head[132:136] != b"\x02\x00\x00\x00":
        return None
    return 144 + int(struct.unpack("<I", head[140:144])[0])


@pytest.mark.parametrize("implicit", [True, False])
def test_broken_bytes_are_a_value_error(implicit: bool) -> None:
    stream = encoded(sample(), implicit=implicit)
    rng = random.Random(0)  # noqa: S311
    refused = 0
    for _ in range(3000):
        broken = bytearray(stream[: rng.randrange(len(stream) + 1)])
        for _ in range(min(len(broken), rng.randrange(4))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            identity = read_identity(bytes(broken), implicit=implicit, little_endian=True)
        except ValueError:
            refused += 1
        else:
            assert all(map(is_uid, identity[:2]))
    assert 0 < refused < 3000


def test_nesting_without_end_is_refused() -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    nested = struct.pack("<HHI", 0x0008, 0x1110, 0xFFFFFFFF) + item
    with pytest.raises(ValueError, match="nests too deeply"):
        read_identity(nested * 100_000, implicit=True, little_endian=True)


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_data_set_without_identity_is_refused(missing: str) -> None:
    dataset = sample()
    del dataset[missing]
    with pytest.raises(ValueError, match="no SOP Instance UID, or no Study"):
        read_identity(encoded(dataset, implicit=True), implicit=True, little_endian=True)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("1.2.3", True),
        ("1" * 64, True),
        ("1" * 65, False),
        ("", False),
        ("../x", False),
        ("1²", False),
    ],
)
def test_digits_and_dots_alone(text: str, is_one: bool) -> None:
    assert is_uid(text) is is_one


def test_a_path_as_uid_is_refused() -> None:
    dataset = sample()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the value that is wrong on purpose
        dataset.StudyInstanceUID = "../../etc"
        stream = encoded(dataset, implicit=True)
    with pytest.raises(ValueError, match="no Study Instance UID"):
        read_identity(stream, implicit=True, little_endian=True)


@pytest.mark.parametrize("where", [0, 7])
def test_a_file_that_ends_early_is_no_whole_one(where: int) -> None:
    stream = io.BytesIO()
    sample().save_as(stream, enforce_file_format=True)
    content = bytes(where) + stream.getvalue()
    check_whole(content, where)
    assert read_file_identity(content, where).instance == INSTANCE
    for length in (where + 140, where + 200, len(content) - 3, len(content) - 1):
        with pytest.raises(ValueError, match=r"ends early|beyond the end"):
            check_whole(content[:length], where)


def test_of_a_deflated_file_no_more_is_inflated_than_is_asked_for() -> None:
    dataset, stream = sample(), io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    assert read_file_identity(content)[:2] == (INSTANCE, STUDY)
    _, begin = read_syntax(content)
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(struct.pack("<HH2sHI", 0x0008, 0x0001, b"OB", 0, 500 * 2**20))
    bomb += b"".join(deflater.compress(bytes(2**20)) for _ in range(500)) + deflater.flush()
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match="beyond the end"):
        read_file_identity(content[:begin] + bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_patient_id_is_read_by_its_character_set() -> None:
    dataset = sample()
    dataset.SpecificCharacterSet, dataset.PatientID = "ISO_IR 100", "Ä-7 "
    stream = encoded(dataset, implicit=True)
    assert read_identity(stream, implicit=True, little_endian=True).patient == "Ä-7"
    dataset.SpecificCharacterSet, dataset.PatientID = "ISO_IR 192", "患者"
    stream = encoded(dataset, implicit=True)
    assert read_identity(stream, implicit=True, little_endian=True).patient == "患者"
