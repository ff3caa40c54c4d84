"""Measure the cost of scoring: scans per second and memory, from files and from arrays.

    python benchmarks/scoring.py --bundle zhanglab --files 2000
    python benchmarks/scoring.py --size 64
    python benchmarks/scoring.py --size 128 --images 128

The first command scores JPEG files with a bundle, by the scorer behind `anomaly score`, and prints
resident memory during the run. The others measure an untrained default network with the levels and
draws of `configs/zhanglab-64.yaml`, and its detector, on random images: the cost of a pass does not
depend on the weights. They print images per second of the forward pass (likelihood only), of the
input gradient, and of the full verdict, on as many threads as PyTorch uses; `--repeat` times each.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly.cdm.density import log_density, log_ratio_gradient
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.config import load_config
from anomaly.data.images.network_images import ImageReader
from anomaly.data.readers.isolation import Workers
from anomaly.detection.extractor import FeatureExtractor, batch_size, join
from anomaly.detection.scoring import Scores, fit_scoring, score_observation
from anomaly.parallel import in_parallel
from anomaly.pipelines.run import RunFolder
from anomaly.pipelines.score import choose_scans
from anomaly.scoring.scorer import Scorer
from anomaly.store.bundle_files import find_bundle


def resident_mib() -> float:
    """Resident memory of this process in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def files(bundle_name: Path, count: int, workers: int) -> None:
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
        with Workers(workers) as processes:
            scorer = Scorer(bundle, reader, torch.device("cpu"), processes)
            print(f"{'scans':>7} {'resident MiB':>13} {'scans/s':>9}")
            for done, _ in enumerate(scorer.score((0, row) for row in rows), start=1):
                if done % max(1, count // 10) == 0:
                    rate = done / (time.perf_counter() - began)
                    print(f"{done:>7} {resident_mib():>13.0f} {rate:>9.2f}", flush=True)


def arrays(size: int, count: int, repeat: int) -> None:
    """Time an untrained default network and detector on random images."""
    device = torch.device("cpu")
    torch.manual_seed(0)
    config = load_config(Path("configs/zhanglab-64.yaml"))
    levels = NoiseLevels.from_name("log_snr", 400)
    images = torch.rand(count, 1, size, size) * 2 - 1
    base = CosineGaussianCDM.fit(images, levels, floor=1e-5)
    assert isinstance(config.network, EncoderSettings)
    network = LevelClassifier(build_network(config.network, levels), base).eval()
    network.requires_grad_(False)
    features, detector = config.features, config.detector.candidates[0]
    extract = FeatureExtractor.of(network, levels, features, 256, images.mean(0))
    batch = batch_size(size)
    observed = join(list(extract.batches(images[:64], np.zeros((64, size, size), bool), device)))
    fitted, heatmap = fit_scoring(observed, features, config.heatmap, detector)
    t = torch.full((batch,), 200)

    def likelihood(part: Tensor) -> Tensor:
        with torch.no_grad():
            return log_density(network(part), part)

    def gradient(part: Tensor) -> Tensor:
        return log_ratio_gradient(network, part, t[: len(part)])

    def verdict(part: Tensor) -> Scores:
        return score_observation(extract(part), features, fitted, heatmap)

    passes: tuple[tuple[str, Callable[[Tensor], object]], ...] = (
        ("forward pass: likelihood only", likelihood),
        ("input gradient", gradient),
        ("full verdict", verdict),
    )
    print(f"{size}x{size}, {torch.get_num_threads()} threads, {count} images, images per second")
    for name, function in passes:
        rates = []
        for _ in range(repeat + 1):
            began = time.perf_counter()
            # A pass alone takes fewer images than a verdict, which divides its own.
            own = batch if function is verdict else max(1, batch // 2)
            for _ in in_parallel(function, images.split(own), device):
                pass
            rates.append(count / (time.perf_counter() - began))
        rates = sorted(rates[1:])  # the first fills caches
        middle = rates[len(rates) // 2]
        print(f"  {name:<30} {middle:8.1f}  ({rates[0]:.1f} to {rates[-1]:.1f})", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"  a verdict: {features.forward_passes} forward passes, {features.gradients} of them with "
        f"a gradient; peak {peak:.0f} MiB"
    )


def main() -> None:
    """Parse the options and measure scoring from files or from arrays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    if options.bundle is not None:
        files(options.bundle, options.files, options.workers)
    else:
        arrays(options.size, options.images, options.repeat)


if __name__ == "__main__":
    main()
