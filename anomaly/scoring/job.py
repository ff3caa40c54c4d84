"""A job: scoring the shards of one table of scans with one bundle into one results store.

Any number of processes can work on one job through a shared folder. Each process claims shards by
lease (`anomaly.scoring.leases`), scores them and writes one part per shard; complete parts are
never scored again. While one part is being written, the next shard is being scored.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from anomaly.config import Config
from anomaly.data.images.network_images import ImageReader
from anomaly.data.readers.isolation import Workers
from anomaly.data.readers.zips import file_of
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import AnomalyError, ConfigError, ManifestError, ScanError
from anomaly.logs import Public
from anomaly.regions import find_regions
from anomaly.scoring.leases import Lease, Leases
from anomaly.scoring.scorer import Outcome, Scorer
from anomaly.scoring.shard_results import shard_results
from anomaly.scoring.shards import Shard, cut
from anomaly.scoring.verdicts import on_source
from anomaly.store.bundle import Bundle
from anomaly.store.results import Provenance, Results, ScoreRow
from anomaly.version import __version__

__all__ = ["Job", "JobInputs", "check_same_grey", "rows_to_score"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobInputs:
    """The inputs of a job.

    Attributes
    ----------
    config : Config
        Configuration of the run.
    bundle : Bundle
    manifest : Manifest
        Table of scans.
    """

    config: Config
    bundle: Bundle
    manifest: Manifest


@dataclass(frozen=True)
class Job:
    """The scoring of shards in one process, which may share the job with others.

    Attributes
    ----------
    results : Results
        Store of the parts.
    site_key : bytes
        Secret key of the pseudonyms.
    config : Config
    bundle : Bundle
    manifest : Manifest
    shards : tuple of Shard
        All shards of the job.
    device : torch.device
    leases : Leases
    """

    results: Results
    site_key: bytes
    config: Config
    bundle: Bundle
    manifest: Manifest
    shards: tuple[Shard, ...]
    device: torch.device
    leases: Leases

    @classmethod
    def open(
        cls,
        results: Results,
        site_key: bytes,
        inputs: JobInputs,
        device: torch.device,
        leases: Leases | None = None,
    ) -> Job:
        """Cut the table of scans into shards, and start the results or continue existing ones.

        Raises
        ------
        ManifestError
            If there is nothing to score.
        AnomalyError
            If another run is writing its results to this folder.
        """
        config, bundle, manifest = inputs.config, inputs.bundle, inputs.manifest
        shards = tuple(cut(rows_to_score(manifest), config.results.shard))
        if not shards:
            raise ManifestError("the table of scans lists none to score: prepare a folder of scans")
        check_same_grey(config, bundle.config)
        leases = leases or Leases()
        job = cls(results, site_key, config, bundle, manifest, shards, device, leases)
        job._join()
        return job

    def workers(self) -> Workers:
        """Return the decoder processes, which read scans ahead of time."""
        data = self.config.data
        # On a CPU the network is the bottleneck: more decoders would only take cores from it.
        count = data.workers if self.device.type == "cuda" else min(data.workers, 1)
        return Workers(count, data.seconds)

    @cached_property
    def provenance(self) -> Provenance:
        """Provenance of the results of this job."""
        config, versions = self.config, {"anomaly": __version__}
        versions["torch"] = torch.__version__.split("+")[0]
        depends = f"{config.results!r} {config.intensity!r} {self.device.type}"
        inputs = "".join(shard.inputs for shard in self.shards)
        return Provenance(
            bundle=self.bundle.hash,
            manifest=self.manifest.hash,
            inputs=hashlib.sha256(inputs.encode()).hexdigest(),
            settings=hashlib.sha256(depends.encode()).hexdigest(),
            alpha=config.alpha,
            parts=len(self.shards),
            versions=versions,
        )

    def _join(self) -> None:
        """Start new results or continue existing ones; refuse if another run is scoring here."""
        results, provenance = self.results, self.provenance
        try:
            current = results.provenance()
        except AnomalyError:
            results.begin(provenance)
            return
        if current == provenance:
            return
        if any(self.leases.is_held(path) for path in results.folder.glob("*.lease")):
            raise AnomalyError(
                f"another run is scoring into {results.folder} with bundle {current.bundle[:12]} "
                f"at alpha = {current.alpha:g}, this one with {provenance.bundle[:12]} at "
                f"{provenance.alpha:g}: name a new folder, or wait until it is done"
            )
        before = results.done(current)
        results.begin(provenance)
        if replace(current, alpha=provenance.alpha) == provenance:
            self._restate(before)

    def _restate(self, shards: Sequence[int]) -> None:
        """Compute the flags of finished shards at another alpha, from their p-values and maps.

        A shard that lacks a map needed for the new flags is left to be scored again.
        """
        restated = 0
        for index in shards:
            lease = self.leases.claim(self.results.lease(index))
            if lease is None:  # the holder scores or restates it
                continue
            with lease:
                if self.results.provenance() != self.provenance:
                    return  # another run has started, at yet another alpha
                if self.results.is_done(index, self.provenance):
                    continue
                if not self.results.is_intact(index):
                    continue  # it will be scored again
                rows = [self._at_alpha(row, source) for row, source in self._with_sources(index)]
                if all(row is not None for row in rows):
                    self.results.restate(index, [row for row in rows if row], self.provenance)
                    restated += 1
        if restated:
            log.info(
                "%d of %d finished shards are flagged anew at alpha = %g, from their p-values",
                restated,
                len(shards),
                self.config.alpha,
            )

    def _with_sources(self, index: int) -> Iterator[tuple[ScoreRow, ManifestRow]]:
        return zip(self.results.rows(index), self.shards[index].rows, strict=True)

    def _at_alpha(self, row: ScoreRow, source: ManifestRow) -> ScoreRow | None:
        """Return a row with flag and regions at the job's alpha; None if its map is missing."""
        calibrated, alpha = self.bundle.calibrated, self.config.alpha
        if calibrated is None or row.score is None or row.evidence_peak is None:
            return row
        flagged = row.score >= calibrated.scores.threshold(alpha)
        limit, regions = calibrated.peaks.threshold(alpha), 0
        if row.map_part is None:
            keeps_map = self.config.results.keeps_map(row.key, flagged=flagged)
            if keeps_map or row.evidence_peak >= limit:
                return None
        elif row.evidence_peak >= limit:
            try:
                kept = self.results.evidence(row)
            except ScanError:
                return None
            assert kept is not None
            shown = on_source(kept, source, self.bundle.config.preprocessing)
            regions = len(find_regions(shown, limit, None))
        return replace(row, flagged=flagged, regions=regions)

    def work(
        self, shards: Sequence[Shard], bar: tqdm[NoReturn], workers: Workers | None = None
    ) -> list[Shard]:
        """Score the shards that no other process holds; return the others.

        Parameters
        ----------
        shards : sequence of Shard
        bar : tqdm
            Progress bar, advanced by one per scan.
        workers : Workers, optional
            Decoder processes; the default decodes in the calling process.

        Raises
        ------
        AnomalyError
            If a part cannot be written, the archive is missing, or another run has started to score
            into this folder.
        """
        busy: list[Shard] = []
        claimed: dict[int, tuple[Shard, Lease]] = {}
        reader = ImageReader(
            self.manifest.root, self.config.intensity, self.bundle.config.preprocessing
        )
        try:
            with _Writer() as writer:
                scorer = Scorer(self.bundle, reader, self.device, workers or Workers(0))
                scored = scorer.score(self._claimed(shards, claimed, busy, bar))
                for index, outcomes in groupby(_counted(scored, bar), itemgetter(0)):
                    shard, lease = claimed[index]
                    # islice stops after the last row; reading on would start the next shard.
                    shard_outcomes = (outcome for _, outcome in islice(outcomes, len(shard.rows)))
                    rows, maps = shard_results(
                        shard, shard_outcomes, self.bundle, self.config, self.site_key
                    )
                    self._refuse_missing_archive(shard)
                    writer.submit(partial(self._write, shard, lease, rows, maps))
                    del claimed[index]
        finally:
            for _, lease in claimed.values():
                lease.release()
        return busy

    def _refuse_missing_archive(self, shard: Shard) -> None:
        """Refuse to write a shard if none of the scans of the table is in the archive any more.

        Then the archive is probably not mounted, and rows with the reason "missing" would look like
        results.
        """
        root = self.manifest.root
        readable = (source for source in shard.rows if source.status == "ok")
        if any(not _is_there(root, source) for source in readable) and not any(
            _is_there(root, row) for row in self.manifest.rows
        ):
            raise AnomalyError(
                f"none of the {len(self.manifest.rows)} files of the table is in {root}: is the "
                "archive mounted? Nothing of this shard was written; run again when it is back"
            )

    def _claimed(
        self,
        shards: Iterable[Shard],
        claimed: dict[int, tuple[Shard, Lease]],
        busy: list[Shard],
        bar: tqdm[NoReturn],
    ) -> Iterator[tuple[int, ManifestRow]]:
        """Rows of every shard that is neither done nor held by others; claims each shard."""
        for shard in shards:
            if self._is_done(shard, bar):
                continue
            lease = self.leases.claim(self.results.lease(shard.index))
            if lease is None:
                busy.append(shard)
            elif self._is_done(shard, bar):  # done by another process before the claim
                lease.release()
            else:
                claimed[shard.index] = (shard, lease)
                self.results.reopen()
                yield from ((shard.index, row) for row in shard.rows)

    def _is_done(self, shard: Shard, bar: tqdm[NoReturn]) -> bool:
        done = self.results.is_done(shard.index, self.provenance)
        if done and not self.results.is_intact(shard.index):
            log.warning(
                "%s is damaged: it is scored again", Public(self.results.part(shard.index).name)
            )
            return False
        if done:
            bar.update(len(shard.rows))
        return done

    def _write(
        self,
        shard: Shard,
        lease: Lease,
        rows: list[ScoreRow],
        maps: dict[str, NDArray[np.float32]],
    ) -> None:
        try:
            if self.results.provenance() != self.provenance:
                raise AnomalyError(
                    f"another run has begun to score into {self.results.folder} with another "
                    "bundle, table of scans or alpha: name a new folder for one of them"
                )
            self.results.write(shard.index, rows, maps, self.provenance)
        except AnomalyError:
            # If another process took over the lease and wrote the part, it may have removed the
            # temporary files of this process; then the failure does not matter.
            if not self.results.is_done(shard.index, self.provenance):
                raise
        finally:
            lease.release()


def check_same_grey(config: Config, learned: Config) -> None:
    """Check that scans are read and preprocessed as in training; `colour` may differ."""
    asked = replace(config.intensity, colour=learned.intensity.colour)
    pairs = (
        ("intensity", asdict(asked), asdict(learned.intensity)),
        ("preprocessing", asdict(config.preprocessing), asdict(learned.preprocessing)),
    )
    differ = [
        f"{section}.{name} is {here[name]}, there {there[name]}"
        for section, here, there in pairs
        for name in here
        if here[name] != there[name]
    ]
    if differ:
        raise ConfigError(
            "the run was prepared to look at scans in another way than the bundle was trained to "
            f"({'; '.join(differ)}): prepare a new run with the bundle's, by --set at `prepare`"
        )


def rows_to_score(manifest: Manifest) -> list[ManifestRow]:
    """Rows to score: the test split, or all rows if there are no splits, and skipped files."""
    # A skipped file is in no split; it is reported with the scored scans.
    has_splits = any(row.split for row in manifest.rows)
    rows = manifest.select(split="test") if has_splits else manifest.select()
    return [*rows, *manifest.select(status="skipped")]


def _is_there(root: Path, row: ManifestRow) -> bool:
    # Path.exists can raise an error that quotes the path of a scan if a mount fails half-way.
    return os.path.exists(file_of(root / row.path))  # noqa: PTH110


def _counted(
    scored: Iterable[tuple[int, Outcome]], bar: tqdm[NoReturn]
) -> Iterator[tuple[int, Outcome]]:
    for item in scored:
        yield item
        bar.update()


class _Writer:
    """A thread that writes parts while the next shard is scored; at most one part waits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._flight: deque[Future[None]] = deque()

    def __enter__(self) -> _Writer:
        return self

    def submit(self, write: Callable[[], None]) -> None:
        """Queue a write after the previous one is done; raise the exception of that one, if any."""
        while self._flight:
            self._flight.popleft().result()
        self._flight.append(self._thread.submit(write))

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        for future in self._flight:
            future.result()
