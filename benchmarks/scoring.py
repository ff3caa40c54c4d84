"""Measure the cost of scoring: scans per second and memory, from files and from arrays.

    python benchmarks/scoring.py --bundle zhanglab --files 5000
    python benchmarks/scoring.py --size 128 --images 64

The first command scores JPEG files with a bundle, by the scorer behind `anomaly score`, and prints
resident memory during the run. The second measures an untrained default network and its detector on
random images: the cost of a pass does not depend on the weights.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.data.images.network_images import ImageReader
from anomaly.detection.extractor import FeatureExtractor
from anomaly.detection.features import FeatureSettings
from anomaly.detection.heatmap import HeatmapSettings
from anomaly.detection.kinds import CombinedSettings
from anomaly.detection.scoring import fit_scoring, score_observation
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import choose_scans
from anomaly.scoring.scorer import Scorer
from anomaly.store.bundle_files import find_bundle

BATCH = 32


def resident_mib() -> float:
    """Resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def files(bundle_name: Path, count: int) -> None:
    """Score `count` files and print memory and rate ten times."""
    folder = find_bundle(bundle_name)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        scans = Path(place) / "scans"
        scans.mkdir()
        for index in range(count):
            # Enlarged coarse noise: all files differ, and each decodes like a photograph.
            coarse = Image.fromarray(rng.integers(0, 256, (14, 14), dtype=np.uint8))
            coarse.resize((224, 224), Image.Resampling.BICUBIC).save(scans / f"{index:05d}.jpg")
        run = RunFolder(Path(place) / "run")
        inputs = choose_scans(run, scans, folder, [])
        config, bundle = inputs.config, inputs.bundle
        rows = inputs.manifest.select()
        began = time.perf_counter()
        reader = ImageReader(config.data.root, bundle.config.intensity, bundle.config.preprocessing)
        scored = Scorer(bundle, reader, torch.device("cpu")).score((0, row) for row in rows)
        print(f"{'scans':>7} {'resident MiB':>13} {'scans/s':>9}")
        for done, _ in enumerate(scored, start=1):
            if done % max(1, count // 10) == 0:
                rate = done / (time.perf_counter() - began)
                print(f"{done:>7} {resident_mib():>13.0f} {rate:>9.2f}", flush=True)


def arrays(size: int, count: int) -> None:
    """Time an untrained default network and detector on random images."""
    torch.manual_seed(0)
    levels = NoiseLevels.from_name("log_snr", 400)
    images = torch.rand(count, 1, size, size) * 2 - 1
    base = CosineGaussianCDM.fit(images, levels, floor=1e-5)
    settings = EncoderSettings(widths=(32, 48, 64, 64))
    network = LevelClassifier(build_network(settings, levels), base).eval()
    features, detector = (
        FeatureSettings(),
        CombinedSettings(("energy", "texture"), given=("scale_rows", "scale_columns")),
    )
    observed = FeatureExtractor.of(network, levels, features, 256, images.mean(0))(images[:BATCH])
    fitted, heatmap = fit_scoring(observed, features, HeatmapSettings(), detector)
    began = time.perf_counter()
    for part in images.split(BATCH):
        observed = FeatureExtractor.of(network, levels, features, 256, images.mean(0))(part)
        score_observation(observed, features, fitted, heatmap)
    seconds = time.perf_counter() - began
    ladder = len(features.noise_to_signal)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{size}x{size}: {count / seconds:.2f} images/s on {torch.get_num_threads()} threads, "
        f"{features.draws * (1 + ladder)} forward passes and {features.draws * ladder} gradients "
        f"an image, peak {peak:.0f} MiB"
    )


def main() -> None:
    """Parse the options and measure scoring from files or from arrays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    if options.bundle is not None:
        files(options.bundle, options.files)
    else:
        arrays(options.size, options.images)


if __name__ == "__main__":
    main()
