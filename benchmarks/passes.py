"""Measure what noise levels and noise draws contribute: fewer passes of the network, which verdict.

    python benchmarks/passes.py --data DIR --bundle zhanglab

For every choice of levels and draws the bundle's kind of detector and heatmap are fitted again on
the same normals. `margin` is what a configuration chooses by: how far synthetic perturbations of
validation normals score above nuisance (`anomaly.detection.selection`); it sees no abnormal scan.
The other figures are of the test split, at the conformal threshold of the calibration normals:
false alarms, AUROC and sensitivity for abnormal scans, and sensitivity for drawn lesions. They
choose nothing. Writes a line of JSON per choice.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from anomaly.data.images.network_images import NetworkImages
from anomaly.data.synthetic.alterations import LESIONS
from anomaly.data.synthetic.seeded import nuisance_change, perturbation_change
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection.calibration import Calibration
from anomaly.detection.extractor import Observation, join
from anomaly.detection.features import FeatureSettings
from anomaly.detection.scoring import (
    fit_heatmap,
    fit_on,
    fit_scoring,
    new_table,
    normal_table,
    score_observation,
)
from anomaly.detection.selection import margin
from anomaly.evaluation.benchmark.robustness import altered_by
from anomaly.pipelines.benchmark import benchmark_config
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.training.detector_fit import ScanObserver, calibration_change

ALL = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0)
CHOICES: tuple[tuple[tuple[float, ...], int], ...] = (
    ((0.08, 0.3, 1.0), 2),
    ((0.06, 0.2, 0.6, 2.0), 2),
    ((0.12, 0.5), 2),
    ((0.06, 0.12, 0.25, 0.5, 1.0, 2.0), 2),
    ((0.06, 0.12, 0.25, 0.5, 1.0), 2),
    (ALL, 1),
    (ALL, 2),
)


def main() -> None:
    """Parse the options, read the scans once, and evaluate every choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    folder = find_bundle(options.bundle)
    config = benchmark_config("bundle", options.data, None, folder, [])
    bundle = read_bundle(folder)
    with tempfile.TemporaryDirectory() as place:
        manifest = prepare(RunFolder(Path(place)), config)
    device = torch.device("cpu")
    reader = ScanObserver(bundle.network, bundle.levels, config, bundle.reference, device)
    kind = next(k for k in config.detector.candidates if str(k) == bundle.chosen)

    def split(name: str, *, normal: bool = True) -> Sequence[ManifestRow]:
        rows = [row for row in manifest.select(split=name) if row.label]
        return [row for row in rows if (row.label == config.data.normal) == normal]

    train, validation, test = (split(name) for name in ("train", "validation", "test"))
    seed, copies = config.detector.seed, config.detector.nuisance_copies
    changes = [None, *(nuisance_change(seed, copy) for copy in range(copies))]
    fitting = [reader.images([*train, *validation], change) for change in changes]
    perturbed = [reader.images(validation, perturbation_change(seed, k)) for k in range(copies)]
    calibration = reader.images(split("calibration"), calibration_change(config))
    evaluated = {
        "normal": reader.images(test),
        "abnormal": reader.images(split("test", normal=False)),
        **{item.name: reader.images(test, partial(altered_by, item)) for item in LESIONS},
    }
    scans = np.tile(np.arange(len(train) + len(validation)), len(fitting))
    trained, copy = scans < len(train), np.arange(len(scans)) >= len(fitting[0])

    def evaluate(features: FeatureSettings) -> dict[str, object]:
        observer = replace(reader, config=replace(config, features=features))

        def observe(images: NetworkImages) -> Observation:
            return join(list(observer.parts(images, "observing")))

        began = time.perf_counter()
        observed = join([observe(part) for part in fitting])
        detector, model = fit_scoring(observed, features, config.heatmap, kind, scans)
        seen = observed.select(trained)
        first = fit_heatmap(seen, features, config.heatmap)
        table = normal_table(seen, features, config.heatmap, scans[trained])
        early = fit_on(table, kind, scans[trained])

        def early_scores(part: Observation) -> NDArray[np.float64]:
            return early.score(new_table(part, features, first).use(early.names).values)

        calm = early_scores(observed.select(~trained & copy))
        disturbed = early_scores(join([observe(part) for part in perturbed]))

        def scores(images: NetworkImages) -> NDArray[np.float64]:
            parts = observer.parts(images, "scoring")
            found = [score_observation(p, features, detector, model).scores for p in parts]
            return np.concatenate(found)

        limit = Calibration.from_scores(scores(calibration))
        found = {name: scores(images) for name, images in evaluated.items()}
        flagged = {
            name: float((limit.p_values(of) <= config.alpha).mean()) for name, of in found.items()
        }
        normal, abnormal = found["normal"], found["abnormal"]
        return {
            "levels": features.noise_to_signal,
            "draws": features.draws,
            "gradients": features.gradients,
            "margin": margin(calm, disturbed),
            "auroc": float(
                roc_auc_score(
                    np.repeat([False, True], [len(normal), len(abnormal)]),
                    np.concatenate([normal, abnormal]),
                )
            ),
            "flagged": flagged,
            "seconds": time.perf_counter() - began,
        }

    for levels, draws in CHOICES:
        features = replace(config.features, noise_to_signal=levels, draws=draws)
        print(json.dumps(evaluate(features)), flush=True)


if __name__ == "__main__":
    main()
