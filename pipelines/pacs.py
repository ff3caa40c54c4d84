"""The archive at both ends of a run: studies are fetched into a folder, results are stored.

::

    folder/<study>/<series>/<instance>.dcm

What is there is not fetched again, so a run that was broken off goes on where it stopped. One
instance that cannot be had costs that instance; an archive that is gone stops the run.
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
"""Instances in a row, each asked for more than once, without an answer: the archive is gone."""


@dataclass
class Fetched:
    """What came of fetching.

    Attributes
    ----------
    listed : int
        Instances that match and can hold an image.
    fetched, already : int
        Those that were fetched now, and those that were there before.
    failed : Counter of str
        Reason -> number of those that could not be fetched.
    """

    listed: int
    fetched: int = 0
    already: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def query_of(parts: Sequence[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` parts of a query.

    Raises
    ------
    ConfigError
        A part has no value, which would ask for the whole archive, or a key comes twice.
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
    """Fetch every image of the studies that match.

    Parameters
    ----------
    web : DicomWeb
    query : mapping of str to str
        See `DicomWeb.search`.
    folder : Path
        Private: what is made in it has mode 0700 or 0600.

    Raises
    ------
    ArchiveError
        The search failed, or the archive is gone.
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
    """Store results where they go; return their number.

    Raises
    ------
    AnomalyError
        If some could not be stored; the others are.
    """
    destination.store(paths)
    log.info("%d results are at their destination", len(paths))
    return len(paths)


def _place(folder: Path, instance: Instance) -> Path:
    """Where an instance goes; UIDs are safe names, see `anomaly.pacs.client.instances`."""
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
