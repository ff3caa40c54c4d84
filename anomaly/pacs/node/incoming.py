"""Size and time limits for the data that a node receives on a connection.

::

    before a request    REQUEST_SECONDS in total, however slowly the bytes arrive
    a request           MAX_REQUEST bytes
    another PDU         MAX_PDU bytes and PDU_SECONDS
    a data set          the free space of the spool; streamed to disk, never held in memory

A peer that exceeds a limit loses its association only. PS3.8 limits the length of a PDU only by its
four-byte length field, and does not limit the length of a data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

from pydicom.filewriter import write_file_meta_info
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import create_file_meta

from anomaly.files import temporary_name
from anomaly.pacs.node.durable import open_private

__all__ = ["MAX_PDU", "PDU_SECONDS", "REQUEST_SECONDS", "DataSetFile", "bound", "release"]

MAX_PDU = 131_072
"""Maximum bytes of a PDU, the same as in DCMTK (ASC_MAXIMUMPDUSIZE)."""

MAX_REQUEST = 2**20
"""Maximum bytes of an association request: 128 contexts of many syntaxes exceed `MAX_PDU`."""

REQUEST_SECONDS = 10.0
"""Time from the connection to the last byte of the association request."""

PDU_SECONDS = 60.0
"""Time from the first byte of a PDU to its last."""

LOOK = 16 * 2**20
"""Bytes of a data set between two checks of the free space."""


class NoRoom(OSError):
    """There is no room for the incoming data set."""


class DataSetFile(BytesIO):
    """The data set of a message, stored on disk instead of in memory.

    It subclasses BytesIO because pynetdicom requires that; only `write` is used.

    Parameters
    ----------
    folder : Path
        Where to store it, under a hidden name.
    meta : callable
        Writes the part of a DICOM file before the data set.
    syntax : callable
        Returns the transfer syntax of the data set.
    has_room : callable
        Whether a number of bytes can be stored.

    Attributes
    ----------
    size : int
        Bytes of the data set received so far.
    """

    def __init__(
        self,
        folder: Path,
        meta: Callable[[IO[bytes]], None],
        syntax: Callable[[], str],
        has_room: Callable[[int], bool],
    ) -> None:
        super().__init__()
        self._folder, self._meta, self._syntax, self._has_room = folder, meta, syntax, has_room
        self._file: IO[bytes] | None = None
        self._hash = hashlib.sha256()
        self.size = self._looked = 0
        self.path: Path | None = None

    def write(self, data: Any, /) -> int:
        """Append to the file.

        Raises
        ------
        NoRoom
        OSError
        """
        if self._file is None:
            self.path = temporary_name(self._folder / "incoming")
            handle = open_private(self.path, os.O_WRONLY | os.O_EXCL)
            self._file = os.fdopen(handle, "wb")
            self._meta(self._file)
            self._hash.update(self._syntax().encode() + b"\0")
        self.size += len(data)
        if self.size - self._looked >= LOOK:
            self._looked = self.size
            if not self._has_room(self.size):
                raise NoRoom(f"no room for a data set of {self.size} bytes and more")
        self._hash.update(data)
        return self._file.write(data)

    def finish(self) -> tuple[Path, str]:
        """Flush the file to disk; return its path and the digest of the instance.

        See `anomaly.pacs.identity.instance_digest`.

        Raises
        ------
        ValueError
            If there was no data set.
        OSError
        """
        if self._file is None or self.path is None:
            raise ValueError("there is no data set")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self.path, self._hash.hexdigest()

    def close(self) -> None:
        """Delete the file, unless it has been moved to its final place."""
        if self._file is not None and not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        super().close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def bound(event: Any, folder: Path, has_room: Callable[[int], bool]) -> None:
    """Handle EVT_CONN_OPEN of an acceptor: apply the limits to the connection.

    Parameters
    ----------
    event : pynetdicom.events.Event
    folder : Path
        Where data sets are written during transfer.
    has_room : callable
        Whether a number of bytes can be stored.
    """
    association = event.assoc
    association.acse_timeout = REQUEST_SECONDS
    _bound_bytes(association)
    _bound_data_sets(association, folder, has_room)


def release(association: Any) -> None:
    """Delete the partial data set of a message that will not be completed."""
    message = association.dimse.message
    if message is not None and isinstance(message.data_set, DataSetFile):
        message.data_set.close()


def _bound_bytes(association: Any) -> None:
    connection = association.dul.socket
    opened = time.monotonic()

    def recv(count: int) -> bytearray:
        is_new = association.requestor.primitive is None
        most = MAX_REQUEST if is_new else MAX_PDU
        if count > most:
            raise OSError(f"a PDU of {count} bytes: expected at most {most}")
        now = time.monotonic()
        end = opened + REQUEST_SECONDS if is_new else now + PDU_SECONDS
        content = bytearray()
        patience = connection.socket.gettimeout()
        try:
            while len(content) < count:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError("a PDU that takes too long")
                connection.socket.settimeout(left)
                more = connection.socket.recv(count - len(content))
                if not more:
                    break
                content += more
        finally:
            connection.socket.settimeout(patience)
        return content

    connection.recv = recv


def _bound_data_sets(association: Any, folder: Path, has_room: Callable[[int], bool]) -> None:
    service = association.dimse
    receive = service.receive_primitive

    def receive_primitive(primitive: Any) -> None:
        if service.message is None:
            service.message = message = DIMSEMessage()
            message.data_set = DataSetFile(
                folder,
                lambda file: _write_meta(file, message, association),
                lambda: _syntax(message, association),
                has_room,
            )
        receive(primitive)

    service.receive_primitive = receive_primitive


def _syntax(message: DIMSEMessage, association: Any) -> str:
    context = association._accepted_cx[message.context_id]
    return str(context.transfer_syntax[0])


def _write_meta(file: IO[bytes], message: DIMSEMessage, association: Any) -> None:
    command = cast(Any, message.command_set)
    file.write(bytes(128) + b"DICM")
    meta = create_file_meta(
        sop_class_uid=command.AffectedSOPClassUID,
        sop_instance_uid=command.AffectedSOPInstanceUID,
        transfer_syntax=cast(Any, _syntax(message, association)),
    )
    write_file_meta_info(cast(Any, file), meta)
