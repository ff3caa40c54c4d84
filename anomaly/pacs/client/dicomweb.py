"""An archive that speaks DICOMweb (PS3.18).

::

    search    QIDO-RS    GET  /studies?..., /studies/S/series?..., .../instances?...
    fetch     WADO-RS    GET  /studies/S/series/T/instances/U
    store     STOW-RS    POST /studies

What may pass (no connection, no answer in time, "too busy") is asked again; everything else is
final. What an archive sends is bounded (`anomaly.pacs.client.bounded`), goes to the disk as it
comes, and is kept where it is what was asked for: instance, series, study and patient.
"""

from __future__ import annotations

import logging
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_dict

from anomaly.errors import (
    AnomalyError,
    ArchiveBusy,
    ArchiveError,
    ArchiveUnreachable,
    ConfigError,
)
from anomaly.files import writing
from anomaly.logs import Public
from anomaly.pacs.client.instances import Instance, InstanceFile, is_uid, read_files, write_whole
from anomaly.pacs.client.refusals import OUT_OF_RESOURCES, check_refused
from anomaly.pacs.client.retries import Attempts
from anomaly.pacs.client.sessions import check_url, open_session
from anomaly.pacs.identity import Identity, check_whole, read_file_identity

if TYPE_CHECKING:
    import requests

__all__ = ["DicomWeb"]

log = logging.getLogger(__name__)

PAGE = 200
"""Results of a search in one answer."""

BATCH = 50
"""Instances in one request to store, at most."""

BATCH_BYTES = 64 * 2**20
"""Bytes in one request to store, unless a single instance has more."""

TIMEOUT = (10.0, 60.0)
"""Seconds to connect, and between two bytes of an answer."""

_MORE = re.compile(
    r"(?:^|,)\s*299\b[^,]*\b(more|remaining|additional|further|limit\w*|maximum|exceed\w*|"
    r"truncat\w*|partial\w*|incomplete)\b",
    re.IGNORECASE,
)
"""A warning by which an archive says that it has not given all that it has."""

MOST = 500_000
"""Results of one search; an archive that never ends its pages must end somewhere."""

CHUNK = 2**20
"""Bytes of an instance that are in memory."""

AGAIN = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""Answers that mean "later"."""

BEYOND_THE_END = ("HTTP 400", "HTTP 404")
"""What some answer to a page after the last."""

NOT_OF_ONE = ("HTTP 401", "HTTP 403", "HTTP 404", "HTTP 405", "redirect", "certificate")
"""Reasons that no single instance is the cause of."""

HINTS = {
    HTTPStatus.UNAUTHORIZED: "set ANOMALY_DICOMWEB_USER and _PASSWORD, or ANOMALY_DICOMWEB_TOKEN",
    HTTPStatus.FORBIDDEN: "ask for the right to do it, or for other credentials",
    HTTPStatus.NOT_FOUND: "it is not there, or the path of the URL is not that of DICOMweb",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "raise the archive's limit on the size of a request",
}

# Keys that archives match at the level of series or instance (PS3.18 Table 10.6.1-5, and the
# optional keys of PS3.4 C.6.1.1); all others are keys of studies.
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

_Answer = TypeVar("_Answer")


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
    unusable : int
        Objects that the last search was told of without valid UIDs.
    others : int
        Studies that the last search was told of, and did not ask for.

    Raises
    ------
    ConfigError
        If the URL or the credentials of the environment cannot be used; see
        `anomaly.pacs.client.sessions`.
    AnomalyError
        If the package for it is not installed.
    """

    def __init__(self, url: str, *, attempts: Attempts | None = None) -> None:
        self.url = check_url(url)
        self.unusable = self.others = 0
        self._attempts = attempts or Attempts()
        client = _client()
        self._session = open_session(self.url)
        # Requests go in one piece: not every archive takes a chunked one.
        self._client = client(self.url, self._session, chunk_size=2**40, timeout=TIMEOUT)
        self._client.host = urlsplit(self.url).netloc  # sent as Host; it would leave out the port
        self._client.set_http_retry_params(retry=False)
        self._more, self._heeded = False, set[str]()
        self._session.hooks["response"].append(self._heed)

    def search(self, query: Mapping[str, str]) -> Iterator[Instance]:
        """Find the instances of all studies that match.

        Parameters
        ----------
        query : mapping of str to str
            DICOM keyword -> value to match, as QIDO-RS has it: ``{"StudyDate":
            "20260101-20260131", "Modality": "DX"}``. Keys of series and instances narrow the
            search within the studies.

        Yields
        ------
        Instance
            What has no valid UIDs is left out and counted in `unusable`; a study of another
            patient than the query names, or another study, in `others`.

        Raises
        ------
        ConfigError
            A keyword is none of DICOM's.
        ArchiveError
            The archive did not answer, or what it answered cannot be used.
        """
        studies, series, instances = _by_level(query)
        self.unusable = self.others = 0
        find = self._client
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
        """Whether the archive has an instance in a study.

        Raises
        ------
        ArchiveError
            The archive did not answer, or what it answered cannot be used.
        """
        look = partial(self._client.search_for_instances, study)
        try:
            return (instance,) in self._listed(look, {"SOPInstanceUID": instance}, INSTANCE_UID)
        except ArchiveError as error:
            if error.reason == _http(HTTPStatus.NOT_FOUND):  # so some say of a study they lack
                return False
            raise

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
            self._ask("the retrieval of an instance", self._retrieve, instance, file)
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
        for batch in _batches(missing):
            refused += self._send(batch)
        check_refused(self.url, refused, len(paths), "PS3.18 Table I.2-2")

    def _listed(
        self,
        search: Callable[..., Any],
        filters: Mapping[str, str],
        *tags: str,
        texts: Sequence[str] = (),
    ) -> Iterator[tuple[str, ...]]:
        """UIDs, and other texts, of everything that a search finds, page after page."""

        def page(offset: int) -> list[tuple[str, ...]]:
            # Not every archive returns the class unless it is asked to.
            fields = [tag for tag in tags if tag == CLASS_UID] or None
            items = search(limit=PAGE, offset=offset, fields=fields, search_filters=dict(filters))
            return [tuple(_value(item, tag) for tag in (*tags, *texts)) for item in items]

        # Until a page brings nothing new: an archive may have a smaller page. One that knows no
        # offset gives the first again; where it was not all, what follows cannot be had.
        seen: set[tuple[str, ...]] = set()
        offset = 0
        while True:
            said_more, self._more = self._more and offset > 0, False
            try:
                results = self._ask("a search", page, offset)
            except ArchiveError as error:
                if not offset or error.reason not in BEYOND_THE_END:
                    raise
                results = []  # so some say that nothing follows
            fresh = [uids for uids in dict.fromkeys(results) if uids not in seen]
            if not fresh and (said_more or (results and (self._more or len(results) >= PAGE))):
                gives = "gives the same again" if results else "gives nothing"
                raise ArchiveError(
                    "paging",
                    f"{self.url} has answered {len(seen)} results and says or shows that there are "
                    f"more, and {gives} when it is asked for the next page: narrow the query, for "
                    "example by StudyDate, until fewer match.",
                )
            if results and not fresh and len(seen) > 1 and "offset" not in self._heeded:
                self._heeded.add("offset")
                log.warning(
                    "the archive answers the same results, %d here, when it is asked for more: "
                    "they are taken for all",
                    len(seen),
                )
            offset += len(results)
            if not fresh:
                return
            seen.update(fresh)
            self._check_number(len(seen))
            for uids in fresh:
                if all(map(is_uid, uids[: len(tags)])):
                    yield uids
                else:
                    self.unusable += 1

    def _check_number(self, results: int) -> None:
        if results > MOST:
            raise ArchiveError(
                "too many",
                f"{self.url} lists more than {MOST:,} results in one search: narrow the query, "
                "for example by StudyDate.",
            )

    def _heed(self, response: requests.Response, **_: object) -> None:
        """Pass on what an archive warns of, and note that a search has more results than it gave.

        A Warning of 299 on a search says just that (PS3.18 section 8.3.4.4); archives use it for
        other remarks too.
        """
        warning = response.headers.get("Warning", "")
        if not warning:
            return
        self._more = self._more or bool(_MORE.search(warning))
        if warning not in self._heeded:
            self._heeded.add(warning)
            plain = re.sub(r"[^ -~]", "?", warning)[:200]
            log.warning("the archive warns: %s", Public(plain))

    def _retrieve(self, instance: Instance, file: IO[bytes]) -> None:
        """Leave in the file the instance alone, from its beginning."""
        place = f"studies/{instance.study}/series/{instance.series}/instances/{instance.instance}"
        file.seek(0)
        file.truncate()
        with self._session.get(
            f"{self.url}/{place}",
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
            self._check_asked_for(instance, read_file_identity(content, start))
            content.move(0, start, end - start)
        file.truncate(end - start)
        file.seek(0)

    def _check_asked_for(self, asked: Instance, sent: Identity) -> None:
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
                    f"{self.url} sent an object of another {kind} than the one asked for: it is "
                    "not kept; report it to who runs the archive.",
                )

    def _send(self, batch: Sequence[InstanceFile]) -> Counter[str]:
        """Store a batch; count the reasons of those refused.

        A batch that is refused whole is sent again one by one: what one instance has wrong costs
        that instance.
        """
        left, answers = list(batch), dict[str, str]()
        refused: Counter[str] = Counter()
        try:
            self._ask("a request to store", self._post, left, answers)
        except ArchiveBusy:
            left = []  # the answers tell
        except ArchiveUnreachable:
            if len(left) == 1:
                raise
            refused = self._send_apart(left)
        except Exception as error:
            # pydicom raises anything at all on a data set that it cannot read or encode.
            reason = error.reason if isinstance(error, ArchiveError) else "cannot be encoded"
            if reason == "not understood":  # the archive may well have stored them
                left = []
            elif len(left) == 1 or reason in NOT_OF_ONE:
                refused[reason] += len(left)
            else:
                refused = sum((self._send([file]) for file in left), refused)
        return refused + self._settled([file for file in batch if file not in left], answers)

    def _settled(self, files: Sequence[InstanceFile], answers: Mapping[str, str]) -> Counter[str]:
        """Count the reasons of those refused; what no answer speaks of is looked for."""
        refused: Counter[str] = Counter()
        for file in files:
            study, uid = file.instance.study, file.instance.instance
            if answers.get(uid):
                refused[answers[uid]] += 1
            elif uid not in answers and not self.holds(study, uid):
                refused["not confirmed"] += 1
        return refused

    def _send_apart(self, files: Sequence[InstanceFile]) -> Counter[str]:
        """Store one by one what an archive did not answer together.

        One that it never answers costs itself; two in a row are no fault of theirs.

        Raises
        ------
        ArchiveUnreachable
        """
        refused: Counter[str] = Counter()
        skipped = False
        for file in files:
            try:
                refused += self._send([file])
                skipped = False
            except ArchiveUnreachable as error:
                if skipped:
                    raise
                refused[error.reason] += 1
                skipped = True
        return refused

    def _post(self, left: list[InstanceFile], answers: dict[str, str]) -> None:
        """Send what is left, and note the answers: UID -> failure reason, empty where stored.

        Raises
        ------
        ArchiveBusy
            The archive has no room for some at present; those are left.
        """
        datasets = [dcmread(file.path) for file in left]
        try:
            answer = self._client.store_instances(datasets)
        except self._errors.HTTPError as error:
            # With 409 the archive says of each instance why not (PS3.18 Table 10.5.3-1).
            if error.response.status_code != HTTPStatus.CONFLICT:
                raise
            answer = Dataset.from_json(error.response.json())
        for item in answer.get("ReferencedSOPSequence", ()):
            answers[str(item.ReferencedSOPInstanceUID)] = ""
        for item in answer.get("FailedSOPSequence", ()):
            code = item.get("FailureReason", None)
            reason = "no reason given" if code is None else f"{int(code):04X}"
            answers[str(item.ReferencedSOPInstanceUID)] = reason
        codes = {file: answers.get(file.instance.instance, "") for file in left}
        left[:] = [file for file in left if OUT_OF_RESOURCES.fullmatch(codes[file])]
        if left:
            raise ArchiveBusy(codes[left[0]], f"{self.url} has no room for {len(left)} instances")

    def _ask(self, what: str, call: Callable[..., _Answer], *arguments: object) -> _Answer:
        return self._attempts(partial(self._once, what, partial(call, *arguments)))

    def _once(self, what: str, call: Callable[[], _Answer]) -> _Answer:
        """Ask once; say what went wrong in our words, which quote nothing of the answer."""
        errors = self._errors
        try:
            return call()
        except AnomalyError:
            raise
        except errors.HTTPError as error:
            raise self._refusal(what, error.response) from error
        except errors.SSLError as error:
            if "CERTIFICATE" not in str(error).upper():
                raise ArchiveError(
                    "certificate",
                    f"{self.url} does not speak TLS as it should ({type(error).__name__}): check "
                    "the port, and whether it is https at all.",
                ) from error
            raise ArchiveError(
                "certificate",
                f"{self.url} could not prove who it is: its certificate is not trusted. Set "
                "ANOMALY_DICOMWEB_CA to the certificates that it should be checked against.",
            ) from error
        except errors.TooManyRedirects as error:
            raise ArchiveError(
                "redirect", f"{self.url} sends {what} elsewhere: name the URL it really has."
            ) from error
        except (errors.ConnectionError, errors.Timeout, errors.ChunkedEncodingError) as error:
            raise ArchiveUnreachable(
                "no answer", f"{self.url} did not answer {what} ({type(error).__name__})"
            ) from error
        except Exception as error:
            # The one place that catches everything: an answer that is not DICOMweb can make its
            # readers raise anything at all.
            raise ArchiveError(
                "not understood",
                f"{self.url} answered {what} with what is not DICOMweb ({type(error).__name__}): "
                "check the URL.",
            ) from error

    def _refusal(self, what: str, response: requests.Response) -> ArchiveError:
        status = response.status_code
        name = next((known.phrase for known in HTTPStatus if known == status), "unknown")
        sentence = f"{self.url} answered {what} with {_http(status)}, {name}"
        if status in AGAIN:
            later = ArchiveUnreachable(_http(status), sentence)
            later.wait = _seconds(response.headers.get("Retry-After", ""))
            return later
        hint = next((HINTS[known] for known in HINTS if known == status), "see the archive's log")
        return ArchiveError(_http(status), f"{sentence}: {hint}.")

    @property
    def _errors(self) -> Any:
        import requests.exceptions

        return requests.exceptions


def _http(status: int) -> str:
    return f"HTTP {int(status)}"


def _seconds(retry_after: str) -> float:
    """Seconds that a Retry-After asks for (RFC 9110 section 10.2.3); 0 where it says none."""
    if retry_after.strip().isdecimal():
        return float(retry_after[:9])
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max((when - datetime.now(UTC)).total_seconds(), 0.0) if when.tzinfo else 0.0


def _value(item: Mapping[str, Any], tag: str) -> str:
    """First value of an attribute in the DICOM JSON model (PS3.18 F.2.2), or empty."""
    value = (item.get(tag, {}).get("Value") or [""])[0]
    return "" if value is None else str(value)


def _by_level(query: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Keys of studies, of series and of instances."""
    for keyword in query:
        if keyword not in keyword_dict:
            near = get_close_matches(keyword, keyword_dict, n=1, cutoff=0)
            raise ConfigError(f"{keyword!r} is no DICOM keyword; expected one such as {near[0]!r}.")
    series = {key: query[key] for key in query if key in SERIES_KEYS}
    instances = {key: query[key] for key in query if key in INSTANCE_KEYS}
    studies = {key: query[key] for key in query if key not in series and key not in instances}
    if "Modality" in series:  # or every study would be asked for its series
        studies.setdefault("ModalitiesInStudy", series["Modality"])
    return studies, series, instances


def _is_asked_for(query: Mapping[str, str], study: str, patient: str) -> bool:
    """Whether a study that is listed is one that the query names, where it names one."""
    asked = query.get("PatientID", "").strip()
    is_pattern = any(sign in asked for sign in "*?")
    if asked and patient and not is_pattern and patient.strip() != asked:
        return False
    studies = re.split(r"[,\\]", query.get("StudyInstanceUID", "").strip())
    return studies == [""] or "*" in studies or study in map(str.strip, studies)


def _batches(files: Sequence[InstanceFile]) -> Iterator[list[InstanceFile]]:
    batch: list[InstanceFile] = []
    for file in files:
        size = file.size + sum(other.size for other in batch)
        if batch and (len(batch) == BATCH or size > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


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


def _client() -> Any:
    try:
        from dicomweb_client.web import DICOMwebClient
    except ImportError as error:
        raise AnomalyError(
            "--dicomweb needs dicomweb-client, which is not installed: pip install dicomweb-client"
        ) from error
    return DICOMwebClient
