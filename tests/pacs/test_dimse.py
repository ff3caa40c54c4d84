"""C-STORE and C-ECHO: to Orthanc, and to a listener that misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import IMPATIENT, ROOT, Orthanc, free_port, make_studies, uid
from dicom_samples import make_dataset, write_dicom
from pydicom import dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association

from anomaly.errors import ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.pacs.dicomweb import DicomWeb
from anomaly.pacs.dimse import Dimse


@pytest.fixture
def dimse(orthanc: Orthanc) -> Dimse:
    return Dimse("ORTHANC", "127.0.0.1", orthanc.dicom_port, attempts=IMPATIENT)


def test_echo(dimse: Dimse) -> None:
    assert dimse.echo() is None  # type: ignore[func-returns-value]


def test_files_are_sent_as_they_are_coded(
    dimse: Dimse, orthanc: Orthanc, web: DicomWeb, tmp_path: Path
) -> None:
    paths = make_studies(tmp_path / "cr", 4, series=57)
    values = np.arange(1024).reshape(32, 32)
    for name, kind, syntax in (("a", "CR", RLELossless), ("b", "CT", None)):
        dataset = make_dataset(values, kind=kind, patient="P57")
        paths.append(write_dicom(tmp_path / name, dataset, syntax))
    dimse.store(paths)
    dimse.store(paths)
    sent = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in paths}
    assert orthanc.instances("P57") == sorted(sent)
    for number, instance in enumerate(web.search({"PatientID": "P57"})):
        web.fetch(instance, tmp_path / f"back{number}")
        back, was = dcmread(tmp_path / f"back{number}"), sent[instance.instance]
        assert back.file_meta.TransferSyntaxUID == was.file_meta.TransferSyntaxUID
        assert back.PixelData == was.PixelData


# pynetdicom drops the socket that was refused without closing it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnreachable, match=r"NOBODY@127.0.0.1:\d+ did not answer, in 3"):
        Dimse("NOBODY", "127.0.0.1", free_port(), attempts=IMPATIENT).echo()


def test_a_class_that_is_not_accepted_is_counted_and_the_rest_is_sent(
    dimse: Dimse, orthanc: Orthanc, tmp_path: Path
) -> None:
    paths = make_studies(tmp_path, 2, series=58)
    strange = dcmread(paths[0])
    strange.SOPClassUID = strange.file_meta.MediaStorageSOPClassUID = f"{ROOT}.77"
    write_dicom(paths[0], strange)
    with pytest.raises(ArchiveError, match=r"refused 1 of 2 instances \(1 x SOP class"):
        dimse.store(paths)
    assert orthanc.instances("P58") == [uid(58, 1)]


# --- a listener that misbehaves ---------------------------------------------------------------


@contextmanager
def listener(
    store: Callable[[Any], int], *, handlers: Sequence[Any] = (), **settings: Any
) -> Iterator[Dimse]:
    entity = AE(ae_title="LISTENER")
    for syntax in (ExplicitVRLittleEndian, RLELossless):
        entity.add_supported_context(ComputedRadiographyImageStorage, syntax)
    for name, value in settings.items():
        setattr(entity, name, value)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store), *handlers]
    )
    try:
        yield Dimse("LISTENER", "127.0.0.1", server.server_address[1], attempts=IMPATIENT)
    finally:
        server.shutdown()


def test_a_broken_association_goes_on_where_it_broke(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 5, series=60)
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        if len(got) == 3:
            event.assoc.abort()
        return 0x0000

    with listener(store) as dimse:
        dimse.store(paths)
    # The third was not acknowledged, so it is sent again; no other is.
    assert got == [uid(60, number) for number in (0, 1, 2, 2, 3, 4)]


def test_refused_instances_are_counted_by_code_and_the_rest_is_sent(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 5, series=61)
    codes = iter((0x0000, 0xA700, 0xB000, 0xA700, 0xC001))  # B000 is stored with a remark
    with (
        listener(lambda _: next(codes)) as dimse,
        pytest.raises(ArchiveError, match=r"refused 3 of 5 instances \(2 x A700, 1 x C001\)"),
    ):
        dimse.store(paths)
    assert next(codes, None) is None


def test_an_association_that_is_lost_between_two_files_goes_on_where_it_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_studies(tmp_path, 4, series=62)
    got: list[str] = []
    lost = threading.Event()

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def slowly(self: Association, *arguments: Any) -> Any:
        """Send as pynetdicom does, but the third file not before the peer has gone."""
        if len(got) == 2 and not lost.is_set():
            servers[0].abort()
            lost.set()
            while self.is_established:
                time.sleep(0.01)
        return send(self, *arguments)

    send, servers = Association.send_c_store, []
    monkeypatch.setattr(Association, "send_c_store", slowly)
    with listener(
        store, handlers=[(evt.EVT_ESTABLISHED, lambda event: servers.append(event.assoc))]
    ) as dimse:
        dimse.store(paths)
    assert lost.is_set()
    assert got == [uid(62, number) for number in range(4)]


def test_a_peer_that_always_goes_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_the_end(self: Association, *arguments: Any) -> Any:
        self.abort()
        return send(self, *arguments)

    send = Association.send_c_store
    monkeypatch.setattr(Association, "send_c_store", after_the_end)
    with (
        listener(lambda _: 0x0000) as dimse,
        pytest.raises(ArchiveUnreachable, match="broke off, in 3 attempt") as caught,
    ):
        dimse.store(make_studies(tmp_path, 1, series=63))
    assert caught.value.reason == "no answer"


def test_a_file_that_cannot_be_encoded_is_refused_and_the_rest_is_sent(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 3, series=64)
    # Compressed pixels begin with an item (PS3.5 A.4); these do not.
    dataset = make_dataset(np.arange(1024).reshape(32, 32), kind="CR", SOPInstanceUID=uid(64, 1))
    content = write_dicom(paths[1], dataset, RLELossless).read_bytes()
    pixels, item = b"OB\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0"
    assert content.count(pixels + item) == 1
    paths[1].write_bytes(content.replace(pixels + item, pixels + b"junk"))
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    with (
        listener(store) as dimse,
        pytest.raises(ArchiveError, match=r"refused 1 of 3 instances \(1 x ") as caught,
    ):
        dimse.store(paths)
    assert caught.value.reason == "refused"
    assert "cannot be encoded" in str(caught.value)
    assert got == [uid(64, 0), uid(64, 2)]


@pytest.mark.parametrize("title", ["", " AET", "SEVENTEEN_LETTERS", "A\\B", "Ä"])
def test_a_title_that_is_none(title: str) -> None:
    with pytest.raises(ConfigError, match="is no AE title"):
        Dimse("ARCHIVE", "127.0.0.1", 104, calling=title)


def test_an_unknown_caller_is_told_so_and_does_not_insist() -> None:
    with (
        listener(lambda _: 0x0000, require_calling_aet=["FRIEND"]) as dimse,
        pytest.raises(ArchiveError, match="lets no association in from 'ANOMALY'") as caught,
    ):
        dimse.echo()
    assert not isinstance(caught.value, ArchiveUnreachable)
