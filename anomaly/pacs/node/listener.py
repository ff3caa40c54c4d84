"""DICOM listener of a node: C-STORE and C-ECHO into a spool (PS3.4 annexes A and B).

::

    0x0000    stored on disk, or already stored with equal content and not to be scored again
    0xA700    out of resources: the queue or the disk is full; send again later
    0xA900    the data set does not match the instance that the request names
    0xC000    the data set cannot be understood
    0xC001    another instance with this UID was stored before

The received bytes are stored unchanged. Two instances are equal if their data sets and transfer
syntaxes are.

An AE title proves nothing: any client that reaches the port can claim one. The port is therefore on
the loopback interface by default; on other interfaces, use TLS with client certificates
(`anomaly.pacs.tls`). Incoming data is limited (`anomaly.pacs.node.incoming`), and every association
is logged (`anomaly.pacs.node.audit`).
"""

from __future__ import annotations

import logging
import mmap
import socket
import sqlite3
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Self, cast

from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.presentation import (
    PresentationContext,
    VerificationPresentationContexts,
    build_context,
)
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from anomaly.errors import ConfigError
from anomaly.logs import Public
from anomaly.pacs.associations import end_alone
from anomaly.pacs.identity import Identity, read_file_identity
from anomaly.pacs.node.audit import Audit
from anomaly.pacs.node.batches import Arrival, Received
from anomaly.pacs.node.incoming import DataSetFile, bound, release
from anomaly.pacs.node.spool import Spool

__all__ = ["Listener"]

log = logging.getLogger(__name__)

MAX_ASSOCIATIONS = 10

MAX_SILENT = 100
"""Maximum number of connections without an association request; beyond, the oldest is closed."""

SILENT_SECONDS, ASKED_SECONDS = 0.02, 0.001
"""Polling interval of a connection before and after its association request. pynetdicom polls a
thousand times a second by default; sixty silent connections would then occupy one processor."""

BACKLOG = 128
"""Connections that the operating system queues until the listener accepts them."""

LOCAL_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
"""Rejected transient, by the presentation service provider (PS3.8 table 9-21)."""

TIMEOUT = 60
"""Seconds without activity after which an association is aborted."""

# A deflated data set may expand a thousandfold, and no images are sent deflated.
SYNTAXES = [uid for uid in ALL_TRANSFER_SYNTAXES if uid != DeflatedExplicitVRLittleEndian]

STATUSES = {
    Received.STORED: 0x0000,
    Received.AGAIN: 0x0000,
    Received.FULL: 0xA700,
    Received.CONFLICT: 0xC001,
}


def _application(ae_title: str, allowed: Sequence[str]) -> AE:
    """Return an application entity that accepts all storage classes from the allowed AE titles."""
    try:
        application = AE(ae_title)
        application.require_calling_aet = list(allowed)
    except ValueError as error:
        raise ConfigError(
            f"an AE title among {[ae_title, *allowed]} is none ({error}): expected 1 to 16 "
            "characters without a backslash"
        ) from error
    application.require_called_aet = True
    # This limit includes connections without a request; `Listener` counts associations.
    application.maximum_associations = MAX_ASSOCIATIONS + 2 * MAX_SILENT
    application.acse_timeout = application.dimse_timeout = application.network_timeout = TIMEOUT
    application.supported_contexts = VerificationPresentationContexts + [
        build_context(str(context.abstract_syntax), SYNTAXES)
        for context in AllStoragePresentationContexts
    ]
    return application


class Listener:
    """A DICOM listener that fills a spool in background threads; a context manager.

    Parameters
    ----------
    spool : Spool
    ae_title : str
        AE title of the listener; a request for another title is rejected.
    host : str
        Address of the interface to listen on.
    port : int
        0 selects a free port.
    allowed : sequence of str
        Calling AE titles to accept; empty accepts any.
    tls : SSLContext, optional
        From `anomaly.pacs.tls`; None for no encryption.

    Raises
    ------
    ConfigError
        If an AE title is invalid, or the address cannot be listened on.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        ae_title: str,
        host: str,
        port: int,
        allowed: Sequence[str],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._spool = spool
        self._audit = Audit(spool.folder / "audit.jsonl")
        self._mutex = threading.Lock()
        self._silent: dict[Association, None] = {}  # in order of connection
        self._at_work: set[Association] = set()
        self._connections: dict[Association, socket.socket] = {}
        self._ae = _application(ae_title, allowed)
        handlers: list[EventHandlerType] = [
            (evt.EVT_CONN_OPEN, self._open),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            server = self._ae.start_server(
                (host, port), block=False, evt_handlers=handlers, ssl_context=tls
            )
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be listened on ({error.strerror}): name a free port "
                "of this machine"
            ) from error
        self._server = cast(ThreadedAssociationServer, server)
        self._server.contexts = _SharedContexts(self._server.contexts)
        cast(socket.socket, self._server.socket).listen(BACKLOG)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._ae.shutdown()
        with self._mutex:
            for connection in self._connections.values():
                connection.close()  # if its thread was stopped before it could close it

    @property
    def port(self) -> int:
        """The port number."""
        return int(self._server.server_address[1])

    def _store(self, event: Event) -> int | Dataset:
        request = cast(C_STORE, event.request)
        incoming = cast(DataSetFile, request.DataSet)
        try:
            path, digest = incoming.finish()
            identity = _identity_of(path)
            if identity.instance != request.AffectedSOPInstanceUID:
                status = 0xA900
                return _refusal(status, "the request names another SOP Instance UID")
            received = self._spool.receive(Arrival(identity.instance, identity.study, path, digest))
            status = STATUSES[received]
            return _refusal(status, received.value) if status else status
        except ValueError as error:
            status = 0xC000
            return _refusal(status, str(error))
        except (OSError, sqlite3.Error) as error:
            status = 0xA700
            log.warning("an instance cannot be stored: %s", Public(type(error).__name__))
            return _refusal(status, "the disk refuses")
        finally:
            incoming.close()
            self._audit.answered(event.assoc, status)

    def _open(self, event: Event) -> None:
        """Apply the limits to a new connection; close the oldest silent one beyond `MAX_SILENT`."""
        end_alone(event, partial(self._ended, event.assoc))
        bound(event, self._spool.incoming, self._spool.has_room)
        _answer_at_once(event)
        event.assoc.dul._run_loop_delay = SILENT_SECONDS
        with self._mutex:
            gone = [a for a in self._silent if a.ident is not None and not a.is_alive()]
            for association in gone:
                del self._silent[association]
            self._silent[event.assoc] = None
            oldest = next(iter(self._silent)) if len(self._silent) > MAX_SILENT else None
            self._connections[event.assoc] = _connection_of(event.assoc)
        if oldest is not None:
            self._forget(oldest)
            self._hang_up(oldest)

    def _requested(self, event: Event) -> None:
        """Reject an association beyond the limit; connections without a request do not count."""
        self._forget(event.assoc)
        event.assoc.dul._run_loop_delay = ASKED_SECONDS
        self._audit.requested(event.assoc)
        with self._mutex:
            self._at_work = {association for association in self._at_work if association.is_alive()}
            is_full = len(self._at_work) >= MAX_ASSOCIATIONS
            if not is_full:
                self._at_work.add(event.assoc)
        if is_full:
            event.assoc.acse.send_reject(*LOCAL_LIMIT_EXCEEDED)
            event.assoc.kill()

    def _ended(self, association: Association) -> None:
        self._forget(association)
        with self._mutex:
            self._at_work.discard(association)
            self._connections.pop(association, None)
        release(association)
        self._audit.ended(association)

    def _hang_up(self, association: Association) -> None:
        """Shut a connection down; its thread then sees it as closed by the peer."""
        with self._mutex:
            connection = self._connections.get(association)
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, association: Association) -> None:
        with self._mutex:
            self._silent.pop(association, None)


class _SharedContexts(list[PresentationContext]):
    """The supported presentation contexts, shared by all connections.

    pynetdicom copies them for each connection (about 3 MiB) and does not change the copies: an
    accepted context is a separate object.
    """

    def __deepcopy__(self, _: object) -> Self:
        return self


def _identity_of(path: Path) -> Identity:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return read_file_identity(content)


def _answer_at_once(event: Event) -> None:
    # Nagle's algorithm would delay small answers by tens of milliseconds per instance.
    _connection_of(event.assoc).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connection_of(association: Association) -> socket.socket:
    return cast(socket.socket, cast(AssociationSocket, association.dul.socket).socket)


def _refusal(status: int, reason: str) -> Dataset:
    """Response with a status and a reason; Error Comment is an LO of 64 characters (PS3.7 C.4)."""
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = reason[:64]
    return answer
