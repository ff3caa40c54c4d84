"""score: scans and a bundle -> scores, p-values, flags, evidence maps.

One process does the whole job (`anomaly.scoring.job`); several do the same on a shared folder and
never meet. A run that is killed goes on where it stopped.
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
    """Score every row of the test split, or every row where there are no splits.

    Rows that `prepare` skipped, and scans that fail now, get a row with the reason. Work is done
    shard by shard; any number of processes may do it on one folder. What is done stays done.

    Parameters
    ----------
    run : RunFolder
    inputs : JobInputs
    device : device
    assignment : ShardAssignment, optional
        Shards to begin with; default: as torchrun or SLURM says.
    leases : Leases, optional
    processes : Workers, optional
        Processes that decode and are there already.

    Returns
    -------
    Results
        Complete, unless the turn is only for some shards and others are not done yet.

    Raises
    ------
    AnomalyError
        If another run is writing its results here, the archive is gone, or the disk is full.
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
    """Return the run's own table of scans, or one of a folder of new scans made as the bundle asks.

    Scoring that was interrupted continues with the list that it had.

    Parameters
    ----------
    run : RunFolder
    scans : Path or None
        Folder of new scans; None: the run's own.
    bundle_folder : Path
    overrides : list of str
        ``"name=value"`` of settings.
    processes : Workers, optional
        What decodes; default: processes of its own.
    data : Path, optional
        Where the scans of the run's own manifest are now, if they have moved.
    may_have_grown : bool
        Whether to look for files that the list does not hold, and then to list the folder again.

    Raises
    ------
    ConfigError
        If the run holds a prepared table of scans, or scores of another folder.
    """
    if scans is None:
        return _own_scans(run, bundle_folder, overrides, data)
    scans = scans.resolve()  # a link may lead elsewhere by the next time
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
        # The page needs it beside the scores; a copy keeps its hash, whatever version wrote it.
        copy_bundle(bundle_folder, run.bundle)
    return JobInputs(config, bundle, manifest)


def _own_scans(
    run: RunFolder, bundle_folder: Path, overrides: list[str], data: Path | None
) -> JobInputs:
    """Return the configuration and the table of scans that the run was prepared with."""
    run.need(run.config, "prepare")
    bundle = read_bundle(bundle_folder)
    config = run_config(run, overrides, data, stage="score")
    config = _at_operating_point(config, bundle, overrides)
    _refuse_foreign_bundle(run, bundle)
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    return JobInputs(config, bundle, manifest)


def _config_of_folder(run: RunFolder, scans: Path, bundle: Bundle, overrides: list[str]) -> Config:
    """Return the bundle's configuration, with a folder of new scans in place of its own.

    Raises
    ------
    ConfigError
        If the run holds a prepared table of scans, or an override has no effect.
    """
    if run.manifest.exists() and any(row.split for row in Manifest.read(run.manifest).rows):
        raise ConfigError(
            f"{run.path} holds a prepared run, whose table of scans would be lost: name a new "
            f"folder for these scores, with --bundle {run.bundle}"
        )
    learned = bundle.config.data
    # Whose bundle it is does not decide how carefully files are read.
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
    """Whether the run has an intact copy of a bundle."""
    try:
        return (
            run.bundle.exists()
            and bundle_hash(run.bundle) == bundle.hash
            and not bundle_problems(run.bundle)
        )
    except BundleError:
        return False


def _at_operating_point(config: Config, bundle: Bundle, overrides: list[str]) -> Config:
    """State the rate that the bundle was calibrated for, unless another one is asked for.

    Raises
    ------
    NotCalibrated
        If a rate is asked for and the bundle is not calibrated.
    TooFewCalibrationScans
        If it was calibrated on too few scans for that rate.
    """
    if overrides_name(overrides, "alpha"):
        allowed_rank(len(bundle.calibration().scores.scores), config.alpha)
        return config
    return config if bundle.calibrated is None else replace(config, alpha=bundle.calibrated.alpha)


def _refuse_other_folder(run: RunFolder, scans: Path) -> None:
    """Refuse to write the scores of one folder over those of another of the same name."""
    if not run.config.exists() or not run.manifest.exists():
        return
    before = Manifest.read(run.manifest).root
    if before.resolve() != scans.resolve():
        raise ConfigError(
            f"{run.path} holds the scores of {before}, not of {scans}: name another folder"
        )


def _refuse_other_bundle(run: RunFolder, bundle: Bundle, bundle_folder: Path) -> None:
    """Refuse to write the scores by one bundle over those by another; calibrated anew, it is not.

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
    """Refuse to score a run that has a bundle by another one: its figures would be of neither."""
    if run.bundle.exists() and not _holds(run, bundle):
        raise ConfigError(
            f"{run.path} has a bundle of its own: to score scans with another one, name their "
            "folder, as in anomaly score FOLDER --bundle BUNDLE"
        )


def _is_begun(run: RunFolder, config: Config) -> bool:
    """Whether scoring was begun of just this folder, listed just so, and is not finished."""
    if not run.manifest.exists() or not run.results.job.exists():
        return False
    differ = _listing(load_config(run.config)).items() ^ _listing(config).items()
    if differ:
        names = ", ".join(sorted({name for name, _ in differ}))
        log.info("%s differ from before: the scans are listed again", Public(names))
        return False
    return not run.results.is_finished(run.results.provenance())


def _listing(config: Config) -> dict[str, str]:
    """Return the settings that a list of scans depends on, by name."""
    data = {name: repr(value) for name, value in asdict(config.data).items()}
    # Neither how many processes list them, nor who gets which split, matters here.
    for name in ("workers", "seconds", "splits", "seed"):
        del data[name]
    return {
        **{f"data.{name}": value for name, value in data.items()},
        "gate": repr(config.gate),
        "intensity": repr(config.intensity),
    }


def _has_grown(run: RunFolder, scans: Path) -> bool:
    """Whether the folder holds files that the run's list does not know."""
    known = {file_of(scans / row.path) for row in Manifest.read(run.manifest).rows}
    return not known.issuperset(scans / path for path in list_files(scans).files)


def export_scores(run: RunFolder, config: Config, path: Path, *, identifiers: bool) -> int:
    """Write the scores as CSV or XLSX; with identifiers, the paths, patients and UIDs too.

    Raises
    ------
    AnomalyError
        If scoring is not complete, or the file cannot be written.
    """
    if not run.results.is_finished(run.results.provenance()):
        raise AnomalyError(f"{run.path} is not scored yet: run `anomaly score {run.path}` first")
    if not identifiers:
        return export(run.results, path)
    manifest = Manifest.read(run.need(run.manifest, "prepare"), config.data.root)
    return export(run.results, path, rows_to_score(manifest))


def finish(run: RunFolder, job: Job) -> None:
    """Where all parts are there: tidy up, export and say what came out."""
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
    """Say how many scans were scored, flagged and not scored, and why not."""
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
