"""Measure what the network adds to statistics of the plain image, also for single lesions.

    python benchmarks/network_part.py --data DIR --bundle zhanglab

Compares Ledoit-Wolf distances over `texture` (no network), over `energy` (the network's residuals)
and over both, and the largest evidence of the heatmap (`evidence_peak`). All are fitted on the
training and validation normals of the bundle's split as in the benchmark, and each has its own
conformal threshold at alpha from the calibration normals. They are evaluated on pneumonia (or any
other abnormal label) of the test split, and on lesions drawn into its normals. `gain` is the AUROC
of both minus that of texture alone, with the 95 % interval of 1,000 paired bootstrap draws of
patients. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from anomaly.data.synthetic.alterations import LESIONS
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection.calibration import Calibration
from anomaly.detection.kinds import (
    LedoitWolfSettings,
)
from anomaly.detection.scoring import fit_on, normal_table
from anomaly.evaluation.benchmark.robustness import altered_by
from anomaly.evaluation.benchmark.scans import Evaluator, ScoredSet
from anomaly.evaluation.metrics import patient_weights
from anomaly.pipelines.benchmark import benchmark_config
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.training.detector_fit import ScanObserver, calibration_change, fitting_set

USES = {"texture": ("texture",), "energy": ("energy",), "both": ("energy", "texture")}
PEAK = "evidence_peak"
DRAWS = 1000

Array = NDArray[np.float64]


def paired_gain(
    better: tuple[Array, Array], plain: tuple[Array, Array], patients: tuple[list[str], list[str]]
) -> dict[str, float]:
    """Difference in AUROC of two scores of the same scans, with an interval by patient."""
    abnormal = np.repeat([False, True], [len(part) for part in better])
    scores = [np.concatenate(score) for score in (better, plain)]
    drawn, of = patient_weights(patients[0] + patients[1], DRAWS, 0)

    def gain(weights: NDArray[np.int64]) -> float:
        one, other = (roc_auc_score(abnormal, score, sample_weight=weights) for score in scores)
        return float(one - other)

    held = [w for w in drawn[:, of] if abnormal[w > 0].any() and not abnormal[w > 0].all()]
    low, high = np.quantile([gain(weights) for weights in held], (0.025, 0.975))
    return {"value": gain(np.ones_like(of)), "low": float(low), "high": float(high)}


def main() -> None:
    """Parse the options, fit the detectors, evaluate them and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    folder = find_bundle(options.bundle)
    config = benchmark_config("bundle", options.data, None, folder, [])
    bundle = read_bundle(folder)
    with tempfile.TemporaryDirectory() as place:
        manifest = prepare(RunFolder(Path(place)), config)
    observer = ScanObserver(
        bundle.network, bundle.levels, config, bundle.reference, torch.device("cpu")
    )
    evaluator = Evaluator(observer, bundle, bundle.heatmap)

    def split(name: str, *, normal: bool) -> Sequence[ManifestRow]:
        rows = [row for row in manifest.select(split=name) if row.label]
        return [row for row in rows if (row.label == config.data.normal) == normal]

    fitted_on = [*split("train", normal=True), *split("validation", normal=True)]
    observed, scans = fitting_set(observer, fitted_on)
    table = normal_table(observed, config.features, config.heatmap, scans)
    detectors = {name: fit_on(table, LedoitWolfSettings(use), scans) for name, use in USES.items()}
    peak = table.names.index(PEAK)

    def scores(looked: ScoredSet) -> dict[str, Array]:
        found = {
            name: detector.score(looked.table.use(detector.names).values)
            for name, detector in detectors.items()
        }
        parts = bundle.detector.parts(looked.table.use(bundle.detector.names).values)
        return {
            **found,
            "peak": looked.table.values[:, peak],
            **{f"part {name}": part for name, part in parts.items()},
            "score": looked.scores,
        }

    change = calibration_change(config)
    calibration = scores(evaluator.look(split("calibration", normal=True), "calibration", change))
    normals = evaluator.look(split("test", normal=True), "normals")
    others = {"abnormal": evaluator.look(split("test", normal=False), "abnormal")}
    for lesion in LESIONS:
        others[lesion.name] = evaluator.look(normals.rows, lesion.name, partial(altered_by, lesion))
    calm = scores(normals)
    flags = {name: Calibration.from_scores(found) for name, found in calibration.items()}
    result: dict[str, object] = {
        "bundle": bundle.hash,
        "false_alarms": {
            name: float((flags[name].p_values(found) <= config.alpha).mean())
            for name, found in calm.items()
        },
    }
    print(f"false alarms {result['false_alarms']}")
    print(f"AUROC and sensitivity of {', '.join(calm)}; gain of both")
    for name, looked in others.items():
        found = scores(looked)
        kinds = np.repeat([False, True], [len(normals.rows), len(looked.rows)])
        auroc = {
            key: float(roc_auc_score(kinds, np.concatenate([calm[key], found[key]])))
            for key in found
        }
        sensitivity = {
            key: float((flags[key].p_values(found[key]) <= config.alpha).mean()) for key in found
        }
        patients = (normals.patients, looked.patients)
        gain = paired_gain(
            (calm["both"], found["both"]), (calm["texture"], found["texture"]), patients
        )
        result[name] = {"auroc": auroc, "sensitivity": sensitivity, "gain": gain}
        cells = "  ".join(f"{auroc[key]:.3f} {sensitivity[key]:.2f}" for key in found)
        print(
            f"{name:<22}{cells}  {gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]",
            flush=True,
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
