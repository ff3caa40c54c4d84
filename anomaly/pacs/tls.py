"""TLS of the node's listener (PS3.15 B.12): its certificate, and those of who may call.

An AE title is a name that anyone can claim; a certificate that one of the node's own authorities
has signed is a proof. TLS 1.2 and later.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from anomaly.errors import ConfigError

__all__ = ["listener_context"]


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
