"""score: scans and a bundle -> scores, p-values, flags, evidence maps.

One process scores an archive shard by shard; several do the same on a shared folder and never
meet (`pipelines.leases`). A run that is killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import anomaly
from anomaly.bundle import Bundle, read_bundle
from anomaly.config import Config, dump, load_config, override
from anomaly.data.loaders import NetworkImage, read_network_images
from anomaly.data.manifest import Manifest, ManifestRow, load_site_key, pseudonym
from anomaly.detection.features import observe, reported_names
from anomaly.detection.heatmap import find_regions
from anomaly.detection.scoring import score_observation
from anomaly.errors import (
    AnomalyError,
    ConfigError,
    ManifestError,
    ScanError,
    UnsupportedScan,
)
from anomaly.results import Provenance, Results, ScoreRow
from pipelines.leases import Leases
from pipelines.prepare import scan_folder
from pipelines.run import RunFolder, progress_bar
from pipelines.shards import Shard, Turn, cut
from pipelines.train import run_config

__all__ = ["ScoredScan", "choose_scans", "score", "score_rows", "score_shard"]

log = logging.getLogger(__name__)

BATCH = 32


@dataclass(frozen=True)
class ScoredScan:
    """A scan with what the detector says of it, before any decision.

    Attributes
    ----------
    source : NetworkImage
    score : float
    features : dict of str to float
    evidence : ndarray (size, size) float32, in the network's frame
    source_evidence : ndarray (H, W) float32, on the source's pixels
    """

    source: NetworkImage
    score: float
    features: dict[str, float]
    evidence: NDArray[np.float32]
    source_evidence: NDArray[np.float32]

    @property
    def peak(self) -> float:
        """Largest evidence on the source's own pixels; padding does not count."""
        return float(self.source_evidence.max())


def score(
    run: RunFolder,
    config: Config,
    bundle_folder: Path,
    manifest: Manifest,
    device: torch.device,
    *,
    turn: Turn | None = None,
    leases: Leases | None = None,
) -> Results:
    """Score every row of the test split, or every row where there are no splits.

    Rows that `prepare` skipped, and scans that fail now, get a row with the reason. Work is done
    shard by shard; any number of processes may do it on one folder. What is done stays done.

    Parameters
    ----------
    run : RunFolder
    config : Config
    bundle_folder : Path
    manifest : Manifest
    device : device
    turn : Turn, optional
        Shards to begin with; default: as torchrun or SLURM says.
    leases : Leases, optional

    Returns
    -------
    Results
        Complete, unless the turn is only for some shards and others are not done yet.

    Raises
    ------
    AnomalyError
        If another run is writing its results here, the archive is gone, or the disk is full.
    """
    bundle = read_bundle(bundle_folder)
    turn, leases = turn or Turn.of_environment(os.environ), leases or Leases()
    shards = cut(_wanted(manifest), config.results.shard)
    if not shards:
        raise ManifestError(f"{run.manifest} lists no scan to score: prepare a folder of scans")
    inputs = hashlib.sha256("".join(shard.inputs for shard in shards).encode()).hexdigest()
    job = _Job(run, config, bundle, manifest, device, leases, inputs, len(shards))
    job.join()
    todo = turn.order(shards)
    with progress_bar(sum(len(shard.rows) for shard in todo), "scoring", "scan") as bar:
        while todo:
            left = [shard for shard in todo if not job.do(shard, bar)]
            if len(left) == len(todo):
                bar.set_postfix_str("waiting for shards that others hold")
                time.sleep(leases.beat)
            todo = left
    job.finish()
    return run.results


def _wanted(manifest: Manifest) -> list[ManifestRow]:
    # A skipped file is in no split; it is reported with the scans to be scored.
    has_splits = any(row.split for row in manifest.rows)
    rows = manifest.select(split="test") if has_splits else manifest.select()
    return [*rows, *manifest.select(status="skipped")]


@dataclass(frozen=True)
class _Job:
    """What one process does with every shard."""

    run: RunFolder
    config: Config
    bundle: Bundle
    manifest: Manifest
    device: torch.device
    leases: Leases
    inputs: str
    parts: int

    @cached_property
    def provenance(self) -> Provenance:
        """What these results are made of."""
        config, versions = self.config, {"anomaly": anomaly.__version__}
        versions["torch"] = torch.__version__.split("+")[0]
        depends = f"{config.alpha!r} {config.results!r} {self.device.type}"
        return Provenance(
            bundle=self.bundle.hash,
            manifest=self.manifest.hash,
            inputs=self.inputs,
            settings=hashlib.sha256(depends.encode()).hexdigest(),
            alpha=config.alpha,
            parts=self.parts,
            versions=versions,
        )

    def join(self) -> None:
        """Begin new results, or go on with these; refuse to disturb others that are being made."""
        results, wanted = self.run.results, self.provenance
        try:
            current = results.provenance()
        except AnomalyError:
            results.begin(wanted)
            return
        if current == wanted:
            return
        if any(self.leases.is_held(path) for path in results.folder.glob("*.lease")):
            raise AnomalyError(
                f"another run is scoring into {results.folder} with bundle {current.bundle[:12]} "
                f"at alpha = {current.alpha:g}, this one with {wanted.bundle[:12]} at "
                f"{wanted.alpha:g}: name a new folder, or wait until it is done"
            )
        results.begin(wanted)

    def do(self, shard: Shard, bar: tqdm[NoReturn]) -> bool:
        """Score a shard unless somebody holds it; True when its part is there."""
        results = self.run.results
        if results.is_done(shard.index, self.provenance):
            bar.update(len(shard.rows))
            return True
        lease = self.leases.claim(results.lease(shard.index))
        if lease is None:
            return False
        with lease:
            if results.is_done(shard.index, self.provenance):
                bar.update(len(shard.rows))  # between the look and the lease
                return True
            site_key = load_site_key(self.run.site_key)
            rows, maps = score_shard(
                self.bundle, self.config, self.manifest, shard, self.device, site_key, bar
            )
            self._write(shard, rows, maps)
        return True

    def _write(
        self, shard: Shard, rows: list[ScoreRow], maps: dict[str, NDArray[np.float32]]
    ) -> None:
        results = self.run.results
        if results.provenance() != self.provenance:
            raise AnomalyError(
                f"another run has begun to score into {results.folder} with another bundle, table "
                "of scans or alpha: name a new folder for one of them"
            )
        try:
            results.write(shard.index, rows, maps, self.provenance)
        except AnomalyError:
            # Who took this lease over has written it, and what this process began was tidied away.
            if not results.is_done(shard.index, self.provenance):
                raise

    def finish(self) -> None:
        """Where all parts are there: tidy up, export and say what came out."""
        results = self.run.results
        done = len(results.done(self.provenance))
        if done < self.parts:
            log.info("%d of %d shards are done; the rest is others' turn", done, self.parts)
            return
        while (lease := self.leases.claim(results.folder / "finish.lease")) is None:
            time.sleep(self.leases.beat)
        with lease:
            first = not results.is_finished(self.provenance)
            if first or not self.run.scores_csv.exists():
                results.finish(self.provenance, self.run.scores_csv)
            counts = _say(results, self.config.alpha, self.bundle)
            if first:
                self.run.record("score", {**asdict(self.provenance), **counts})


def score_shard(
    bundle: Bundle,
    config: Config,
    manifest: Manifest,
    shard: Shard,
    device: torch.device,
    site_key: bytes,
    bar: tqdm[NoReturn],
) -> tuple[list[ScoreRow], dict[str, NDArray[np.float32]]]:
    """Score one shard: its rows in order, and the evidence maps to keep, by key.

    Raises
    ------
    AnomalyError
        If no scan of the table is in the archive any more: it is not mounted, and rows that say
        "missing" would look like an answer.
    """
    root = manifest.root
    scored: list[ScoreRow] = []
    maps = {}
    readable = [source for source in shard.rows if source.status == "ok"]
    for item in score_rows(bundle, root, readable, device, bar):
        if isinstance(item, ScoredScan):
            row, source = _result(item, bundle, config.alpha), item.source.row
            if config.results.keeps_map(row.key, flagged=bool(row.flagged)):
                maps[row.key] = item.evidence
                row = replace(row, map_part=shard.index)
        else:
            source, error = item
            row = ScoreRow(source.key, "not scored", reason=error.reason, view=source.view)
        study, patient = (
            name and pseudonym(site_key, f"{kind} {name}")
            for kind, name in (("study", source.study), ("patient", source.patient))
        )
        scored.append(replace(row, study=study, patient=patient))
    lost = [source for source in readable if not os.path.exists(root / source.path)]  # noqa: PTH110
    # pathlib's own would let a mount that hangs half-way quote the path of a scan.
    if lost and not any(os.path.exists(root / r.path) for r in manifest.rows):  # noqa: PTH110
        raise AnomalyError(
            f"none of the {len(manifest.rows)} files of the table is in {root}: is the archive "
            "mounted? Nothing of this shard was written; run again when it is back"
        )
    bar.update(len(shard.rows) - len(readable))
    # In order, not by pseudonym: a copy of a scan has the one of the scan that it repeats.
    found = iter(scored)
    return [
        next(found)
        if source.status == "ok"
        else ScoreRow(source.key, "not scored", reason=source.reason)
        for source in shard.rows
    ], maps


def choose_scans(
    run: RunFolder, scans: Path | None, bundle_folder: Path, overrides: list[str]
) -> tuple[Config, Manifest]:
    """Return the run's own manifest, or one of a folder of new scans made as the bundle asks."""
    if scans is None:
        config = run_config(run, overrides)
        return config, Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    if run.manifest.exists() and any(row.split for row in Manifest.read(run.manifest).rows):
        raise ConfigError(
            f"{run.path} holds a prepared run, whose table of scans would be lost: name a new "
            f"folder for these scores, with --bundle {run.bundle}"
        )
    bundle = read_bundle(bundle_folder)
    data = replace(
        bundle.config.data, root=scans, labels={bundle.config.data.normal: []}, masks=None
    )
    config = replace(bundle.config, data=replace(data, patient_pattern=None))
    config = override(config, overrides)
    run.path.mkdir(parents=True, exist_ok=True)
    if _is_begun(run, scans):
        log.info("going on with the list of scans that %s holds", run.path)
        manifest = Manifest.read(run.manifest, scans)
    else:
        manifest = scan_folder(run, config)
        manifest.write(run.manifest)
    run.config.write_text(dump(config), encoding="utf-8")
    if not run.bundle.exists() or read_bundle(run.bundle).hash != bundle.hash:
        # The page needs it beside the scores; a copy keeps its hash, whatever version wrote it.
        shutil.copytree(bundle_folder, run.bundle, dirs_exist_ok=True)
    return config, manifest


def _is_begun(run: RunFolder, scans: Path) -> bool:
    """Whether scoring of just this folder was begun and is not finished."""
    if not run.manifest.exists() or not run.results.job.exists():
        return False
    same = load_config(run.config).data.root.resolve() == scans.resolve()
    return same and not run.results.is_finished(run.results.provenance())


def score_rows(
    bundle: Bundle,
    root: Path,
    rows: Sequence[ManifestRow],
    device: torch.device,
    bar: tqdm[NoReturn],
) -> Iterator[ScoredScan | tuple[ManifestRow, ScanError]]:
    """Score scans in order, in batches; a scan that cannot be read comes as (row, error)."""
    config = bundle.config
    network = bundle.network.to(device)
    scans = read_network_images(root, rows, config.intensity, config.preprocessing)
    for group in _batches(scans):
        good = [item for item in group if isinstance(item, NetworkImage)]
        scored: Iterator[ScoredScan] = iter(())
        if good:
            images = torch.stack([item.image for item in good]).to(device)
            grey = config.preprocessing.grey_levels
            observed = observe(
                network,
                bundle.levels,
                images,
                config.features,
                grey_levels=grey,
                reference=bundle.reference,
            )
            said = score_observation(observed, config.features, bundle.detector, bundle.heatmap)
            names = reported_names(config.features)
            scored = (
                ScoredScan(
                    source,
                    float(said.scores[i]),
                    dict(zip(names, said.features[i].tolist(), strict=True)),
                    said.evidence[i],
                    source.frame.to_source(said.evidence[i]),
                )
                for i, source in enumerate(good)
            )
        for item in group:
            yield _finite(next(scored)) if isinstance(item, NetworkImage) else item
        bar.update(len(group))


def _finite(scan: ScoredScan) -> ScoredScan | tuple[ManifestRow, ScanError]:
    """Refuse a score that is no number: compared with a threshold it would pass for normal."""
    if np.isfinite(scan.score) and np.isfinite(scan.peak):
        return scan
    return scan.source.row, UnsupportedScan(
        "score not finite", f"the network gives {scan.score} for this scan: it is not judged"
    )


def _batches(
    items: Iterable[NetworkImage | tuple[ManifestRow, ScanError]],
) -> Iterator[list[NetworkImage | tuple[ManifestRow, ScanError]]]:
    iterator = iter(items)
    while group := list(islice(iterator, BATCH)):
        yield group


def _result(item: ScoredScan, bundle: Bundle, alpha: float) -> ScoreRow:
    row = item.source.row
    plain = ScoreRow(
        row.key,
        "scored",
        score=item.score,
        evidence_peak=item.peak,
        view=row.view,
        features=item.features,
    )
    if bundle.calibrated is None:
        return plain
    calibrated = bundle.calibrated
    regions = find_regions(
        item.source_evidence, calibrated.peaks.threshold(alpha), item.source.scan.spacing
    )
    p_value = float(calibrated.scores.p_values(np.array([item.score]))[0])
    return ScoreRow(
        **{
            **plain.__dict__,
            "p_value": p_value,
            "flagged": item.score >= calibrated.scores.threshold(alpha),
            "regions": len(regions),
        }
    )


def _say(results: Results, alpha: float, bundle: Bundle) -> dict[str, int]:
    """Say how many scans were scored, flagged and not scored, and why not."""
    count = "SELECT status, reason, coalesce(flagged, false) AS flagged, count(*) AS n FROM scores"
    groups = results.query(f"{count} GROUP BY ALL ORDER BY n DESC, reason").to_pylist()
    scored = sum(g["n"] for g in groups if g["status"] == "scored")
    flagged = sum(g["n"] for g in groups if g["flagged"])
    log.info("%d scans scored", scored)
    if bundle.calibrated is None:
        log.warning("the bundle is not calibrated: scores only, no p-values and no flags")
    else:
        log.info(
            "%d flagged at alpha = %g; %.1f would be expected if all were normal",
            flagged,
            alpha,
            alpha * scored,
        )
    failed = [g for g in groups if g["status"] != "scored"]
    for group in failed:
        log.info("%d not scored: %s", group["n"], group["reason"])
    return {"scored": scored, "flagged": flagged, "not_scored": sum(g["n"] for g in failed)}
