"""Search an archive (QIDO-RS, PS3.18 section 10.6) for studies, series and instances.

::

    GET  /studies?...    /studies/S/series?...    /studies/S/series/T/instances?...

An archive returns results in pages. It may use smaller pages than requested, ignore the offset, or
return only part of its results; an incomplete list raises an error.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from pydicom.datadict import keyword_dict

from anomaly.errors import ArchiveError, ConfigError
from anomaly.logs import Public
from anomaly.pacs.client.dicomweb.connection import Connection, name_status
from anomaly.pacs.client.instances import Instance, is_uid

if TYPE_CHECKING:
    import requests

__all__ = ["Search"]

log = logging.getLogger(__name__)

PAGE = 200
"""Number of results to request per page."""

_MORE = re.compile(
    r"(?:^|,)\s*299\b[^,]*\b(more|remaining|additional|further|limit\w*|maximum|exceed\w*|"
    r"truncat\w*|partial\w*|incomplete)\b",
    re.IGNORECASE,
)
"""Warning header which says that the archive has more results than it returned."""

MOST = 500_000
"""Maximum results of one search, which stops at an archive with endless pages."""

BEYOND_THE_END = ("HTTP 400", "HTTP 404")
"""Errors that some archives return for a page after the last one."""

# Keys that archives match at the series or instance level (PS3.18 Table 10.6.1-5, and the optional
# keys of PS3.4 C.6.1.1); all others are study keys.
SERIES_KEYS = (
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "BodyPartExamined",
    "Laterality",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
)
INSTANCE_KEYS = ("SOPClassUID", "SOPInstanceUID", "InstanceNumber")

STUDY_UID, SERIES_UID = "0020000D", "0020000E"
INSTANCE_UID, CLASS_UID = "00080018", "00080016"
PATIENT_ID = "00100020"


class Search:
    """Searches in an archive.

    Parameters
    ----------
    connection : Connection

    Attributes
    ----------
    unusable, others : int
        See `DicomWeb`.
    """

    def __init__(self, connection: Connection) -> None:
        self.unusable = self.others = 0
        self._connection = connection
        self._more, self._heeded = False, set[str]()
        connection.session.hooks["response"].append(self._heed)

    def instances(self, query: Mapping[str, str]) -> Iterator[Instance]:
        """Find the instances of all studies that match; see `DicomWeb.search`."""
        studies, series, instances = _by_level(query)
        self.unusable = self.others = 0
        find = self._connection.client
        for study, patient in self._listed(
            find.search_for_studies, studies, STUDY_UID, texts=(PATIENT_ID,)
        ):
            if not _is_asked_for(query, study, patient):
                self.others += 1
                continue
            in_study = partial(find.search_for_series, study)
            for (one,) in self._listed(in_study, series, SERIES_UID):
                in_series = partial(find.search_for_instances, study, one)
                for uids in self._listed(in_series, instances, INSTANCE_UID, CLASS_UID):
                    yield Instance(study, one, uids[0], uids[1], patient.strip())

    def holds(self, study: str, instance: str) -> bool:
        """Whether the archive has an instance in a study; see `DicomWeb.holds`."""
        look = partial(self._connection.client.search_for_instances, study)
        try:
            return (instance,) in self._listed(look, {"SOPInstanceUID": instance}, INSTANCE_UID)
        except ArchiveError as error:
            if error.reason == name_status(
                HTTPStatus.NOT_FOUND
            ):  # the answer of some archives for an unknown study
                return False
            raise

    def _listed(
        self,
        search: Callable[..., Any],
        filters: Mapping[str, str],
        *tags: str,
        texts: Sequence[str] = (),
    ) -> Iterator[tuple[str, ...]]:
        """UIDs and other attributes of all results of a search, fetched page by page."""

        def page(offset: int) -> list[tuple[str, ...]]:
            # Some archives return the SOP class only on request.
            fields = [tag for tag in tags if tag == CLASS_UID] or None
            items = search(limit=PAGE, offset=offset, fields=fields, search_filters=dict(filters))
            return [tuple(_value(item, tag) for tag in (*tags, *texts)) for item in items]

        for uids in self._results(page):
            if all(map(is_uid, uids[: len(tags)])):
                yield uids
            else:
                self.unusable += 1

    def _results(self, page: Callable[[int], list[tuple[str, ...]]]) -> Iterator[tuple[str, ...]]:
        """Results of all pages, without duplicates.

        Pages are fetched until one has no new results, because an archive may use smaller pages.
        An archive that ignores the offset returns the first page again; `_check_end` raises an
        error if that page is known to be incomplete.
        """
        seen: set[tuple[str, ...]] = set()
        offset = 0
        while True:
            said_more, self._more = self._more and offset > 0, False
            results = self._page(page, offset)
            fresh = [uids for uids in dict.fromkeys(results) if uids not in seen]
            if not fresh:
                self._check_end(results, len(seen), said_more=said_more)
                return
            offset += len(results)
            seen.update(fresh)
            self._check_number(len(seen))
            yield from fresh

    def _page(
        self, page: Callable[[int], list[tuple[str, ...]]], offset: int
    ) -> list[tuple[str, ...]]:
        try:
            return self._connection.ask("a search", page, offset)
        except ArchiveError as error:
            if not offset or error.reason not in BEYOND_THE_END:
                raise
            return []  # the answer of some archives after the last page

    def _check_end(self, results: Sequence[object], count: int, *, said_more: bool) -> None:
        """Raise an error if a page has no new results although there are more; warn if unsure.

        Raises
        ------
        ArchiveError
        """
        if said_more or (results and (self._more or len(results) >= PAGE)):
            gives = "gives the same again" if results else "gives nothing"
            raise ArchiveError(
                "paging",
                f"{self._connection.url} has answered {count} results and says or shows that there "
                f"are more, and {gives} when it is asked for the next page: narrow the query, for "
                "example by StudyDate, until fewer match.",
            )
        if results and count > 1 and "offset" not in self._heeded:
            self._heeded.add("offset")
            log.warning(
                "the archive answers the same results, %d here, when it is asked for more: "
                "they are taken for all",
                count,
            )

    def _check_number(self, results: int) -> None:
        if results > MOST:
            raise ArchiveError(
                "too many",
                f"{self._connection.url} lists more than {MOST:,} results in one search: narrow "
                "the query, for example by StudyDate.",
            )

    def _heed(self, response: requests.Response, **_: object) -> None:
        """Log warnings of the archive, and note those of incomplete search results.

        Warning code 299 on a search means incomplete results (PS3.18 section 8.3.4.4), but archives
        use it for other remarks too.
        """
        warning = response.headers.get("Warning", "")
        if not warning:
            return
        self._more = self._more or bool(_MORE.search(warning))
        if warning not in self._heeded:
            self._heeded.add(warning)
            plain = re.sub(r"[^ -~]", "?", warning)[:200]
            log.warning("the archive warns: %s", Public(plain))


def _value(item: Mapping[str, Any], tag: str) -> str:
    """First value of an attribute in the DICOM JSON model (PS3.18 F.2.2); empty if absent."""
    value = (item.get(tag, {}).get("Value") or [""])[0]
    return "" if value is None else str(value)


def _by_level(query: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Split a query into study, series and instance keys."""
    for keyword in query:
        if keyword not in keyword_dict:
            near = get_close_matches(keyword, keyword_dict, n=1, cutoff=0)
            raise ConfigError(f"{keyword!r} is no DICOM keyword; expected one such as {near[0]!r}.")
    series = {key: query[key] for key in query if key in SERIES_KEYS}
    instances = {key: query[key] for key in query if key in INSTANCE_KEYS}
    studies = {key: query[key] for key in query if key not in series and key not in instances}
    if "Modality" in series:  # otherwise the series of every study would be requested
        studies.setdefault("ModalitiesInStudy", series["Modality"])
    return studies, series, instances


def _is_asked_for(query: Mapping[str, str], study: str, patient: str) -> bool:
    """Whether a listed study matches the Patient ID and study UIDs of the query, if given."""
    asked = query.get("PatientID", "").strip()
    is_pattern = any(sign in asked for sign in "*?")
    if asked and patient and not is_pattern and patient.strip() != asked:
        return False
    studies = re.split(r"[,\\]", query.get("StudyInstanceUID", "").strip())
    return studies == [""] or "*" in studies or study in map(str.strip, studies)
