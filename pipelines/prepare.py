"""prepare: a folder of scans -> a table of scans, split by patient."""

from __future__ import annotations

import logging
from collections import Counter

from anomaly.config import Config, dump
from anomaly.data.archive import build_manifest
from anomaly.data.manifest import Manifest
from anomaly.data.processes import Workers
from anomaly.data.pseudonyms import load_site_key
from anomaly.data.splits import assign_splits
from anomaly.errors import ManifestError
from anomaly.logs import Public
from pipelines.run import RunFolder, progress_bar

__all__ = ["prepare", "scan_folder"]

log = logging.getLogger(__name__)


def prepare(run: RunFolder, config: Config) -> Manifest:
    """Read every scan once, deal the splits, write ``config.yaml`` and ``manifest.parquet``.

    Raises
    ------
    ManifestError
        If there is no usable normal scan.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    manifest = assign_splits(
        scan_folder(run, config),
        config.data.splits,
        normal_label=config.data.normal,
        seed=config.data.seed,
        allow_synthetic=config.data.allow_synthetic,
    )
    if not manifest.select(label=config.data.normal):
        raise ManifestError(
            f"no usable scan under {config.data.root} has the label {config.data.normal!r}: check "
            f"data.labels ({config.data.labels}) and the reasons above"
        )
    run.config.write_text(dump(config), encoding="utf-8")
    manifest.write(run.manifest)
    run.record("prepare", {"manifest_hash": manifest.hash, "config_hash": config.hash})
    return manifest


def scan_folder(run: RunFolder, config: Config, processes: Workers | None = None) -> Manifest:
    """Inspect ``config.data.root``; say what was found, and what was not used and why.

    Parameters
    ----------
    run : RunFolder
    config : Config
    processes : Workers, optional
        Processes that are there already.
    """
    exclude = [f"{config.data.masks}/*"] if config.data.masks else []
    with progress_bar(0, "reading scans", "file") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        manifest = build_manifest(
            config.data.root,
            labels=config.data.labels,
            sites=config.data.sites,
            exclude=exclude,
            patient_pattern=config.data.patient_pattern,
            policy=config.intensity,
            gate=config.gate,
            site_key=load_site_key(run.site_key),
            workers=config.data.workers,
            seconds=config.data.seconds,
            processes=processes,
            progress=progress,
        )
    policy = config.intensity
    if policy.window is None and policy.voi == "full":
        absolute = sum(row.modality in ("CT", "PT") for row in manifest.select())
        if absolute:
            log.warning(
                "%d CT or PET scans are read by the range of their stored bits: the same tissue "
                "may have another grey in another file. Train with intensity.window, in HU for CT",
                absolute,
            )
    reasons = Counter(row.reason for row in manifest.select(status="skipped"))
    log.info("%d scans can be used", len(manifest.select()))
    for reason, count in reasons.most_common():
        log.info("%d not used: %s", count, Public(reason))
    return manifest
