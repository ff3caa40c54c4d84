"""Connection to a DICOMweb service: requests, retries and error messages.

Temporary failures (no connection, no answer in time, "too busy") are retried; all other failures
are final. Error messages never quote the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from anomaly.errors import AnomalyError, ArchiveError, ArchiveUnreachable
from anomaly.pacs.client.retries import Attempts
from anomaly.pacs.client.sessions import check_url, open_session

if TYPE_CHECKING:
    import requests

__all__ = ["TIMEOUT", "Connection", "name_status"]

TIMEOUT = (10.0, 60.0)
"""Maximum seconds to connect, and between two bytes of an answer."""

AGAIN = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""Status codes that mean "try again later"."""

HINTS = {
    HTTPStatus.UNAUTHORIZED: "set ANOMALY_DICOMWEB_USER and _PASSWORD, or ANOMALY_DICOMWEB_TOKEN",
    HTTPStatus.FORBIDDEN: "ask for the right to do it, or for other credentials",
    HTTPStatus.NOT_FOUND: "it is not there, or the path of the URL is not that of DICOMweb",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise the archive's limit on the size of a request",
}

_Answer = TypeVar("_Answer")


class Connection:
    """A connection to a DICOMweb service.

    Parameters
    ----------
    url : str
    attempts : Attempts
        Number of attempts and pauses after failures.

    Attributes
    ----------
    url : str
        URL without a trailing slash.
    client : dicomweb_client.web.DICOMwebClient
    session : requests.Session
        The session that `client` uses.

    Raises
    ------
    ConfigError
    AnomalyError
        If dicomweb-client or requests is not installed.
    """

    def __init__(self, url: str, attempts: Attempts) -> None:
        self.url = check_url(url)
        self._attempts = attempts
        client = _client()
        self.session = open_session(self.url)
        # Requests are sent in one piece: not every archive accepts chunked requests.
        self.client = client(self.url, self.session, chunk_size=2**40, timeout=TIMEOUT)
        self.client.host = urlsplit(self.url).netloc  # sent as Host; the client would omit the port
        self.client.set_http_retry_params(retry=False)

    def ask(self, what: str, call: Callable[..., _Answer], *arguments: object) -> _Answer:
        """Return the result of a call, with retries after temporary failures.

        Parameters
        ----------
        what : str
            Name of the call in error messages.
        call : callable
        *arguments : object
            Arguments of the call.

        Raises
        ------
        ArchiveError
            The archive did not answer, or its answer cannot be used.
        """
        return self._attempts(partial(self._once, what, partial(call, *arguments)))

    def _once(self, what: str, call: Callable[[], _Answer]) -> _Answer:
        """Call once; raise errors with our own message, which never quotes the answer."""
        errors = self.errors
        try:
            return call()
        except AnomalyError:
            raise
        except errors.HTTPError as error:
            raise self._refusal(what, error.response) from error
        except errors.SSLError as error:
            if "CERTIFICATE" not in str(error).upper():
                raise ArchiveError(
                    "certificate",
                    f"{self.url} does not speak TLS as it should ({type(error).__name__}): check "
                    "the port, and whether it is https at all.",
                ) from error
            raise ArchiveError(
                "certificate",
                f"{self.url} could not prove who it is: its certificate is not trusted. Set "
                "ANOMALY_DICOMWEB_CA to the certificates that it should be checked against.",
            ) from error
        except errors.TooManyRedirects as error:
            raise ArchiveError(
                "redirect", f"{self.url} sends {what} elsewhere: name the URL it really has."
            ) from error
        except (errors.ConnectionError, errors.Timeout, errors.ChunkedEncodingError) as error:
            raise ArchiveUnreachable(
                "no answer", f"{self.url} did not answer {what} ({type(error).__name__})"
            ) from error
        except Exception as error:
            # Catch everything here: an answer that is not DICOMweb can make its parsers raise any
            # exception.
            raise ArchiveError(
                "not understood",
                f"{self.url} answered {what} with what is not DICOMweb ({type(error).__name__}): "
                "check the URL.",
            ) from error

    def _refusal(self, what: str, response: requests.Response) -> ArchiveError:
        status = response.status_code
        name = next((known.phrase for known in HTTPStatus if known == status), "unknown")
        sentence = f"{self.url} answered {what} with {name_status(status)}, {name}"
        if status in AGAIN:
            later = ArchiveUnreachable(name_status(status), sentence)
            later.wait = _seconds(response.headers.get("Retry-After", ""))
            return later
        hint = next((HINTS[known] for known in HINTS if known == status), "see the archive's log")
        return ArchiveError(name_status(status), f"{sentence}: {hint}.")

    @property
    def errors(self) -> Any:
        """The exceptions module of requests."""
        import requests.exceptions

        return requests.exceptions


def name_status(status: int) -> str:
    """Return a status code as it is written in error reasons."""
    return f"HTTP {int(status)}"


def _seconds(retry_after: str) -> float:
    """Seconds to wait by a Retry-After header (RFC 9110 section 10.2.3); 0 if absent or invalid."""
    if retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max((when - datetime.now(UTC)).total_seconds(), 0.0) if when.tzinfo else 0.0


def _client() -> Any:
    try:
        from dicomweb_client.web import DICOMwebClient
    except ImportError as error:
        raise AnomalyError(
            "--dicomweb needs dicomweb-client, which is not installed: pip install dicomweb-client"
        ) from error
    return DICOMwebClient
