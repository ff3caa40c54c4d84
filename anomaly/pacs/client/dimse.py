"""Client of a DIMSE archive (PS3.7): C-STORE of files, and C-ECHO to test the connection.

Files are sent in their own encoding, with one presentation context for each pair of SOP class and
transfer syntax (PS3.8 section 7.1.1.13); uncompressed files are also offered in Implicit VR Little
Endian. C-STORE cannot query what the archive has, but an instance that is sent again has the same
UID, so archives store it once.
"""

from __future__ import annotations

import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from anomaly.errors import (
    AnomalyError,
    ArchiveBusy,
    ArchiveError,
    ArchiveUnreachable,
    ConfigError,
)
from anomaly.pacs.associations import end_alone
from anomaly.pacs.client.instances import InstanceFile, read_files
from anomaly.pacs.client.refusals import OUT_OF_RESOURCES, check_refused
from anomaly.pacs.client.retries import Attempts
from anomaly.pacs.tls import CA

__all__ = ["AE_TITLE", "CALLING", "Dimse"]

AE_TITLE = r"[!-?A-\[\]-~][ -?A-\[\]-~]{0,15}"
"""Pattern of an AE title: 1 to 16 ASCII characters without control characters and backslash (PS3.5
Table 6.2-1), without leading space, and without @, which separates the title from the host."""

CALLING = "ANOMALY"
"""Our own default AE title."""

TIMEOUT = 60.0
"""Maximum seconds to wait for an answer."""

CONNECT_TIMEOUT = 10.0

VERIFICATION = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")
"""Verification SOP Class, Implicit VR Little Endian."""

CONTEXTS = 128
"""Maximum presentation contexts of an association: their identifiers are the odd bytes."""

REJECTED_TRANSIENT = 2
"""Result of a rejected association that may be accepted later (PS3.8 Table 9-21)."""

SUCCESS = 0x0000
WARNINGS = range(0xB000, 0xC000)
"""Status codes for "stored, with a warning" (PS3.4 Table B.2-1)."""


class Dimse:
    """Client of a Storage SCP.

    Parameters
    ----------
    ae_title : str
        AE title of the archive.
    host : str
    port : int
    calling : str
        Our own AE title; archives have a list of the titles that they accept.
    attempts : Attempts
        Number of attempts and pauses after failures.
    tls : SSLContext, optional
        From `anomaly.pacs.tls`; None for no encryption.

    Raises
    ------
    ConfigError
        If an AE title is invalid.
    AnomalyError
        If pynetdicom is not installed.
    """

    def __init__(
        self,
        ae_title: str,
        host: str,
        port: int,
        *,
        calling: str = CALLING,
        attempts: Attempts | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        for title in (ae_title, calling):
            if not re.fullmatch(AE_TITLE, title):
                raise ConfigError(
                    f"{title!r} is no AE title; expected 1 to 16 letters, digits and signs of "
                    "ASCII, without backslash and @."
                )
        self._dicom = _pynetdicom()
        self.ae_title, self.host, self.port, self.calling = ae_title, host, port, calling
        self._attempts = attempts or Attempts()
        self._tls = None if tls is None else (tls, host)

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"

    def echo(self) -> None:
        """Check that the archive is reachable and accepts our association.

        Raises
        ------
        ArchiveError
            If not.
        """
        self._attempts(self._echo)

    def store(self, paths: Sequence[Path]) -> None:
        """Send every file.

        Parameters
        ----------
        paths : sequence of Path
            DICOM files.

        Raises
        ------
        ArchiveError
            The archive did not answer, refused some instances, or some files are not DICOM files
            with valid UIDs; the others are stored. `ArchiveBusy` if the archive may accept all
            refused instances later.
        """
        refused: Counter[str] = Counter()
        files = read_files(paths, refused)
        contexts = list(dict.fromkeys(map(_context, files)))
        for start in range(0, len(contexts), CONTEXTS):
            batch = contexts[start : start + CONTEXTS]
            left = [file for file in files if _context(file) in batch]
            self._send_all(batch, left, refused)
        check_refused(self, refused, len(paths), "PS3.4 Table B.2-1")

    def _send_all(
        self,
        contexts: Sequence[tuple[str, str]],
        left: list[InstanceFile],
        refused: Counter[str],
    ) -> None:
        """Send files in as many associations as needed.

        A file at which the archive breaks off every association is skipped. Two in a row mean that
        the archive itself fails.

        Raises
        ------
        ArchiveUnreachable
        """
        skipped = False
        while left:
            before = len(left)
            try:
                self._attempts(partial(self._send, contexts, left, refused))
            except ArchiveBusy as error:
                refused[error.reason] += len(left)
                return
            except _BrokenOff:
                # Compare lengths, not order: files without room at present move to the end.
                if len(left) < before:
                    skipped = False
                elif skipped or len(left) == 1:
                    raise
                else:
                    left.pop(0)
                    refused["broken off"] += 1
                    skipped = True

    def _echo(self) -> None:
        with self._association([VERIFICATION]) as association:
            if not association.accepted_contexts:
                raise ArchiveError(
                    "not accepted", f"{self} is there, and does not answer verification (C-ECHO)."
                )
            self._ask(association.send_c_echo)

    def _send(
        self,
        contexts: Sequence[tuple[str, str]],
        left: list[InstanceFile],
        refused: Counter[str],
    ) -> None:
        """Send all files in `left` and remove those with a final answer from it.

        Raises
        ------
        ArchiveBusy
            The archive has no room for some files at present; `left` then contains those.
        """
        busy: dict[InstanceFile, str] = {}
        try:
            with self._association(contexts) as association:
                while left:
                    reason = self._refusal(association, left[0])
                    if OUT_OF_RESOURCES.fullmatch(reason):
                        busy[left[0]] = reason
                    elif reason:
                        refused[reason] += 1
                    left.pop(0)
        finally:  # keep them even if the association is lost
            left += busy
        if busy:
            code = next(iter(busy.values()))
            raise ArchiveBusy(code, f"{self} has no room for {len(busy)} instances ({code})")

    def _refusal(self, association: Any, file: InstanceFile) -> str:
        """Send a file; return the reason why it was not stored, or an empty string."""
        if not _is_accepted(association, file):
            sop_class, syntax = (UID(uid).name for uid in _context(file))
            return f"SOP class or transfer syntax not accepted: {sop_class}, {syntax}"
        try:
            dataset = dcmread(file.path)
        except Exception as error:
            # A damaged file can make pydicom raise any exception; skip this file only.
            return f"not sent, not readable ({type(error).__name__})"
        try:
            status = self._ask(partial(association.send_c_store, dataset))
        except ArchiveUnreachable:
            raise
        except ArchiveError as error:
            return error.reason
        return "" if status == SUCCESS or status in WARNINGS else f"{status:04X}"

    def _ask(self, question: Callable[[], Any]) -> int:
        """Send a request and return the status of its answer.

        Raises
        ------
        ArchiveUnreachable
            The association was lost, before or after the request.
        ArchiveError
            ``"cannot be encoded"``: nothing was sent, because pynetdicom rejects the data set.
        """
        try:
            answer = question()
        except RuntimeError as error:  # the association was lost since the last answer
            raise _BrokenOff("no answer", f"{self} broke off") from error
        except Exception as error:
            # Encoding a damaged data set can raise any exception.
            raise ArchiveError(
                "cannot be encoded",
                f"what is to be sent to {self} cannot be encoded ({error}): expected a data set "
                "that its transfer syntax can hold; write it again.",
            ) from error
        if "Status" not in answer:
            raise _BrokenOff("no answer", f"{self} broke off or did not answer in time")
        return int(answer.Status)

    @contextmanager
    def _association(self, contexts: Sequence[tuple[str, str]]) -> Iterator[Any]:
        entity = self._dicom.AE(ae_title=self.calling)
        entity.connection_timeout = CONNECT_TIMEOUT
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT
        entity.requested_contexts = [
            self._dicom.build_context(sop_class, _offered(syntax)) for sop_class, syntax in contexts
        ]
        rejections: list[int] = []

        def note(event: Any) -> None:
            if isinstance(event.pdu, self._dicom.pdu.A_ASSOCIATE_RJ):
                rejections.append(event.pdu.result)

        # pynetdicom loses a rejection that arrives, and closes the connection, before the calling
        # thread has looked whether there is one: note it where it is received.
        events = self._dicom.evt
        handlers = [(events.EVT_CONN_OPEN, end_alone), (events.EVT_PDU_RECV, note)]
        association = entity.associate(
            self.host,
            self.port,
            ae_title=self.ae_title,
            evt_handlers=handlers,
            tls_args=self._tls,
        )
        if rejections:
            if rejections[0] == REJECTED_TRANSIENT:
                raise ArchiveUnreachable(
                    "rejected", f"{self} lets no association in at present (rejected-transient)"
                )
            raise ArchiveError(
                "rejected",
                f"{self} lets no association in from {self.calling!r}: check the title asked for, "
                "and have this one added to those that the archive knows.",
            )
        # pynetdicom aborts an association without any accepted context.
        nothing_accepted = bool(association.rejected_contexts) and not association.accepted_contexts
        if not association.is_established and not nothing_accepted:
            doubt = "" if self._tls is None else f": does {CA} hold who signed its certificate?"
            raise ArchiveUnreachable("no answer", f"{self} did not answer{doubt}")
        try:
            yield association
        finally:
            if association.is_established:
                association.release()


class _BrokenOff(ArchiveUnreachable):
    """An association was accepted and then ended without an answer."""


def _offered(syntax: str) -> list[str]:
    """Transfer syntaxes in which a file can be sent, its own first.

    Every archive must accept Implicit VR Little Endian (PS3.5 section 10.1); some accept no other.
    """
    plain = {ImplicitVRLittleEndian, ExplicitVRLittleEndian}
    return [syntax, *(uid for uid in sorted(plain - {syntax}) if syntax in plain)]


def _is_accepted(association: Any, file: InstanceFile) -> bool:
    sop_class, syntax = _context(file)
    return any(
        context.abstract_syntax == sop_class and context.transfer_syntax[0] in _offered(syntax)
        for context in association.accepted_contexts
    )


def _context(file: InstanceFile) -> tuple[str, str]:
    return file.instance.sop_class, file.transfer_syntax


def _pynetdicom() -> Any:
    try:
        import pynetdicom
    except ImportError as error:
        raise AnomalyError(
            "--send to AET@host:port needs pynetdicom, which is not installed: "
            "pip install pynetdicom"
        ) from error
    return pynetdicom
