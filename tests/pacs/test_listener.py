"""The listener, asked by DCMTK's programs and, for what these would never send, by pynetdicom."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import ssl
import stat
import struct
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config

from anomaly.errors import ArchiveError, ConfigError
from anomaly.pacs.client.dimse import Dimse
from anomaly.pacs.client.retries import Attempts
from anomaly.pacs.node.batches import Received, State
from anomaly.pacs.node.incoming import MAX_REQUEST
from anomaly.pacs.node.listener import MAX_ASSOCIATIONS, MAX_SILENT, Listener
from anomaly.pacs.node.spool import Spool
from anomaly.pacs.tls import destination_context, listener_context
from tests.data.dicom_samples import make_dataset, write_dicom, write_sample
from tests.pipelines.node_senders import store

pytestmark = pytest.mark.skipif(
    shutil.which("storescu") is None or shutil.which("echoscu") is None,
    reason="needs DCMTK's storescu and echoscu (Debian: dcmtk)",
)

Start = Callable[..., tuple[Spool, int]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(
            most: int = 100, room: int = 10**7, allowed: tuple[str, ...] = ()
        ) -> tuple[Spool, int]:
            spool = Spool(tmp_path / "node", max_instances=most, max_bytes=room)
            stack.enter_context(spool)
            listener = Listener(
                spool, ae_title="ANOMALY", host="127.0.0.1", port=0, allowed=allowed
            )
            return spool, stack.enter_context(listener).port

        yield begin


def image(path: Path, seed: int = 0, **tags: object) -> Path:
    values = np.random.default_rng(seed).integers(0, 4096, (32, 32))
    return write_sample(path, values, kind="CR", **tags)


def echo(port: int, calling: str = "ECHOSCU", called: str = "ANOMALY") -> int:
    command = ["echoscu", "-to", "5", "-aet", calling, "-aec", called, "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def kept(spool: Spool) -> list[Path]:
    return sorted((spool.folder / "spool").iterdir())


def test_who_is_there(start: Start) -> None:
    _, port = start()
    assert echo(port) == 0
    assert echo(port, called="SOMEBODY") != 0


def test_an_unknown_title_is_refused_where_there_is_a_list(start: Start, tmp_path: Path) -> None:
    spool, port = start(allowed=("FRIEND", "OTHER"))
    scan = image(tmp_path / "1.dcm")
    assert echo(port, calling="FRIEND") == 0
    assert echo(port, calling="STRANGER") != 0
    assert store(port, [scan], "-aet", "STRANGER") == {}
    assert kept(spool) == []
    assert store(port, [scan], "-aet", "OTHER") == {scan: "Success"}
    assert len(kept(spool)) == 1


@pytest.mark.parametrize(
    ("syntax", "option"), [(ExplicitVRLittleEndian, "-xe"), (RLELossless, "-xr")]
)
def test_the_bytes_that_came_are_kept(
    start: Start, tmp_path: Path, syntax: str, option: str
) -> None:
    spool, port = start()
    scan = image(tmp_path / "1.dcm", syntax=syntax if syntax == RLELossless else None)
    assert store(port, [scan], option) == {scan: "Success"}
    (path,) = kept(spool)
    sent, there = dcmread(scan), dcmread(path)
    assert there.file_meta.TransferSyntaxUID == syntax
    assert there == sent
    assert there.PixelData == sent.PixelData
    assert np.array_equal(there.pixel_array, sent.pixel_array)


def test_again_is_success_and_other_content_is_refused(start: Start, tmp_path: Path) -> None:
    spool, port = start()
    uid, study = generate_uid(), generate_uid()
    scan = image(tmp_path / "1.dcm", 1, SOPInstanceUID=uid, StudyInstanceUID=study)
    other = image(tmp_path / "2.dcm", 2, SOPInstanceUID=uid, StudyInstanceUID=study)
    assert store(port, [scan]) == store(port, [scan]) == {scan: "Success"}
    assert store(port, [other])[other].startswith("Error: CannotUnderstand")
    (path,) = kept(spool)
    assert dcmread(path).PixelData == dcmread(scan).PixelData
    assert spool.refused == {Received.CONFLICT: 1}


def test_a_full_queue_is_said_and_nothing_is_written(start: Start, tmp_path: Path) -> None:
    spool, port = start(most=2)
    scans = [image(tmp_path / f"{i}.dcm", i) for i in range(3)]
    # one at a time: storescu does not say what it did with those behind a refusal
    said = [store(port, [scan])[scan] for scan in scans]
    assert said == ["Success", "Success", "Refused: OutOfResources"]
    assert len(kept(spool)) == spool.waiting == 2


def test_a_full_disk_is_said_and_nothing_is_written(start: Start, tmp_path: Path) -> None:
    spool, port = start(room=1000)
    scan = image(tmp_path / "1.dcm")
    assert store(port, [scan]) == {scan: "Refused: OutOfResources"}
    assert kept(spool) == []
    assert spool.refused == {Received.FULL: 1}


def test_a_database_that_refuses_is_said_until_it_does_not(start: Start, tmp_path: Path) -> None:
    spool, port = start()
    scan = image(tmp_path / "1.dcm")
    with sqlite3.connect(spool.folder / "node.sqlite") as database:
        database.execute("ALTER TABLE instances RENAME TO away")
        assert store(port, [scan]) == {scan: "Refused: OutOfResources"}
        database.execute("ALTER TABLE away RENAME TO instances")
    database.close()
    assert store(port, [scan]) == {scan: "Success"}


def test_what_another_try_may_score_is_taken_again(start: Start, tmp_path: Path) -> None:
    spool, port = start()
    passing, final = (image(tmp_path / f"{i}.dcm", i, StudyInstanceUID="1.2") for i in range(2))
    assert set(store(port, [passing, final]).values()) == {"Success"}
    assert spool.close_quiet(0) == 1
    (batch,) = spool.batches(State.CLOSED)
    spool.begin(batch)
    uid = dcmread(passing).SOPInstanceUID
    names = {dcmread(path).SOPInstanceUID: path.name for path in batch.scans.iterdir()}
    said = {name: "scored" for name in names.values()}
    spool.scored(batch, {**said, names[uid]: "decoder timed out"}, [])
    assert spool.sent(batch) == 1
    assert set(store(port, [passing, final]).values()) == {"Success"}
    assert [dcmread(path).SOPInstanceUID for path in kept(spool)] == [uid]


def send(port: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Send a file by pynetdicom, without a look at it: its meta information makes the request."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)
    client = AE()
    client.add_requested_context(ComputedRadiographyImageStorage, ExplicitVRLittleEndian)
    association = client.associate("127.0.0.1", port, ae_title="ANOMALY")
    assert association.is_established
    try:
        return association.send_c_store(path)
    finally:
        association.release()


@pytest.mark.parametrize("study", [None, "", "1.2.x"])
def test_a_data_set_without_a_study_is_not_understood(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str | None
) -> None:
    spool, port = start()
    dataset = make_dataset([[1, 2], [3, 4]], kind="CR")
    del dataset.StudyInstanceUID
    if study is not None:
        dataset.add_new(0x0020000D, "LO", study)  # a VR that pydicom lets pass
    said = send(port, write_dicom(tmp_path / "1.dcm", dataset), monkeypatch)
    assert said.Status == 0xC000
    assert said.ErrorComment == "the data set has no SOP Instance UID, or no Study Instance UID"
    assert kept(spool) == []


def test_a_request_for_another_instance_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, port = start()
    path = image(tmp_path / "1.dcm", SOPInstanceUID="1.2.3.4")
    path.write_bytes(path.read_bytes().replace(b"1.2.3.4", b"1.2.3.5", 1))  # its meta information
    assert send(port, path, monkeypatch).Status == 0xA900
    assert kept(spool) == []


def test_bytes_that_are_no_data_set_are_not_understood(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, port = start()
    scan = image(tmp_path / "1.dcm")
    scan.write_bytes(scan.read_bytes()[:-500])  # ends within its pixels: for the reader to say
    assert send(port, scan, monkeypatch).Status == 0x0000
    other = image(tmp_path / "2.dcm")
    other.write_bytes(other.read_bytes()[:420])  # ends before its study
    said = send(port, other, monkeypatch)
    assert said.Status == 0xC000
    assert len(kept(spool)) == 1


def test_leaving_ends_associations_that_are_open(tmp_path: Path) -> None:
    with Spool(tmp_path / "node", max_instances=1, max_bytes=1) as spool:
        before = set(threading.enumerate())
        with Listener(spool, ae_title="ANOMALY", host="127.0.0.1", port=0, allowed=()) as listener:
            client = AE()
            client.add_requested_context(ComputedRadiographyImageStorage)
            association = client.associate("127.0.0.1", listener.port, ae_title="ANOMALY")
            assert association.is_established
        association.join(30)
        assert association.is_aborted
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), thread


def test_senders_that_fall_silent_keep_nobody_out(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lost its line within a message; together they are all that may be there at once."""
    monkeypatch.setattr("anomaly.pacs.node.listener.TIMEOUT", 1)
    spool, port = start()
    half = b"\1\0\0\0\1\0" + bytes(20)  # of an A-ASSOCIATE-RQ
    with ExitStack() as silent:
        for _ in range(MAX_ASSOCIATIONS):
            line = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            line.sendall(half)
        end = time.monotonic() + 60
        while echo(port) != 0:
            assert time.monotonic() < end
        store(port, [image(tmp_path / "1.dcm")])
        assert len(kept(spool)) == 1


def test_a_port_in_use_is_said(start: Start, tmp_path: Path) -> None:
    with socket.socket() as taken, ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        spool = stack.enter_context(Spool(tmp_path / "other", max_instances=1, max_bytes=1))
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be listened on"):
            Listener(spool, ae_title="ANOMALY", host="127.0.0.1", port=port, allowed=())


@pytest.mark.parametrize("title", ["", "A" * 17, "A\\B"])
def test_a_title_that_is_none_is_said(tmp_path: Path, title: str) -> None:
    with (
        Spool(tmp_path / "node", max_instances=1, max_bytes=1) as spool,
        pytest.raises(ConfigError, match="an AE title among"),
    ):
        Listener(spool, ae_title=title, host="127.0.0.1", port=0, allowed=())


# --- peers that do not behave -------------------------------------------------------------------


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def test_who_connects_and_goes_takes_no_place(start: Start) -> None:
    """Health checks of load balancers do just this, all day."""
    _, port = start()
    for _ in range(20 * MAX_ASSOCIATIONS):
        connect(port).close()
    assert echo(port) == 0
    wait_for(lambda: len(acceptors()) == 0)


def acceptors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "AcceptorThread" in thread.name]


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_who_says_nothing_or_next_to_nothing_keeps_nobody_out(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.pacs.node.incoming.REQUEST_SECONDS", 3.0)
    spool, port = start()
    idle = [connect(port) for _ in range(3 * MAX_ASSOCIATIONS)]
    dripping, stopped = [connect(port) for _ in range(5)], threading.Event()

    def drip() -> None:
        while not stopped.wait(0.1):
            for connection in dripping:
                with suppress(OSError):
                    connection.send(b"\x01")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        paths = [image(tmp_path / f"{number}.dcm", number) for number in range(20)]
        assert set(store(port, paths).values()) == {"Success"}
        assert len(kept(spool)) == 20
        for connection in [*idle, *dripping]:  # each is closed in its time, from the other side
            connection.settimeout(30)
            with suppress(ConnectionError):
                while connection.recv(1000):
                    pass
    finally:
        stopped.set()
        thread.join()
        for connection in [*idle, *dripping]:
            connection.close()
    wait_for(lambda: len(acceptors()) == 0)


def test_of_too_many_that_say_nothing_the_oldest_is_closed(start: Start) -> None:
    _, port = start()
    silent = [connect(port) for _ in range(MAX_SILENT + 20)]
    silent[0].settimeout(20)
    with suppress(ConnectionError):
        assert silent[0].recv(1) == b""
    assert echo(port) == 0
    assert len(acceptors()) <= MAX_SILENT + 2
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("length", [MAX_REQUEST + 1, 2**32 - 1])
@pytest.mark.parametrize("kind", [1, 4, 7])
def test_a_pdu_without_bounds_is_not_waited_for(start: Start, length: int, kind: int) -> None:
    _, port = start()
    with connect(port) as connection:
        connection.sendall(struct.pack(">BBL", kind, 0, length) + bytes(1000))
        with suppress(ConnectionError):
            while connection.recv(1000):
                pass
    assert echo(port) == 0


def test_a_request_of_many_contexts_is_heard(start: Start) -> None:
    """128 contexts of many syntaxes are more than a PDU of data may be."""
    _, port = start()
    entity = AE(ae_title="MANY")
    for context in AllStoragePresentationContexts[:127]:
        entity.add_requested_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", port, ae_title="ANOMALY")
    assert association.is_established
    assert association.send_c_echo().Status == 0
    association.release()


def test_a_data_set_goes_to_the_disk_as_it_comes(start: Start, tmp_path: Path) -> None:
    spool, port = start(room=10**9)
    large = tmp_path / "large.dcm"
    values = np.random.default_rng(0).integers(0, 4096, (5000, 5000))
    write_sample(large, values, kind="CR")
    tracemalloc.start()
    assert store(port, [large]) == {large: "Success"}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    (path,) = kept(spool)
    assert dcmread(path).PixelData == dcmread(large).PixelData


def test_a_data_set_that_there_is_no_room_for_is_cut_while_it_comes(
    start: Start, tmp_path: Path
) -> None:
    spool, port = start(room=20 * 2**20)
    large, small = tmp_path / "large.dcm", image(tmp_path / "small.dcm")
    write_sample(large, np.random.default_rng(0).integers(0, 4096, (5000, 5000)), kind="CR")
    tracemalloc.start()
    assert store(port, [large]) == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20
    wait_for(lambda: list(spool.incoming.iterdir()) == [])
    assert store(port, [small]) == {small: "Success"}


def test_a_reserve_of_the_disk_is_left(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with Spool(tmp_path / "node", max_instances=9, max_bytes=10**9, reserve=2 * free) as spool:
        assert not spool.has_room(1)
        with Listener(spool, ae_title="ANOMALY", host="127.0.0.1", port=0, allowed=()) as listener:
            (answer,) = store(listener.port, [image(tmp_path / "a.dcm")]).values()
    assert "OutOfResources" in answer or "Out of resources" in answer
    assert list((tmp_path / "node" / "spool").iterdir()) == []


def test_who_called_is_written_down(start: Start, tmp_path: Path) -> None:
    spool, port = start(allowed=("FRIEND",))
    connect(port).close()
    one = image(tmp_path / "a.dcm")
    store(port, [one, one], "-aet", "FRIEND")
    store(port, [one], "-aet", "STRANGER")
    audit = spool.folder / "audit.jsonl"
    wait_for(lambda: audit.exists() and len(audit.read_text().splitlines()) == 2)
    friend, stranger = map(json.loads, audit.read_text().splitlines())
    assert (friend["calling"], friend["called"], friend["outcome"]) == (
        "FRIEND",
        "ANOMALY",
        "released",
    )
    assert friend["answers"] == {"0000": 2}
    assert friend["address"] == "127.0.0.1"
    assert (stranger["calling"], stranger["outcome"]) == ("STRANGER", "rejected")
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


# --- TLS ----------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, authority: str = "") -> tuple[Path, Path]:
    """Make a certificate and its key, signed by an authority of this folder, or by itself."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    by = ["-CA", folder / f"{authority}.pem", "-CAkey", folder / f"{authority}.key"]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-out", paths[0], "-keyout", paths[1], *(by if authority else ())),
        ],
        check=True,
        capture_output=True,
    )
    return paths


def tls_of(ca: Path, client: tuple[Path, Path] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(*client)
    return context


def is_kept_out(port: int, context: ssl.SSLContext) -> bool:
    """Whether a connection ends before anything can be asked; by TLS 1.3 after the handshake."""
    try:
        with context.wrap_socket(connect(port), server_hostname="localhost") as connection:
            connection.sendall(b"\x01")
            return connection.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def is_kept_out_at_once(port: int, context: ssl.SSLContext) -> bool:
    """Whether a connection ends within a second in which it says nothing."""
    with context.wrap_socket(connect(port), server_hostname="localhost") as connection:
        connection.settimeout(1)
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False


def echo_by_tls(port: int, context: ssl.SSLContext) -> bool:
    entity = AE(ae_title="CLIENT")
    entity.add_requested_context("1.2.840.10008.1.1")
    entity.acse_timeout = entity.network_timeout = entity.dimse_timeout = 10
    association = entity.associate(
        "127.0.0.1", port, ae_title="ANOMALY", tls_args=(context, "localhost")
    )
    assert association.is_established
    status = association.send_c_echo()
    association.release()
    return "Status" in status and status.Status == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_by_tls_who_has_no_certificate_is_kept_out(tmp_path: Path) -> None:
    certificate(tmp_path, "authority")
    node = certificate(tmp_path, "node", "authority")
    friend = certificate(tmp_path, "friend", "authority")
    stranger = certificate(tmp_path, "stranger")
    ca = tmp_path / "authority.pem"
    context = listener_context(*node, ca)
    with (
        Spool(tmp_path / "node-folder", max_instances=9, max_bytes=10**7) as spool,
        Listener(
            spool, ae_title="ANOMALY", host="127.0.0.1", port=0, allowed=(), tls=context
        ) as listener,
        connect(listener.port),  # says nothing, not even a greeting
    ):
        assert echo_by_tls(listener.port, tls_of(ca, friend))
        assert is_kept_out(listener.port, tls_of(ca, stranger))
        assert is_kept_out(listener.port, tls_of(ca, None))
        assert not is_kept_out_at_once(listener.port, tls_of(ca, friend))
        assert echo(listener.port) != 0  # in the clear
        assert echo_by_tls(listener.port, tls_of(ca, friend))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_destination_is_reached_by_tls_and_no_other_in_its_place(tmp_path: Path) -> None:
    certificate(tmp_path, "authority")
    node = certificate(tmp_path, "node", "authority")
    friend = certificate(tmp_path, "friend", "authority")
    certificate(tmp_path, "stranger")
    ours = {"ANOMALY_DIMSE_CERTIFICATE": str(friend[0]), "ANOMALY_DIMSE_KEY": str(friend[1])}
    trusted = {"ANOMALY_DIMSE_CA": str(tmp_path / "authority.pem")}
    path = write_sample(tmp_path / "scan.dcm", [[0, 1]])
    with (
        Spool(tmp_path / "node-folder", max_instances=9, max_bytes=10**7) as spool,
        Listener(
            spool,
            ae_title="ANOMALY",
            host="127.0.0.1",
            port=0,
            allowed=(),
            tls=listener_context(*node, tmp_path / "authority.pem"),
        ) as listener,
    ):

        def store(environment: dict[str, str]) -> None:
            tls = destination_context(environment)
            Dimse("ANOMALY", "127.0.0.1", listener.port, attempts=Attempts(count=1), tls=tls).store(
                [path]
            )

        for environment in (
            {},
            trusted,
            {**ours, "ANOMALY_DIMSE_CA": str(tmp_path / "stranger.pem")},
        ):
            with pytest.raises(ArchiveError):
                store(environment)
        assert spool.waiting == 0
        store({**trusted, **ours})
        assert spool.waiting == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("CERTIFICATE", "KEY"), "needs ANOMALY_DIMSE_CA"),
        (("CA", "KEY"), "both or neither"),
        (("CA",), "cannot be used"),
    ],
)
def test_tls_to_a_destination_that_cannot_work_is_said(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "no.pem"
    path.write_text("none")
    with pytest.raises(ConfigError, match=message):
        destination_context({f"ANOMALY_DIMSE_{name}": str(path) for name in names})
    assert destination_context({}) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("certificate",), "needs a certificate and its key"),
        (("clients",), "needs a certificate and its key"),
        (("certificate", "key"), "cannot be used"),
    ],
)
def test_tls_that_cannot_work_is_said(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    path = tmp_path / "no.pem"
    path.write_text("none")
    named = [path if name in files else None for name in ("certificate", "key", "clients")]
    with pytest.raises(ConfigError, match=message):
        listener_context(*named)
