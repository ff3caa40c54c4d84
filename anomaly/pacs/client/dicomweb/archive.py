"""Client of a DICOMweb archive (PS3.18).

::

    search    QIDO-RS    GET  /studies?..., /studies/S/series?..., .../instances?...
    fetch     WADO-RS    GET  /studies/S/series/T/instances/U
    store     STOW-RS    POST /studies

The size and duration of answers are limited (`anomaly.pacs.client.bounded`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from anomaly.files import writing
from anomaly.pacs.client.dicomweb.connection import Connection
from anomaly.pacs.client.dicomweb.fetch import retrieve
from anomaly.pacs.client.dicomweb.search import Search
from anomaly.pacs.client.dicomweb.store import Delivery
from anomaly.pacs.client.instances import Instance, read_files, write_whole
from anomaly.pacs.client.refusals import check_refused
from anomaly.pacs.client.retries import Attempts

__all__ = ["DicomWeb"]


class DicomWeb:
    """A DICOMweb archive.

    Parameters
    ----------
    url : str
        URL of the DICOMweb service, such as ``https://archive.example/dicom-web``.
    attempts : Attempts
        Number of attempts and pauses after failures.

    Attributes
    ----------
    url : str

    Raises
    ------
    ConfigError
        If the URL or the credentials of the environment cannot be used; see
        `anomaly.pacs.client.sessions`.
    AnomalyError
        If dicomweb-client or requests is not installed.
    """

    def __init__(self, url: str, *, attempts: Attempts | None = None) -> None:
        self._connection = Connection(url, attempts or Attempts())
        self._search = Search(self._connection)
        self._delivery = Delivery(self._connection, self.holds)
        self.url = self._connection.url

    @property
    def unusable(self) -> int:
        """Number of results of the last search without valid UIDs."""
        return self._search.unusable

    @property
    def others(self) -> int:
        """Number of studies in the answer to the last search that did not match the query."""
        return self._search.others

    def search(self, query: Mapping[str, str]) -> Iterator[Instance]:
        """Find the instances of all studies that match.

        Parameters
        ----------
        query : mapping of str to str
            DICOM keyword -> value to match, in QIDO-RS syntax: ``{"StudyDate":
            "20260101-20260131", "Modality": "DX"}``. Keys of series and instances narrow the
            search within the studies.

        Returns
        -------
        iterator of Instance
            Results without valid UIDs are omitted and counted in `unusable`. Studies of a patient
            or with a UID that the query does not name are omitted and counted in `others`.

        Raises
        ------
        ConfigError
            A keyword is not a DICOM keyword.
        ArchiveError
            The archive did not answer, or its answer cannot be used.
        """
        return self._search.instances(query)

    def holds(self, study: str, instance: str) -> bool:
        """Whether the archive has an instance in a study.

        Raises
        ------
        ArchiveError
            The archive did not answer, or its answer cannot be used.
        """
        return self._search.holds(study, instance)

    def fetch(self, instance: Instance, path: Path) -> None:
        """Write an instance to a file, unchanged and atomically, with mode 0600.

        Raises
        ------
        ArchiveError
            The archive did not answer, does not have it, or sent another object:
            ``"other instance"``, ``"other study"``, ``"other series"``, ``"other class"``,
            ``"other patient"``.
        AnomalyError
            The file cannot be written.
        """
        with writing(path), TemporaryFile(dir=path.parent) as file:
            self._connection.ask(
                "the retrieval of an instance", retrieve, self._connection, instance, file
            )
            write_whole(path, file)

    def store(self, paths: Sequence[Path]) -> None:
        """Store the instances that the archive does not have yet.

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
        missing = [f for f in files if not self.holds(f.instance.study, f.instance.instance)]
        refused += self._delivery.send(missing)
        check_refused(self.url, refused, len(paths), "PS3.18 Table I.2-2")
