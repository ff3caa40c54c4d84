"""Measure contours on phantoms: how many normals have any, and overlap with lesions by size.

    python benchmarks/contours.py --bundle FOLDER --work FOLDER

The bundle must be calibrated and trained on phantoms, such as one made by `anomaly demo`. New
patients are drawn as DICOM studies (with lesions of all kinds in turn, visible at the network's
size) and processed by `anomaly prepare` and `anomaly score`. A contour outlines evidence at and
above the bundle's threshold at its alpha, on the pixels of the source. For a lesion with mask M and
contoured pixels C

    Dice = 2 |M and C| / (|M| + |C|)            precision = |M and C| / |C|

where C includes all contours of the image, near the lesion or not. The best Dice uses the best
threshold for each single image, and so is an upper limit for the evidence map. The size of a lesion
is the diameter of a circle with the area of the mask. Intervals are 95 %: exact for rates, by
bootstrap over patients for means.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.config import Config
from anomaly.data.synthetic.phantom import LESION_KINDS
from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.detection.calibration import false_alarm_interval
from anomaly.evaluation.metrics import exact_rate, patient_mean
from anomaly.pipelines.evaluate import lesion_mask
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import score
from anomaly.scoring.verdicts import OperatingPoint
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.results import ScoreRow

EDGES = (0, 30, 50, 80, np.inf)
"""Limits of the size groups of lesions: diameters in mm."""


@dataclass(frozen=True)
class Lesion:
    """A lesion, and measures of the contours on its image."""

    patient: str
    kind: str
    diameter: float
    flagged: bool
    dice: float
    best_dice: float
    precision: float  # NaN without a contour
    touched: bool


def scored(
    bundle_folder: Path, bundle: Bundle, options: argparse.Namespace
) -> tuple[RunFolder, Config]:
    """Draw studies and score them."""
    scans, run = options.work / "scans", RunFolder(options.work / "run")
    size = bundle.config.preprocessing.size
    write_phantom_studies(
        scans,
        normals=options.normals,
        abnormals=options.abnormals,
        seed=options.seed,
        visible_at=size,
        workers=bundle.config.data.workers,
    )
    config = replace(
        bundle.config, data=replace(bundle.config.data, root=scans, splits={"test": 1.0})
    )
    prepare(run, config)
    score(run, config, bundle_folder, Manifest.read(run.manifest, scans), torch.device("cpu"))
    return run, config


def judge(
    evidence: NDArray[np.float32], mask: NDArray[np.bool_], threshold: float
) -> dict[str, float]:
    """Return the Dice, best Dice and precision of an evidence map against a mask."""
    contoured = evidence >= threshold
    both = int((contoured & mask).sum())
    order = np.argsort(-evidence.ravel(), kind="stable")
    hits = np.cumsum(mask.ravel()[order])
    best = 2 * hits / (mask.sum() + np.arange(1, len(hits) + 1))
    return {
        "dice": 2 * both / int(mask.sum() + contoured.sum()),
        "best_dice": float(best.max()),
        "precision": both / contoured.sum() if contoured.any() else float("nan"),
        "touched": both > 0,
    }


def kind_of(scan: ManifestRow, normals: int) -> str:
    """Kind of a scan's lesion. Kinds alternate by the number of the patient, after the normals."""
    number = int(re.findall(r"PHANTOM(\d+)", scan.path)[0])
    return LESION_KINDS[(number - 1 - normals) % len(LESION_KINDS)]


def look(
    run: RunFolder,
    config: Config,
    norm: OperatingPoint,
    rows: list[tuple[ScoreRow, ManifestRow]],
    normals: int,
) -> list[Lesion]:
    """Compare every lesion with its contours."""
    found = []
    for row, scan in rows:
        mask = lesion_mask(config, scan)
        if mask is None or not mask.any():
            continue
        verdict = norm.verdict(row, scan, run.results.evidence(row))
        assert verdict.scan.evidence is not None
        assert scan.spacing_row is not None
        assert scan.spacing_column is not None
        area = mask.sum() * scan.spacing_row * scan.spacing_column
        found.append(
            Lesion(
                scan.patient,
                kind_of(scan, normals),
                float(2 * np.sqrt(area / np.pi)),
                verdict.flagged,
                **judge(verdict.scan.evidence, mask, norm.evidence_threshold),
            )
        )
    return found


def table(lesions: list[Lesion], seed: int) -> dict[str, Any]:
    """Return statistics of a group of lesions."""
    patients = [lesion.patient for lesion in lesions]

    def mean(values: list[float], of: list[str]) -> str:
        return str(patient_mean(np.array(values), of, seed=seed)) if values else "none"

    drawn = [lesion for lesion in lesions if not np.isnan(lesion.precision)]
    return {
        "lesions": len(lesions),
        "flagged": str(exact_rate(np.array([lesion.flagged for lesion in lesions]))),
        "touched by a contour": str(exact_rate(np.array([lesion.touched for lesion in lesions]))),
        "Dice": mean([lesion.dice for lesion in lesions], patients),
        "Dice where touched": mean(
            [lesion.dice for lesion in lesions if lesion.touched],
            [lesion.patient for lesion in lesions if lesion.touched],
        ),
        "precision of contours": mean(
            [lesion.precision for lesion in drawn], [lesion.patient for lesion in drawn]
        ),
        "best Dice": mean([lesion.best_dice for lesion in lesions], patients),
    }


def main() -> None:
    """Draw and score studies, compare contours with lesions, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--normals", type=int, default=400, help="patients")
    parser.add_argument("--abnormals", type=int, default=200, help="patients")
    parser.add_argument("--seed", type=int, default=60)
    options = parser.parse_args()
    bundle = read_bundle(options.bundle)
    run, config = scored(options.bundle, bundle, options)
    manifest = Manifest.read(run.manifest, config.data.root)
    scans = {row.key: row for row in manifest.select()}
    rows, provenance = run.results.read()
    norm = OperatingPoint.of(bundle, provenance.alpha)
    pairs = [(row, scans[row.key]) for row in rows]
    normal = [row for row, scan in pairs if scan.label == config.data.normal]
    regions = np.array([bool(row.regions) for row in normal])
    flagged = np.array([bool(row.flagged) for row in normal])
    n = norm.calibration_scans
    low, high = false_alarm_interval(n, norm.alpha, 0.95, len(normal))
    if bundle.calibration().under_nuisance:
        low = 0.0  # then unchanged scans may have a lower rate
    lesions = look(run, config, norm, pairs, options.normals)
    figures = {
        "alpha": norm.alpha,
        "calibration scans": n,
        "normals with any contour": str(exact_rate(regions)),
        "conformal bound, 95 %": f"[{low:.3f}, {high:.3f}]",
        "normals flagged": str(exact_rate(flagged)),
        "normals flagged with a contour, as the page draws them": str(
            exact_rate(regions & flagged)
        ),
        "all lesions": table(lesions, options.seed),
        **{
            f"{low_mm:g} to {high_mm:g} mm": table(group, options.seed)
            for low_mm, high_mm in pairwise(EDGES)
            if (group := [one for one in lesions if low_mm <= one.diameter < high_mm])
        },
        **{
            kind: table(group, options.seed)
            for kind in LESION_KINDS
            if (group := [one for one in lesions if one.kind == kind])
        },
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
