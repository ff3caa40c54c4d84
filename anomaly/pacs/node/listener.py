"""The ear of a node: C-STORE and C-ECHO over a spool (PS3.4 annexes A and B).

::

    0x0000    stored, on the disk; or stored before with equal content, and no other try is due
    0xA700    out of resources: the queue or the disk is full; send again later
    0xA900    the data set is another instance than the request names
    0xC000    the data set cannot be understood
    0xC001    another instance with this UID was stored before

What is kept are the bytes that came. An instance is equal to an earlier one when its data set and
its transfer syntax are.

An AE title is a name, not a proof: whoever reaches the port can claim one. The port is therefore on
the loopback interface by default; beyond it, it wants TLS with certificates of the clients
(`anomaly.pacs.tls`). What comes is bounded (`anomaly.pacs.node.incoming`); who came is written down
(`anomaly.pacs.node.audit`).
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
"""Connections that have not asked for an association yet; of more the oldest is closed."""

SILENT_SECONDS, ASKED_SECONDS = 0.02, 0.001
"""Between two looks at a connection, before and after it asks for an association: pynetdicom looks
a thousand times a second, and sixty silent connections would take a processor for themselves."""

BACKLOG = 128
"""Connections that the system keeps while the listener takes others."""

LOCAL_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
"""Rejected transient, by the presentation service provider (PS3.8 table 9-21)."""

TIMEOUT = 60
"""Seconds without a sign of life after which an association is aborted."""

# A deflated data set may be a thousand times what came; no image is sent so.
SYNTAXES = [uid for uid in ALL_TRANSFER_SYNTAXES if uid != DeflatedExplicitVRLittleEndian]

STATUSES = {
    Received.STORED: 0x0000,
    Received.AGAIN: 0x0000,
    Received.FULL: 0xA700,
    Received.CONFLICT: 0xC001,
}


def _application(ae_title: str, allowed: Sequence[str]) -> AE:
    """Return an application that takes every kind of object from those who may call."""
    try:
        application = AE(ae_title)
        application.require_calling_aet = list(allowed)
    except ValueError as error:
        raise ConfigError(
            f"an AE title among {[ae_title, *allowed]} is none ({error}): expected 1 to 16 "
            "characters without a backslash"
        ) from error
    application.require_called_aet = True
    # Connections that ask for nothing count there; `Listener` counts associations.
    application.maximum_associations = MAX_ASSOCIATIONS + 2 * MAX_SILENT
    application.acse_timeout = application.dimse_timeout = application.network_timeout = TIMEOUT
    application.supported_contexts = VerificationPresentationContexts + [
        build_context(str(context.abstract_syntax), SYNTAXES)
        for context in AllStoragePresentationContexts
    ]
    return application


class Listener:
    """A DICOM listener that fills a spool from threads of its own; a context manager.

    Parameters
    ----------
    spool : Spool
    ae_title : str
        Its own; a request for another is refused.
    host : str
        Address of the interface to listen on.
    port : int
        0 takes a free one.
    allowed : sequence of str
        AE titles that may call; empty: any.
    tls : SSLContext, optional
        From `anomaly.pacs.tls`; None: in the clear.

    Raises
    ------
    ConfigError
        If a title is not one, or the address cannot be listened on.
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
        self._silent: dict[Association, None] = {}  # in the order of their connections
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
                connection.close()  # of threads that were stopped before they could

    @property
    def port(self) -> int:
        """The port that it listens on."""
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
        """Bound what comes on a new connection, and let go of the oldest that asks for nothing."""
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
        """Refuse one association too many; those that have asked for none do not count."""
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
        """Close a connection under its thread, which notices as if the peer had gone."""
        with self._mutex:
            connection = self._connections.get(association)
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _forget(self, association: Association) -> None:
        with self._mutex:
            self._silent.pop(association, None)


class _SharedContexts(list[PresentationContext]):
    """What is supported, the same for all connections.

    pynetdicom copies it for each, some 3 MiB, and changes nothing in the copies: a context that
    is agreed on is an object of its own.
    """

    def __deepcopy__(self, _: object) -> Self:
        return self


def _identity_of(path: Path) -> Identity:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return read_file_identity(content)


def _answer_at_once(event: Event) -> None:
    # Small answers wait for each other otherwise (Nagle), tens of milliseconds an instance.
    _connection_of(event.assoc).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connection_of(association: Association) -> socket.socket:
    return cast(socket.socket, cast(AssociationSocket, association.dul.socket).socket)


def _refusal(status: int, reason: str) -> Dataset:
    """Answer with a reason: Error Comment is a LO, 64 characters (PS3.7 C.4)."""
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = reason[:64]
    return answer
