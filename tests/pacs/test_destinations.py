"""One line of text names where results go."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from anomaly.errors import AnomalyError, ConfigError
from anomaly.pacs.client.destinations import Folder, destination
from anomaly.pacs.client.dicomweb import DicomWeb
from anomaly.pacs.client.dimse import Dimse
from tests.pacs.archives import make_studies


@pytest.mark.parametrize(
    "text", ["https://host/dicom-web", "http://127.0.0.1:8042/dicom-web", "https://host:8443/a/"]
)
def test_urls(text: str) -> None:
    web = destination(text)
    assert isinstance(web, DicomWeb)
    assert web.url == text.rstrip("/")


def test_entities() -> None:
    dimse = destination("MAIN PACS@archive.example:11112")
    assert isinstance(dimse, Dimse)
    assert (dimse.ae_title, dimse.host, dimse.port) == ("MAIN PACS", "archive.example", 11112)
    assert dimse.calling == "ANOMALY"


def test_folders(tmp_path: Path) -> None:
    folder = destination(f"folder:{tmp_path}")
    assert isinstance(folder, Folder)
    assert folder.path == tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "folder:",
        "/some/where",
        "archive.example:11112",
        "AET@host",
        "AET@host:0",
        "AET@host:65536",
        "SEVENTEEN_LETTERS@host:104",
        "A\\B@host:104",
        "   @host:104",
        "ftp://host/dicom-web",
    ],
)
def test_anything_else_is_refused_with_the_three_forms(text: str) -> None:
    with pytest.raises(ConfigError, match=r"https://host/dicom-web, AET@host:port or folder:/"):
        destination(text)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    for text in (
        "https://reader:open-sesame@host/dicom-web",
        "http://open-sesame@host/",
        "https://reader:open-sesame@host:port/",
        "ftp://reader:open-sesame@host/",
    ):
        with pytest.raises(ConfigError) as caught:
            destination(text)
        assert "sesame" not in str(caught.value)


def test_copies_are_private_and_made_once(tmp_path: Path) -> None:
    paths = make_studies(tmp_path / "results", 3, series=70)
    folder = Folder(tmp_path / "there")
    folder.store(paths[:2])
    kept = tmp_path / "there" / paths[0].name
    kept.write_bytes(b"mine")
    folder.store(paths)
    assert kept.read_bytes() == b"mine"
    copies = sorted((tmp_path / "there").iterdir())
    assert [copy.name for copy in copies] == ["0.dcm", "1.dcm", "2.dcm"]
    assert [copy.read_bytes() for copy in copies[1:]] == [path.read_bytes() for path in paths[1:]]
    assert {stat.S_IMODE(copy.stat().st_mode) for copy in copies} == {0o600}


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [make_studies(tmp_path / name, 1, series=71)[0] for name in ("a", "b")]
    with pytest.raises(AnomalyError, match=r"0\.dcm stand for several files"):
        Folder(tmp_path / "there").store(paths)
    assert not (tmp_path / "there").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnomalyError, match="cannot take the results"):
        Folder(tmp_path / "file").store([])
