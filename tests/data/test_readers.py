"""The one door: content before extension, and a reason for everything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from pydicom import Dataset
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import RLELossless

from anomaly.data.readers import registry as readers
from anomaly.data.readers.frames import Frames
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.readers.registry import kind_of, open_frames, read_frames, read_scan
from anomaly.errors import ScanError, UnreadableScan, UnsupportedScan
from anomaly.types import Scan
from tests.data.dicom_samples import write_sample

FULL = IntensityPolicy()


def test_content_wins_over_extension(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "really_dicom.png", [[0, 4095]])
    assert kind_of(path) == "dicom"
    (scan,) = read_frames(path, FULL)
    assert isinstance(scan, Scan)
    assert scan.modality == "DX"


def test_png_by_extension(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert kind_of(tmp_path / "a.png") == "png"
    assert_allclose(read_scan(tmp_path / "a.png", 0, FULL).pixels, [[0, 1]])


def test_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert kind_of(tmp_path / "notes.txt") == ""
    with pytest.raises(UnsupportedScan) as caught:
        read_frames(tmp_path / "notes.txt", FULL)
    assert caught.value.reason == "not an image"


def test_damaged_dicom_is_reported_as_dicom(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"\0" * 40)
    with pytest.raises(UnreadableScan) as caught:
        read_frames(tmp_path / "a.dcm", FULL)
    assert caught.value.reason == "not dicom"


def test_broken_link_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnreadableScan) as caught:
        read_frames(tmp_path / "a.dcm", FULL)
    assert caught.value.reason == "unreadable"
    assert isinstance(caught.value.__cause__, OSError)


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.dcm")
    with pytest.raises(UnsupportedScan) as caught:
        read_frames(tmp_path / "a.dcm", FULL)
    assert caught.value.reason == "not a file"


def test_a_file_of_several_frames_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sample(tmp_path / "a", np.arange(24).reshape(3, 2, 4), kind="OT")
    opened: list[Path] = []
    original = readers.open_frames

    def counted(file: Path, policy: IntensityPolicy) -> Frames:
        opened.append(file)
        return original(file, policy)

    monkeypatch.setattr(readers, "open_frames", counted)
    first = [read_scan(path, frame, FULL).pixels for frame in range(3)]
    assert opened == [path]
    assert_allclose(first[2], np.arange(16, 24).reshape(2, 4) / 4095, atol=1e-7)
    # Another file of that name is another file.
    write_sample(tmp_path / "a", 24 + np.arange(24).reshape(3, 2, 4), kind="OT")
    os.utime(path, ns=(1, 1))
    assert_allclose(read_scan(path, 0, FULL).pixels[0, 0], 24 / 4095, atol=1e-7)
    assert len(opened) == 2


def test_one_frame_decodes_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(24).reshape(3, 2, 4)
    path = write_sample(tmp_path / "a", values, kind="OT", syntax=RLELossless)
    decoded: list[int] = []
    original = Decoder.as_array

    def counted(decoder: Decoder, dataset: Dataset, *, index: int, **options: Any) -> Any:
        decoded.append(index)
        return original(decoder, dataset, index=index, **options)

    monkeypatch.setattr(Decoder, "as_array", counted)
    scan = read_scan(path, 1, FULL)
    assert_allclose(scan.pixels, values[1] / 4095, atol=1e-7)
    assert decoded == [1]


def test_frame_error_is_raised_for_that_frame(tmp_path: Path) -> None:
    values = np.arange(8).reshape(2, 2, 2)
    values[1] = 3
    path = write_sample(tmp_path / "a", values, kind="OT")
    assert read_scan(path, 0, FULL).identity.frame == 0
    with pytest.raises(ScanError) as caught:
        read_scan(path, 1, FULL)
    assert caught.value.reason == "constant"


@pytest.mark.parametrize("frame", [-1, 1])
def test_no_such_frame(tmp_path: Path, frame: int) -> None:
    path = write_sample(tmp_path / "a", [[0, 1]])
    with pytest.raises(UnsupportedScan, match="1 frame") as caught:
        read_scan(path, frame, FULL)
    assert caught.value.reason == "no such frame"


def test_frames_are_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sample(tmp_path / "a", np.arange(24).reshape(3, 2, 4), kind="OT")
    monkeypatch.setattr(Decoder, "as_array", lambda *_a, **_k: pytest.fail("decoded"))
    assert len(open_frames(path, FULL)) == 3
