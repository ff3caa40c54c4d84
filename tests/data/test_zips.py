"""Zip archives: members become rows, and what an archive should not hold gets a reason."""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from anomaly.data.readers import zips
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import Workers
from anomaly.data.readers.registry import read_scan
from anomaly.data.readers.zips import file_of, list_members, on_disk
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import Manifest
from anomaly.errors import ScanError, UnreadableScan, UnsupportedScan
from tests.data.dicom_samples import make_dataset, write_sample

FULL = IntensityPolicy()


def build(root: Path, workers: int = 0) -> Manifest:
    with Workers(workers) as processes:
        return build_manifest(Inspection(root, FULL, b"k" * 32), PathNames(), processes=processes)


def dicom(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 4096, (5, 4))
    buffer = io.BytesIO()
    make_dataset(values, patient=f"P{seed}").save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def png(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (5, 4)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [0, 2])
def test_members_are_read_as_files_of_a_folder(tmp_path: Path, workers: int) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    files = {"st/1/IM1": dicom(1), "st/1/IM2": dicom(2), "a.PNG": png(3), "st/note.txt": b"x"}
    packed.mkdir()
    with zipfile.ZipFile(packed / "x.ZIP", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("empty")
        for name, content in files.items():
            archive.writestr(name, content)
            target = plain / "x.ZIP" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        archive.writestr("__MACOSX/._a.PNG", b"hidden")
        archive.writestr("st/.hidden/IM3", dicom(9))
    found, expected = build(packed, workers), build(plain)
    # keys, hashes and paths included; the detail names where they lie
    there = [replace(r, detail=r.detail.replace(str(packed), str(plain))) for r in found.rows]
    assert there == list(expected.rows)
    assert [row.status for row in found.rows] == ["ok", "ok", "ok", "skipped"]
    for row in found.select():
        assert_array_equal(
            read_scan(packed / row.path, row.frame, FULL).pixels,
            read_scan(plain / row.path, row.frame, FULL).pixels,
        )
    assert file_of(packed / "x.ZIP/st/1/IM1") == packed / "x.ZIP"
    assert file_of(plain / "x.ZIP/st/1/IM1") == plain / "x.ZIP/st/1/IM1"


def test_nothing_unpacked_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png(0))
        archive.writestr("b.dcm", b"\0" * 128 + b"DICM broken")
    with on_disk(tmp_path / "x.zip/a.png") as path:
        assert path.read_bytes() == png(0)
        assert path.is_relative_to(scratch)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(ScanError):
        read_scan(tmp_path / "x.zip/b.dcm", 0, FULL)
    assert list(scratch.iterdir()) == []


def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    refused = {
        "../up.png": "outside",
        "a/../../b.png": "outside",
        "a\\..\\..\\c.png": "outside",
        "/etc/abs.png": "absolute name",
        "c:\\d.png": "absolute name",
        "C:/d.png": "absolute name",
        "e\x01.png": "control character in name",
        "f\n.png": "control character in name",
        "link.png": "link",
    }
    names = [*refused.keys() - {"link.png"}, "a/ok.png"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, png(0))
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    listing = list_members(tmp_path / "x.zip")
    assert listing.members == ("a/ok.png",)
    assert dict(listing.refused) == refused
    rows = build(tmp_path).rows
    assert sorted(row.reason for row in rows) == sorted(["", *refused.values()])
    with pytest.raises(UnsupportedScan, match="link"), on_disk(tmp_path / "x.zip/link.png"):
        pass


def test_names_from_other_systems_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number, name in enumerate(["study\\series\\IM1.png", "a/11:30:05.png"]):
            archive.writestr(name, png(number))
        archive.writestr("study\\series\\", b"")  # a folder
    rows = sorted((row.path, row.reason) for row in build(tmp_path).rows)
    assert rows == [("x.zip/a/11:30:05.png", ""), ("x.zip/study/series/IM1.png", "")]


def test_every_way_to_write_a_name_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number, name in enumerate(["./IM1.png", "a//IM2.png", "b/./IM3.png", "b/IM3.png"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of the doubled name
                archive.writestr(name, png(number))
        archive.writestr("./.hidden/IM4.png", png(9))
    rows = sorted((row.path, row.reason) for row in build(tmp_path).rows)
    assert rows == [
        ("x.zip/IM1.png", ""),
        ("x.zip/a/IM2.png", ""),
        ("x.zip/b/IM3.png", ""),
        ("x.zip/b/IM3.png", "duplicate name"),
    ]
    listing = list_members(tmp_path / "x.zip")
    assert listing.members == ("IM1.png", "a/IM2.png", "b/IM3.png")
    assert listing.refused == (("b/IM3.png", "duplicate name"),)


def test_a_locked_or_odd_member_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(1))
        archive.writestr("b.png", png(2), zipfile.ZIP_LZMA)
        archive.writestr("c.png", png(3))
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")  # of a.png: set bit 0 of its flags
    content[central + 8] |= 1
    last = content.rindex(b"IDAT")  # damage the bytes of c.png: its CRC fails
    content[last + 5] ^= 255
    path.write_bytes(content)
    reasons = {Path(row.path).name: row.reason for row in build(tmp_path).rows}
    assert reasons == {"a.png": "encrypted", "b.png": "compression", "c.png": "undecodable"}


def test_bombs_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            with archive.open(f"{number}.dcm", "w", force_zip64=True) as member:
                for _ in range(400):
                    member.write(bytes(2**20))
    assert (tmp_path / "x.zip").stat().st_size < 2**21
    with pytest.raises(UnsupportedScan, match="claims 3 members of 1,258,291,200 bytes"):
        list_members(tmp_path / "x.zip")
    (row,) = build(tmp_path).rows
    assert (row.path, row.reason) == ("x.zip", "too large")


def test_a_member_that_is_larger_than_it_claims_is_cut_there(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**24))
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, central + 24, 1000)  # the size it claims
    path.write_bytes(content)
    with pytest.raises(UnreadableScan), on_disk(tmp_path / "x.zip/a.dcm"):
        pass
    (row,) = build(tmp_path).rows
    assert row.reason == "undecodable"


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zips, "MAX_MEMBERS", 2)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in range(3):
            archive.writestr(str(number), b"")
    with pytest.raises(UnsupportedScan, match="3 members"):
        list_members(tmp_path / "x.zip")


def test_no_archive_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(os.urandom(100))
    write_sample(tmp_path / "a", [[0, 1]])
    rows = {row.path: row.reason for row in build(tmp_path).rows}
    assert rows == {"a": "", "x.zip": "undecodable"}


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.zip"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("needs the right to make a device")
    else:
        path.symlink_to("/dev/zero")
    (row,) = build(tmp_path).rows
    assert (row.path, row.reason) == ("x.zip", "not a file")


def test_an_archive_in_an_archive_is_not_opened(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.png", png(0))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("y.zip", inner.getvalue())
    (row,) = build(tmp_path).rows
    assert (row.path, row.reason) == ("x.zip/y.zip", "not an image")


def test_results_in_an_archive_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("scans/a.png", png(1))
        for name in ("run/.anomaly-results", "run/bundle/bundle.json", "old/site.key"):
            archive.writestr(name, b"{}")
        for number, name in enumerate(["run/report/images/b.png", "run/c.png", "old/d.png"], 2):
            archive.writestr(name, png(number))
    rows = sorted((row.path, row.reason) for row in build(tmp_path).rows)
    assert rows == [
        ("x.zip/old", "own results"),
        ("x.zip/run", "own results"),
        ("x.zip/scans/a.png", ""),
    ]
