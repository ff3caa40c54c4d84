"""Destinations of results, each given as one string: DICOMweb archive, DIMSE archive or folder.

::

    https://host/dicom-web       STOW-RS
    AET@host:port                C-STORE; over TLS if the environment says so (`anomaly.pacs.tls`)
    folder:/some/where           copies
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from anomaly.errors import AnomalyError, ConfigError
from anomaly.pacs.client.dicomweb import DicomWeb
from anomaly.pacs.client.dimse import AE_TITLE, CALLING, Dimse
from anomaly.pacs.client.instances import write_whole
from anomaly.pacs.tls import destination_context

__all__ = ["Destination", "Folder", "destination"]

_DIMSE = re.compile(rf"(?P<ae_title>{AE_TITLE})@(?P<host>[^@/:\s]+):(?P<port>[0-9]{{1,5}})")


class Destination(Protocol):
    """Interface of a destination."""

    def store(self, paths: Sequence[Path]) -> None:
        """Store DICOM files; storing the same files again has no further effect.

        Raises
        ------
        AnomalyError
            If some could not be stored; the others are stored.
        """


class Folder:
    """A folder that receives copies of the files under their own names.

    Parameters
    ----------
    path : Path
        Created at the first copy with mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self, paths: Sequence[Path]) -> None:
        """Copy the files whose names do not exist in the folder yet.

        Raises
        ------
        AnomalyError
            Two of the files have the same name, or a copy cannot be written.
        """
        twice = [name for name, count in Counter(p.name for p in paths).items() if count > 1]
        if twice:
            raise AnomalyError(
                f"{len(twice)} name(s) such as {twice[0]} stand for several files, of which "
                f"{self.path} could hold one: give them names of their own."
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in paths:
                if not (self.path / path.name).exists():
                    with path.open("rb") as content:
                        write_whole(self.path / path.name, content)
        except OSError as error:
            raise AnomalyError(
                f"{self.path} cannot take the results ({error.strerror or error}): mend it, and "
                "run again."
            ) from error


def destination(text: str, *, calling: str = CALLING) -> Destination:
    """Return the destination for a string.

    Parameters
    ----------
    text : str
        ``https://host/path`` (``http://`` too), ``AET@host:port`` or ``folder:/path``.
    calling : str
        Our own AE title, for DIMSE.

    Raises
    ------
    ConfigError
        The string has none of these forms, or the TLS settings for DIMSE cannot be used.
    """
    if text.startswith(("http://", "https://")):
        return DicomWeb(text)
    if text.startswith("folder:") and text != "folder:":
        return Folder(Path(text.removeprefix("folder:")))
    place = _DIMSE.fullmatch(text)
    if place and 0 < int(place["port"]) < 2**16:
        return Dimse(
            *(place["ae_title"], place["host"], int(place["port"])),
            calling=calling,
            tls=destination_context(),
        )
    raise ConfigError(
        # Not quoted if it looks like a URL, which may contain a password.
        f"{'that' if '://' in text else repr(text)} is no destination; expected "
        "https://host/dicom-web, AET@host:port or folder:/some/where."
    )
