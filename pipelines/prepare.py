"""prepare: a folder of scans -> a table of scans, split by patient."""

from __future__ import annotations

import glob
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from anomaly.config import Config, load_config, write_config
from anomaly.data.images.transforms import Preprocessing
from anomaly.data.readers.isolation import Workers
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest, matches
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.data.table.splits import SPLITS, assign_splits
from anomaly.detection.calibration import allowed_rank
from anomaly.detection.detector import FEWEST_NORMALS
from anomaly.errors import CalibrationError, ConfigError, ManifestError
from anomaly.files import make_results_folder, writing
from anomaly.logs import Public
from anomaly.pipelines.context import WHERE_AND_HOW, changed_settings
from anomaly.pipelines.run import RunFolder
from anomaly.progress import progress_bar
from anomaly.scoring.leases import Leases
from anomaly.store.bundle import read_bundle

__all__ = ["mask_hash", "prepare", "scan_folder"]

log = logging.getLogger(__name__)


def prepare(run: RunFolder, config: Config) -> Manifest:
    """Read every scan once, assign splits, write ``config.yaml`` and ``manifest.parquet``.

    Raises
    ------
    ManifestError
        There is no usable normal scan.
    """
    if _made_later(run) and not run.site_key.exists():
        raise ManifestError(
            f"{run.path} holds results, and its site.key is gone: under a new one every scan would "
            "have another pseudonym. Restore it, or name a new folder"
        )
    config = replace(config, data=replace(config.data, root=config.data.root.absolute()))
    run.refuse_foreign()
    _refuse_within(run, config.data.root)
    _warn_of_missing_masks(config)
    make_results_folder(run.path)
    lease = Leases().claim(run.path / "training.lease")
    if lease is None:
        raise ConfigError(f"a training is at work in {run.path}: wait, or name a new folder")
    with lease:
        return _prepare(run, config)


def _prepare(run: RunFolder, config: Config) -> Manifest:
    listed = scan_folder(run, config, preprocessing=config.preprocessing)
    manifest = assign_splits(
        listed,
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
    listed_masks = (replace(row, mask=mask_hash(config, row)) for row in manifest.rows)
    manifest = replace(manifest, rows=tuple(listed_masks))
    _refuse_other_scans(run, manifest)
    _refuse_other_settings(run, config)
    write_config(run.config, config)
    with writing(run.manifest):
        manifest.write(run.manifest)
    _say_splits(manifest, config)
    run.record("prepare", {"manifest_hash": manifest.hash, "config_hash": config.hash})
    return manifest


def mask_hash(config: Config, scan: ManifestRow) -> str:
    """Hash of the file of a scan's lesion mask; empty if it has none."""
    if config.data.masks is None:
        return ""
    path = config.data.root / config.data.masks / f"{scan.path}.png"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _made_later(run: RunFolder) -> list[Path]:
    """Return the existing outputs of later stages, which depend on the table of scans."""
    return [path for path in (run.checkpoint, run.bundle, run.results.job) if path.exists()]


def _refuse_other_scans(run: RunFolder, manifest: Manifest) -> None:
    """Refuse to change the table of scans if later stages have used it."""
    later = _made_later(run)
    if not later or not run.manifest.exists():
        return
    try:
        known = Manifest.read(run.manifest)
    except ManifestError as error:
        if manifest.hash in _known_hashes(run):
            return  # a damaged table is restored with the same content
        raise ManifestError(
            f"{error} But {run.path} holds {later[0].name}, and these settings give another table "
            "of scans than it was made with: bring back a copy, or name a new folder"
        ) from error
    if known.hash != manifest.hash or {r.key for r in known.rows} != {r.key for r in manifest.rows}:
        raise ManifestError(
            f"{run.path} holds {later[0].name}, made with another table of scans than the one "
            "that these settings give: name a new folder, or remove that one"
        )


def _known_hashes(run: RunFolder) -> set[str]:
    """Hashes of the table of scans that later stages have recorded."""
    hashes: set[str] = set()
    if run.bundle.exists():
        bundle = read_bundle(run.bundle)
        hashes.add(bundle.manifest_hash)
        if bundle.calibrated is not None:
            hashes.add(bundle.calibrated.manifest_hash)
    if run.results.job.exists():
        hashes.add(run.results.provenance().manifest)
    return hashes


def _refuse_other_settings(run: RunFolder, config: Config) -> None:
    """Refuse settings that differ from those that later stages have used."""
    later = _made_later(run)
    if not later or not run.config.exists():
        return
    differ = changed_settings(load_config(run.config), config)
    if differ := [name for name in differ if name not in WHERE_AND_HOW]:
        raise ConfigError(
            f"{run.path} holds {later[0].name}, made with other settings than these "
            f"({', '.join(differ)} differ): name a new folder, or remove that one"
        )


def _refuse_within(run: RunFolder, root: Path) -> None:
    """Refuse a run folder that is also the folder of scans."""
    if run.path.resolve() == root.resolve():
        raise ConfigError(
            f"{run.path} is the folder of scans: results in it would be taken for some. Name a new "
            "folder for the run"
        )


def _warn_of_missing_masks(config: Config) -> None:
    masks = config.data.masks
    if masks is not None and config.data.root.is_dir() and not (config.data.root / masks).is_dir():
        log.warning(
            "data.masks is %s, and the scans have no such folder: masks of another name would be "
            "listed as scans",
            Public(masks),
        )


def _say_splits(manifest: Manifest, config: Config) -> None:
    """Log how many scans and patients of each label are in each split, with warnings."""
    rows = manifest.select()
    log.info("%-24s %12s %12s", Public("label, split"), Public("scans"), Public("patients"))
    for label in sorted({row.label for row in rows}):
        for split in SPLITS:
            cell = [row for row in rows if (row.label, row.split) == (label, split)]
            if cell:
                log.info(
                    "%-24s %12d %12d",
                    Public(f"{label or '(none)'}, {split}"),
                    len(cell),
                    len({row.patient for row in cell}),
                )
    unlabelled = sum(not row.label for row in rows)
    if unlabelled:
        log.warning(
            "%d scans have no label: no pattern of data.labels matches them. They are in the test "
            "split and count in no figure",
            unlabelled,
        )
    alone = sum(row.patient.startswith("file:") for row in rows)
    if alone:
        log.warning(
            "%d scans name no patient, and each counts as one of its own: where a patient may have "
            "two files, give data.patient_pattern, or one may be trained on and the other tested",
            alone,
        )
    _warn_of_few_normals(
        Counter(row.split for row in rows if row.label == config.data.normal), config
    )


def _warn_of_few_normals(normals: Mapping[str, int], config: Config) -> None:
    """Warn of splits with too few normal scans for their purpose."""
    for split in ("train", "validation"):
        if not normals[split]:
            log.warning(
                "the %s split holds no normal scan, and training needs some: add scans, or raise "
                "data.splits.%s",
                Public(split),
                Public(split),
            )
    fitted = sum(normals[split] for split in config.detector.fit_on)
    if fitted < FEWEST_NORMALS:
        log.warning(
            "the detector is fitted on %d normal scans (%s), and needs %d: add scans, or raise "
            "data.splits",
            fitted,
            Public(" and ".join(config.detector.fit_on)),
            FEWEST_NORMALS,
        )
    try:
        allowed_rank(normals["calibration"], config.alpha)
    except CalibrationError as error:
        log.warning("%s (data.splits.calibration)", Public(str(error)))


def _idle_patterns(manifest: Manifest, config: Config) -> Iterator[tuple[str, list[str]]]:
    """Label and site patterns without effect: no file matches, or earlier patterns match it."""
    paths = [row.path for row in manifest.rows if row.reason != "own results"]
    for section, named in (("labels", config.data.labels), ("sites", config.data.sites)):
        left = paths
        for name, patterns in named.items():
            idle = []
            for pattern in patterns:
                still = [path for path in left if not matches(path, [pattern])]
                if len(still) == len(left):
                    idle.append(pattern)
                left = still
            if idle:
                yield f"data.{section}.{name}", idle


def scan_folder(
    run: RunFolder,
    config: Config,
    processes: Workers | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> Manifest:
    """Build the manifest of ``config.data.root``; log how many scans are used, and why others not.

    Parameters
    ----------
    run : RunFolder
    config : Config
    processes : Workers, optional
        Existing worker processes.
    preprocessing : Preprocessing, optional
        Also skip scans that cannot be converted to a network image; see
        `anomaly.data.table.inspection.Inspection`.
    """
    exclude = [f"{glob.escape(config.data.masks)}/*"] if config.data.masks else []
    names = PathNames(config.data.labels, config.data.sites, exclude)
    inspection = Inspection(
        config.data.root,
        config.intensity,
        load_site_key(run.site_key),
        patient_pattern=config.data.patient_pattern,
        gate=config.gate,
        preprocessing=preprocessing,
    )
    with progress_bar(0, "reading scans", "file") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with Workers(config.data.workers, config.data.seconds) as own:
            manifest = build_manifest(
                inspection, names, processes=processes or own, progress=progress
            )
    for what, patterns in _idle_patterns(manifest, config):
        log.warning(
            "%s: no file matches %s that no pattern before it does",
            Public(what),
            Public(", ".join(patterns)),
        )
    _warn_of_stored_ranges(manifest, config)
    reasons = Counter(row.reason for row in manifest.select(status="skipped"))
    log.info("%d scans can be used", len(manifest.select()))
    for reason, count in reasons.most_common():
        log.info("%d not used: %s", count, Public(reason))
    return manifest


def _warn_of_stored_ranges(manifest: Manifest, config: Config) -> None:
    """Warn if the same tissue may have different grey values in different files."""
    policy = config.intensity
    if policy.window is None and policy.voi == "full":
        absolute = sum(row.modality in ("CT", "PT") for row in manifest.select())
        if absolute:
            log.warning(
                "%d CT or PET scans are read by the range of their stored bits: the same tissue "
                "may have another grey in another file. Train with intensity.window, in HU for CT",
                absolute,
            )
