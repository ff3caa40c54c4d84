"""One archive for all tests; what each stores has UIDs of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly.pacs.client.dicomweb import DicomWeb
from tests.pacs.archives import IMPATIENT, Orthanc, make_studies


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def fifty(orthanc: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Fifty studies of patient P50, which the archive holds."""
    paths = make_studies(tmp_path_factory.mktemp("fifty"), 50, series=50)
    DicomWeb(orthanc.url).store(paths)
    return paths


@pytest.fixture
def web(orthanc: Orthanc) -> DicomWeb:
    return DicomWeb(orthanc.url, attempts=IMPATIENT)


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "PASSWORD", "TOKEN", "CA"):
        monkeypatch.delenv(f"ANOMALY_DICOMWEB_{name}", raising=False)
