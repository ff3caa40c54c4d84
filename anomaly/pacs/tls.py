"""TLS for DIMSE (PS3.15 B.12): for the node's listener and for connections to a destination.

Anyone can claim an AE title, whereas a certificate signed by your own authority proves the identity
of the peer. TLS 1.2 or later is required. The certificate of a destination is always verified;
those of clients are verified if the listener is given their authorities.

A destination ``AET@host:port`` is contacted over TLS if these environment variables are set::

    ANOMALY_DIMSE_CA                             PEM file with the certificate authorities to trust
    ANOMALY_DIMSE_CERTIFICATE, ANOMALY_DIMSE_KEY client certificate and key, if it requires one
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
    """Context that defers the handshake to the first read, in the connection's own thread.

    pynetdicom would do the handshake in the accept loop, where a silent client would block all
    other clients.
    """

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        options["do_handshake_on_connect"] = False
        return super().wrap_socket(sock, *arguments, **options)


def listener_context(
    certificate: Path | None, key: Path | None, clients: Path | None
) -> ssl.SSLContext | None:
    """Create the TLS context of a listener; None if no certificate is given.

    Parameters
    ----------
    certificate, key : Path or None
        PEM files of the node.
    clients : Path or None
        PEM file with the authorities whose clients may connect; None accepts any client.

    Raises
    ------
    ConfigError
        If a file cannot be used, or is given without the others that it needs.
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
    """Create the TLS context for a destination; None if the environment names no authorities.

    Raises
    ------
    ConfigError
        If a file cannot be used, or is given without the others that it needs.
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
