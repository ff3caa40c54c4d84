"""What archives do wrong: refusals, strange answers, hostile names; and who gets a password.

The server is a real one that says what the test wants.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from anomaly.errors import AnomalyError, ArchiveBusy, ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.pacs.client.bounded import ANSWER, Bounds
from anomaly.pacs.client.dicomweb import DicomWeb
from anomaly.pacs.client.dimse import Dimse
from anomaly.pacs.client.instances import Instance, is_uid
from anomaly.pacs.client.retries import Attempts
from anomaly.pipelines.pacs import fetch_studies
from tests.pacs.archives import (
    IMPATIENT,
    ROOT,
    Answer,
    Orthanc,
    Request,
    free_port,
    make_studies,
    uid,
    web_server,
)

CR = "1.2.840.10008.5.1.4.1.1.1"
SECRET = "open-sesame"  # noqa: S105
ONE = Instance(f"{ROOT}.80.0", f"{ROOT}.80.0.1", uid(80, 0), CR)


def client(url: str) -> DicomWeb:
    return DicomWeb(url, attempts=IMPATIENT)


def listing(**attributes: str) -> dict[str, Any]:
    return {tag.strip("t"): {"vr": "UI", "Value": [value]} for tag, value in attributes.items()}


def archive_of(*instances: str, study: str = ONE.study, series: str = ONE.series) -> Any:
    """Answer searches as an archive that holds instances in one series; no other request."""

    def answer(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if "offset=0" not in query:
            return Answer()
        found = {
            "studies": [listing(t0020000D=study)],
            "series": [listing(t0020000E=series)],
            "instances": [listing(t00080018=one, t00080016=CR) for one in instances],
        }[path.rsplit("/", 1)[1]]
        return Answer(body=json.dumps(found).encode())

    return answer


def multipart(content: bytes, *, boundary: str = "b0", cut: int = 0) -> Answer:
    body = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + content
    body += f"\r\n--{boundary}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return Answer(body=body[: len(body) - cut], kind=kind, cut=cut > 0)


def of_one_series(path: Path, **changes: str) -> bytes:
    """Return an image as one of the series that `archive_of` lists, with changes."""
    dataset, stream = dcmread(path), BytesIO()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = ONE.study, ONE.series
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def image(tmp_path: Path) -> bytes:
    (path,) = make_studies(tmp_path / "image", 1, series=80)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


# --- answers that may pass, and final ones ----------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_busy_twice_then_there(status: int) -> None:
    busy = [status, status]
    with web_server(lambda _: Answer(busy.pop() if busy else 200)) as server:
        assert list(client(server.url).search({"PatientID": "P"})) == []
        assert len(server.requests) == 3


def test_busy_for_too_long() -> None:
    with web_server(lambda _: Answer(503)) as server:
        with pytest.raises(ArchiveUnreachable, match="HTTP 503, Service Unavailable, in 3 attempt"):
            list(client(server.url).search({}))
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "HTTP 400, Bad Request: see the archive's log"),
        (401, "HTTP 401, Unauthorized: set ANOMALY_DICOMWEB_USER"),
        (403, "HTTP 403, Forbidden: ask for the right"),
        (404, "HTTP 404, Not Found: it is not there, or the path"),
        (500, "HTTP 500, Internal Server Error: see the archive's log"),
        (599, "HTTP 599, unknown: see the archive's log"),
    ],
)
def test_final_answers_are_asked_for_once(status: int, said: str) -> None:
    with web_server(lambda _: Answer(status)) as server:
        with pytest.raises(ArchiveError, match=said) as caught:
            list(client(server.url).search({}))
        assert not isinstance(caught.value, ArchiveUnreachable)
        assert caught.value.reason == f"HTTP {status}"
        assert len(server.requests) == 1


def test_no_content_is_nothing_found() -> None:
    with web_server(lambda _: Answer(204, body=b"")) as server:
        assert list(client(server.url).search({"PatientID": "P"})) == []
        assert not client(server.url).holds("1.2", "1.2.3")


def test_a_wrong_path_of_a_real_archive(orthanc: Orthanc) -> None:
    with pytest.raises(ArchiveError, match="HTTP 404, Not Found"):
        list(client(f"http://127.0.0.1:{orthanc.port}/wrong").search({"PatientID": "P50"}))


def test_nobody_listens() -> None:
    with pytest.raises(ArchiveUnreachable, match=r"did not answer a search .*in 3 attempt"):
        list(client(f"http://127.0.0.1:{free_port()}/dicom-web").search({}))


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'[{"0020000D": "x"}]', b'"text"', b"\xff"])
def test_an_answer_that_is_not_dicomweb(body: bytes) -> None:
    with (
        web_server(lambda _: Answer(body=body)) as server,
        pytest.raises(ArchiveError, match="what is not DICOMweb") as caught,
    ):
        list(client(server.url).search({}))
    assert caught.value.reason == "not understood"


def test_an_archive_that_knows_no_offset_is_not_asked_for_ever() -> None:
    with web_server(lambda _: Answer(body=json.dumps([listing(t0020000D="1.2")]).encode())) as s:
        listed = list(client(s.url).search({"PatientID": "P"}))
        # Studies have no series with the UIDs asked for, and the second page is the first again.
        assert listed == []
        assert len(s.requests) <= 6


def test_a_redirect_is_not_followed() -> None:
    with web_server(lambda _: Answer()) as other:
        moved = Answer(302, headers=(("Location", other.url),))
        with (
            web_server(lambda _: moved) as server,
            pytest.raises(ArchiveError, match="sends a search elsewhere"),
        ):
            list(client(server.url).search({}))
        assert other.requests == []


def test_the_host_is_named_with_its_port() -> None:
    with web_server(lambda _: Answer()) as server:
        list(client(server.url).search({}))
        assert server.requests[0].headers["Host"] == server.url.split("/")[2]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dicomweb_client.web", None)
    with pytest.raises(AnomalyError, match=r"pip install dicomweb-client"):
        client("https://archive.example/dicom-web")
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(AnomalyError, match=r"pip install pynetdicom"):
        Dimse("ARCHIVE", "archive.example", 104)


# --- instances --------------------------------------------------------------------------------


def test_an_instance_is_asked_for_as_it_is_stored(image: bytes, folder: Path) -> None:
    with web_server(lambda _: multipart(image)) as server:
        client(server.url).fetch(ONE, folder / "one.dcm")
        (request,) = server.requests
    assert (folder / "one.dcm").read_bytes() == image
    accepted = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert request.headers["Accept"] == accepted
    place = f"/dicom-web/studies/{ONE.study}/series/{ONE.series}/instances/{ONE.instance}"
    assert request.path == place


def test_an_instance_without_its_envelope(image: bytes, folder: Path) -> None:
    with web_server(lambda _: Answer(body=image, kind="application/dicom")) as server:
        client(server.url).fetch(ONE, folder / "one.dcm")
    assert (folder / "one.dcm").read_bytes() == image


# A cut of 1000 ends within the pixels, one of 5 within the last marker.
@pytest.mark.parametrize("cut", [1000, 5])
def test_a_cut_off_instance_is_asked_for_again(cut: int, image: bytes, folder: Path) -> None:
    cuts = [cut, cut]
    with web_server(lambda _: multipart(image, cut=cuts.pop() if cuts else 0)) as server:
        client(server.url).fetch(ONE, folder / "one.dcm")
        assert len(server.requests) == 3
    assert (folder / "one.dcm").read_bytes() == image


def test_an_instance_that_is_always_cut_off_leaves_nothing(image: bytes, folder: Path) -> None:
    with (
        web_server(lambda _: multipart(image, cut=1000)) as server,
        pytest.raises(ArchiveUnreachable, match="cut off, in 3 attempt"),
    ):
        client(server.url).fetch(ONE, folder / "one.dcm")
    assert list(folder.iterdir()) == []


def test_another_instance_is_not_kept(folder: Path, tmp_path: Path) -> None:
    _, other = make_studies(tmp_path / "two", 2, series=80)
    with (
        web_server(lambda _: multipart(other.read_bytes())) as server,
        pytest.raises(ArchiveError, match="sent an object of another instance"),
    ):
        client(server.url).fetch(ONE, folder / "one.dcm")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("study", {"StudyInstanceUID": "1.2.3"}),
        ("series", {"SeriesInstanceUID": "1.2.3"}),
        ("class", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("patient", {"PatientID": "P81"}),
        ("patient", {"PatientID": ""}),
    ],
)
def test_an_object_of_another_under_the_right_uid_is_not_kept(
    kind: str, changes: dict[str, str], image: bytes, folder: Path, tmp_path: Path
) -> None:
    (path,) = make_studies(tmp_path / "other", 1, series=80)
    asked = replace(ONE, patient="P80")
    with web_server(lambda _: multipart(of_one_series(path, **changes))) as server:
        with pytest.raises(ArchiveError, match=f"an object of another {kind}") as refusal:
            client(server.url).fetch(asked, folder / "one.dcm")
        assert (refusal.value.reason, len(server.requests)) == (f"other {kind}", 1)
    assert list(folder.iterdir()) == []
    with web_server(lambda _: multipart(image)) as server:
        client(server.url).fetch(asked, folder / "one.dcm")
    assert (folder / "one.dcm").read_bytes() == image


@pytest.mark.parametrize(
    ("query", "asked_for"),
    [
        ({"PatientID": "P80"}, True),
        ({"PatientID": "P8?"}, True),
        ({"PatientID": "P81"}, False),
        ({"StudyInstanceUID": f"1.2.3,{ONE.study}"}, True),
        ({"StudyInstanceUID": "1.2.3"}, False),
        ({"StudyDate": "20260101"}, True),
    ],
)
def test_a_study_that_nobody_asked_for_is_not_fetched(
    query: dict[str, str], asked_for: bool, image: bytes, folder: Path
) -> None:
    """Some archives pass over keys that they do not know, and list all that they have."""
    search = archive_of(ONE.instance)

    def answer(request: Request) -> Answer:
        if "/instances/" in request.path:
            return multipart(image)
        if "/studies?" in request.path and "offset=0" in request.path:
            found = [listing(t0020000D=ONE.study, t00100020="P80 ")]
            return Answer(body=json.dumps(found).encode())
        return search(request)

    with web_server(answer) as server:
        done = fetch_studies(client(server.url), query, folder)
    assert (done.fetched, dict(done.failed)) == (
        (1, {}) if asked_for else (0, {"not asked for": 1})
    )


# --- answers without end ----------------------------------------------------------------------


def endless(start: bytes, more: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    """Answer one request on a bare connection, and never end."""

    def answer(connection: socket.socket) -> None:
        connection.recv(2**16)
        with suppress(OSError):
            connection.sendall(start)
            while True:
                connection.sendall(more)
                time.sleep(pause)

    return answer


@contextmanager
def bare_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve whatever bytes a test wants, without the help of an HTTP server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                with suppress(TimeoutError):
                    connection, _ = listening.accept()
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/dicom-web"
        stopped.set()
        thread.join(10)


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
FLOODS = {
    "a body without end": (JSON_HEAD + b"\r\n[", b"[]," * 20_000),
    "chunks without end": (JSON_HEAD + CHUNKED, b"4000\r\n" + b" " * 0x4000 + b"\r\n"),
    "a length of a chunk without end": (JSON_HEAD + CHUNKED, b"0" * 60_000),
    "headers without end": (b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"x" * 60_000 + b"\r\n"),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX-More: ", b"x" * 60_000),
    "no line at all": (b"", b"x" * 60_000),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_an_answer_without_end_is_left(flood: str) -> None:
    tracemalloc.start()
    with bare_server(endless(*FLOODS[flood])) as url, pytest.raises(ArchiveError):
        list(DicomWeb(url, attempts=Attempts(count=1)).search({"PatientID": "P"}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 2**20


@pytest.mark.parametrize("item", [b"{}", b"[]", b'{"00080018":{}}', b'""', b"1"])
def test_an_answer_of_countless_elements_takes_no_memory(item: bytes) -> None:
    body = b"[" + b",".join([item] * ((ANSWER.max_bytes - 2**10) // (len(item) + 1))) + b"]"
    head = JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    tracemalloc.start()
    with bare_server(endless(head, body)) as url, pytest.raises(ArchiveError):
        list(DicomWeb(url, attempts=Attempts(count=1)).search({"PatientID": "P"}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 * 2**20


def test_an_instance_without_end_goes_to_the_disk_and_no_further(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.pacs.client.bounded.INSTANCE", Bounds(200 * 2**20, 60.0))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/related; boundary=b0\r\n\r\n"
    tracemalloc.start()
    with (
        bare_server(endless(head, bytes(2**20))) as url,
        pytest.raises(ArchiveError, match="more than 209,715,200 bytes"),
    ):
        DicomWeb(url, attempts=IMPATIENT).fetch(ONE, folder / "one.dcm")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * 2**20
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("start", [b"", JSON_HEAD + b"\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_an_answer_of_a_byte_now_and_then_is_left(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.pacs.client.bounded.ANSWER", Bounds(2**20, 1.0))
    began = time.monotonic()
    with (
        bare_server(endless(start, b"H", pause=0.05)) as url,
        pytest.raises(ArchiveError, match="took more than 1 s"),
    ):
        client(url).holds(ONE.study, ONE.instance)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_an_answer_that_is_compressed_is_refused(coding: str) -> None:
    """A megabyte of it may be a gigabyte of zeros."""
    bomb = zlib.compress(bytes(50 * 2**20), wbits=31 if coding == "gzip" else 15)
    answer = Answer(body=bomb, headers=(("Content-Encoding", coding),))
    with (
        web_server(lambda _: answer) as server,
        pytest.raises(ArchiveError, match="compresses its answers") as refusal,
    ):
        list(client(server.url).search({"PatientID": "P"}))
    assert refusal.value.reason == "compressed"
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_pages_without_end_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.pacs.client.dicomweb.search.MOST", 50)
    count = itertools.count()

    def answer(request: Request) -> Answer:
        if "/series" in request.path:
            return Answer()
        found = [listing(t0020000D=f"1.2.{next(count)}") for _ in range(7)]
        return Answer(body=json.dumps(found).encode())

    with (
        web_server(answer) as server,
        pytest.raises(ArchiveError, match="more than 50 results in one search"),
    ):
        list(client(server.url).search({"StudyInstanceUID": "*"}))


@pytest.mark.parametrize(
    ("said", "pause"),
    [("7", 7.0), ("3600", 120.0), ("-5", 0.0), ("soon", 0.0), ("", 0.0)],
)
def test_an_archive_is_left_alone_for_as_long_as_it_asks(said: str, pause: float) -> None:
    pauses: list[float] = []
    answers = [Answer(503, headers=(("Retry-After", said),)), Answer()]
    attempts = Attempts(count=2, first=0.0, sleep=pauses.append)
    with web_server(lambda _: answers.pop(0)) as server:
        assert not DicomWeb(server.url, attempts=attempts).holds(ONE.study, ONE.instance)
    assert pauses == [pause]


@pytest.mark.parametrize(
    "answer",
    [
        multipart(b"no DICOM"),
        Answer(body=b"no multipart", kind="multipart/related; boundary=b0"),
        Answer(body=b"--\r\n\r\nx\r\n----", kind="multipart/related"),
        Answer(body=b"<html>", kind="text/html"),
    ],
)
def test_what_is_no_instance_is_not_kept(answer: Answer, folder: Path) -> None:
    with (
        web_server(lambda _: answer) as server,
        pytest.raises(ArchiveError, match="what is not DICOMweb"),
    ):
        client(server.url).fetch(ONE, folder / "one.dcm")
    assert list(folder.iterdir()) == []


def test_one_instance_that_cannot_be_had_costs_that_instance(folder: Path, tmp_path: Path) -> None:
    paths = make_studies(tmp_path / "four", 4, series=80)
    images = {uid(80, number): of_one_series(path) for number, path in enumerate(paths)}
    search = archive_of(*images)

    def answer(request: Request) -> Answer:
        name = request.path.rsplit("/", 1)[1]
        if name == uid(80, 1):
            return Answer(410)
        if name == uid(80, 2):
            return Answer(503)
        return multipart(images[name]) if name in images else search(request)

    with web_server(answer) as server:
        done = fetch_studies(client(server.url), {"PatientID": "P80"}, folder)
    assert (done.listed, done.fetched, done.already) == (4, 2, 0)
    assert dict(done.failed) == {"HTTP 410": 1, "HTTP 503": 1}
    names = sorted(path.stem for path in folder.rglob("*.dcm"))
    assert names == [uid(80, 0), uid(80, 3)]


def test_a_folder_that_cannot_be_written_stops_at_once(image: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    search = archive_of(ONE.instance)
    with (
        web_server(search) as server,
        pytest.raises(AnomalyError, match="could not be made"),
    ):
        fetch_studies(client(server.url), {}, tmp_path / "file")


# --- hostile names ----------------------------------------------------------------------------

HOSTILE = [
    "../../../evil",
    "..",
    ".",
    "",
    "1.2/3",
    "1..2",
    "1.2.",
    "/etc",
    "1" * 65,
    "1.2\n",
    "१.२",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_no_uid_is_refused(name: str) -> None:
    assert not is_uid(name)
    with pytest.raises(ArchiveError, match="stands for a UID"):
        Instance(ONE.study, ONE.series, name, CR)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_an_archive_are_left_out(
    name: str, image: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers: list[Callable[[Request], Answer]] = [
        archive_of(name),
        archive_of(ONE.instance, series=name),
        archive_of(ONE.instance, study=name),
    ]
    for answer in servers:
        with web_server(answer) as server:
            done = fetch_studies(client(server.url), {"PatientID": "P"}, tmp_path / "a" / "b")
            assert done.listed == 0
            assert done.failed == {"uid": 1}
            assert all("evil" not in request.path for request in server.requests)
    assert [path for path in tmp_path.rglob("*.dcm") if path.parent.name != "image"] == []
    assert caplog.text.count("1 not fetched: uid") == 3


# --- refused when stored ----------------------------------------------------------------------


def stow(stored: list[str], failed: dict[str, int]) -> bytes:
    def items(found: list[dict[str, Any]]) -> dict[str, Any]:
        return {"vr": "SQ", "Value": found}

    said: dict[str, Any] = {}
    if stored:
        said["00081199"] = items([{"00081155": {"vr": "UI", "Value": [one]}} for one in stored])
    if failed:
        said["00081198"] = items(
            [
                {
                    "00081155": {"vr": "UI", "Value": [one]},
                    "00081197": {"vr": "US", "Value": [code]},
                }
                for one, code in failed.items()
            ]
        )
    return json.dumps(said).encode()


@pytest.mark.parametrize("status", [200, 202, 409])
def test_refused_instances_are_counted_by_code(status: int, tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 4, series=81)
    failed = {uid(81, 0): 0xA700, uid(81, 2): 0xC000, uid(81, 3): 0xA700}
    body = stow([uid(81, 1)], failed)

    def answer(request: Request) -> Answer:
        return Answer(status, body=body) if request.method == "POST" else Answer()

    with (
        web_server(answer) as server,
        pytest.raises(ArchiveError, match=r"refused 3 of 4 instances \(2 x A700, 1 x C000\)"),
    ):
        client(server.url).store(paths)


def test_what_there_is_no_room_for_at_present_is_sent_again(tmp_path: Path) -> None:
    """A7xx is no refusal for good (PS3.18 Table I.2-2)."""
    paths = make_studies(tmp_path, 3, series=84)
    posts: list[list[int]] = []

    def answer(request: Request) -> Answer:
        if request.method != "POST":
            return Answer()
        sent = [one for one in range(3) if uid(84, one).encode() + b"\0" in request.body]
        posts.append(sent)
        busy = {uid(84, 1): 0xA700} if len(posts) < 3 and 1 in sent else {}
        return Answer(
            202, body=stow([uid(84, one) for one in sent if uid(84, one) not in busy], busy)
        )

    with web_server(answer) as server:
        client(server.url).store(paths)
    assert posts == [[0, 1, 2], [1], [1]]


def test_what_there_is_never_room_for_is_busy_and_not_refused(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 2, series=85)
    body = stow([uid(85, 1)], {uid(85, 0): 0xA700})

    def answer(request: Request) -> Answer:
        return Answer(202, body=body) if request.method == "POST" else Answer()

    with (
        web_server(answer) as server,
        pytest.raises(ArchiveBusy, match="no room for 1 of 2"),
    ):
        client(server.url).store(paths)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_an_instance_that_an_archive_never_answers_costs_itself(
    status: int, tmp_path: Path
) -> None:
    paths = make_studies(tmp_path, 5, series=86)
    stored: set[int] = set()

    def answer(request: Request) -> Answer:
        if request.method != "POST":
            return Answer()
        sent = [one for one in range(5) if uid(86, one).encode() + b"\0" in request.body]
        if 1 in sent:
            return Answer(status)
        stored.update(sent)
        return Answer(body=stow([uid(86, one) for one in sent], {}))

    said = rf"refused 1 of 5 instances \(1 x HTTP {status}\)"
    with web_server(answer) as server, pytest.raises(ArchiveError, match=said):
        client(server.url).store(paths)
    assert stored == {0, 2, 3, 4}


def test_an_archive_that_is_gone_is_not_asked_for_every_instance(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 5, series=87)
    posts: list[int] = []

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            posts.append(len(request.body))
            return Answer(503)
        return Answer()

    with web_server(answer) as server, pytest.raises(ArchiveUnreachable):
        client(server.url).store(paths)
    assert len(posts) == 3 * IMPATIENT.count  # together, the first, the second


@pytest.mark.parametrize("body", [b"[]", b"null", b"[{}]", b"<html>"])
def test_an_answer_that_is_none_is_no_refusal_of_what_is_stored(
    body: bytes, tmp_path: Path
) -> None:
    paths = make_studies(tmp_path, 2, series=88)
    posts: list[Request] = []

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            posts.append(request)
            return Answer(body=body)
        if not posts or "offset=0" not in request.path:
            return Answer()
        asked = request.path.split("SOPInstanceUID=")[1].split("&")[0]
        return Answer(body=json.dumps([listing(t00080018=asked)]).encode())

    with web_server(answer) as server:
        client(server.url).store(paths)
    assert len(posts) == 1


def test_a_refusal_without_a_reason_is_counted_once(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 2, series=89)
    body = json.loads(stow([uid(89, 0)], {uid(89, 1): 0}))
    del body["00081198"]["Value"][0]["00081197"]
    posts: list[Request] = []

    def answer(request: Request) -> Answer:
        if request.method != "POST":
            return Answer()
        posts.append(request)
        return Answer(202, body=json.dumps(body).encode())

    said = r"refused 1 of 2 instances \(1 x no reason given\)"
    with web_server(answer) as server, pytest.raises(ArchiveError, match=said):
        client(server.url).store(paths)
    assert len(posts) == 1


def test_what_is_not_confirmed_is_looked_for(tmp_path: Path) -> None:
    paths = make_studies(tmp_path, 3, series=82)
    posted: list[bytes] = []

    def answer(request: Request) -> Answer:
        if request.method == "POST":
            posted.append(request.body)
            return Answer(body=stow([uid(82, 0)], {}))
        # Of the two that it says nothing of, the archive holds number 1.
        if posted and f"{uid(82, 1)}" in request.path and "offset=0" in request.path:
            return Answer(body=json.dumps([listing(t00080018=uid(82, 1))]).encode())
        return Answer()

    with (
        web_server(answer) as server,
        pytest.raises(ArchiveError, match=r"refused 1 of 3 instances \(1 x not confirmed\)"),
    ):
        client(server.url).store(paths)
    assert len(posted) == 1


@pytest.mark.parametrize("bad", [None, 1])
def test_a_refused_batch_is_sent_again_one_by_one(
    bad: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.pacs.client.dicomweb.store.BATCH_BYTES", 3 * 3000)
    paths = make_studies(tmp_path, 7, series=83)  # each has between 2,048 and 3,000 bytes
    assert all(2048 < path.stat().st_size < 3000 for path in paths)
    posts: list[int] = []

    def answer(request: Request) -> Answer:
        if request.method != "POST":
            return Answer()
        sent = [one for one in range(7) if uid(83, one).encode() + b"\0" in request.body]
        posts.append(len(sent))
        if len(posts) == 1 or bad in sent:
            return Answer(413)
        return Answer(body=stow([uid(83, one) for one in sent], {}))

    refusal = pytest.raises(ArchiveError, match=r"refused 1 of 7 instances \(1 x HTTP 413\)")
    with web_server(answer) as server, nullcontext() if bad is None else refusal:
        client(server.url).store(paths)
    assert posts == [3, 1, 1, 1, 3, 1]


def paged(count: int, cap: int, *, warns: bool, knows_offset: bool) -> Any:
    """An archive of one study and series that gives at most `cap` instances an answer."""
    instances = [listing(t00080018=f"1.2.{n}", t00080016=CR) for n in range(count)]

    def answer(request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        kind = path.rsplit("/", 1)[1]
        offset = int(dict(p.split("=", 1) for p in query.split("&")).get("offset", 0))
        if kind != "instances":
            one = {"studies": listing(t0020000D="1.2"), "series": listing(t0020000E="1.3")}[kind]
            return Answer(body=json.dumps([] if offset else [one]).encode())
        start = offset if knows_offset else 0
        part = instances[start : start + cap]
        more = start + cap < count
        said = '299 archive "There are additional results that can be requested"'
        headers = (("Warning", said),) if warns and more else ()
        return Answer(body=json.dumps(part).encode(), headers=headers)

    return answer


@pytest.mark.parametrize("warns", [True, False])
def test_an_archive_of_small_pages_is_read_to_the_end(
    warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with web_server(paged(25, 10, warns=warns, knows_offset=True)) as server:
        found = list(client(server.url).search({"PatientID": "P"}))
    assert len(found) == 25
    assert ("the archive warns: 299" in caplog.text) == warns


def test_an_archive_that_caps_a_page_and_knows_no_offset_is_no_whole_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        web_server(paged(25, 10, warns=True, knows_offset=False)) as server,
        pytest.raises(ArchiveError, match="gives the same again") as caught,
    ):
        list(client(server.url).search({"PatientID": "P"}))
    assert caught.value.reason == "paging"
    with (
        web_server(paged(250, 200, warns=False, knows_offset=False)) as server,
        pytest.raises(ArchiveError, match="200 results"),
    ):
        list(client(server.url).search({"PatientID": "P"}))
    # A short page without a warning is all there is.
    with web_server(paged(25, 200, warns=False, knows_offset=False)) as server:
        assert len(list(client(server.url).search({"PatientID": "P"}))) == 25
    assert "the same results, 25 here" in caplog.text


def test_what_is_sent_is_what_is_in_the_file(tmp_path: Path) -> None:
    (path,) = make_studies(tmp_path, 1, series=84)
    bodies: list[bytes] = []

    def answer(request: Request) -> Answer:
        if request.method != "POST":
            return Answer()
        bodies.append(request.body)
        return Answer(body=stow([uid(84, 0)], {}))

    with web_server(answer) as server:
        client(server.url).store([path])
    (body,) = bodies
    start = body.index(b"\r\n\r\n") + 4
    sent = dcmread(BytesIO(body[start : body.rindex(b"\r\n--")]))
    assert sent == dcmread(path)
    assert path.read_bytes() in body


# --- credentials ------------------------------------------------------------------------------


def guarded(expected: str) -> Callable[[Request], Answer]:
    def answer(request: Request) -> Answer:
        return Answer(200 if request.headers.get("Authorization") == expected else 401)

    return answer


def test_a_user_and_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    # base64 of "reader:open-sesame", by hand: `printf reader:open-sesame | base64`
    with web_server(guarded("Basic cmVhZGVyOm9wZW4tc2VzYW1l")) as server:
        with pytest.raises(ArchiveError, match="HTTP 401"):
            list(client(server.url).search({}))
        monkeypatch.setenv("ANOMALY_DICOMWEB_USER", "reader")
        monkeypatch.setenv("ANOMALY_DICOMWEB_PASSWORD", SECRET)
        assert list(client(server.url).search({})) == []


def test_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_DICOMWEB_TOKEN", SECRET)
    with web_server(guarded(f"Bearer {SECRET}")) as server:
        assert list(client(server.url).search({})) == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1"])
def test_loopback_may_be_asked_in_the_clear(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_DICOMWEB_TOKEN", SECRET)
    assert client(f"http://{host}:8042/dicom-web").url.startswith(f"http://{host}")


# 10.0.0.1 is no loopback, and neither is a name that only begins like one.
@pytest.mark.parametrize(
    "host", ["archive.example", "10.0.0.1", "localhost.example", "127.0.0.1.example"]
)
@pytest.mark.parametrize("names", [("USER", "PASSWORD"), ("TOKEN",)])
def test_credentials_do_not_travel_in_the_clear(
    host: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(f"ANOMALY_DICOMWEB_{name}", SECRET)
    with pytest.raises(ConfigError, match="in the clear: use https") as caught:
        client(f"http://{host}/dicom-web")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("names", [("USER",), ("PASSWORD",), ("USER", "PASSWORD", "TOKEN")])
def test_credentials_that_contradict_each_other(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(f"ANOMALY_DICOMWEB_{name}", SECRET)
    with pytest.raises(ConfigError, match="expected ANOMALY_DICOMWEB_USER with") as caught:
        client("https://archive.example/dicom-web")
    assert SECRET not in str(caught.value)


def test_a_token_that_cannot_be_sent_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_DICOMWEB_TOKEN", f"{SECRET}\nEvil: header")
    with pytest.raises(ConfigError, match="white space") as caught:
        client("https://archive.example/dicom-web")
    assert SECRET not in str(caught.value)


def test_no_error_tells_a_credential(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    monkeypatch.setenv("ANOMALY_DICOMWEB_TOKEN", SECRET)
    caplog.set_level("DEBUG")
    for status in (302, 401, 404, 503, 200):
        with web_server(lambda _, s=status: Answer(s, body=b"?")) as server:  # type: ignore[misc]
            with pytest.raises(ArchiveError) as caught:
                client(server.url).fetch(ONE, folder / "one.dcm")
            assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
        chain: BaseException | None = caught.value
        while chain is not None:
            assert SECRET not in f"{chain} {chain!r}"
            chain = chain.__cause__
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "https://host/dicom-web?token=1",
        "https://host/dicom-web#part",
        "https:///dicom-web",
        "https://host:99999/dicom-web",
        "host/dicom-web",
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL of an archive"):
        client(url)


# --- TLS --------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_a_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    order = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    order += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    order += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(order, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def wrap(plain: socket.socket) -> socket.socket:
        return context.wrap_socket(plain, server_side=True)

    with web_server(lambda _: Answer(), wrap) as server:
        # The variables by which other programs are told to trust must not be needed nor obeyed.
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        with pytest.raises(ArchiveError, match="certificate is not trusted") as caught:
            list(client(server.url).search({}))
        assert caught.value.reason == "certificate"
        assert server.requests == []
        monkeypatch.setenv("ANOMALY_DICOMWEB_CA", str(certificate))
        assert list(client(server.url).search({})) == []


def test_certificates_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_DICOMWEB_CA", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="which is no file"):
        client("https://archive.example/dicom-web")


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe"])
def test_certificates_that_are_none(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.pem").write_bytes(content)
    monkeypatch.setenv("ANOMALY_DICOMWEB_CA", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="holds no certificates in PEM"):
        client("https://archive.example/dicom-web")


def test_a_port_without_tls_is_not_blamed_for_its_certificate() -> None:
    with web_server(lambda _: Answer()) as server:
        url = server.url.replace("http://", "https://")
        with pytest.raises(ArchiveError, match="does not speak TLS"):
            list(client(url).search({}))


def after_the_end(answer: Any, last: Answer, *, said: str = "") -> Any:
    """Let an archive of one page say something else of the page after it."""

    def other(request: Request) -> Answer:
        found: Answer = answer(request)
        if "/instances" not in request.path:
            return found
        if "offset=0" not in request.path:
            return last
        return found._replace(headers=(("Warning", said),)) if said else found

    return other


@pytest.mark.parametrize(
    "said", ['299 pacs: "some attributes could not be returned"', '299 a "fuzzy matching not done"']
)
def test_a_warning_of_something_else_leaves_a_whole_answer_whole(said: str) -> None:
    whole = paged(25, 25, warns=False, knows_offset=True)
    with web_server(after_the_end(whole, Answer(204, b""), said=said)) as server:
        assert len(list(client(server.url).search({"PatientID": "P"}))) == 25


@pytest.mark.parametrize("last", [Answer(204, b""), Answer(body=b"[]"), Answer(404, b"")], ids=str)
@pytest.mark.parametrize("said", ['299 a "more"', '199 a "x", 299 b "more"'])
def test_more_results_that_never_come_are_no_whole_answer(last: Answer, said: str) -> None:
    whole = paged(25, 25, warns=False, knows_offset=True)
    with (
        web_server(after_the_end(whole, last, said=said)) as server,
        pytest.raises(ArchiveError, match="25 results and says or shows that there are more"),
    ):
        list(client(server.url).search({"PatientID": "P"}))


@pytest.mark.parametrize("status", [400, 404])
def test_a_page_after_the_last_may_be_refused(status: int) -> None:
    whole = paged(25, 25, warns=False, knows_offset=True)
    with web_server(after_the_end(whole, Answer(status, b""))) as server:
        assert len(list(client(server.url).search({"PatientID": "P"}))) == 25


def test_a_bare_instance_that_is_cut_off_is_asked_for_again(image: bytes, folder: Path) -> None:
    """Without a length only the data set itself can tell."""
    answers = [image[:-300], image[:-300], image]
    kind = "application/dicom"
    with web_server(lambda _: Answer(body=answers.pop(0), kind=kind, cut=True)) as server:
        client(server.url).fetch(ONE, folder / "one.dcm")
    assert (folder / "one.dcm").read_bytes() == image


def test_a_scheme_in_capitals_is_one() -> None:
    with web_server(lambda _: Answer()) as server:
        assert list(client(server.url.replace("http", "HTTP")).search({"PatientID": "P"})) == []
