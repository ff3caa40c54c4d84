"""HTTP session that limits the size and the duration of every answer.

::

    bytes    everything received on the connection: status, headers, chunk lines, body
    seconds  from the request to the last byte of its answer

Both are measured at the socket, so they also limit endless lines and bodies that arrive one byte
per second. Compressed answers, which the request excludes, raise an error because their
decompressed size is unknown.
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
    """Limits of one answer.

    Attributes
    ----------
    max_bytes : int
    max_seconds : float
    """

    max_bytes: int
    max_seconds: float


ANSWER = Bounds(16 * 2**20, 300.0)
"""Limits for the answer to a search or a store request; 200 results have about a megabyte."""

INSTANCE = Bounds(4 * 2**30, 3600.0)
"""Limits for an instance; a tomosynthesis has gigabytes and is streamed to disk."""


MAX_ELEMENTS = 1_000_000
"""Maximum objects, lists and tags in an answer: each takes some hundred bytes when parsed. A search
result has about ten, so the byte limit of `ANSWER` is reached first."""

_LINE = 2**16


class _Budget:
    """Remaining bytes and seconds of an answer."""

    def __init__(self) -> None:
        self.begin(ANSWER)

    def begin(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._bytes = bounds.max_bytes
        self._end = time.monotonic() + bounds.max_seconds

    def seconds(self) -> float:
        """Return the remaining seconds.

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
        """Subtract the bytes received.

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
    """Raw stream that counts the bytes read from a socket."""

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
            self._budget.seconds()  # raises if our limit caused the timeout
            raise
        finally:
            self._socket.settimeout(patience)
        self._budget.spend(count or 0)
        return count  # type: ignore[no-any-return]

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(io.BufferedReader):
    """Reader that limits the length of lines, including chunk headers, which urllib3 does not."""

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(_LINE if size is None or size < 0 else size)


class _Socket:
    """Wrapper of a connected socket that counts received bytes."""

    def __init__(self, socket: Any, budget: _Budget) -> None:
        self._socket, self._budget = socket, budget

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """Open the socket for reading; http.client writes with `sendall`."""
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
    """A session that follows no redirects; not thread-safe.

    Answers are limited by `ANSWER`, or by `INSTANCE` with ``stream=True``.
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
        options["allow_redirects"] = False  # following one would read an unwanted body
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
                _check_elements(response.content)  # read now, within the limits of this request
        except BaseException:
            response.close()
            raise
        return response
