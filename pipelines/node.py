"""node: scans received by DICOM -> scored batches -> results sent to a destination.

::

    instance received --(study quiet)--> batch closed --> scored --> sent

Threads of the listener receive instances (`anomaly.pacs.node.listener`). The calling thread closes
batches, scores them (`anomaly.pacs.node.scoring_queue`) and sends results
(`anomaly.pacs.node.delivery`), one step at a time; each step is recorded when it is done
(`anomaly.pacs.node.spool`). A node that was killed resumes from the last recorded step. A batch is
an ordinary run (`anomaly.pipelines.score`) on a folder of scans.

A listening node stops only on a signal: failed steps are retried after increasing pauses. Only the
scoring of a batch is eventually given up, until the next start.

If a node is killed while sending, it may send a result a second time. UIDs of results are derived
from the scan and the bundle, so a destination stores each result once.

Research use only. Not a diagnosis.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from anomaly.config import Config, check, read_keys
from anomaly.data.readers.isolation import Workers
from anomaly.data.table.gate import Gate
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.errors import AnomalyError, ConfigError
from anomaly.files import make_results_folder
from anomaly.logs import Public
from anomaly.pacs.backoff import Backoff
from anomaly.pacs.client.destinations import Destination
from anomaly.pacs.node.batches import PASSING, Batch
from anomaly.pacs.node.delivery import Delivery
from anomaly.pacs.node.scoring_queue import BatchResult, ScoringQueue
from anomaly.pacs.node.spool import Spool
from anomaly.pacs.tls import listener_context
from anomaly.pipelines.dicom import DEFAULT_KINDS
from anomaly.pipelines.run import NOTICE, RunFolder, stop_on_interrupt
from anomaly.pipelines.score import choose_scans, score
from anomaly.reporting.dicom.objects import KINDS, Kind
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import copy_bundle, find_bundle
from anomaly.store.signatures import check_signature

if TYPE_CHECKING:
    from anomaly.pacs.node.listener import Listener

__all__ = ["BatchScorer", "NodeLoop", "NodeSettings", "Objects", "load_settings", "run_node"]

log = logging.getLogger(__name__)

TICK = 0.2
"""Seconds between two checks for work."""

Objects = Callable[[RunFolder, Config, Workers], list[Path]]
"""Writes the DICOM objects of a scored run with the given processes and returns their paths; must
write the same objects when called again."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NodeSettings:
    """A node, whole.

    Attributes
    ----------
    bundle : Path
        A folder, or the name of a shipped bundle.
    folder : Path
        What is received, and the runs; holds patients' data.
    signer : Path or None
        Public key of who must have signed the bundle, in PEM; None: anyone may have made it.
    ae_title : str
    host : str
        Address to listen on; the default is reached from this machine alone.
    port : int
        0 takes a free one.
    allowed : tuple of str
        AE titles that may call; empty: any.
    quiet_seconds : float
        A study is complete when nothing came for it for so long.
    max_instances : int
        Instances that may wait to be scored and sent; one more is refused.
    max_bytes : int
        Size of scans and results that may be held; more are refused.
    destination : str
        Where the results go; empty: they are kept in the folder, and so are the scans.
    max_frames : int
        Frames of an instance; one of more gets a row and no score, as other studies would wait.
    reserve_bytes : int
        Bytes of the disk that are left free, so that what has come can be scored and sent.
    certificate, key : Path or None
        For TLS, in PEM; None: in the clear.
    clients : Path or None
        Authorities whose clients may call, in PEM; None: anyone who reaches the port.
    calling : str
        AE title by which it calls a destination; empty: its own, `ae_title`.
    objects : tuple of str
        Kinds of DICOM objects to write (`anomaly.reporting.dicom.objects.KINDS`); of a scan that is
        not flagged, the report alone.
    alpha : float or None
        Stated false-alarm rate; None: the bundle's own.
    """

    bundle: Path
    folder: Path
    signer: Path | None = None
    ae_title: str = "ANOMALY"
    host: str = "127.0.0.1"
    port: int = 11112
    allowed: tuple[str, ...] = ()
    quiet_seconds: float = 10.0
    max_instances: int = 10_000
    max_bytes: int = 50_000_000_000
    max_frames: int = 1000
    reserve_bytes: int = 2_000_000_000
    certificate: Path | None = None
    key: Path | None = None
    clients: Path | None = None
    destination: str = ""
    calling: str = ""
    objects: tuple[Kind, ...] = DEFAULT_KINDS
    alpha: float | None = None

    def __post_init__(self) -> None:
        """Check that all values are valid."""
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}: expected 0 to 65535")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise ConfigError(f"alpha is {self.alpha}: expected a rate between 0 and 1, e.g. 0.05")
        wrong = [kind for kind in self.objects if kind not in KINDS]
        if wrong:
            raise ConfigError(f"objects holds {wrong[0]!r}: expected some of {', '.join(KINDS)}")
        for name in ("quiet_seconds", "max_instances", "max_bytes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected more than 0")
        Gate(max_frames=self.max_frames)
        if self.reserve_bytes < 0:
            raise ConfigError(f"reserve_bytes is {self.reserve_bytes}: expected 0 or more")


def load_settings(path: Path) -> NodeSettings:
    """Read the YAML file of a node.

    Raises
    ------
    ConfigError
        The file is missing or is not YAML, a key is unknown, or a value is invalid.
    """
    return check(read_keys(path), NodeSettings)


def run_node(
    settings: NodeSettings,
    device: torch.device,
    *,
    objects: Objects,
    destination: Destination | None = None,
) -> None:
    """Receive, score and send until SIGTERM or SIGINT; the current batch is finished first.

    Parameters
    ----------
    settings : NodeSettings
    device : torch.device
    objects : callable
        Writes the objects of each run.
    destination : Destination, optional
        The destination named by ``settings.destination``.

    Raises
    ------
    AnomalyError
        The bundle is damaged, or not calibrated as the settings require; the node cannot listen on
        the address; or the folder is used by another node, or accessible to other users.
    """
    if bool(settings.destination) != (destination is not None):
        raise ConfigError(
            f"destination is {settings.destination!r}: expected one that this version can reach, "
            "or an empty one, to keep the results in the folder"
        )
    bundle = _fit_bundle(settings)
    # Warnings of other libraries may quote a scan; as log lines they are suppressed.
    logging.captureWarnings(True)
    settings.folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        Spool(
            settings.folder,
            max_instances=settings.max_instances,
            max_bytes=settings.max_bytes,
            reserve=settings.reserve_bytes,
        ) as spool,
        stop_on_interrupt() as stop,
        Workers(1, bundle.config.data.seconds) as processes,
    ):
        scorer = BatchScorer(settings, device, objects, processes)
        loop = NodeLoop(spool, scorer, destination, settings.quiet_seconds)
        with _listener(spool, settings) as listener:
            log.info("listening on port %d; %d instances wait", listener.port, spool.waiting)
            log.info("%s", Public(NOTICE))
            while not stop():
                if not loop.step():
                    time.sleep(TICK)
        log.info("stopped; %d instances wait", spool.waiting)


def _fit_bundle(settings: NodeSettings) -> Bundle:
    """Read the bundle and check that it supports the settings, before any scan arrives."""
    if settings.signer is not None:
        check_signature(find_bundle(settings.bundle), settings.signer)
    bundle = read_bundle(find_bundle(settings.bundle))
    if settings.objects:
        bundle.calibration()
    if bundle.calibrated is not None:
        alpha = bundle.calibrated.alpha if settings.alpha is None else settings.alpha
        bundle.calibrated.scores.threshold(alpha)
        bundle.calibrated.peaks.threshold(alpha)
    return bundle


def _listener(spool: Spool, settings: NodeSettings) -> Listener:
    try:
        from anomaly.pacs.node.listener import Listener
    except ImportError as error:
        raise AnomalyError(
            "a node needs pynetdicom, which is not installed: pip install pynetdicom"
        ) from error
    tls = listener_context(settings.certificate, settings.key, settings.clients)
    if settings.host not in ("127.0.0.1", "::1", "localhost") and settings.clients is None:
        log.warning(
            "other machines can reach this node, and an AE title proves nothing: see `clients`"
        )
    return Listener(
        spool,
        ae_title=settings.ae_title,
        host=settings.host,
        port=settings.port,
        allowed=settings.allowed,
        tls=tls,
    )


class NodeLoop:
    """Processing of received instances, one step at a time.

    Parameters
    ----------
    spool : Spool
    score : callable
        Scores a batch.
    destination : Destination or None
        None keeps the results in the folder.
    quiet_seconds : float
        See `NodeSettings`.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        spool: Spool,
        score: Callable[[Batch], BatchResult],
        destination: Destination | None,
        quiet_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spool = spool
        self._quiet = quiet_seconds
        self._queue = ScoringQueue(spool, score, clock)
        self._delivery = Delivery(spool, destination, clock)
        self._backoff = Backoff(clock)
        self._refused = 0

    def step(self) -> bool:
        """Do the next step; return whether there was one and it succeeded."""
        if not self._backoff.is_over:
            return False
        try:
            done = self._step()
        except Exception as error:  # the disk may be full or offline, and may recover
            log.warning(
                "the folder of the node cannot be used (%s); again in %g s",
                Public(type(error).__name__),
                self._backoff.begin(),
            )
            return False
        self._backoff.reset()
        return done

    def _step(self) -> bool:
        refused = self._spool.refused.total()
        if refused > self._refused:
            log.warning("%d instances refused since the start", refused)
            self._refused = refused
        closed = self._spool.close_quiet(self._quiet)
        return any([closed, self._queue.score_next(), self._delivery.send_next()])


class BatchScorer:
    """Scores a batch as `anomaly score` scores a folder, in a separate run per batch.

    Parameters
    ----------
    settings : NodeSettings
    device : torch.device
    objects : callable
        Writes the objects of each run.
    processes : Workers
        Worker processes for decoding; they are reused, because starting one takes seconds.
    """

    def __init__(
        self, settings: NodeSettings, device: torch.device, objects: Objects, processes: Workers
    ) -> None:
        self._folder = settings.folder
        self._overrides = [f"gate.max_frames={settings.max_frames}"]
        if settings.alpha is not None:
            self._overrides.append(f"alpha={settings.alpha!r}")
        self._device = device
        self._objects = objects if settings.objects else None
        self._processes = processes
        self._bundle = _own_copy(find_bundle(settings.bundle), settings.folder)
        self._site_key = settings.folder / "site.key"
        load_site_key(self._site_key)  # shared by all runs, so that a study has one pseudonym

    def __call__(self, batch: Batch) -> BatchResult:
        """Score a batch, or resume one whose process was killed."""
        run = RunFolder(batch.folder / "run")
        if run.path.exists():
            try:
                return self._score(run, batch)
            except Exception as error:
                # A killed process may leave files truncated at any byte.
                log.info(
                    "begun anew: what is there is of no use (%s)", Public(type(error).__name__)
                )
                shutil.rmtree(run.path)
        return self._score(run, batch)

    def _score(self, run: RunFolder, batch: Batch) -> BatchResult:
        self._furnish(run)
        decode = self._processes
        inputs = choose_scans(run, batch.scans, self._bundle, self._overrides, decode)
        score(run, inputs, self._device, processes=decode)
        objects = self._objects(run, inputs.config, decode) if self._objects else []
        return BatchResult(_outcomes(run, inputs.manifest), objects)

    def _furnish(self, run: RunFolder) -> None:
        """Link the node's site key and bundle into a run, instead of a new key and a copy."""
        make_results_folder(run.path, mode=0o700)
        if not run.site_key.exists():
            run.site_key.hardlink_to(self._site_key)
        run.bundle.unlink(missing_ok=True)
        run.bundle.symlink_to(Path("../../..") / self._bundle.relative_to(self._folder))


def _own_copy(bundle: Path, folder: Path) -> Path:
    """Copy the bundle into the node's folder, so that an update does not change past batches."""
    copies = folder / "bundles"
    copy = copies / read_bundle(bundle).hash[:16]
    if not copy.exists():
        copies.mkdir(exist_ok=True)
        copy_bundle(bundle, copy)
    return copy


def _outcomes(run: RunFolder, manifest: Manifest) -> dict[str, str]:
    """Name of each file -> ``"scored"`` if any of its frames was, or the reason why none was.

    Of several reasons, one that may be temporary is preferred, because it keeps the file.
    """
    rows, _ = run.results.read()
    reasons = {row.key: row.reason for row in rows}
    outcomes: dict[str, str] = {}
    for row in manifest.rows:
        outcome = reasons[row.key] or "scored"
        before = outcomes.get(row.path)
        if before != "scored" and (outcome == "scored" or before not in PASSING):
            outcomes[row.path] = outcome
    return outcomes
