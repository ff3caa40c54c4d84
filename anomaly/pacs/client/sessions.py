"""HTTP session of a DICOMweb archive: URL check, credentials and TLS verification.

Credentials come from the environment and are sent only to the host of the URL: never over plain
HTTP to another machine, never after a redirect. They are never read from or written to a file::

    ANOMALY_DICOMWEB_USER and ANOMALY_DICOMWEB_PASSWORD      basic authentication
    ANOMALY_DICOMWEB_TOKEN                                   bearer token
    ANOMALY_DICOMWEB_CA                                      PEM file of certificates to trust

TLS certificates are always verified. Proxy settings of the environment and ``.netrc`` are ignored:
scans are sent directly to the archive.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from anomaly.errors import AnomalyError, ConfigError

if TYPE_CHECKING:
    import requests

__all__ = ["check_url", "open_session"]

USER, PASSWORD = "ANOMALY_DICOMWEB_USER", "ANOMALY_DICOMWEB_PASSWORD"
TOKEN = "ANOMALY_DICOMWEB_TOKEN"  # noqa: S105
CA = "ANOMALY_DICOMWEB_CA"

log = logging.getLogger(__name__)


def check_url(url: str) -> str:
    """Return the URL of an archive without a trailing slash.

    Raises
    ------
    ConfigError
        It is not an HTTP or HTTPS URL, or it contains credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an invalid port or address
        parts, sound = SplitResult("", "", "", "", ""), False
    if "@" in parts.netloc or (not sound and "@" in url):
        # Not quoted: the credentials would appear on the screen and in logs.
        raise ConfigError(
            "the archive's URL carries a user or a password, which would end up in logs: leave "
            f"them out and set {USER} and {PASSWORD}."
        )
    if not sound or parts.query or parts.fragment:
        raise ConfigError(
            f"{url!r} is not the URL of an archive; expected https://host/path or "
            "http://host:port/path, with nothing after the path."
        )
    return parts._replace(scheme=parts.scheme.lower()).geturl().rstrip("/")


def open_session(url: str, environment: Mapping[str, str] = os.environ) -> requests.Session:
    """Open the HTTP session of an archive.

    Parameters
    ----------
    url : str
        From `check_url`.
    environment : mapping of str to str
        Environment variables with the credentials.

    Raises
    ------
    ConfigError
        The credentials are contradictory, cannot be sent, or would be sent unencrypted.
    AnomalyError
        requests is not installed.
    """
    session = _requests_session()
    session.trust_env = False
    session.verify = _trusted(environment)
    # Without this header some archives answer in XML.
    session.headers["Accept"] = "application/dicom+json"
    parts = urlsplit(url)
    in_the_clear = parts.scheme == "http" and not _is_loopback(parts.hostname or "")
    known = [name for name in (USER, PASSWORD, TOKEN) if environment.get(name)]
    if known and in_the_clear:
        raise ConfigError(
            f"{url} would carry the credentials of {known[0]} over the network in the clear: use "
            f"https, or unset {known[0]}."
        )
    if known:
        session.headers["Authorization"] = _authorization(known, environment)
    if in_the_clear:
        log.warning("the archive is asked over plain HTTP: scans travel in the clear")
    return session


def _authorization(known: list[str], environment: Mapping[str, str]) -> str:
    if known == [TOKEN]:
        token = environment[TOKEN]
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ConfigError(
                f"{TOKEN} holds white space or characters outside ASCII; expected the token alone."
            )
        return f"Bearer {token}"
    if known == [USER, PASSWORD]:
        pair = f"{environment[USER]}:{environment[PASSWORD]}"  # in UTF-8, RFC 7617
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    raise ConfigError(
        f"{' and '.join(known)} set; expected {USER} with {PASSWORD}, or {TOKEN} alone."
    )


def _trusted(environment: Mapping[str, str]) -> str | bool:
    path = environment.get(CA)
    if path and not Path(path).is_file():
        raise ConfigError(f"{CA} is {path!r}, which is no file; expected certificates in PEM.")
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ConfigError(
                f"{CA} is {path!r}, which holds no certificates in PEM ({type(error).__name__})."
            ) from error
    return path or True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _requests_session() -> requests.Session:
    try:
        from anomaly.pacs.client.bounded import BoundedSession
    except ImportError as error:
        raise AnomalyError(
            "--dicomweb needs requests, which is not installed: pip install requests"
        ) from error
    return BoundedSession()
