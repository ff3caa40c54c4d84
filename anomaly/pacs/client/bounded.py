"""An HTTP session whose answers end: so many bytes, and so many seconds, whatever the peer does.

::

    bytes    everything that comes on the connection: status, headers, chunk lines, body
    seconds  from the request to the last byte of its answer

Both are counted where the bytes leave the socket, so no line without an end and no body of a byte
a second slips by. An answer that is compressed, although it was asked not to be, is refused: what
it would become is not known before.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from anomaly.errors import ArchiveError

__all__ = ["ANSWER", "INSTANCE", "BoundedSession", "Bounds"]


@dataclass(frozen=True)
class Bounds:
    """What one answer may have.

    Attributes
    ----------
    max_bytes : int
    max_seconds : float
    """

    max_bytes: int
    max_seconds: float


ANSWER = Bounds(16 * 2**20, 300.0)
"""Of a search or a request to store: 200 results have about a megabyte."""

INSTANCE = Bounds(4 * 2**30, 3600.0)
"""Of an instance; a tomosynthesis has gigabytes, and goes to the disk as it comes."""


MAX_ELEMENTS = 1_000_000
"""Objects, lists and tags in an answer: parsed, each takes some hundred bytes. A result of a search
has about ten, in more bytes than `ANSWER` allows for so many."""

_LINE = 2**16


class _Budget:
    """What is left of an answer's bounds."""

    def __init__(self) -> None:
        self.begin(ANSWER)

    def begin(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._bytes = bounds.max_bytes
        self._end = time.monotonic() + bounds.max_seconds

    def seconds(self) -> float:
        """Seconds that are left.

        Raises
        ------
        ArchiveError
            ``"too slow"``.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise ArchiveError(
                "too slow",
                f"an answer of the archive took more than {self._bounds.max_seconds:g} s: look at "
                "the network, or narrow the query.",
            )
        return left

    def spend(self, count: int) -> None:
        """Take off bytes that came.

        Raises
        ------
        ArchiveError
            ``"too large"``.
        """
        self._bytes -= count
        if self._bytes < 0:
            raise ArchiveError(
                "too large",
                f"an answer of the archive has more than {self._bounds.max_bytes:,} bytes: narrow "
                "the query, for example by StudyDate.",
            )


def _check_elements(content: bytes) -> None:
    if sum(map(content.count, (b"{", b"[", b"<"))) > MAX_ELEMENTS:
        raise ArchiveError(
            "too large",
            f"an answer of the archive has more than {MAX_ELEMENTS:,} elements: narrow the query, "
            "for example by StudyDate.",
        )


class _Bytes(io.RawIOBase):
    """Bytes of a socket, counted."""

    def __init__(self, socket: Any, budget: _Budget) -> None:
        self._socket, self._budget = socket, budget
        self._raw = socket.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        patience, left = self._socket.gettimeout(), self._budget.seconds()
        self._socket.settimeout(left if patience is None else min(patience, left))
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            self._budget.seconds()  # says so where it was ours
            raise
        finally:
            self._socket.settimeout(patience)
        self._budget.spend(count or 0)
        return count  # type: ignore[no-any-return]

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    """Lines that end, also those of chunks, whose length nobody else bounds."""

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(_LINE if size is None or size < 0 else size)


class _Socket:
    """A connected socket of which every byte is counted; all else is the socket's."""

    def __init__(self, socket: Any, budget: _Budget) -> None:
        self._socket, self._budget = socket, budget

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """Open what comes for reading; http.client writes by `sendall`."""
        return _Reader(_Bytes(self._socket, self._budget))

    def sendall(self, data: Any) -> None:
        self._budget.seconds()
        self._socket.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _pools(budget: _Budget) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _Socket(self.sock, budget)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _Socket(self.sock, budget)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class _Adapter(HTTPAdapter):
    def __init__(self, budget: _Budget) -> None:
        self._budget = budget
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _pools(self._budget)


class BoundedSession(requests.Session):
    """A session that follows no redirect; for one thread.

    An answer is within `ANSWER`; one that is asked for by ``stream=True``, within `INSTANCE`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._budget = _Budget()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(self._budget))
        self.headers["Accept-Encoding"] = "identity"

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request; see `requests.Session.send`.

        Raises
        ------
        ArchiveError
            ``"too large"``, ``"too slow"``, ``"compressed"``.
        """
        stream = bool(options.pop("stream", False))
        options["allow_redirects"] = False  # following would read a body that nobody asked for
        self._budget.begin(INSTANCE if stream else ANSWER)
        response = super().send(request, stream=True, **options)
        try:
            if response.is_redirect:
                raise requests.TooManyRedirects(response=response)
            coding = response.headers.get("Content-Encoding", "identity")
            if coding.strip().lower() not in ("", "identity"):
                raise ArchiveError(
                    "compressed",
                    "the archive compresses its answers although it was asked not to: switch that "
                    "off for this client, there or in the proxy before it.",
                )
            if not stream:
                _check_elements(response.content)  # read now, within the bounds of this request
        except BaseException:
            response.close()
            raise
        return response
