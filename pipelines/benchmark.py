"""benchmark: one labelled archive -> all published figures, in one command.

A benchmark consists of a *split* (`anomaly.evaluation.benchmark.splits`) and the tables of figures
computed from it. All methods are fitted on training and validation normals, and all thresholds come
from calibration normals. Labels of the test split, or of a published ``test`` folder, are used only
to count hits, never to choose anything.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly.cdm.encoder import EncoderSettings
from anomaly.config import Config, load_config, override
from anomaly.data.images.augmentation import RandomAugmentation
from anomaly.data.images.network_images import framed_images, network_images
from anomaly.data.synthetic.alterations import ALTERATIONS, Alteration
from anomaly.data.table.manifest import Manifest, ManifestRow, scan_marks
from anomaly.detection.baselines import default_baselines
from anomaly.errors import AnomalyError, CalibrationError, ConfigError
from anomaly.evaluation.benchmark.normals import Normals, fitted_normals
from anomaly.evaluation.benchmark.page import benchmark_page
from anomaly.evaluation.benchmark.robustness import (
    ALTERATION_SEED,
    false_alarm_table,
    lesion_tables,
    nuisance_table,
)
from anomaly.evaluation.benchmark.scans import Bench
from anomaly.evaluation.benchmark.sets import make_bench
from anomaly.evaluation.benchmark.splits import (
    PUBLISHED,
    published_config,
    published_labels,
    split_hash,
    split_rows,
    unfamiliar,
)
from anomaly.evaluation.benchmark.tables import baseline_table, cost, detector_table, feature_table
from anomaly.files import CONFIGS, strict_json, write_together, writing
from anomaly.logs import Public
from anomaly.pipelines.calibrate import calibrate
from anomaly.pipelines.prepare import prepare, scan_folder
from anomaly.pipelines.run import NOTICE, RunFolder
from anomaly.pipelines.train import train, trained_bundle
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import copy_bundle
from anomaly.training.detector_fit import ScanObserver
from anomaly.version import __version__

__all__ = ["SPLITS", "benchmark", "benchmark_config"]

log = logging.getLogger(__name__)

SPLITS: dict[str, str] = {
    "zhanglab": "ad0f25e523a16b215a2438e6220d6743826bb29eb746ed8a24b445242e38d5cc"
}
"""`split_hash` of archives by name: figures of another split cannot be compared."""

BASELINE_SEED = 0
BASELINE_BATCH = 16


def benchmark_config(
    name: str, data: Path, config: Path | None, bundle: Path | None, overrides: list[str]
) -> Config:
    """Return the configuration of a benchmark: its own, or the one stored in a bundle.

    Raises
    ------
    ConfigError
        There is no configuration of that name, both `config` and `bundle` are given, or an
        override contradicts the bundle.
    """
    if bundle is None:
        path = config or CONFIGS / f"{name}-64.yaml"
        if not path.is_file():
            known = sorted(p.stem.removesuffix("-64") for p in CONFIGS.glob("*-64.yaml"))
            raise ConfigError(
                f"{path} does not exist: expected a benchmark's name, one of {known}, or --config"
            )
        resolved = load_config(path, overrides)
        return replace(resolved, data=replace(resolved.data, root=data.absolute()))
    if config is not None:
        raise ConfigError(
            f"--config {config} and --bundle {bundle}: a bundle brings its own settings, give one"
        )
    source = read_bundle(bundle).config
    moved = replace(source, data=replace(source.data, root=data.absolute()))
    resolved = override(moved, overrides)
    same = replace(resolved, data=source.data, detector=source.detector, alpha=source.alpha)
    if same != source:
        raise ConfigError(
            f"--set {overrides}: with --bundle only data, detector and alpha can be set, as the "
            "network in it looks at scans in its own way"
        )
    return resolved


def benchmark(
    run: RunFolder,
    name: str,
    config: Config,
    device: torch.device,
    *,
    bundle_folder: Path | None = None,
    baseline_steps: int | None = None,
    alterations: Sequence[Alteration] = ALTERATIONS,
) -> dict[str, Any]:
    """Train or take a detector, compute all tables, write ``benchmark.json`` and ``benchmark.md``.

    Parameters
    ----------
    run : RunFolder
        Existing outputs with the same settings are reused; an interrupted training resumes.
    name : str
        Key of `SPLITS`; a different split causes a warning.
    config : Config
    device : torch.device
    bundle_folder : Path, optional
        Detector to evaluate; default: train one.
    baseline_steps : int, optional
        Training steps of each baseline network; default: ``training.steps``.
    alterations : sequence of Alteration
        Nuisances, gross errors and lesions to apply to held-out normals.

    Raises
    ------
    AnomalyError
        A step failed.
    CalibrationError
        The given bundle has seen a scan of the evaluation.
    """
    began = time.perf_counter()
    manifest = _prepared(run, config)
    identity = _identity(name, manifest)
    published = _published(run, config, manifest)
    if bundle_folder is None:
        bundle = _trained(run, config, manifest, device)
    else:
        bundle = _adopted_bundle(run, bundle_folder, config, manifest, published)
    normals = fitted_normals(bundle, manifest, config, device)
    bench = make_bench(normals.evaluator, manifest, published)
    steps = baseline_steps or config.training.steps
    tables = _tables(bench, normals, steps, alterations)
    result = {
        "notice": NOTICE,
        "name": name,
        "split_hash": identity,
        "known_split": SPLITS.get(name),
        "alpha": config.alpha,
        "chosen": normals.rule,
        "scans": _counts(bench, normals),
        **tables,
        "provenance": _provenance(bundle, config, manifest, device, steps),
        "seconds": time.perf_counter() - began,
    }
    text = benchmark_page(result)
    with writing(run.path / "benchmark.json"):
        write_together(
            {
                run.path / "benchmark.json": strict_json(result, indent=1).encode(),
                run.path / "benchmark.md": text.encode(),
            }
        )
    log.info("%s", Public(text))
    run.record("benchmark", {"split_hash": identity, "bundle_hash": bundle.hash}, [run.path])
    return result


# --- a detector -------------------------------------------------------------------------------


def _prepared(run: RunFolder, config: Config) -> Manifest:
    if not run.manifest.exists():
        log.info("reading the archive, splitting by patient")
        return prepare(run, config)
    known = load_config(run.need(run.config, "prepare"))
    if _scans_of(known) != _scans_of(config):
        raise ConfigError(
            f"{run.path} holds a run with other data settings: name a new folder with --out, or "
            "the same archive and labels as before"
        )
    log.info("the table of scans in the run is used again")
    return Manifest.read(run.manifest, config.data.root)


def _scans_of(config: Config) -> tuple[object, ...]:
    """Return the settings on which a manifest depends; the number of processes is not one."""
    return (
        replace(config.data, root=Path(), workers=0),
        config.intensity,
        config.gate,
    )


def _trained(run: RunFolder, config: Config, manifest: Manifest, device: torch.device) -> Bundle:
    bundle = trained_bundle(run, config, manifest)
    if bundle is None:
        log.info("training on normals")
        result = train(run, config, device)
        if not result.finished:
            raise AnomalyError(
                f"stopped at training step {result.step}: the same command resumes from there"
            )
        bundle = read_bundle(run.bundle)
    if bundle.calibrated is None or bundle.calibrated.manifest_hash != manifest.hash:
        bundle = calibrate(run, config, run.bundle, "calibration", device)
    return bundle


def _adopted_bundle(
    run: RunFolder,
    folder: Path,
    config: Config,
    manifest: Manifest,
    published: tuple[ManifestRow, ...],
) -> Bundle:
    bundle = read_bundle(folder)
    calibration = split_rows(manifest, "calibration")  # the benchmark recalibrates on these scans
    measured = [*split_rows(manifest, "test"), *published]
    held_out = [*calibration, *measured]
    seen = [row for row in calibration if not scan_marks(row).isdisjoint(bundle.seen)]
    seen += [row for row in measured if bundle.has_seen(row)]
    if seen:
        raise CalibrationError(
            f"{len(seen)} of {len(held_out)} held-out scans were used to train or calibrate the "
            f"detector in {folder} (the first is {seen[0].key}): figures on them would flatter it. "
            "Benchmark it on scans that it has not seen"
        )
    if folder.resolve() != run.bundle.resolve():
        copy_bundle(folder, run.bundle)
    return bundle


# --- scans of the evaluation ------------------------------------------------------------------


def _identity(name: str, manifest: Manifest) -> str:
    split = split_hash(manifest)
    log.info("split %s", Public(split))
    expected = SPLITS.get(name)
    if expected not in (None, split):
        log.warning(
            "this is not the split of the benchmark %r (%s...): its figures are of other scans, "
            "and cannot be compared with published ones",
            Public(name),
            Public(str(expected)[:12]),
        )
    return split


def _published(run: RunFolder, config: Config, manifest: Manifest) -> tuple[ManifestRow, ...]:
    """Rows of the archive's published test set; empty if the configuration's labels cover them."""
    labels = published_labels(config)
    named = [row for row in manifest.select() if row.path.startswith(f"{PUBLISHED}/")]
    if not labels or any(row.label for row in named):
        return ()
    log.info("reading the published test set")
    rows = [row for row in scan_folder(run, published_config(config)).select() if row.label]
    rows = unfamiliar(rows, manifest)
    classes = {row.label for row in rows}
    if len(classes) < 2 or config.data.normal not in classes:
        log.warning(
            "the published test set holds %d classes of usable scans: expected normal and abnormal "
            "scans in folders of their own; left out",
            len(classes),
        )
        return ()
    return tuple(rows)


# --- the tables -------------------------------------------------------------------------------


def _tables(
    bench: Bench, normals: Normals, steps: int, alterations: Sequence[Alteration]
) -> dict[str, Any]:
    evaluator = normals.evaluator
    detectors = detector_table(bench, normals)
    features = feature_table(bench, normals)
    settings = evaluator.observer.config.network
    trunk = settings if isinstance(settings, EncoderSettings) else EncoderSettings()
    every = default_baselines(
        evaluator.bundle.levels, trunk, steps=steps, batch_size=BASELINE_BATCH
    )
    train, validation = _baseline_images(evaluator.observer, normals)
    baselines, fitted = baseline_table(bench, every, train, validation, BASELINE_SEED)
    nuisances, scores = nuisance_table(
        bench, evaluator, [a for a in alterations if a.family == "nuisance"]
    )
    changes, places = lesion_tables(
        bench, evaluator, [a for a in alterations if a.family != "nuisance"], fitted
    )
    return {
        "detectors": detectors,
        "features": features,
        "baselines": baselines,
        "nuisances": nuisances,
        "alterations": changes,
        "localisation": places,
        "false_alarm_law": false_alarm_table(bench, evaluator, scores),
        "cost": cost(bench, evaluator),
    }


def _baseline_images(observer: ScanObserver, normals: Normals) -> tuple[Tensor, Tensor]:
    """Training images with one augmented copy of each, and unaltered validation images."""
    config = observer.config
    framed = framed_images(observer.reader(), normals.train, config.data.workers)
    change = RandomAugmentation(config.augmentation, config.preprocessing)
    change.set_random_state(seed=BASELINE_SEED)
    copies = torch.stack([change(image) for image in framed])
    train = torch.cat([network_images(framed, config.preprocessing), copies])
    return train.to(observer.device), observer.images(normals.validation).images


def _counts(bench: Bench, normals: Normals) -> dict[str, int]:
    counts = {
        "train": len(normals.train),
        "validation": len(normals.validation),
        "fitted on, with copies": len(normals.scans),
        "calibration": len(bench.calibration.rows),
        "held-out normals": len(bench.held_out.rows),
    }
    for item in bench.sets:
        counts[f"{item.name}, normal"] = len(item.normal.rows)
        counts[f"{item.name}, abnormal"] = len(item.abnormal.rows)
    return counts


def _provenance(
    bundle: Bundle, config: Config, manifest: Manifest, device: torch.device, steps: int
) -> dict[str, Any]:
    """Hashes, seeds, versions and hardware of the benchmark, without paths or the host name."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {
        "config": config.hash,
        "bundle": bundle.hash,
        "manifest": manifest.hash,
        "split": split_hash(manifest),
        "seeds": {
            "split": config.data.seed,
            "training": config.training.seed,
            "features": config.features.seed,
            "detector": config.detector.seed,
            "alterations": ALTERATION_SEED,
            "baselines": BASELINE_SEED,
        },
        "baseline_steps": steps,
        "versions": {
            "anomaly": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")},
        },
        "machine": {
            "cores": os.cpu_count(),
            "device": processor,
            "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
    }
