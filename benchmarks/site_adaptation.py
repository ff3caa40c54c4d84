"""What adapting to another site gains over a new threshold, at sites made of known changes.

    python benchmarks/site_adaptation.py --data DIR --bundle zhanglab

All scans of the development split (held-out normals, pneumonia) are changed as another site would
change them; 100 of its normals are drawn from the calibration split, four times. Three ways to use
them: not at all (the shipped calibration), all 100 for a new threshold, or 50 to adapt and 50 to
calibrate. Research use only. Not a diagnosis.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.images.network_images import Change
from anomaly.data.synthetic.alterations.canvas import finished
from anomaly.data.synthetic.alterations.image_changes import blur, contrast, gamma, moved
from anomaly.data.synthetic.seeded import nuisance_change
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.detection.adaptation import adapt
from anomaly.detection.calibration import Calibration
from anomaly.detection.extractor import join
from anomaly.detection.scoring import score_observation
from anomaly.evaluation.benchmark.splits import split_rows
from anomaly.evaluation.metrics import auroc
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.scoring.adapting import halves
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.training.detector_fit import ScanObserver

ALPHA, DRAWS, NORMALS = 0.05, 4, 100
Pixels = NDArray[np.float32]
RNG = np.random.default_rng(0)


def darker(pixels: Pixels) -> Pixels:
    """Another film curve."""
    return finished(gamma(pixels, RNG, exponent=1.5))


def softer(pixels: Pixels) -> Pixels:
    """Blur, and lower the contrast."""
    return finished(contrast(blur(pixels, RNG, sigma=1.2), RNG, factor=0.75))


def narrower(pixels: Pixels) -> Pixels:
    """Another aspect ratio, and magnified."""
    return finished(moved(pixels, (1.12, 0.9), (0, 0), 2))


SITES: dict[str, tuple[Callable[[Pixels], Pixels], ...]] = {
    "as it was": (),
    "darker": (darker,),
    "narrower": (narrower,),
    "all three": (narrower, darker, softer),
}


def changed(
    steps: tuple[Callable[[Pixels], Pixels], ...],
    nuisance: Change | None,
    pixels: Pixels,
    row: ManifestRow,
) -> Pixels:
    """Apply the changes of a site, and then those of a nuisance."""
    for step in steps:
        pixels = step(pixels)
    return pixels if nuisance is None else nuisance(pixels, row)


def main() -> None:
    """Observe every site once, adapt four times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("zhanglab"))
    parser.add_argument("--run", type=Path, default=Path("runs/site-adaptation"))
    options = parser.parse_args()
    bundle = read_bundle(find_bundle(options.bundle))
    config = replace(bundle.config, data=replace(bundle.config.data, root=options.data.absolute()))
    run = RunFolder(options.run)
    if not run.manifest.exists():
        prepare(run, config)
    manifest = Manifest.read(run.manifest, config.data.root)
    normal = config.data.normal
    observer = ScanObserver(
        bundle.network, bundle.levels, config, bundle.reference, torch.device("cpu")
    )
    known = split_rows(manifest, "calibration", normal)
    held_out = split_rows(manifest, "test", normal)
    ill = [row for row in split_rows(manifest, "test") if row.label != normal]
    shipped = bundle.calibration().scores
    print("| site | use of 100 normals | false alarms (203) | pneumonia flagged (399) | AUROC |")
    print("|---|---|---|---|---|")
    number = {row.key: index for index, row in enumerate(known)}
    copies = range(config.detector.nuisance_copies)
    for site, steps in SITES.items():
        plainly = partial(changed, steps, None)
        seen = [
            observer.observe(
                known, site, partial(changed, steps, nuisance_change(config.detector.seed, k))
            )
            for k in copies
        ]
        whole = join([observer.observe(known, site, plainly), *seen])
        scans = np.tile(np.arange(len(known)), len(seen) + 1)
        others = [observer.observe(rows, site, plainly) for rows in (held_out, ill)]
        pair = (bundle.detector, bundle.heatmap)
        # Calibrated under the first nuisance, as the bundle was.
        plain = [score_observation(p, config.features, *pair).scores for p in (seen[0], *others)]
        patients = [row.patient for row in (*held_out, *ill)]
        labels = np.repeat([False, True], [len(held_out), len(ill)])

        def area(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
            return auroc(np.concatenate([one, two]), labels, patients).value  # noqa: B023

        rows: dict[str, list[tuple[float, float, float]]] = {"threshold": [], "adapted": []}
        for draw in range(DRAWS):
            chosen = np.random.default_rng(draw).permutation(len(known))[:NORMALS]
            calibration = Calibration.from_scores(plain[0][chosen])
            flags = [np.mean(calibration.p_values(s) <= ALPHA) for s in plain[1:]]
            rows["threshold"].append((*flags, area(*plain[1:])))
            first, second = (
                np.array([number[row.key] for row in half])
                for half in halves([known[k] for k in chosen], draw)
            )
            own = np.isin(scans, first)
            adapted = adapt(*pair, whole.select(own), config.features, scans[own])
            scores = [
                score_observation(part, config.features, *adapted).scores
                for part in (seen[0].select(second), *others)
            ]
            calibration = Calibration.from_scores(scores[0])
            flags = [np.mean(calibration.p_values(s) <= ALPHA) for s in scores[1:]]
            rows["adapted"].append((*flags, area(*scores[1:])))
        flags = [np.mean(shipped.p_values(s) <= ALPHA) for s in plain[1:]]
        print(f"| {site} | none | {flags[0]:.3f} | {flags[1]:.3f} | {area(*plain[1:]):.3f} |")
        for name, found in rows.items():
            mean, low, high = np.mean(found, 0), np.min(found, 0), np.max(found, 0)
            cells = [
                f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(mean, low, high, strict=True)
            ]
            print(f"| {site} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
