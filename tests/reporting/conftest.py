"""A file that was scored, and an empty folder to write to."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_sources import computed_radiograph, save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(computed_radiograph(), tmp_path / "in.dcm")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
