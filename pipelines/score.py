"""score: scans and a bundle -> scores, p-values, flags, evidence maps.

One process can do the whole job (`anomaly.scoring.job`); several processes can share it on a shared
folder, without other communication. A run that was killed resumes where it stopped.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from anomaly.config import Config, DataSettings, load_config, override, write_config
from anomaly.data.readers.isolation import Workers
from anomaly.data.readers.zips import file_of
from anomaly.data.table.folders import list_files
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.detection.calibration import allowed_rank
from anomaly.errors import AnomalyError, BundleError, ConfigError
from anomaly.files import make_results_folder, writing
from anomaly.logs import Public
from anomaly.pipelines.context import overrides_name, refuse_idle_settings, run_config
from anomaly.pipelines.prepare import scan_folder
from anomaly.pipelines.run import RunFolder
from anomaly.progress import progress_bar
from anomaly.scoring.job import Job, JobInputs, rows_to_score
from anomaly.scoring.leases import Leases
from anomaly.scoring.shards import ShardAssignment
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import bundle_hash, bundle_problems, copy_bundle, same_detector
from anomaly.store.export import export
from anomaly.store.results import Results

__all__ = ["choose_scans", "export_scores", "finish", "score"]

log = logging.getLogger(__name__)


def score(
    run: RunFolder,
    inputs: JobInputs,
    device: torch.device,
    *,
    assignment: ShardAssignment | None = None,
    leases: Leases | None = None,
    processes: Workers | None = None,
) -> Results:
    """Score every row of the test split, or every row if there are no splits.

    Rows that `prepare` skipped, and scans that fail now, get a row with the reason. Work is done
    shard by shard; any number of processes can share one folder. Finished shards are kept.

    Parameters
    ----------
    run : RunFolder
    inputs : JobInputs
    device : device
    assignment : ShardAssignment, optional
        Shards to start with; default: from the environment of torchrun or SLURM.
    leases : Leases, optional
    processes : Workers, optional
        Existing worker processes for decoding.

    Returns
    -------
    Results
        Complete, unless the assignment has only some shards and others are not done yet.

    Raises
    ------
    AnomalyError
        Another run is writing results to this folder, the archive is not reachable, or the disk is
        full.
    """
    job = Job.open(run.results, load_site_key(run.site_key), inputs, device, leases)
    todo = (assignment or ShardAssignment.of_environment(os.environ)).order(job.shards)
    scans = sum(len(shard.rows) for shard in todo)
    pool = nullcontext(processes) if processes else job.workers()
    with pool as workers, progress_bar(scans, "scoring", "scan") as bar:
        while todo:
            busy = job.work(todo, bar, workers)
            if len(busy) == len(todo):
                bar.set_postfix_str("waiting for shards that others hold")
                time.sleep(job.leases.beat)
            todo = busy
    finish(run, job)
    return run.results


def choose_scans(
    run: RunFolder,
    scans: Path | None,
    bundle_folder: Path,
    overrides: list[str],
    processes: Workers | None = None,
    *,
    data: Path | None = None,
    may_have_grown: bool = False,
) -> JobInputs:
    """Return the run's table of scans, or list a folder of new scans with the bundle's settings.

    Interrupted scoring continues with its existing table.

    Parameters
    ----------
    run : RunFolder
    scans : Path or None
        Folder of new scans; None: the scans of the run.
    bundle_folder : Path
    overrides : list of str
        Settings as ``"name=value"``.
    processes : Workers, optional
        Worker processes for decoding; default: new ones.
    data : Path, optional
        Current folder of the scans in the run's manifest, if they have moved.
    may_have_grown : bool
        Whether to check the folder for files that are not in the table, and to list it again if
        there are any.

    Raises
    ------
    ConfigError
        The run contains a prepared table of scans, or scores of another folder.
    """
    if scans is None:
        return _own_scans(run, bundle_folder, overrides, data)
    scans = scans.resolve()  # a link may point elsewhere next time
    bundle = read_bundle(bundle_folder)
    config = _config_of_folder(run, scans, bundle, overrides)
    _refuse_other_folder(run, scans)
    _refuse_other_bundle(run, bundle, bundle_folder)
    run.refuse_foreign()
    make_results_folder(run.path)
    if _is_begun(run, config) and not (may_have_grown and _has_grown(run, scans)):
        log.info("going on with the list of scans that the run holds")
        manifest = Manifest.read(run.manifest, scans)
    else:
        manifest = scan_folder(run, config, processes)
        with writing(run.manifest):
            manifest.write(run.manifest)
    write_config(run.config, config)
    if not _holds(run, bundle):
        # The page needs the bundle next to the scores; a copy keeps its hash across versions.
        copy_bundle(bundle_folder, run.bundle)
    return JobInputs(config, bundle, manifest)


def _own_scans(
    run: RunFolder, bundle_folder: Path, overrides: list[str], data: Path | None
) -> JobInputs:
    """Return the inputs of a prepared run: its configuration and its table of scans."""
    run.need(run.config, "prepare")
    bundle = read_bundle(bundle_folder)
    config = run_config(run, overrides, data, stage="score")
    config = _at_operating_point(config, bundle, overrides)
    _refuse_foreign_bundle(run, bundle)
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    return JobInputs(config, bundle, manifest)


def _config_of_folder(run: RunFolder, scans: Path, bundle: Bundle, overrides: list[str]) -> Config:
    """Return the bundle's configuration with a new folder of scans.

    Raises
    ------
    ConfigError
        The run contains a prepared table of scans, or an override has no effect.
    """
    if run.manifest.exists() and any(row.split for row in Manifest.read(run.manifest).rows):
        raise ConfigError(
            f"{run.path} holds a prepared run, whose table of scans would be lost: name a new "
            f"folder for these scores, with --bundle {run.bundle}"
        )
    learned = bundle.config.data
    # Isolation of decoders and their time limit must not depend on the bundle.
    usual_care = DataSettings(root=scans)
    listed = replace(
        learned,
        root=scans,
        labels={learned.normal: []},
        masks=None,
        workers=usual_care.workers,
        seconds=usual_care.seconds,
    )
    usual = replace(bundle.config, data=replace(listed, patient_pattern=None))
    config = override(usual, overrides)
    refuse_idle_settings(usual, config, "score a folder")
    if config.data.root != scans:
        raise ConfigError(f"--set data.root has no effect here: the scans are those of {scans}")
    return _at_operating_point(config, bundle, overrides)


def _holds(run: RunFolder, bundle: Bundle) -> bool:
    """Whether the run contains an intact copy of a bundle."""
    try:
        return (
            run.bundle.exists()
            and bundle_hash(run.bundle) == bundle.hash
            and not bundle_problems(run.bundle)
        )
    except BundleError:
        return False


def _at_operating_point(config: Config, bundle: Bundle, overrides: list[str]) -> Config:
    """Set alpha to the rate at which the bundle was calibrated, unless overridden.

    Raises
    ------
    NotCalibrated
        Alpha is overridden and the bundle is not calibrated.
    TooFewCalibrationScans
        The bundle was calibrated on too few scans for that alpha.
    """
    if overrides_name(overrides, "alpha"):
        allowed_rank(len(bundle.calibration().scores.scores), config.alpha)
        return config
    return config if bundle.calibrated is None else replace(config, alpha=bundle.calibrated.alpha)


def _refuse_other_folder(run: RunFolder, scans: Path) -> None:
    """Refuse to replace the scores of one folder by those of another with the same name."""
    if not run.config.exists() or not run.manifest.exists():
        return
    before = Manifest.read(run.manifest).root
    if before.resolve() != scans.resolve():
        raise ConfigError(
            f"{run.path} holds the scores of {before}, not of {scans}: name another folder"
        )


def _refuse_other_bundle(run: RunFolder, bundle: Bundle, bundle_folder: Path) -> None:
    """Refuse to replace scores by those of another bundle; recalibration does not make it another.

    Raises
    ------
    ConfigError
    """
    if not run.results.job.exists() or run.results.provenance().bundle == bundle.hash:
        return
    if not (run.bundle.exists() and same_detector(run.bundle, bundle_folder)):
        raise ConfigError(
            f"{run.path} holds the scores by another bundle, and what readers said of them: name "
            "another folder"
        )


def _refuse_foreign_bundle(run: RunFolder, bundle: Bundle) -> None:
    """Refuse to score a run with a bundle other than its own, since its figures would mix both."""
    if run.bundle.exists() and not _holds(run, bundle):
        raise ConfigError(
            f"{run.path} has a bundle of its own: to score scans with another one, name their "
            "folder, as in anomaly score FOLDER --bundle BUNDLE"
        )


def _is_begun(run: RunFolder, config: Config) -> bool:
    """Whether scoring of this folder, listed with these settings, is started but not finished."""
    if not run.manifest.exists() or not run.results.job.exists():
        return False
    differ = _listing(load_config(run.config)).items() ^ _listing(config).items()
    if differ:
        names = ", ".join(sorted({name for name, _ in differ}))
        log.info("%s differ from before: the scans are listed again", Public(names))
        return False
    return not run.results.is_finished(run.results.provenance())


def _listing(config: Config) -> dict[str, str]:
    """Return the settings on which a table of scans depends, by name."""
    data = {name: repr(value) for name, value in asdict(config.data).items()}
    # Neither the worker processes nor the splits matter here.
    for name in ("workers", "seconds", "splits", "seed"):
        del data[name]
    return {
        **{f"data.{name}": value for name, value in data.items()},
        "gate": repr(config.gate),
        "intensity": repr(config.intensity),
    }


def _has_grown(run: RunFolder, scans: Path) -> bool:
    """Whether the folder contains files that are not in the run's table of scans."""
    known = {file_of(scans / row.path) for row in Manifest.read(run.manifest).rows}
    return not known.issuperset(scans / path for path in list_files(scans).files)


def export_scores(run: RunFolder, config: Config, path: Path, *, identifiers: bool) -> int:
    """Write the scores as CSV or XLSX; with identifiers, also paths, patients and UIDs.

    Raises
    ------
    AnomalyError
        Scoring is not complete, or the file cannot be written.
    """
    if not run.results.is_finished(run.results.provenance()):
        raise AnomalyError(f"{run.path} is not scored yet: run `anomaly score {run.path}` first")
    if not identifiers:
        return export(run.results, path)
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    return export(run.results, path, rows_to_score(manifest))


def finish(run: RunFolder, job: Job) -> None:
    """If all parts are done, clean up, export the scores and log a summary."""
    results, provenance = job.results, job.provenance
    done = len(results.done(provenance))
    if done < provenance.parts:
        log.info("%d of %d shards are done; the rest is others' turn", done, provenance.parts)
        return
    while (lease := job.leases.claim(results.folder / "finish.lease")) is None:
        time.sleep(job.leases.beat)
    with lease:
        first = not results.is_exported(provenance, results.worklist)
        if first or not run.scores_csv.exists():
            results.finish(provenance, run.scores_csv)
        elif not results.is_exported(provenance, run.scores_csv):
            log.warning(
                "%s is not as it was written, but edited or damaged: move it away to have it made "
                "again",
                Public(run.scores_csv.name),
            )
        counts = _say(results, provenance.alpha, job.bundle)
        if first:
            run.record("score", {**asdict(provenance), **counts})


def _say(results: Results, alpha: float, bundle: Bundle) -> dict[str, int]:
    """Log and return how many scans were scored, flagged and not scored; log the reasons."""
    count = (
        "SELECT status, reason, seen, coalesce(flagged, false) AS flagged, count(*) AS n "
        "FROM scores"
    )
    groups = results.query(f"{count} GROUP BY ALL ORDER BY n DESC, reason").to_pylist()
    scored = sum(g["n"] for g in groups if g["status"] == "scored")
    seen = sum(g["n"] for g in groups if g["seen"] and g["status"] == "scored")
    flagged = sum(g["n"] for g in groups if g["flagged"] and not g["seen"])
    log.info("%d scans scored", scored)
    if seen:
        log.warning(
            "%d of them took part in training or calibration: their scores are too low, and they "
            "count in no figure",
            seen,
        )
    if bundle.calibrated is None:
        log.warning("the bundle is not calibrated: scores only, no p-values and no flags")
    else:
        log.info(
            "%d flagged at alpha = %g; %s%.1f would be expected if all were normal",
            flagged,
            alpha,
            Public("at most " if bundle.calibrated.under_nuisance else ""),
            alpha * (scored - seen),
        )
    failed = [g for g in groups if g["status"] != "scored"]
    reasons: Counter[str] = Counter()
    for group in failed:
        reasons[group["reason"]] += group["n"]
    for reason, number in reasons.most_common():
        log.info("%d not scored: %s", number, Public(reason))
    return {"scored": scored, "flagged": flagged, "not_scored": sum(g["n"] for g in failed)}
