"""demo: the whole pipeline on synthetic chest radiographs, from their creation to a report."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anomaly.config import load_config
from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.data.table.manifest import Manifest
from anomaly.errors import ConfigError
from anomaly.files import make_results_folder
from anomaly.pipelines.calibrate import calibrate
from anomaly.pipelines.evaluate import evaluate
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.report import report
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import score
from anomaly.pipelines.train import train
from anomaly.scoring.job import JobInputs
from anomaly.store.bundle import read_bundle

__all__ = ["NORMALS", "demo"]

log = logging.getLogger(__name__)

NORMALS, ABNORMALS = 640, 80


def demo(
    run: RunFolder, config_path: Path, overrides: list[str], device: torch.device
) -> dict[str, Any]:
    """Create phantoms, train on normals, calibrate, score the test split, evaluate and report.

    Raises
    ------
    ConfigError
        The folder contains something other than an earlier demo.
    """
    config = load_config(config_path, overrides)  # before anything is deleted
    scans = run.path.absolute() / "scans"
    if run.path.exists() and any(run.path.iterdir()):
        # Delete only a folder known to be a demo: it could contain a user's own "scans".
        if not (scans / "normal" / "PHANTOM0001").is_dir():
            raise ConfigError(f"{run.path} is not empty and holds no demo: name a new folder")
        shutil.rmtree(run.path)
    config = replace(config, data=replace(config.data, root=scans))
    began = time.perf_counter()
    make_results_folder(run.path)  # while it is still empty; the demo then writes its scans into it
    log.info("1/6 drawing %d normal and %d abnormal phantom patients", NORMALS, ABNORMALS)
    write_phantom_studies(
        scans,
        normals=NORMALS,
        abnormals=ABNORMALS,
        seed=config.data.seed,
        visible_at=config.preprocessing.size,
        workers=config.data.workers,
    )
    log.info("2/6 reading them, splitting by patient")
    prepare(run, config)
    log.info("3/6 training on normals")
    result = train(run, config, device)
    if not result.finished:
        raise ConfigError("the demo was stopped while training; run it again")
    log.info("4/6 calibrating on held-out normals")
    calibrate(run, config, run.bundle, "calibration", device)
    log.info("5/6 scoring the test split, normal and abnormal")
    manifest = Manifest.read(run.manifest, config.data.root)
    score(run, JobInputs(config, read_bundle(run.bundle), manifest), device)
    metrics = evaluate(run, config)
    log.info("6/6 writing the report")
    report(run, config)
    log.info("done in %.0f s", time.perf_counter() - began)
    return metrics
