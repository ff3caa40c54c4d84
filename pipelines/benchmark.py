"""benchmark: one labelled archive -> every figure that is claimed of it, in one command.

A benchmark is a pair of a *split* and a table of figures computed from it. The split is named by
its own hash, over content, frame, split and label of every labelled scan: two tables may be
compared where their split hashes are equal. Everything is fitted on training and validation
normals, every threshold comes from calibration normals, and labels of the test split, or of a
published ``test`` folder beside it, count hits and choose nothing.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly.cdm.network import EncoderSettings
from anomaly.config import Config, load_config, override
from anomaly.data.images.augmentation import RandomAugmentation
from anomaly.data.images.network_images import framed_images, network_images
from anomaly.data.synthetic.alterations import ALTERATIONS, Alteration
from anomaly.data.table.manifest import Manifest, ManifestRow, scan_marks
from anomaly.detection.baselines import default_baselines
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.kinds import (
    KindSettings,
)
from anomaly.detection.scoring import FeatureTable, normal_table
from anomaly.errors import AnomalyError, CalibrationError, ConfigError, ManifestError
from anomaly.files import CONFIGS, strict_json, writing
from anomaly.logs import Public
from anomaly.pipelines.benchmark_page import benchmark_page
from anomaly.pipelines.benchmark_robustness import (
    ALTERATION_SEED,
    false_alarm_table,
    lesion_tables,
    nuisance_table,
)
from anomaly.pipelines.benchmark_scans import Bench, EvaluationSet, Evaluator, ScoredSet
from anomaly.pipelines.benchmark_tables import baseline_table, cost, detector_table, feature_table
from anomaly.pipelines.calibrate import calibrate
from anomaly.pipelines.prepare import prepare, scan_folder
from anomaly.pipelines.run import NOTICE, RunFolder
from anomaly.pipelines.train import train, trained_bundle
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import copy_bundle
from anomaly.training.detector_fit import ScanObserver, calibration_change, fitting_set
from anomaly.version import __version__

__all__ = ["SPLITS", "benchmark", "benchmark_config", "published_labels", "split_hash"]

log = logging.getLogger(__name__)

SPLITS: dict[str, str] = {
    "zhanglab": "ad0f25e523a16b215a2438e6220d6743826bb29eb746ed8a24b445242e38d5cc"
}
"""`split_hash` of archives by name: figures of another split are of other scans."""

PUBLISHED = "test"
"""Folder of an archive's own test set."""

BASELINE_SEED = 0
BASELINE_BATCH = 16


def benchmark_config(
    name: str, data: Path, config: Path | None, bundle: Path | None, overrides: list[str]
) -> Config:
    """Return the settings of a benchmark: its own, or those that a bundle was made with.

    Raises
    ------
    ConfigError
        If there is no configuration of that name, two are given, or an override would make the
        bundle another one.
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


def split_hash(manifest: Manifest) -> str:
    """SHA-256 in hex over content, frame, split and label of the usable *labelled* scans.

    Equal to `Manifest.hash` where every scan has a label; scans without one, such as a published
    test set that the labels do not name, take no part in the split and do not change it.
    """
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.label)).hash


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
    """Make or take a detector, compute every table, write ``benchmark.json`` and ``benchmark.md``.

    Parameters
    ----------
    run : RunFolder
        What it holds already and fits is used; an interrupted training resumes.
    name : str
        Key of `SPLITS`, for a warning where the split is another.
    config : Config
    device : torch.device
    bundle_folder : Path, optional
        Detector to measure; one is trained by default.
    baseline_steps : int, optional
        Budget of every baseline network; ``training.steps`` by default.
    alterations : sequence of Alteration
        Nuisances, gross errors and lesions to try on held-out normals.

    Raises
    ------
    AnomalyError
        If a step cannot be done.
    CalibrationError
        If the given bundle has seen a scan that it would be measured on.
    """
    began = time.perf_counter()
    manifest = _prepared(run, config)
    identity = _identity(name, manifest)
    published = _published(run, config, manifest)
    if bundle_folder is None:
        bundle = _trained(run, config, manifest, device)
    else:
        bundle = _adopted_bundle(run, bundle_folder, config, manifest, published)
    normals = _fitted_on(bundle, manifest, config, device)
    bench = _bench(normals.evaluator, manifest, published)
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
        (run.path / "benchmark.json").write_text(strict_json(result, indent=1), encoding="utf-8")
        (run.path / "benchmark.md").write_text(text, encoding="utf-8")
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
    """Return what a manifest depends on; how many processes read it does not matter."""
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
    calibration = _split(manifest, "calibration")  # the benchmark calibrates anew, by its own rules
    measured = [*_split(manifest, "test"), *published]
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


@dataclass(frozen=True)
class _Normals:
    """The normals that detectors are fitted on, and the evaluator that their heatmap makes."""

    evaluator: Evaluator
    chosen: KindSettings
    rule: str
    table: FeatureTable
    scans: Any  # ndarray of int, the scan that each row shows
    train: tuple[ManifestRow, ...]
    validation: tuple[ManifestRow, ...]

    @property
    def unaltered(self) -> FeatureTable:
        """Rows of scans as they are: those come first."""
        count = len(np.unique(self.scans))
        return replace(self.table, values=self.table.values[:count])


def _fitted_on(
    bundle: Bundle, manifest: Manifest, config: Config, device: torch.device
) -> _Normals:
    observer = ScanObserver(bundle.network, bundle.levels, config, bundle.reference, device)
    train, validation = (_split(manifest, s, config.data.normal) for s in ("train", "validation"))
    rows = [*(train if "train" in config.detector.fit_on else ()), *validation]
    observed, scans = fitting_set(observer, rows)
    table = normal_table(observed, config.features, config.heatmap, scans)
    heatmap = HeatmapModel.fit(observed.map_residuals, observed.shifts, config.heatmap)
    chosen, rule = _choice(bundle)
    log.info("%s", Public(rule))
    return _Normals(
        Evaluator(observer, bundle, heatmap), chosen, rule, table, scans, train, validation
    )


def _choice(bundle: Bundle) -> tuple[KindSettings, str]:
    """Return the settings of the bundle's detector, and the sentence that says why those."""
    candidates = {str(candidate): candidate for candidate in bundle.config.detector.candidates}
    name = bundle.chosen
    if name not in bundle.margins:
        return candidates[name], f"{name}: the only candidate, there was nothing to choose"
    return candidates[name], (
        f"{name}: margin {bundle.margins[name]:.3f} between synthetic perturbations and nuisance "
        f"on validation normals, within one standard error of the widest "
        f"({max(bundle.margins.values()):.3f}) of {len(bundle.margins)} candidates, and of those "
        "named first; no abnormal scan took part"
    )


# --- the scans that it is measured on ---------------------------------------------------------


def _split(manifest: Manifest, split: str, label: str | None = None) -> tuple[ManifestRow, ...]:
    """Labelled rows of a split."""
    return tuple(row for row in manifest.select(split=split, label=label) if row.label)


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


def published_labels(config: Config) -> dict[str, list[str]]:
    """Label -> patterns for the folders within ``test`` of an archive, by their names.

    A folder is normal if its name is ``normal``, or holds the name of the folder of the
    configuration's normal scans as a word of its own (``ABNORMAL`` does not hold ``NORMAL``),
    whatever the case. Every other folder is a class of its own name. Empty without such folders.
    """
    root = config.data.root / PUBLISHED
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    patterns = (Path(pattern).parts[:-1] for pattern in config.data.labels[config.data.normal])
    names = {"normal"} | {parts[-1].lower() for parts in patterns if parts}
    labels: dict[str, list[str]] = {config.data.normal: []}
    for folder in (f for f in folders if not f.startswith(".")):
        words = any(re.search(rf"(?<![a-z]){re.escape(n)}(?![a-z])", folder.lower()) for n in names)
        labels.setdefault(config.data.normal if words else folder.lower(), []).append(f"{folder}/*")
    return labels if folders else {}


def _published(run: RunFolder, config: Config, manifest: Manifest) -> tuple[ManifestRow, ...]:
    """Rows of the archive's own test set; none where the configuration's labels name them."""
    labels = published_labels(config)
    named = [row for row in manifest.select() if row.path.startswith(f"{PUBLISHED}/")]
    if not labels or any(row.label for row in named):
        return ()
    log.info("reading the published test set")
    rows = [row for row in scan_folder(run, _published_config(config)).select() if row.label]
    rows = _unfamiliar(rows, manifest)
    classes = {row.label for row in rows}
    if len(classes) < 2 or config.data.normal not in classes:
        log.warning(
            "the published test set holds %d classes of usable scans: expected normal and abnormal "
            "scans in folders of their own; left out",
            len(classes),
        )
        return ()
    return tuple(rows)


def _unfamiliar(rows: Sequence[ManifestRow], manifest: Manifest) -> list[ManifestRow]:
    """Leave out scans and patients that training, fitting or calibration know.

    A copy of a training scan is a duplicate to the manifest, which then leaves its patient there;
    its picture is known in any container.
    """
    known = [row for row in manifest.select() if row.split != "test"]
    patients = {row.patient for row in known}
    marks = {mark for row in known for mark in scan_marks(row)}
    kept = [
        row for row in rows if row.patient not in patients and scan_marks(row).isdisjoint(marks)
    ]
    if len(kept) < len(rows):
        log.warning(
            "%d of %d published scans are of patients of the other splits: left out",
            len(rows) - len(kept),
            len(rows),
        )
    return kept


def _published_config(config: Config) -> Config:
    root = config.data.root / PUBLISHED
    data = replace(config.data, root=root, labels=published_labels(config), masks=None)
    return replace(config, data=data)


def _bench(evaluator: Evaluator, manifest: Manifest, published: tuple[ManifestRow, ...]) -> Bench:
    config = evaluator.observer.config
    normal = config.data.normal
    change = calibration_change(config)
    calibration = evaluator.look(_split(manifest, "calibration", normal), "calibration", change)
    test = _split(manifest, "test")
    held_out = evaluator.look([row for row in test if row.label == normal], "held-out normals")
    sets = list(_sets(evaluator, "held-out", held_out, test))
    if not sets:
        raise ManifestError(
            f"no usable scan of the test split has another label than {normal!r}: a benchmark "
            f"needs abnormal scans, check data.labels ({config.data.labels})"
        )
    if published:
        observer = replace(evaluator.observer, config=_published_config(config))
        elsewhere = replace(evaluator, observer=observer)
        healthy = elsewhere.look([r for r in published if r.label == normal], "published normals")
        sets.extend(_sets(elsewhere, "published test", healthy, published))
    return Bench(config.alpha, calibration, held_out, tuple(sets))


def _sets(
    evaluator: Evaluator, name: str, healthy: ScoredSet, rows: Sequence[ManifestRow]
) -> Iterator[EvaluationSet]:
    """One set a class, against the same normals."""
    normal = evaluator.observer.config.data.normal
    for label in sorted({row.label for row in rows} - {normal}):
        abnormal = evaluator.look([row for row in rows if row.label == label], f"{name} {label}")
        yield EvaluationSet(f"{name}: {normal} vs {label}", healthy, abnormal)


# --- the tables -------------------------------------------------------------------------------


def _tables(
    bench: Bench, normals: _Normals, steps: int, alterations: Sequence[Alteration]
) -> dict[str, Any]:
    evaluator = normals.evaluator
    candidates = evaluator.observer.config.detector.candidates
    detectors = detector_table(
        bench, candidates, normals.chosen, evaluator.bundle.margins, normals.table, normals.scans
    )
    features = feature_table(bench, evaluator, normals.unaltered)
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


def _baseline_images(observer: ScanObserver, normals: _Normals) -> tuple[Tensor, Tensor]:
    """Training images with one augmented copy of each, and validation images as they are."""
    config = observer.config
    framed = framed_images(observer.reader(), normals.train, config.data.workers)
    change = RandomAugmentation(config.augmentation, config.preprocessing)
    change.set_random_state(seed=BASELINE_SEED)
    copies = torch.stack([change(image) for image in framed])
    train = torch.cat([network_images(framed, config.preprocessing), copies])
    return train.to(observer.device), observer.images(normals.validation).images


def _counts(bench: Bench, normals: _Normals) -> dict[str, int]:
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
    """Say what ran on what; neither a path nor the name of the machine."""
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
