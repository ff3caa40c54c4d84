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
the loopback interface by default; beyond it, it belongs behind a firewall or a TLS proxy.
"""

from __future__ import annotations

import logging
import socket
import sqlite3
from collections.abc import Sequence
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event, EventHandlerType
from pynetdicom.presentation import VerificationPresentationContexts, build_context
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from anomaly.errors import ConfigError
from anomaly.logs import Public
from anomaly.pacs.associations import end_alone
from anomaly.pacs.batches import Arrival, Received
from anomaly.pacs.identity import instance_digest, read_identity
from anomaly.pacs.spool import Spool

__all__ = ["Listener"]

log = logging.getLogger(__name__)

MAX_ASSOCIATIONS = 10

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

    Raises
    ------
    ConfigError
        If a title is not one, or the address cannot be listened on.
    """

    def __init__(
        self, spool: Spool, *, ae_title: str, host: str, port: int, allowed: Sequence[str]
    ) -> None:
        self._spool = spool
        try:
            self._ae = AE(ae_title)
            self._ae.require_calling_aet = list(allowed)
        except ValueError as error:
            raise ConfigError(
                f"an AE title among {[ae_title, *allowed]} is none ({error}): expected 1 to 16 "
                "characters without a backslash"
            ) from error
        self._ae.require_called_aet = True
        self._ae.maximum_associations = MAX_ASSOCIATIONS
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = TIMEOUT
        self._ae.supported_contexts = VerificationPresentationContexts + [
            build_context(str(context.abstract_syntax), SYNTAXES)
            for context in AllStoragePresentationContexts
        ]
        handlers: list[EventHandlerType] = [
            (evt.EVT_CONN_OPEN, end_alone),
            (evt.EVT_CONN_OPEN, _answer_at_once),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            server = self._ae.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be listened on ({error.strerror}): name a free port "
                "of this machine"
            ) from error
        self._server = cast(ThreadedAssociationServer, server)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._ae.shutdown()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def _store(self, event: Event) -> int | Dataset:
        request, syntax = cast(C_STORE, event.request), event.context.transfer_syntax
        dataset = event.encoded_dataset(include_meta=False)
        try:
            identity = read_identity(
                dataset,
                implicit=syntax.is_implicit_VR,
                little_endian=syntax.is_little_endian,
            )
        except ValueError as error:
            return _refusal(0xC000, str(error))
        if identity.instance != request.AffectedSOPInstanceUID:
            return _refusal(0xA900, "the request names another SOP Instance UID")
        digest = instance_digest(syntax, dataset)
        try:
            said = self._spool.receive(
                Arrival(identity.instance, identity.study, event.encoded_dataset(), digest)
            )
        except (OSError, sqlite3.Error) as error:
            log.warning("an instance cannot be stored: %s", Public(type(error).__name__))
            return _refusal(0xA700, "the disk refuses")
        status = STATUSES[said]
        return _refusal(status, said.value) if status else status


def _answer_at_once(event: Event) -> None:
    # Small answers wait for each other otherwise (Nagle), tens of milliseconds an instance.
    connection = cast(AssociationSocket, event.assoc.dul.socket).socket
    cast(socket.socket, connection).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _refusal(status: int, reason: str) -> Dataset:
    """Answer with a reason: Error Comment is a LO, 64 characters (PS3.7 C.4)."""
    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = reason[:64]
    return answer
