"""The run folder: paths of the outputs of each stage, and the log of stages.

::

    RUN/config.yaml          resolved configuration     RUN/bundle/        the detector
    RUN/manifest.parquet     scans; private (0600)      RUN/parts/         scores and heatmaps
    RUN/site.key             pseudonyms; private        RUN/scores.csv     scores
    RUN/feedback.sqlite      readers; private           RUN/metrics.json   evaluation
    RUN/spool/               fetched scans; private     RUN/dicom/         DICOM results; private
    RUN/checkpoint.pt        training state
    RUN/metrics.jsonl, RUN/tensorboard/, RUN/samples/   RUN/report/, RUN/studies/, RUN/figures/
    RUN/SHA256SUMS           hashes of the stages' outputs; see `anomaly verify`
"""

from __future__ import annotations

import platform
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError
from anomaly.files import checked_line, refuse_foreign, writing
from anomaly.store.results import Results
from anomaly.store.sums import seal
from anomaly.types import NOTICE
from anomaly.version import __version__

__all__ = ["NOTICE", "RunFolder", "stop_on_interrupt"]


_LINKED = "bundle"
"""The only path that may be a link: the runs of a node share its bundle and never write to it."""


@dataclass(frozen=True)
class RunFolder:
    """A folder that contains one run.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self._at("config.yaml")

    @property
    def manifest(self) -> Path:
        """The table of scans; private."""
        return self._at("manifest.parquet")

    @property
    def checkpoint(self) -> Path:
        """Training state."""
        return self._at("checkpoint.pt")

    @property
    def site_key(self) -> Path:
        """Secret key of the pseudonyms; private."""
        return self._at("site.key")

    @property
    def bundle(self) -> Path:
        """The trained detector."""
        return self._at("bundle")

    @property
    def results(self) -> Results:
        """Scores and evidence maps."""
        return Results(self._at("parts"))

    @property
    def scores_csv(self) -> Path:
        """Scores as CSV."""
        return self._at("scores.csv")

    @property
    def feedback(self) -> Path:
        """Readings; private."""
        return self._at("feedback.sqlite")

    @property
    def dicom(self) -> Path:
        """DICOM objects for a PACS; private."""
        return self._at("dicom")

    @property
    def spool(self) -> Path:
        """Scans fetched from a PACS; private."""
        return self._at("spool")

    @property
    def metrics(self) -> Path:
        """The evaluation."""
        return self._at("metrics.json")

    @property
    def figures(self) -> Path:
        """Figures for a paper, as PDF and PNG."""
        return self._at("figures")

    @property
    def training_metrics(self) -> Path:
        """Metrics of training, one record per validation."""
        return self._at("metrics.jsonl")

    @property
    def log(self) -> Path:
        """Log of finished stages, one record each."""
        return self._at("run.jsonl")

    @property
    def report(self) -> Path:
        """The report page; its pictures are in the same folder."""
        return self._at("report") / "index.html"

    @property
    def studies(self) -> Path:
        """PDF reports of single studies."""
        return self._at("studies")

    def _at(self, name: str) -> Path:
        path = self.path / name
        if name != _LINKED and path.is_symlink():
            raise AnomalyError(
                f"{path} is a link: a run that came from somebody else could have this one write "
                "or remove files elsewhere. Put the folder or file itself there"
            )
        return path

    def refuse_foreign(self) -> None:
        """Refuse a folder that contains anything other than a run; see `anomaly.files`."""
        refuse_foreign(self.path, (self.config.name, self.spool.name, self.feedback.name))

    def need(self, path: Path, stage: str) -> Path:
        """Return a path that an earlier stage must have written.

        Raises
        ------
        AnomalyError
            It does not exist; the message names the stage to run.
        """
        if not path.exists():
            raise AnomalyError(f"{path} does not exist: run `anomaly {stage} {self.path}` first")
        return path

    def record(self, stage: str, facts: dict[str, Any], wrote: Collection[Path] = ()) -> None:
        """Append a stage, its facts and versions to ``run.jsonl``; record hashes of its outputs.

        Parameters
        ----------
        stage : str
        facts : dict
        wrote : collection of Path
            Files and folders of the run that the stage has written (`anomaly.store.sums`).
        """
        line = {
            "stage": stage,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "anomaly": __version__,
            "python": platform.python_version(),
            **facts,
        }
        path = self.log
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(checked_line(line))
        seal(self.path, wrote)


class StopFlag:
    """Flag that is set by the first termination signal; the second signal interrupts at once.

    Attributes
    ----------
    set : bool
    signal : int
        Signal that set the flag; 0 before.
    """

    def __init__(self) -> None:
        self.set = False
        self.signal = 0

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.set


@contextmanager
def stop_on_interrupt() -> Iterator[StopFlag]:
    """Convert SIGINT, SIGTERM and SIGHUP into a request to stop after the current step."""
    flag = StopFlag()

    def ask(number: int, _frame: object) -> None:
        if flag.set:
            raise KeyboardInterrupt
        flag.set, flag.signal = True, number

    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        ends.append(signal.SIGHUP)
    old = {number: signal.signal(number, ask) for number in ends}
    try:
        yield flag
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
