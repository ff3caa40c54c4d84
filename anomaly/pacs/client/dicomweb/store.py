"""Storing instances (STOW-RS, PS3.18 section 10.5): in batches, and each one's answer heeded.

::

    POST  /studies

What one instance has wrong costs that instance: a batch that is refused whole is sent again one by
one. What no answer speaks of is looked for.
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
"""Instances in one request to store, at most."""

BATCH_BYTES = 64 * 2**20
"""Bytes in one request to store, unless a single instance has more."""

NOT_OF_ONE = ("HTTP 401", "HTTP 403", "HTTP 404", "HTTP 405", "redirect", "certificate")
"""Reasons that no single instance is the cause of."""


class Delivery:
    """Instances on their way into an archive.

    Parameters
    ----------
    connection : Connection
    holds : callable
        ``holds(study, instance)``: whether the archive has it.
    """

    def __init__(self, connection: Connection, holds: Callable[[str, str], bool]) -> None:
        self._connection, self._holds = connection, holds

    def send(self, files: Sequence[InstanceFile]) -> Counter[str]:
        """Store files; count the reasons of those refused.

        Raises
        ------
        ArchiveUnreachable
        """
        refused: Counter[str] = Counter()
        for batch in _batches(files):
            refused += self._send(batch)
        return refused

    def _send(self, batch: Sequence[InstanceFile]) -> Counter[str]:
        """Store a batch; count the reasons of those refused.

        A batch that is refused whole is sent again one by one: what one instance has wrong costs
        that instance.
        """
        left, answers = list(batch), dict[str, str]()
        refused: Counter[str] = Counter()
        try:
            self._connection.ask("a request to store", self._post, left, answers)
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

    def _settled(self, files: Sequence[InstanceFile], answers: Mapping[str, str]) -> Counter[str]:
        """Count the reasons of those refused; what no answer speaks of is looked for."""
        refused: Counter[str] = Counter()
        for file in files:
            study, uid = file.instance.study, file.instance.instance
            if answers.get(uid):
                refused[answers[uid]] += 1
            elif uid not in answers and not self._holds(study, uid):
                refused["not confirmed"] += 1
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
            answer = self._connection.client.store_instances(datasets)
        except self._connection.errors.HTTPError as error:
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
