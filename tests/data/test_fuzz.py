"""Damaged files through the reader: each is a row. `benchmarks/fuzz_dicom.py` does thousands."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.isolation import Workers
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from tests.data.dicom_family import KINDS, MEMBERS, TOP, write

COUNT = 400


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, overwrite, cut, insert or repeat bytes; up to three times."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data))
        way = rng.randrange(5)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at : at + 8] = rng.randbytes(8)
        elif way == 2:
            del data[max(at, 1) :]
        elif way == 3:
            data[at:at] = rng.randbytes(16)
        else:
            data[at:at] = data[at : at + 64]
    return bytes(data)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("bases")
    values = np.random.default_rng(0).integers(0, TOP + 1, (36, 48)).astype(np.uint16)
    paths = [
        write(folder / f"{kind}-{name}", make(kind, values))
        for kind in KINDS
        for name, make in MEMBERS.items()
    ]
    return [path.read_bytes() for path in paths]


def test_every_damaged_file_is_a_row(contents: list[bytes], tmp_path: Path) -> None:
    rng = random.Random(0)  # noqa: S311 - no secret
    for number in range(COUNT):
        (tmp_path / f"{number:04d}").write_bytes(damaged(rng.choice(contents), rng))
    inspection = Inspection(tmp_path, IntensityPolicy(), b"k" * 32)
    with Workers(1, seconds=10) as processes:
        rows = build_manifest(inspection, PathNames(), processes=processes).rows
    assert {row.path for row in rows} == {f"{number:04d}" for number in range(COUNT)}
    assert all((row.status == "ok") is (row.reason == "") for row in rows)
    assert len({row.reason for row in rows}) >= 5


def test_every_damaged_zip_is_accounted_for(contents: list[bytes], tmp_path: Path) -> None:
    rng = random.Random(1)  # noqa: S311 - no secret
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(contents[:4]):
            archive.writestr(f"st/{number}", content)
    for number in range(100):
        (tmp_path / f"{number:03d}.zip").write_bytes(damaged(packed.getvalue(), rng))
    inspection = Inspection(tmp_path, IntensityPolicy(), b"k" * 32)
    with Workers(1, seconds=10) as processes:
        rows = build_manifest(inspection, PathNames(), processes=processes).rows
    assert {Path(row.path).parts[0] for row in rows} == {f"{n:03d}.zip" for n in range(100)}
