"""Transfer from and to a PACS: fetch studies into a folder, store results.

::

    folder/<study>/<series>/<instance>.dcm

Existing files are not fetched again, so an interrupted transfer resumes where it stopped. If an
instance cannot be fetched, only that instance is lost; if the PACS does not respond, fetching
stops.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomaly.data.readers.dicom_header import IMAGE_CLASSES
from anomaly.errors import AnomalyError, ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.logs import Public
from anomaly.pacs.client.destinations import Destination
from anomaly.pacs.client.dicomweb import DicomWeb
from anomaly.pacs.client.instances import Instance
from anomaly.progress import progress_bar

__all__ = ["Fetched", "fetch_studies", "query_of", "store_results"]

log = logging.getLogger(__name__)

GONE = 5
"""Consecutive instances without a response, despite retries, after which fetching stops."""


@dataclass
class Fetched:
    """Counts of a fetch.

    Attributes
    ----------
    listed : int
        Instances that match and can contain an image.
    fetched, already : int
        Instances fetched now, and instances that already existed.
    failed : Counter of str
        Reason -> number of instances that could not be fetched.
    """

    listed: int
    fetched: int = 0
    already: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def query_of(parts: Sequence[str]) -> dict[str, str]:
    """Parse the ``KEY=VALUE`` parts of a query.

    Raises
    ------
    ConfigError
        A part has no value, which would match the whole PACS, or a key is repeated.
    """
    query: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if not key or not value.strip():
            raise ConfigError(
                f"--query {part!r} has no value, which would match everything: expected KEY=VALUE, "
                "such as StudyDate=20260101"
            )
        if key in query:
            raise ConfigError(f"--query names {key} twice: an archive takes one value a key")
        query[key] = value
    return query


def fetch_studies(web: DicomWeb, query: Mapping[str, str], folder: Path) -> Fetched:
    """Fetch every image of the matching studies.

    Parameters
    ----------
    web : DicomWeb
    query : mapping of str to str
        See `DicomWeb.search`.
    folder : Path
        Private: new folders get mode 0700 and files 0600.

    Raises
    ------
    ArchiveError
        The search failed, or the PACS stopped responding.
    AnomalyError
        A file cannot be written.
    """
    listed = list(web.search(query))
    images = [instance for instance in listed if instance.sop_class in IMAGE_CLASSES]
    log.info("%d images match, and %d other objects", len(images), len(listed) - len(images))
    done, silent = Fetched(listed=len(images)), 0
    if web.unusable:
        done.failed["uid"] = web.unusable
    if web.others:
        done.failed["not asked for"] = web.others
    with progress_bar(len(images), "fetching", "image") as bar:
        for instance in images:
            path = _place(folder, instance)
            if path.exists():
                done.already += 1
            else:
                try:
                    web.fetch(instance, path)
                except ArchiveError as error:
                    done.failed[error.reason] += 1
                    silent = silent + 1 if isinstance(error, ArchiveUnreachable) else 0
                    if silent == GONE:
                        raise ArchiveUnreachable(
                            error.reason,
                            f"{web.url} is gone: {GONE} instances in a row got no answer. "
                            f"{done.fetched + done.already} of {done.listed} are here; run again "
                            "when it is back, and only the rest is fetched.",
                        ) from error
                else:
                    done.fetched += 1
                    silent = 0
            bar.update()
    log.info("%d fetched, %d were there already", done.fetched, done.already)
    for reason, count in done.failed.most_common():
        log.warning("%d not fetched: %s", count, Public(reason))
    return done


def store_results(destination: Destination, paths: Sequence[Path]) -> int:
    """Store results at a destination; return their number.

    Raises
    ------
    AnomalyError
        Some could not be stored; the others were.
    """
    destination.store(paths)
    log.info("%d results are at their destination", len(paths))
    return len(paths)


def _place(folder: Path, instance: Instance) -> Path:
    """Path of an instance; UIDs are safe file names, see `anomaly.pacs.client.instances`."""
    series = folder / instance.study / instance.series
    try:
        for part in (folder, series.parent, series):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AnomalyError(
            f"{series} could not be made ({error.strerror or error}): mend the folder, and run "
            "again."
        ) from error
    return series / f"{instance.instance}.dcm"
