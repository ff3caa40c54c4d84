"""Measure the cost of scoring an archive besides the network: memory, profile and a cost model.

    python benchmarks/archive.py --bundle SMALL --rows 100000
    python benchmarks/archive.py --bundle zhanglab --rows 2000 --images DIR
    python benchmarks/archive.py --bundle zhanglab --rows 2000 --images DIR --processes 2

The rows share files: all keys refer to the images of DIR, or to 64 random images. One process does
the job of `anomaly score` under a profiler. It prints resident memory during the run, the time
spent in parts of its main thread, and an estimate for a million images on larger machines. With
several processes only the rate is printed.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomaly.config import dump
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import Manifest
from anomaly.data.table.pseudonyms import load_site_key
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import finish
from anomaly.progress import progress_bar
from anomaly.scoring.job import Job
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import find_bundle

STEPS, BATCH = 10, 32
REPEATS = 4
MILLION = 1_000_000
THREADS = torch.get_num_threads()


def make_run(folder: Path, bundle: Path, rows: int, images: Path | None) -> tuple[RunFolder, float]:
    """Write a run whose table repeats images; also return the seconds for listing one image."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    if images is None:
        images = folder / "images"
        images.mkdir()
        rng = np.random.default_rng(0)
        for index in range(64):
            pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{index}.png")
    source = read_bundle(bundle).config
    config = replace(
        source,
        data=replace(source.data, root=images.resolve(), labels={source.data.normal: []}),
        results=replace(source.results, maps="flagged"),
    )
    began = time.perf_counter()
    inspection = Inspection(config.data.root, config.intensity, b"k" * 32)
    listed = build_manifest(inspection, PathNames()).select()
    seconds = (time.perf_counter() - began) / len(listed)
    print(f"listing: {1e3 * seconds:.2f} ms an image, one process", flush=True)
    again = (
        replace(
            listed[number % len(listed)], key=hashlib.sha256(str(number).encode()).hexdigest()[:16]
        )
        for number in range(rows)
    )
    Manifest(config.data.root, tuple(again)).write(run.manifest)
    run.config.write_text(dump(config), encoding="utf-8")
    return run, seconds


def resident_mib() -> float:
    """Resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def alone(run: RunFolder, bundle: Path, listing: float) -> None:
    """Do the job in this process; print memory, rate and profile."""
    before = resident_mib()
    manifest = Manifest.read(run.manifest)
    print(
        f"table of {len(manifest.rows)} rows: {resident_mib() - before:.0f} MiB in memory, "
        f"{run.manifest.stat().st_size / 2**20:.1f} MiB on disk",
        flush=True,
    )
    config = read_bundle(bundle).config
    config = replace(config, results=replace(config.results, maps="flagged"))
    job = Job.open(
        *(run.results, load_site_key(run.site_key), config, bundle, manifest),
        torch.device("cpu"),
    )
    network, features = network_seconds(job.bundle)
    profile, seconds = cProfile.Profile(), 0.0
    print(f"{'rows':>8} {'resident MiB':>13} {'rows/s':>8}")
    with progress_bar(0, "scoring", "scan", hidden=True) as bar:
        steps = min(STEPS, len(job.shards))
        for step in range(steps):
            part = job.shards[
                step * len(job.shards) // steps : (step + 1) * len(job.shards) // steps
            ]
            began = time.perf_counter()
            profile.runcall(job.work, part, bar)
            passed = time.perf_counter() - began
            seconds += passed
            count = sum(len(shard.rows) for shard in part)
            done = part[-1].index * len(job.shards[0].rows) + len(part[-1].rows)
            print(f"{done:>8} {resident_mib():>13.0f} {count / passed:>8.1f}", flush=True)
    began = time.perf_counter()
    finish(job)
    rows = len(manifest.rows)
    print(f"finishing (tidying, CSV): {time.perf_counter() - began:.1f} s")
    parts = {**account(profile, seconds, rows), "features from the network": features}
    predict(listing, network, parts)


def network_seconds(bundle: Bundle) -> tuple[float, float]:
    """Seconds per image, in batches, of the network on this process's threads and of features."""
    size = bundle.config.preprocessing.size
    images = torch.rand(BATCH, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    profile = cProfile.Profile()
    extract = bundle.extractor(torch.device("cpu"))
    extract(images)
    for _ in range(REPEATS):
        profile.runcall(extract, images)
    whole, network = (
        total(profile, "detection/extractor.py", name) / (REPEATS * BATCH)
        for name in ("__call__", "_draw")
    )
    return network, whole - network


def predict(listing: float, network: float, parts: Mapping[str, float]) -> None:
    """Print the estimated hours for a million images on other machines, with the bottleneck.

    Processors are assumed to be as fast as those of this machine. The speed of a GPU is not known
    here, so the rate at which the processors can supply it is printed, and the speed that it needs.
    """
    processor = sum(parts.values())
    print(f"network: {1e3 * network:.2f} ms an image on {THREADS} thread(s)")
    print(f"the rest of scoring: {1e3 * processor:.2f} ms an image on one processor")
    for name, cores, gpus in (("1 CPU node", 32, 0), ("1 GPU", 16, 1), ("8 GPUs", 128, 8)):
        each = processor + (0 if gpus else network * THREADS)
        costs = dict(parts) if gpus else {**parts, "network": network * THREADS}
        slowest = max(costs, key=lambda part: costs[part])
        need = f", if a GPU does {cores / each / gpus:.0f} a second or more" if gpus else ""
        print(
            f"{name}, {cores} processors: listing {MILLION * listing / cores / 3600:.2f} h, "
            f"scoring {cores / each:.0f} images/s = {MILLION * each / cores / 3600:.2f} h{need}; "
            f"bottleneck: {slowest}"
        )


def account(profile: cProfile.Profile, seconds: float, rows: int) -> dict[str, float]:
    """Print the time by part of the main thread; return seconds per row, without waiting."""
    parts = {
        "decoding and framing": total(profile, "data/loaders.py", "__call__"),
        "waiting for the network": total(profile, "concurrent/futures/_base.py", "result"),
        "features to score and map": total(profile, "scoring/scorer.py", "_outcomes"),
        "regions": total(profile, "anomaly/regions.py", "find_regions"),
        "waiting for the writer": 0.0,
    }
    parts["waiting for the writer"] = total(profile, "scoring/job.py", "submit")
    parts["waiting for the network"] -= parts["waiting for the writer"]
    used = sum(parts.values())
    parts["everything else"] = seconds - used
    for name, spent in parts.items():
        print(f"{name:>26}: {1e3 * spent / rows:7.3f} ms a row, {100 * spent / seconds:5.2f} %")
    return {n: spent / rows for n, spent in parts.items() if not n.startswith("waiting")}


def total(profile: cProfile.Profile, file: str, name: str) -> float:
    """Cumulative seconds in a function."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return sum(
        float(entry[3])
        for (path, _, function), entry in stats.items()
        if path.endswith(file) and function == name
    )


def together(run: RunFolder, bundle: Path, processes: int) -> None:
    """Do the job in several processes with one thread each; print the rate."""
    rows = len(Manifest.read(run.manifest).rows)
    command = [sys.executable, "-m", "anomaly", "score", str(run.path), "--bundle", str(bundle)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*command, "--device", "cpu", "--set", "results.maps=flagged"],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(processes)
    ]
    # Wait for the first lease: the start takes seconds, which do not matter for an archive.
    while not list(run.results.folder.glob("*.lease")):
        time.sleep(0.05)
    began = time.perf_counter()
    for worker in workers:
        if worker.wait():
            raise SystemExit("a process failed")
    passed = time.perf_counter() - began
    print(f"{processes} processes of one thread: {rows / passed:.2f} rows/s ({passed:.0f} s)")


def main() -> None:
    """Parse the options and run in one process or in several."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    bundle = find_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as place:
        run, listing = make_run(Path(place), bundle, options.rows, options.images)
        if options.processes is None:
            alone(run, bundle, listing)
        else:
            together(run, bundle, options.processes)


if __name__ == "__main__":
    main()
