"""Fetch an instance as it is stored (WADO-RS, PS3.18 section 10.4) and check its identifiers.

::

    GET  /studies/S/series/T/instances/U

The answer is streamed to disk. It is kept only if instance, series, study, SOP class and patient
match the request.
"""

from __future__ import annotations

import mmap
from email.message import Message
from typing import IO

from anomaly.errors import ArchiveError, ArchiveUnreachable
from anomaly.pacs.client.dicomweb.connection import TIMEOUT, Connection
from anomaly.pacs.client.instances import Instance
from anomaly.pacs.identity import Identity, check_whole, read_file_identity

__all__ = ["retrieve"]

CHUNK = 2**20
"""Maximum bytes of an instance in memory."""


def retrieve(connection: Connection, instance: Instance, file: IO[bytes]) -> None:
    """Fetch an instance into an open file, in one attempt.

    Raises
    ------
    ArchiveError
        See `DicomWeb.fetch`. `Connection.ask` converts all other exceptions that parsing the answer
        may raise.
    """
    place = f"studies/{instance.study}/series/{instance.series}/instances/{instance.instance}"
    file.seek(0)
    file.truncate()
    with connection.session.get(
        f"{connection.url}/{place}",
        # Without the asterisk the archive may transcode (PS3.18 section 8.7.3)
        headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
        timeout=TIMEOUT,
        stream=True,
    ) as response:
        response.raise_for_status()
        for chunk in response.iter_content(CHUNK):
            file.write(chunk)
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE) as content:
        start, end = _part(response.headers.get("Content-Type", ""), content)
        _check_asked_for(connection.url, instance, read_file_identity(content, start))
        content.move(0, start, end - start)
    file.truncate(end - start)
    file.seek(0)


def _check_asked_for(url: str, asked: Instance, sent: Identity) -> None:
    """Raise an error if the archive sent another object than the requested one.

    Raises
    ------
    ArchiveError
    """
    kinds = {
        "instance": (asked.instance, sent.instance),
        "study": (asked.study, sent.study),
        "series": (asked.series, sent.series),
        "class": (asked.sop_class, sent.sop_class),
        "patient": (asked.patient or sent.patient, sent.patient),
    }
    for kind, (expected, sent_value) in kinds.items():
        if expected != sent_value:
            raise ArchiveError(
                f"other {kind}",
                f"{url} sent an object of another {kind} than the one asked for: it is "
                "not kept; report it to who runs the archive.",
            )


def _part(kind: str, content: mmap.mmap) -> tuple[int, int]:
    """Start and end of the DICOM file in an answer; some archives send it without multipart."""
    header = Message()
    header["Content-Type"] = kind
    if header.get_content_type() == "application/dicom":
        try:
            check_whole(content)  # the answer may state no length
        except ValueError as error:
            raise ArchiveUnreachable("cut off", "the archive's answer was cut off") from error
        return 0, len(content)
    marker = b"--" + str(header.get_boundary("")).encode()
    # RFC 2046 section 5.1.1. Only the last marker ends in two dashes. If it is missing, the answer
    # was cut off; nothing else shows that if the archive gave no length.
    start = content.find(b"\r\n\r\n", content.find(marker)) + 4
    end = content.rfind(b"\r\n" + marker + b"--")
    if header.get_content_type() != "multipart/related" or marker == b"--" or start < 4:
        raise ValueError("no multipart/related")
    if end < start:
        raise ArchiveUnreachable("cut off", "the archive's answer was cut off")
    return start, end
