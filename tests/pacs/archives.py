"""Real servers on loopback: Orthanc, and a small HTTP server that answers as a test asks."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy as np
import pytest

from anomaly.pacs.client.retries import Attempts
from tests.data.dicom_samples import make_dataset, write_dicom

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ROOT = "1.2.826.0.1.3680043.10.511"

IMPATIENT = Attempts(count=3, sleep=lambda _: None)
"""Asks three times without a pause."""


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Orthanc:
    """Debian's Orthanc with its DICOMweb plugin, on ports and a storage that survive it."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("Orthanc") is None or not PLUGIN.exists():
            pytest.skip("needs Debian's packages orthanc and orthanc-dicomweb")
        self.port, self.dicom_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        self._log = folder / "orthanc.log"
        self._config = folder / "orthanc.json"
        settings = {
            "Name": "ANOMALY-TEST",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self.port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "OverwriteInstances": True,
            "StableAge": 1,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True},
        }
        self._config.write_text(json.dumps(settings))
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["Orthanc", self._config], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.ask("system")
                return
            except (URLError, ConnectionError):
                time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"Orthanc does not answer:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """As the power goes: SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def ask(self, place: str) -> Any:
        """Orthanc's own interface, which knows nothing of DICOMweb."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{place}", timeout=10) as answer:
            return json.load(answer)

    def instances(self, patient: str) -> list[str]:
        """SOP Instance UIDs that the archive holds of a patient, once for each copy."""
        tags = [self.ask(f"instances/{one}/simplified-tags") for one in self.ask("instances")]
        return sorted(t["SOPInstanceUID"] for t in tags if t["PatientID"] == patient)


def uid(series: int, number: int) -> str:
    """SOP Instance UID of a study of `make_studies`."""
    return f"{ROOT}.{series}.{number}.1.1"


def make_studies(folder: Path, count: int, *, series: int, kind: str = "CR") -> list[Path]:
    """Write `count` studies of one image each, all of one patient ``P<series>``.

    The number `series` keeps the UIDs of one test apart from those of another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(series)
    return [
        write_dicom(
            folder / f"{number}.dcm",
            make_dataset(
                rng.integers(0, 4096, (32, 32)),
                kind=kind,
                patient=f"P{series}",
                StudyInstanceUID=f"{ROOT}.{series}.{number}",
                SeriesInstanceUID=f"{ROOT}.{series}.{number}.1",
                SOPInstanceUID=uid(series, number),
                StudyDate=f"202601{number % 28 + 1:02d}",
                StudyTime="120000",
                AccessionNumber=f"A{series}-{number}",
                StudyID=str(number),
                SeriesNumber=1,
                InstanceNumber=1,
            ),
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Killing(Attempts):
    """Kills the archive just before it is asked for the n-th time."""

    sleep: Callable[[float], None] = lambda _: None
    kill: Callable[[], None] = lambda: None
    at: int = 0
    asked: list[object] = field(default_factory=list)

    def __call__(self, ask: Callable[[], Any]) -> Any:
        self.asked.append(ask)
        if len(self.asked) == self.at:
            self.kill()
        return super().__call__(ask)


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b"[]"
    kind: str = "application/dicom+json"
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False  # no length is given, and the connection is closed


@dataclass
class WebServer:
    """What a test's server was asked, and where it is."""

    url: str
    requests: list[Request]


@contextmanager
def web_server(
    answer: Callable[[Request], Answer],
    wrap: Callable[[socket.socket], socket.socket] | None = None,
) -> Iterator[WebServer]:
    """Serve HTTP on loopback by a function, or HTTPS where `wrap` makes sockets of TLS."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path, dict(self.headers), body)
            requests.append(request)
            said = answer(request)
            self.send_response(said.status)
            self.send_header("Content-Type", said.kind)
            for name, value in said.headers:
                self.send_header(name, value)
            if said.cut:
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that refuses our certificate is what a test asks for."""

    server = Server(("127.0.0.1", 0), Handler)
    if wrap is not None:
        server.socket = wrap(server.socket)
    scheme = "http" if wrap is None else "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield WebServer(f"{scheme}://127.0.0.1:{server.server_port}/dicom-web", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
