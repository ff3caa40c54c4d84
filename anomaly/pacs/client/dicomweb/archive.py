"""An archive that speaks DICOMweb (PS3.18).

::

    search    QIDO-RS    GET  /studies?..., /studies/S/series?..., .../instances?...
    fetch     WADO-RS    GET  /studies/S/series/T/instances/U
    store     STOW-RS    POST /studies

What an archive sends is bounded (`anomaly.pacs.client.bounded`).
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
        Of the DICOMweb service, such as ``https://archive.example/dicom-web``.
    attempts : Attempts
        How often what did not work is tried.

    Attributes
    ----------
    url : str

    Raises
    ------
    ConfigError
        If the URL or the credentials of the environment cannot be used; see
        `anomaly.pacs.client.sessions`.
    AnomalyError
        If the package for it is not installed.
    """

    def __init__(self, url: str, *, attempts: Attempts | None = None) -> None:
        self._connection = Connection(url, attempts or Attempts())
        self._search = Search(self._connection)
        self._delivery = Delivery(self._connection, self.holds)
        self.url = self._connection.url

    @property
    def unusable(self) -> int:
        """Objects that the last search was told of without valid UIDs."""
        return self._search.unusable

    @property
    def others(self) -> int:
        """Studies that the last search was told of, and did not ask for."""
        return self._search.others

    def search(self, query: Mapping[str, str]) -> Iterator[Instance]:
        """Find the instances of all studies that match.

        Parameters
        ----------
        query : mapping of str to str
            DICOM keyword -> value to match, as QIDO-RS has it: ``{"StudyDate":
            "20260101-20260131", "Modality": "DX"}``. Keys of series and instances narrow the
            search within the studies.

        Returns
        -------
        iterator of Instance
            What has no valid UIDs is left out and counted in `unusable`; a study of another
            patient than the query names, or another study, in `others`.

        Raises
        ------
        ConfigError
            A keyword is none of DICOM's.
        ArchiveError
            The archive did not answer, or what it answered cannot be used.
        """
        return self._search.instances(query)

    def holds(self, study: str, instance: str) -> bool:
        """Whether the archive has an instance in a study.

        Raises
        ------
        ArchiveError
            The archive did not answer, or what it answered cannot be used.
        """
        return self._search.holds(study, instance)

    def fetch(self, instance: Instance, path: Path) -> None:
        """Write an instance to a file as the archive has it: whole or not at all, mode 0600.

        Raises
        ------
        ArchiveError
            The archive did not answer, has it not, or sent something else: ``"other instance"``,
            ``"other study"``, ``"other series"``, ``"other class"``, ``"other patient"``.
        AnomalyError
            The file cannot be written.
        """
        with writing(path), TemporaryFile(dir=path.parent) as file:
            self._connection.ask(
                "the retrieval of an instance", retrieve, self._connection, instance, file
            )
            write_whole(path, file)

    def store(self, paths: Sequence[Path]) -> None:
        """Store the instances that the archive does not hold yet.

        Parameters
        ----------
        paths : sequence of Path
            DICOM files.

        Raises
        ------
        ArchiveError
            The archive did not answer, or refused some, or some are no DICOM files that can be
            named; the others are stored. `ArchiveBusy` where all that it has refused it may take
            later.
        """
        refused: Counter[str] = Counter()
        files = read_files(paths, refused)
        missing = [f for f in files if not self.holds(f.instance.study, f.instance.instance)]
        refused += self._delivery.send(missing)
        check_refused(self.url, refused, len(paths), "PS3.18 Table I.2-2")
