"""Where results go: a DICOMweb archive, a DIMSE archive or a folder, by one line of text.

::

https://host/dicom-web       STOW-RS
AET@host:port                C-STORE; by TLS where the environment says so (`anomaly.pacs.tls`)
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
    """What takes results."""

    def store(self, paths: Sequence[Path]) -> None:
        """Store DICOM files; again is as good as once.

        Raises
        ------
        AnomalyError
            If some could not be stored; the others are.
        """


class Folder:
    """A folder that takes copies under the names that the files have.

    Parameters
    ----------
    path : Path
        Made at the first copy, mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self, paths: Sequence[Path]) -> None:
        """Copy the files of which there is none of that name yet.

        Raises
        ------
        AnomalyError
            Two of the files have one name, or a copy cannot be written.
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
    """Return the destination that a line of text names.

    Parameters
    ----------
    text : str
        ``https://host/path`` (``http://`` too), ``AET@host:port`` or ``folder:/path``.
    calling : str
        Our own AE title, for the second.

    Raises
    ------
    ConfigError
        It is none of these, or the TLS of the second cannot be used.
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
        # What looks like a URL may carry a password.
        f"{'that' if '://' in text else repr(text)} is no destination; expected "
        "https://host/dicom-web, AET@host:port or folder:/some/where."
    )
