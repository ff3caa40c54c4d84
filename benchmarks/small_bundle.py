"""Make a bundle of 16x16 pixels in a minute, for benchmarks of everything but the network.

    python benchmarks/small_bundle.py --out FOLDER

It is trained on phantoms by the functions of the commands, and is useful for nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
import yaml

from anomaly.config import load_config
from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.pipelines.calibrate import calibrate
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.train import train

CONFIG = {
    "name": "Small phantoms",
    "data": {
        "labels": {"normal": ["normal/*"]},
        "masks": "masks",
        "splits": {"train": 0.3, "validation": 0.25, "calibration": 0.3, "test": 0.15},
        "allow_synthetic": True,
    },
    "preprocessing": {"size": 16},
    "levels": {"steps": 20},
    "network": {"widths": [8, 8], "features": 8},
    "features": {"noise_to_signal": [0.25, 1.0], "draws": 1},
    "training": {
        "steps": 40,
        "batch_size": 8,
        "warmup_steps": 2,
        "validate_every": 40,
        "checkpoint_every": 10,
    },
    "detector": {"candidates": [{"use": ["energy"]}], "fit_on": ["train", "validation"]},
    "alpha": 0.1,
}


def main() -> None:
    """Draw phantoms, prepare, train, calibrate, and keep the bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        scans, file = Path(place) / "scans", Path(place) / "config.yaml"
        write_phantom_studies(scans, normals=60, abnormals=0, seed=0, size=(96, 84))
        file.write_text(yaml.safe_dump(CONFIG))
        config = load_config(file, [f"data.root={scans}"])
        run, device = RunFolder(Path(place) / "run"), torch.device("cpu")
        prepare(run, config)
        train(run, config, device)
        calibrate(run, config, run.bundle, "calibration", device)
        shutil.copytree(run.bundle, options.out)


if __name__ == "__main__":
    main()
