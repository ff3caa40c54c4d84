"""cluster: the shards of a job on Ray, one model per actor.

Ray distributes shard numbers. An actor processes a shard like any other process (`Job.work`), so
the parts are identical bit for bit if actors use the same number of threads. The run folder and the
archive must have the same paths on every machine. If an actor dies, its shard is distributed again.
Ray has no authentication, so use it only on a trusted network.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.config import Config
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.errors import AnomalyError
from anomaly.logs import log_what_is_allowed
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import finish
from anomaly.progress import progress_bar
from anomaly.scoring.job import Job, JobInputs
from anomaly.store.bundle import read_bundle
from anomaly.store.results import Results

__all__ = ["score_on_ray"]

RETRIES = 3
"""Retries of a shard whose actor dies: a scan that crashes its process would crash each retry."""


def score_on_ray(
    run: RunFolder,
    inputs: JobInputs,
    bundle_folder: Path,
    device: torch.device,
    *,
    actors: int,
) -> Results:
    """Score with Ray actors, with the results of the stage `score`; on CUDA, one GPU per actor.

    Without RAY_ADDRESS, a cluster on this machine is started, and stopped at the end.

    Raises
    ------
    AnomalyError
        Ray is not installed, or an error of `score`.
    """
    ray = _ray()
    # An actor may have another working directory.
    run, bundle_folder = RunFolder(run.path.resolve()), bundle_folder.resolve()
    job = Job.open(run.results, load_site_key(run.site_key), inputs, device)
    started = not ray.is_initialized()
    if started:
        _start(ray, actors)
    try:
        numbers = ray.data.from_items(
            [{"shard": shard.index} for shard in job.shards], override_num_blocks=len(job.shards)
        )
        done = numbers.map_batches(
            _Actor,
            fn_constructor_args=(
                *(run, inputs.config, bundle_folder),
                *(inputs.manifest.root.resolve(), device.type),
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=1 if device.type == "cuda" else 0,
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        with progress_bar(len(job.shards), "scoring", "shard") as bar:
            for _ in done.iter_rows():
                bar.update()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise AnomalyError(f"a Ray actor failed: {cause or error}") from error
    finally:
        if started:
            ray.shutdown()
    finish(run, job)
    return job.results


def _start(ray: Any, actors: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine."""
    os.environ.setdefault("RAY_DISABLE_USAGE_STATS", "1")
    # Reading and distributing shards need one more processor.
    here = {"num_cpus": actors + 1, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(**({} if "RAY_ADDRESS" in os.environ else here), log_to_driver=False)


class _Actor:
    """One process of a Ray cluster, with the model loaded."""

    def __init__(
        self, run: RunFolder, config: Config, bundle_folder: Path, root: Path, device: str
    ) -> None:
        manifest = Manifest.read(run.manifest, root)
        log_what_is_allowed()
        inputs = JobInputs(config, read_bundle(bundle_folder), manifest)
        key = load_site_key(run.site_key)
        self.job = Job.open(run.results, key, inputs, torch.device(device))
        self.workers = self.job.workers()

    def __call__(self, batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        for index in batch["shard"].tolist():
            with progress_bar(0, "scoring", "scan", hidden=True) as bar:
                # The lease may still belong to an actor that died.
                while self.job.work([self.job.shards[index]], bar, self.workers):
                    time.sleep(self.job.leases.beat)
        return batch


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise AnomalyError(
            "--ray needs Ray, which is not installed: pip install 'ray[data]'"
        ) from error
    return ray
