"""C-STORE and C-ECHO: to Orthanc, and to a listener that misbehaves on request."""

from __future__ import annotations

import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association

from anomaly.errors import ArchiveBusy, ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.pacs.associations import end_alone
from anomaly.pacs.client.destinations import destination
from anomaly.pacs.client.dicomweb import DicomWeb
from anomaly.pacs.client.dimse import Dimse
from tests.data.dicom_samples import make_dataset, write_dicom
from tests.pacs.archives import IMPATIENT, ROOT, Orthanc, free_port, make_studies, uid


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
    strange.SOPClassUID = strange.file_meta.MediaStorageSOPClassUID = UID(f"{ROOT}.77")
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
    assert server is not None  # as it does not block
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
    codes = iter((0x0000, 0xA900, 0xB000, 0xA900, 0xC001))  # B000 is stored with a remark
    with (
        listener(lambda _: next(codes)) as dimse,
        pytest.raises(ArchiveError, match=r"refused 3 of 5 instances \(2 x A900, 1 x C001\)"),
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


# --- what may pass, and what costs one ---------------------------------------------------------


def test_an_archive_that_is_full_is_asked_again_and_the_rest_is_sent(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 3, series=65)
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0xA701 if got.count(uid(65, 1)) in (1, 2) and got[-1] == uid(65, 1) else 0x0000

    with listener(store) as dimse:
        dimse.store(paths)
    assert got == [uid(65, number) for number in (0, 1, 2, 1, 1)]


def test_an_archive_that_stays_full_is_said_by_its_code(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 3, series=66)
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0xA700 if got[-1] == uid(66, 1) else 0x0000

    with (
        listener(store) as dimse,
        pytest.raises(ArchiveBusy, match="no room for 1 of 3 instances") as caught,
    ):
        dimse.store(paths)
    assert caught.value.reason == "A700"  # nothing is refused for good: it may be sent later
    assert got == [uid(66, number) for number in (0, 1, 2, 1, 1)]


def test_what_an_archive_had_no_room_for_outlives_a_broken_association(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 4, series=73)
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        if len(got) == 3:
            event.assoc.abort()
        return 0xA700 if len(got) == 1 else 0x0000

    with listener(store) as dimse:
        dimse.store(paths)
    assert sorted(set(got)) == [uid(73, number) for number in range(4)]
    assert got.count(uid(73, 0)) == 2  # refused for now, and then taken
    assert got.count(uid(73, 2)) == 2  # not acknowledged


@pytest.mark.parametrize("files", [1, 2, 3])
def test_an_archive_that_is_full_and_breaks_off_is_left_in_the_end(
    files: int, tmp_path: Path
) -> None:
    """What there is no room for goes to the end: another order is no progress."""
    paths = make_studies(tmp_path, files, series=75)
    answered: Counter[int] = Counter()

    def store(event: Any) -> int:
        answered[id(event.assoc)] += 1
        if answered[id(event.assoc)] > 1:
            event.assoc.abort()
        return 0xA700

    with listener(store) as dimse, pytest.raises(ArchiveError):
        dimse.store(paths)
    assert answered.total() <= 40


def test_a_file_that_is_gone_meanwhile_costs_itself(
    tmp_path: Path,
) -> None:
    paths = make_studies(tmp_path, 3, series=74)
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        paths[1].unlink(missing_ok=True)
        return 0x0000

    with (
        listener(store) as dimse,
        pytest.raises(ArchiveError, match=r"refused 1 of 3 instances \(1 x not sent, not readable"),
    ):
        dimse.store(paths)
    assert got == [uid(74, 0), uid(74, 2)]


class Doorman:
    """A peer that answers requests for an association with A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    def __init__(self, result: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.asked = 0
        self._result = result
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                # Read the whole request (PS3.8 9.3.1: type, reserved, length, value): closing with
                # bytes unread would reset the connection, and the peer could lose the rejection.
                stream.read(int.from_bytes(stream.read(6)[2:], "big"))
                self.asked += 1
                # type 3, reserved, length 4, reserved, result, source 3 (presentation), reason 1
                connection.sendall(bytes([3, 0, 0, 0, 0, 4, 0, self._result, 3, 1]))
                stream.read()  # until the peer has closed

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize(("result", "times"), [(1, 1), (2, 3)], ids=["permanent", "transient"])
def test_a_rejection_for_now_is_asked_again_and_one_for_good_is_not(
    result: int, times: int, tmp_path: Path
) -> None:
    doorman = Doorman(result)
    dimse = Dimse("FULL", "127.0.0.1", doorman.port, attempts=IMPATIENT)
    said = "lets no association in" + (" at present" if result == 2 else " from 'ANOMALY'")
    with pytest.raises(ArchiveError, match=said) as caught:
        dimse.store(make_studies(tmp_path, 1, series=67))
    doorman.close()
    assert doorman.asked == times
    assert isinstance(caught.value, ArchiveUnreachable) == (result == 2)


def test_an_archive_that_takes_implicit_vr_alone_gets_it(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 2, series=68)
    assert {dcmread(path).file_meta.TransferSyntaxUID for path in paths} == {ExplicitVRLittleEndian}
    got: list[Any] = []

    def store(event: Any) -> int:
        got.append((str(event.context.transfer_syntax), event.dataset.PatientID))
        return 0x0000

    entity = AE(ae_title="LISTENER")
    entity.add_supported_context(ComputedRadiographyImageStorage, ImplicitVRLittleEndian)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]
    )
    assert server is not None  # as it does not block
    try:
        Dimse("LISTENER", "127.0.0.1", server.server_address[1], attempts=IMPATIENT).store(paths)
    finally:
        server.shutdown()
    assert got == [(ImplicitVRLittleEndian, "P68")] * 2


def test_a_refused_context_is_named(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 2, series=69)
    for path in paths:
        strange = dcmread(path)
        strange.SOPClassUID = strange.file_meta.MediaStorageSOPClassUID = CTImageStorage
        write_dicom(path, strange)
    said = r"2 x SOP class or transfer syntax not accepted: CT Image Storage, Explicit VR Little"
    with (
        listener(lambda _: 0x0000) as dimse,
        pytest.raises(ArchiveError, match=rf"refused 2 of 2 instances \({said}") as caught,
    ):
        dimse.store(paths)
    assert caught.value.reason == "refused"


def test_a_file_with_no_uid_costs_itself(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 3, series=70)
    long = dcmread(paths[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 66 characters; the standard has 64
        long.StudyInstanceUID = "1." + "2" * 64
        long.save_as(paths[1])
    paths.append(tmp_path / "no.dcm")
    paths[-1].write_bytes(b"no DICOM")
    got: list[str] = []

    def store(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    with (
        listener(store) as dimse,
        pytest.raises(ArchiveError, match=r"refused 2 of 4 instances") as caught,
    ):
        dimse.store(paths)
    assert "1 x not sent, uid" in str(caught.value)
    assert "1 x not sent, not readable" in str(caught.value)
    assert got == [uid(70, 0), uid(70, 2)]


def test_the_calling_title_is_a_setting(tmp_path: Path) -> None:
    titles: list[str] = []

    def store(event: Any) -> int:
        titles.append(event.assoc.requestor.ae_title)
        return 0x0000

    with listener(store) as dimse:
        text = f"LISTENER@127.0.0.1:{dimse.port}"
        for calling in ({}, {"calling": "SCANNER 7"}):
            destination(text, **calling).store(make_studies(tmp_path, 1, series=71))
    assert titles == ["ANOMALY", "SCANNER 7"]


# --- a peer that ends an association early -----------------------------------------------------


def test_an_abort_after_the_peers_own_kills_no_thread(tmp_path: Path) -> None:
    """Evt15 (our abort) in Sta13 (the connection is being closed) has no transition in PS3.8."""
    failures: list[Any] = []
    before = threading.excepthook
    threading.excepthook = failures.append
    try:
        with listener(lambda _: 0x0000, handlers=[(evt.EVT_CONN_OPEN, end_alone)]) as dimse:
            with dimse._association(
                [(ComputedRadiographyImageStorage, ExplicitVRLittleEndian)]
            ) as a:
                a.dul.state_machine.current_state = "Sta13"
                a.dul.event_queue.put("Evt15")
                a.dul.join(timeout=30)
                assert not a.dul.is_alive()
            dimse.store(make_studies(tmp_path, 1, series=72))  # the next is let in
    finally:
        threading.excepthook = before
    assert failures == []


# --- a peer that falls silent -----------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.pacs.client.dimse.TIMEOUT", 1.0)


@pytest.mark.parametrize("said", [b"\2\0\0\0\1\0" + bytes(20), b"\3\0\0\0\0\4\0\1\x63\1"])
@pytest.mark.usefixtures("impatient")
def test_half_an_answer_or_none_is_not_waited_for(said: bytes, tmp_path: Path) -> None:
    """An A-ASSOCIATE-AC whose rest never comes, and a rejection by nobody (PS3.8 9.3.4)."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def answer() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.recv(65536)
            connection.sendall(said)
            held.append(connection)  # and is never closed

    threading.Thread(target=answer, daemon=True).start()
    failures: list[Any] = []
    before = threading.excepthook
    threading.excepthook = failures.append
    try:
        dimse = Dimse("SILENT", "127.0.0.1", server.getsockname()[1], attempts=IMPATIENT)
        paths = make_studies(tmp_path, 1, series=75)
        with pytest.raises(ArchiveError):
            within(60, lambda: dimse.store(paths))
    finally:
        threading.excepthook = before
        server.close()
        for connection in held:
            connection.close()
    assert failures == []


def within(seconds: float, act: Callable[[], Any]) -> None:
    """Act in a thread, and fail where it has not ended in time."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(act())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"still at work after {seconds} seconds"
    if isinstance(ended[0], BaseException):
        raise ended[0]


@pytest.mark.usefixtures("impatient")
def test_a_peer_that_stops_reading_is_not_waited_for(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "large.dcm",
        make_dataset(np.zeros((3000, 3000)), kind="CR", SOPInstanceUID=uid(76, 0)),
    )
    over = threading.Event()
    chunks: list[int] = []

    def receive(event: Any) -> None:
        chunks.append(len(event.data))
        if len(chunks) > 3:
            over.wait(60)

    with listener(lambda _: 0x0000, handlers=[(evt.EVT_DATA_RECV, receive)]) as dimse:
        try:
            with pytest.raises(ArchiveUnreachable):
                within(50, lambda: dimse.store([path]))
        finally:
            over.set()


def test_an_object_that_an_archive_breaks_off_at_costs_itself(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 5, series=77)
    got: list[str] = []

    def store(event: Any) -> int:
        instance = str(event.request.AffectedSOPInstanceUID)
        if instance == uid(77, 1):
            event.assoc.abort()
        else:
            got.append(instance)
        return 0x0000

    with (
        listener(store) as dimse,
        pytest.raises(ArchiveError, match=r"refused 1 of 5 instances \(1 x broken off\)") as caught,
    ):
        dimse.store(paths)
    assert not isinstance(caught.value, ArchiveUnreachable)
    assert got == [uid(77, number) for number in (0, 2, 3, 4)]


def test_an_archive_that_breaks_off_at_everything_is_unreachable(tmp_path: Path) -> None:
    asked: list[str] = []

    def store(event: Any) -> int:
        asked.append(str(event.request.AffectedSOPInstanceUID))
        event.assoc.abort()
        return 0x0000

    with listener(store) as dimse, pytest.raises(ArchiveUnreachable, match="broke off"):
        dimse.store(make_studies(tmp_path, 5, series=78))
    assert set(asked) == {uid(78, 0), uid(78, 1)}
