"""Fetching an instance (WADO-RS, PS3.18 section 10.4): as it is stored, and the one asked for.

::

    GET  /studies/S/series/T/instances/U

It goes to the disk as it comes, and is kept where it is what was asked for: instance, series, study
and patient.
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
"""Bytes of an instance that are in memory."""


def retrieve(connection: Connection, instance: Instance, file: IO[bytes]) -> None:
    """Leave in the file the instance alone, from its beginning; one attempt.

    Raises
    ------
    ArchiveError
        See `DicomWeb.fetch`. Whatever else the answer makes its readers raise is for
        `Connection.ask` to turn into one.
    """
    place = f"studies/{instance.study}/series/{instance.series}/instances/{instance.instance}"
    file.seek(0)
    file.truncate()
    with connection.session.get(
        f"{connection.url}/{place}",
        # As it is stored: without the asterisk an archive transcodes (PS3.18 section 8.7.3)
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
    """Refuse another object than the one asked for, whatever UID it came under.

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
    """Where the one part of a multipart answer begins and ends; some archives send it bare."""
    header = Message()
    header["Content-Type"] = kind
    if header.get_content_type() == "application/dicom":
        try:
            check_whole(content)  # nothing else may tell its length
        except ValueError as error:
            raise ArchiveUnreachable("cut off", "the archive's answer was cut off") from error
        return 0, len(content)
    marker = b"--" + str(header.get_boundary("")).encode()
    # RFC 2046 section 5.1.1. Only the last marker ends in two dashes: without it the answer was
    # cut off, which nothing else tells where the archive gave no length.
    start = content.find(b"\r\n\r\n", content.find(marker)) + 4
    end = content.rfind(b"\r\n" + marker + b"--")
    if header.get_content_type() != "multipart/related" or marker == b"--" or start < 4:
        raise ValueError("no multipart/related")
    if end < start:
        raise ArchiveUnreachable("cut off", "the archive's answer was cut off")
    return start, end
