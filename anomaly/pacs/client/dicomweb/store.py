"""Store instances in batches and check the answer for each one (STOW-RS, PS3.18 section 10.5).

::

    POST  /studies

An invalid instance must not block the others: if a batch is refused as a whole, its instances are
sent one by one. If an answer does not mention an instance, the archive is searched for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus

from pydicom import Dataset, dcmread

from anomaly.errors import ArchiveBusy, ArchiveError, ArchiveUnreachable
from anomaly.pacs.client.dicomweb.connection import Connection
from anomaly.pacs.client.instances import InstanceFile
from anomaly.pacs.client.refusals import OUT_OF_RESOURCES

__all__ = ["Delivery"]

BATCH = 50
"""Maximum number of instances in a store request."""

BATCH_BYTES = 64 * 2**20
"""Maximum bytes in a store request, unless a single instance is larger."""

NOT_OF_ONE = ("HTTP 401", "HTTP 403", "HTTP 404", "HTTP 405", "redirect", "certificate")
"""Reasons that are not caused by a single instance."""


class Delivery:
    """Transfer of instances to an archive.

    Parameters
    ----------
    connection : Connection
    holds : callable
        ``holds(study, instance)``: whether the archive has it.
    """

    def __init__(self, connection: Connection, holds: Callable[[str, str], bool]) -> None:
        self._connection, self._holds = connection, holds

    def send(self, files: Sequence[InstanceFile]) -> Counter[str]:
        """Store files; return the number of refused ones by reason.

        Raises
        ------
        ArchiveUnreachable
        """
        refused: Counter[str] = Counter()
        for batch in _batches(files):
            refused += self._send(batch)
        return refused

    def _send(self, batch: Sequence[InstanceFile]) -> Counter[str]:
        """Store a batch; return the number of refused files by reason.

        If the batch is refused as a whole, its files are sent one by one.
        """
        left, answers = list(batch), dict[str, str]()
        refused: Counter[str] = Counter()
        try:
            self._connection.ask("a request to store", self._post, left, answers)
        except ArchiveBusy:
            left = []  # `answers` has the reasons
        except ArchiveUnreachable:
            if len(left) == 1:
                raise
            refused = self._send_apart(left)
        except Exception as error:
            # pydicom can raise any exception if it cannot read or encode a data set.
            reason = error.reason if isinstance(error, ArchiveError) else "cannot be encoded"
            if reason == "not understood":  # the archive may have stored them
                left = []
            elif len(left) == 1 or reason in NOT_OF_ONE:
                refused[reason] += len(left)
            else:
                refused = sum((self._send([file]) for file in left), refused)
        return refused + self._settled([file for file in batch if file not in left], answers)

    def _send_apart(self, files: Sequence[InstanceFile]) -> Counter[str]:
        """Store files one by one after the archive did not answer a batch.

        A file without an answer is skipped. Two in a row mean that the archive is unreachable.

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

    def _settled(self, files: Sequence[InstanceFile], answers: Mapping[str, str]) -> Counter[str]:
        """Count refused files by reason; search for files that the answers do not mention."""
        refused: Counter[str] = Counter()
        for file in files:
            study, uid = file.instance.study, file.instance.instance
            if answers.get(uid):
                refused[answers[uid]] += 1
            elif uid not in answers and not self._holds(study, uid):
                refused["not confirmed"] += 1
        return refused

    def _post(self, left: list[InstanceFile], answers: dict[str, str]) -> None:
        """Send the files in `left` and record the answers: UID -> failure reason, empty if stored.

        Raises
        ------
        ArchiveBusy
            The archive has no room for some files at present; `left` then contains those.
        """
        datasets = [dcmread(file.path) for file in left]
        try:
            answer = self._connection.client.store_instances(datasets)
        except self._connection.errors.HTTPError as error:
            # A 409 answer lists the reason for each instance (PS3.18 Table 10.5.3-1).
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
            raise ArchiveBusy(
                codes[left[0]], f"{self._connection.url} has no room for {len(left)} instances"
            )


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
