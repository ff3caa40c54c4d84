"""Speed, memory and size beside other anomaly detectors, on the same images, machine and run.

    peers/bin/python benchmarks/peers.py --data DIR --size 64

with the environment of `benchmarks/peers.txt`. `DIR` holds images in any subfolders. Every method
is set up (fitted) on the first `--fit` images in the order of a seed and scores the next `--score`,
in a process of its own, with as many threads as the processor has cores. Networks have random
weights: this compares cost, not accuracy. Prints one line of JSON per method: images per second
(median of `--repeat`, and the range), peak memory of the process, size of what has to be kept, and
set-up time without imports. PaDiM and PatchCore see grey images as three equal channels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Images = NDArray[np.float32]


class Ready(NamedTuple):
    """A method after its set-up: how it scores images (N, 1, S, S), and the bytes it keeps."""

    score: Callable[[Tensor], object]
    kept: int


def _tensor_bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_bytes(module: torch.nn.Module) -> int:
    return _tensor_bytes(iter(module.state_dict().values()))


def anomalib_model(name: str, images: Tensor) -> Ready:
    """PaDiM or PatchCore of anomalib with an untrained ResNet-18 or Wide ResNet-50."""
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    layers = ["layer1", "layer2", "layer3"]
    model: Any
    if name == "padim":
        model = PadimModel(backbone="resnet18", layers=layers, pre_trained=False)
    else:
        model = PatchcoreModel(
            backbone="wide_resnet50_2", layers=["layer2", "layer3"], pre_trained=False
        )
    colour = images.expand(-1, 3, -1, -1)
    model.train()
    with torch.no_grad():
        for part in colour.split(32):
            model(part)
        if name == "padim":
            model.fit()
        else:
            model.subsample_embedding(0.1)
    model.eval()

    def score(part: Tensor) -> object:
        with torch.no_grad():
            return [model(some) for some in part.expand(-1, 3, -1, -1).split(32)]

    return Ready(score, _state_bytes(model))


def pyod_detector(name: str, images: Tensor) -> Ready:
    """ECOD or nearest neighbours of PyOD over the pixels."""
    from pyod.models.ecod import ECOD
    from pyod.models.knn import KNN

    model = ECOD() if name == "ecod" else KNN()
    model.fit(images.flatten(1).numpy())
    return Ready(
        lambda part: model.decision_function(part.flatten(1).numpy()),
        images.numel() * images.element_size(),
    )


def reconstruction(steps: int, images: Tensor) -> Ready:
    """Run a diffusion model's denoiser with the project's trunk `steps` times an image."""
    from anomaly.cdm.levels import NoiseLevels
    from anomaly.detection.baselines.denoiser import PlainDenoiser
    from anomaly.parallel import in_parallel

    denoiser = PlainDenoiser(
        NoiseLevels.from_name("log_snr", 400),
        widths=(32, 48, 64, 64),
        blocks=1,
        patch=2,
        steps=1,
        batch_size=4,
    )
    network = denoiser.fit(images[:8], 0)

    def one(part: Tensor) -> Tensor:
        x = part
        with torch.no_grad():
            for step in range(steps):
                x = x - 1e-3 * network(x, torch.full((len(x),), 1 + step % 400))
        return x

    device = torch.device("cpu")
    return Ready(lambda part: list(in_parallel(one, part.split(8), device)), _state_bytes(network))


def ours(what: str, images: Tensor) -> Ready:
    """Likelihood only, the full verdict, or the same with an exported model."""
    from dataclasses import replace

    from anomaly.cdm.density import log_density
    from anomaly.cdm.gaussian import CosineGaussianCDM
    from anomaly.cdm.levels import NoiseLevels
    from anomaly.cdm.network import LevelClassifier, build_network
    from anomaly.config import load_config
    from anomaly.detection.extractor import FeatureExtractor, batch_size, join
    from anomaly.detection.scoring import fit_scoring, score_observation
    from anomaly.parallel import in_parallel
    from anomaly.store.bundle import Bundle
    from anomaly.store.onnx_model import read_model, write_model

    config = load_config(Path("configs/zhanglab-64.yaml"))
    size = images.shape[-1]
    config = replace(config, preprocessing=replace(config.preprocessing, size=size))
    levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
    torch.manual_seed(0)
    base = CosineGaussianCDM.fit(images, levels, floor=1e-5)
    network = LevelClassifier(build_network(config.network, levels), base).eval()
    network.requires_grad_(False)
    device, reference = torch.device("cpu"), images.mean(0)
    batch = batch_size(size)
    kept = _state_bytes(network)
    if what == "likelihood":

        def likelihood(part: Tensor) -> Tensor:
            with torch.no_grad():
                return log_density(network(part), part)

        return Ready(lambda part: list(in_parallel(likelihood, part.split(batch), device)), kept)
    extract = FeatureExtractor.of(network, levels, config.features, 256, reference)
    blank = np.zeros((len(images), size, size), dtype=np.bool_)
    observed = join(list(extract.batches(images, blank, device)))
    kind = config.detector.candidates[0]
    detector, heatmap = fit_scoring(observed, config.features, config.heatmap, kind)
    kept += sum(array.nbytes for array in {**detector.arrays(), **heatmap.arrays()}.values())
    if what == "onnx":
        bundle = Bundle(
            config, levels, network, detector, heatmap, reference, "", frozenset(), str(kind)
        )
        path = Path(tempfile.mkdtemp()) / "model.onnx"
        write_model(bundle, path)
        extract = replace(extract, passes=read_model(path, bundle, device))

    def verdict(part: Tensor) -> object:
        return score_observation(extract(part), config.features, detector, heatmap)

    return Ready(lambda part: list(in_parallel(verdict, part.split(batch), device)), kept)


METHODS: dict[str, tuple[Callable[[Tensor], Ready], int | None]] = {
    "likelihood only": (lambda x: ours("likelihood", x), None),
    "full verdict": (lambda x: ours("verdict", x), None),
    "full verdict, ONNX Runtime": (lambda x: ours("onnx", x), None),
    "PaDiM, ResNet-18 (anomalib)": (lambda x: anomalib_model("padim", x), None),
    "PatchCore, Wide ResNet-50 (anomalib)": (lambda x: anomalib_model("patchcore", x), None),
    "ECOD on pixels (PyOD)": (lambda x: pyod_detector("ecod", x), None),
    "kNN on pixels (PyOD)": (lambda x: pyod_detector("knn", x), None),
    # Few images: each takes seconds.
    "diffusion reconstruction, 100 steps": (lambda x: reconstruction(100, x), 32),
    "diffusion reconstruction, 1000 steps": (lambda x: reconstruction(1000, x), 16),
}
"""Set-up of every method, and how many images it scores if not all."""


def read_images(folder: Path, size: int, count: int) -> Tensor:
    """Read grey images (count, 1, size, size) in [-1, 1], drawn by a seed."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix in {".jpeg", ".jpg", ".png"})
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    images = []
    for index in chosen:
        with Image.open(paths[index]) as image:
            grey = image.convert("L").resize((size, size), Image.Resampling.BOX)
        images.append(np.asarray(grey, dtype=np.float32) / 127.5 - 1)
    return torch.from_numpy(np.stack(images))[:, None]


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Set one method up and time it, in this process."""
    images = read_images(folder, options.size, options.fit + options.score)
    fit, rest = images[: options.fit], images[options.fit :]
    set_up, few = METHODS[name]
    rest = rest[:few]
    torch.manual_seed(0)
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        ready = set_up(fit)
    ready_after = time.perf_counter() - began
    ready.score(rest[:8])
    rates = []
    for _ in range(1 if few else options.repeat):
        began = time.perf_counter()
        ready.score(rest)
        rates.append(len(rest) / (time.perf_counter() - began))
    return {
        "method": name,
        "size": options.size,
        "images_per_second": round(float(np.median(rates)), 2),
        "range": [round(min(rates), 2), round(max(rates), 2)],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "kept_mib": round(ready.kept / 2**20, 1),
        "set_up_seconds": round(ready_after, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure every method in a process of its own, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--fit", type=int, default=400)
    parser.add_argument("--score", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--method", choices=METHODS)
    options = parser.parse_args()
    if options.method:
        print(json.dumps(measure(options.method, options.data, options)), flush=True)
        return
    for name in METHODS:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--method", name], env=os.environ, capture_output=True
        )
        lines = done.stdout.decode().splitlines()
        if done.returncode or not lines:
            said = done.stderr.decode().strip().splitlines()[-1:]
            print(json.dumps({"method": name, "failed": said}), flush=True)
            continue
        print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
