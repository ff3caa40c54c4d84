"""TLS of DIMSE (PS3.15 B.12): of the node's listener, and towards a destination.

An AE title is a name that anyone can claim; a certificate that an authority of one's own has signed
is a proof. TLS 1.2 and later, never without a look at the certificate.

A destination ``AET@host:port`` is reached by TLS where the environment says whom to trust::

    ANOMALY_DIMSE_CA                             authorities of its certificate, a PEM file
    ANOMALY_DIMSE_CERTIFICATE, ANOMALY_DIMSE_KEY our own, where it asks for one
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly.errors import ConfigError

__all__ = ["CA", "destination_context", "listener_context"]

CA = "ANOMALY_DIMSE_CA"
CERTIFICATE, KEY = "ANOMALY_DIMSE_CERTIFICATE", "ANOMALY_DIMSE_KEY"


class _Context(ssl.SSLContext):
    """Leaves the handshake to the first reading, in the connection's own thread.

    pynetdicom would do it where it takes new connections, and whoever says nothing would hold up
    all others.
    """

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        options["do_handshake_on_connect"] = False
        return super().wrap_socket(sock, *arguments, **options)


def listener_context(
    certificate: Path | None, key: Path | None, clients: Path | None
) -> ssl.SSLContext | None:
    """Make the TLS of a listener; None where no certificate is named.

    Parameters
    ----------
    certificate, key : Path or None
        Of the node, in PEM.
    clients : Path or None
        Certificates of the authorities whose clients may call, in PEM; None: anyone may.

    Raises
    ------
    ConfigError
        If one of the files cannot be used, or is named without the others that it needs.
    """
    if certificate is None or key is None:
        if certificate is None and key is None and clients is None:
            return None
        raise ConfigError(
            f"TLS needs a certificate and its key: certificate is {certificate}, key {key}, "
            f"clients {clients}. Name both, or none of the three"
        )
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"certificate {certificate}, key {key} and clients {clients} cannot be used "
            f"({type(error).__name__}: {error}): expected files in PEM that belong together, the "
            "key without a password"
        ) from error
    return context


def destination_context(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """Make the TLS towards a destination; None where the environment names no authorities.

    Raises
    ------
    ConfigError
        If one of the files cannot be used, or is named without the others that it needs.
    """
    ca, certificate, key = (environment.get(name, "") for name in (CA, CERTIFICATE, KEY))
    if not ca and not certificate and not key:
        return None
    if not ca or bool(certificate) != bool(key):
        raise ConfigError(
            f"TLS to a destination needs {CA}, and {CERTIFICATE} and {KEY} both or neither: "
            f"they are {ca!r}, {certificate!r} and {key!r}"
        )
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate:
            context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{CA} {ca}, {CERTIFICATE} {certificate} and {KEY} {key} cannot be used "
            f"({type(error).__name__}: {error}): expected files in PEM, a certificate with its "
            "key, the key without a password"
        ) from error
    return context
