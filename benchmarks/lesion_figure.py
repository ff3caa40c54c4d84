"""Draw inserted lesions with their heatmaps; scans and lesions are chosen by a seed.

    python benchmarks/lesion_figure.py --data DIR --run RUN --out docs/images/zhanglab-lesions.png

RUN is a folder made by `anomaly benchmark`. No case is omitted, so the figure includes failures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt

from anomaly.data.images.transforms import Frame
from anomaly.data.readers.registry import read_scan
from anomaly.data.synthetic.alterations import LESIONS, alter
from anomaly.data.table.manifest import Manifest
from anomaly.evaluation.benchmark.robustness import ALTERATION_SEED, altered_by
from anomaly.evaluation.benchmark.scans import Evaluator
from anomaly.pipelines.run import NOTICE, RunFolder
from anomaly.store.bundle import read_bundle
from anomaly.training.detector_fit import ScanObserver

COUNT = 8


def draw(data: Path, run: RunFolder, out: Path, seed: int) -> None:
    """Draw `COUNT` columns with the altered scan, evidence and raw gradient; outline the masks."""
    bundle = read_bundle(run.bundle)
    config = bundle.config
    normals = Manifest.read(run.manifest, data).select(split="test", label=config.data.normal)
    rng = np.random.default_rng(seed)
    rows = [normals[i] for i in rng.choice(len(normals), COUNT, replace=False)]
    lesions = [LESIONS[i] for i in rng.integers(len(LESIONS), size=COUNT)]
    config = replace(config, data=replace(config.data, root=data, workers=0))
    observer = ScanObserver(
        bundle.network, bundle.levels, config, bundle.reference, torch.device("cpu")
    )
    evaluator = Evaluator(observer, bundle, bundle.heatmap)
    ceiling = bundle.calibration().evidence_ceiling(config.alpha)
    figure, axes = plt.subplots(3, COUNT, figsize=(2 * COUNT, 6.6))
    for column, (row, lesion) in enumerate(zip(rows, lesions, strict=True)):
        seen = evaluator.look([row], lesion.name, partial(altered_by, lesion), maps=True)
        source = read_scan(data / row.path, row.frame, config.intensity, sha256=row.sha256).pixels
        altered = alter(source, lesion, row.sha256, ALTERATION_SEED)
        assert altered.mask is not None
        how = config.preprocessing
        frame = Frame((row.rows, row.columns), how.size, how.geometry)
        evidence = frame.to_source(seen.maps["evidence"][0])
        gradient = frame.to_source(seen.maps["gradient"][0])
        flagged = seen.scores[0] >= bundle.calibration().scores.threshold(config.alpha)
        hit = altered.mask.ravel()[evidence.argmax()]
        axes[0, column].set_title(
            f"{lesion.name.replace('_', ' ')}\n{'flagged' if flagged else 'not flagged'}, "
            f"{'hit' if hit else 'missed'}",
            fontsize=8,
        )
        axes[0, column].imshow(altered.pixels, cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(evidence, cmap="magma", vmin=0, vmax=ceiling)
        axes[2, column].imshow(gradient, cmap="magma", vmin=0)
        for axis in axes[:, column]:
            axis.contour(altered.mask, levels=[0.5], colors="cyan", linewidths=0.6)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[:, 0], ("altered normal", "evidence", "raw gradient"), strict=True):
        axis.set_ylabel(name, fontsize=9)
    figure.suptitle(f"Synthetic lesions in real normal scans, seed {seed}. {NOTICE}", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=80)


def main() -> None:
    """Parse the options and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw(options.data, RunFolder(options.run), options.out, options.seed)


if __name__ == "__main__":
    main()
