"""score: scans and a bundle -> scores, p-values, flags, evidence maps."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.bundle import Bundle, read_bundle
from anomaly.config import Config, dump, override
from anomaly.data.loaders import NetworkImage, read_network_images
from anomaly.data.manifest import Manifest, ManifestRow
from anomaly.detection.features import observe, reported_names
from anomaly.detection.heatmap import find_regions
from anomaly.detection.scoring import score_observation
from anomaly.errors import ConfigError, ScanError, UnsupportedScan
from anomaly.results import ScoreRow, export_csv, write_evidence, write_scores
from pipelines.prepare import scan_folder
from pipelines.run import RunFolder, progress_bar
from pipelines.train import run_config

__all__ = ["ScoredScan", "choose_scans", "score", "score_rows"]

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
    run: RunFolder, config: Config, bundle_folder: Path, manifest: Manifest, device: torch.device
) -> list[ScoreRow]:
    """Score every row of the test split, or every row where there are no splits.

    Rows that `prepare` skipped, and scans that fail now, get a row with the reason.
    """
    bundle = read_bundle(bundle_folder)
    # A skipped file is in no split; it is reported with the scans to be scored.
    skipped = [
        ScoreRow(row.key, "not scored", reason=row.reason)
        for row in manifest.select(status="skipped")
    ]
    has_splits = any(row.split for row in manifest.rows)
    rows = manifest.select(split="test") if has_splits else manifest.select()
    results = []
    for item in score_rows(bundle, manifest.root, rows, device, "scoring"):
        if isinstance(item, ScoredScan):
            write_evidence(run.evidence, item.source.row.key, item.evidence)
            results.append(_result(item, bundle, config.alpha))
        else:
            row, error = item
            results.append(ScoreRow(row.key, "not scored", reason=error.reason, view=row.view))
    results.extend(skipped)
    provenance = {
        "bundle": bundle.hash,
        "config": config.hash,
        "manifest": manifest.hash,
        "alpha": repr(config.alpha),
    }
    write_scores(run.scores, results, provenance)
    export_csv(run.scores.with_suffix(".csv"), results)
    _say(results, config.alpha, bundle)
    run.record("score", {**provenance, "scans": len(results)})
    return results


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
    manifest = scan_folder(run, config)
    run.config.write_text(dump(config), encoding="utf-8")
    manifest.write(run.manifest)
    if bundle_folder.resolve() != run.bundle.resolve():
        # The page needs it beside the scores; a copy keeps its hash, whatever version wrote it.
        shutil.copytree(bundle_folder, run.bundle, dirs_exist_ok=True)
    return config, manifest


def score_rows(
    bundle: Bundle, root: Path, rows: Sequence[ManifestRow], device: torch.device, what: str
) -> Iterator[ScoredScan | tuple[ManifestRow, ScanError]]:
    """Score scans in order, in batches; a scan that cannot be read comes as (row, error)."""
    config = bundle.config
    network = bundle.network.to(device)
    scans = read_network_images(root, rows, config.intensity, config.preprocessing)
    bar = progress_bar(len(rows), what, "scan")
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
    bar.close()


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


def _say(results: Sequence[ScoreRow], alpha: float, bundle: Bundle) -> None:
    scored = [row for row in results if row.status == "scored"]
    log.info("%d scans scored", len(scored))
    if bundle.calibrated is None:
        log.warning("the bundle is not calibrated: scores only, no p-values and no flags")
    else:
        flagged = sum(bool(row.flagged) for row in scored)
        log.info(
            "%d flagged at alpha = %g; %.1f would be expected if all were normal",
            flagged,
            alpha,
            alpha * len(scored),
        )
    for reason, count in Counter(r.reason for r in results if r.status != "scored").most_common():
        log.info("%d not scored: %s", count, reason)
