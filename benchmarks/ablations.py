"""Measure the effect of each training choice on a benchmark: one short training per row.

    python benchmarks/ablations.py --data DIR --out FOLDER --steps 600

A row is the configuration of the benchmark with the overrides that the row lists, so
`anomaly benchmark zhanglab --data DIR --set OVERRIDE ...` repeats and extends it. All rows are
trained for the same number of steps with one seed, and evaluated on the features that come from the
network only (Ledoit-Wolf over `energy`). Finished rows are read from FOLDER.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.synthetic.seeded import changed
from anomaly.evaluation.benchmark.scans import Evaluator
from anomaly.evaluation.metrics import auroc
from anomaly.pipelines.benchmark import benchmark_config
from anomaly.pipelines.calibrate import calibrate
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.train import train
from anomaly.store.bundle import read_bundle
from anomaly.training.detector_fit import ScanObserver

DETECTOR = (
    "detector.candidates=[{kind: ledoit_wolf, use: [energy]}]",
    "detector.nuisance_copies=0",
)

ROWS: dict[str, tuple[str, ...]] = {
    "the configuration": (),
    "without normalisation and slope (the old network)": ("network.normalize=false",),
    "half the width": ("network.widths=[16, 24, 32, 32]",),
    "one and a half times the width": ("network.widths=[48, 72, 96, 96]",),
    "linear schedule (DDPM)": ("levels.schedule=linear",),
    "cosine schedule": ("levels.schedule=cosine",),
    "100 levels instead of 400": ("levels.steps=100",),
    "uniform level weights": ("training.level_weights=uniform",),
    "relative level weights": ("training.level_weights=relative",),
    "cross-entropy from the start, weight 1e-3": (
        "training.ce_weight=0.001",
        "training.ce_from=0.0",
    ),
    "no augmentation": (
        "augmentation.rotate=0",
        "augmentation.zoom=0",
        "augmentation.shift=0",
        "augmentation.gamma=0",
    ),
    "no closed-form base": ("network.spectral_base=false", "training.level_weights=uniform"),
    "one noise draw": ("features.draws=1",),
    "four noise draws": ("features.draws=4",),
    "intensity range as stored": ("preprocessing.intensity=full",),
    "32x32": ("preprocessing.size=32",),
    "128x128": ("preprocessing.size=128",),
}


def measure(name: str, data: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Train one row and score held-out normals, altered normals and abnormal scans."""
    overrides = [
        f"training.steps={steps}",
        f"training.validate_every={steps}",
        f"training.warmup_steps={steps // 10}",
        *DETECTOR,
    ]
    config = benchmark_config("zhanglab", data, None, None, [*overrides, *ROWS[name]])
    run, device = RunFolder(folder / _slug(name)), torch.device("cpu")
    run.path.mkdir(parents=True, exist_ok=True)
    manifest = prepare(run, config)
    began = time.perf_counter()
    train(run, config, device)
    seconds = time.perf_counter() - began
    last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    calibrate(run, config, run.bundle, "calibration", device)
    bundle = read_bundle(run.bundle)
    evaluator = Evaluator(
        ScanObserver(bundle.network, bundle.levels, config, bundle.reference, device),
        bundle,
        bundle.heatmap,
    )
    held_out = manifest.select(split="test", label=config.data.normal)
    abnormal = [row for row in manifest.select(split="test") if row.label != config.data.normal]
    disturb = partial(changed, "nuisance", 1, 0)
    calm, moved = evaluator.look(held_out, "normal"), evaluator.look(held_out, "disturbed", disturb)
    ill = evaluator.look(abnormal, "abnormal")

    def compare(
        low: NDArray[np.float64], high: NDArray[np.float64], patients: list[str]
    ) -> dict[str, float]:
        kinds = np.repeat([False, True], [len(low), len(high)])
        found = auroc(np.concatenate([low, high]), kinds, patients)
        return {"value": found.value, "low": found.low, "high": found.high}

    both = calm.patients + ill.patients
    return {
        "name": name,
        "overrides": list(ROWS[name]),
        "steps": steps,
        "bits_per_dim_bound": last["bits_per_dim_bound"],
        "denoising": last["denoising_by_level"][4:7],
        "shares": {part: max(found["share"]) for part, found in last["health"]["parts"].items()},
        "seconds": seconds,
        "auroc": compare(calm.scores, ill.scores, both),
        "auroc_against_nuisance": compare(moved.scores, ill.scores, both),
        "nuisance": compare(calm.scores, moved.scores, calm.patients + moved.patients),
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def show(row: dict[str, Any]) -> None:
    """Print one line of the table."""

    def cell(name: str) -> str:
        found = row[name]
        assert isinstance(found, dict)
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"

    errors = [f"{error:.3g}" for error in row["denoising"]]
    shares = row["shares"].values()
    print(
        f"| {row['name']} | {row['bits_per_dim_bound']:.2f} | {' '.join(errors)} | "
        f"{min(shares):.2f} | {cell('auroc')} | {cell('auroc_against_nuisance')} | "
        f"{cell('nuisance')} |",
        flush=True,
    )


def main() -> None:
    """Parse the options, train every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        "| row | bits/dim by denoising | error at rungs 5, 6, 7 | least share of a scale | AUROC | "
        "against altered normals | altered normals |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.rows:
        done = options.out / f"{_slug(name)}-{options.steps}.json"
        if not done.exists():
            done.write_text(json.dumps(measure(name, options.data, options.out, options.steps)))
        show(json.loads(done.read_text()))


if __name__ == "__main__":
    main()
