"""Compare a bundle's samples with held-out normals: kernel distances, and a contact sheet.

    python benchmarks/samples.py --data DIR --bundle zhanglab --features zhanglab --sheet OUT.png

Draws 256 images (DDIM or, with ``--eta 1``, DDPM; 50 steps, noise of seed 0, none omitted) and
compares them with the normals of the test split by the squared maximum mean discrepancy (Gretton
et al. 2012, JMLR 13, eq. 3, unbiased), with a Gaussian kernel whose width is the median distance
among those normals:

- on pixels;
- on features: the outputs of all parts of the network of ``--features`` for the image at
  sigma / alpha = 0.25 (noise of seed 0), averaged over the image and standardised by the held-out
  normals. To compare bundles, use the same ``--features`` for each.

For reference it prints the same distance for as many training normals, which is the distance
between two sets of real scans; and for all training normals under the augmentation of training,
moved and unmoved, which is the distance of a perfect model of the training data.
Intervals: 95 %, 1,000 bootstrap draws of the samples. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from anomaly.cdm.sampling import sample
from anomaly.data.images.augmentation import RandomAugmentation
from anomaly.data.images.network_images import ImageReader, framed_images, read_images
from anomaly.data.images.transforms import Augmentation, Preprocessing
from anomaly.pipelines.prepare import prepare
from anomaly.pipelines.run import RunFolder
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import find_bundle

COUNT, STEPS, BATCH = 256, 50, 32
NOISE_TO_SIGNAL = 0.25
BOOTSTRAPS = 1000
SHEET = 8


def draw_samples(bundle: Bundle, eta: float) -> Tensor:
    """Draw `COUNT` images (COUNT, 1, S, S) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(COUNT, *bundle.reference.shape, generator=generator)
    return torch.cat(
        [
            sample(bundle.network, bundle.levels, part, steps=STEPS, eta=eta, generator=generator)
            for part in noise.split(BATCH)
        ]
    )


def read_normals(bundle: Bundle, data: Path) -> dict[str, Tensor]:
    """Return the network images of normals of the training and test splits.

    Also return the training normals under augmentation, with and without moves.
    """
    config = replace(bundle.config, data=replace(bundle.config.data, root=data, workers=0))
    with tempfile.TemporaryDirectory() as folder:
        manifest = prepare(RunFolder(Path(folder)), config)
    reader = ImageReader(data, config.intensity, config.preprocessing)
    rows = {
        split: manifest.select(split=split, label=config.data.normal) for split in ("train", "test")
    }
    framed = framed_images(reader, rows["train"], 0)
    return {
        **{split: read_images(reader, rows[split], 0).images for split in rows},
        "moved": augmented(framed, config.augmentation, config.preprocessing),
        "unmoved": augmented(framed, config.augmentation.unmoved, config.preprocessing),
    }


def augmented(framed: Tensor, augmentation: Augmentation, how: Preprocessing) -> Tensor:
    """Augment every framed image once, at random with seed 0."""
    change = RandomAugmentation(augmentation, how)
    change.set_random_state(seed=0)
    return torch.stack([change(image) for image in framed])


def network_features(bundle: Bundle, images: Tensor) -> Tensor:
    """Return the outputs of all parts of the network, averaged over the image: (N, F) float64."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output.mean((2, 3)).double())

    eps = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0))
    level = bundle.levels.nearest(NOISE_TO_SIGNAL)
    hooks = [part.register_forward_hook(keep) for part in bundle.network.parts.values()]
    rows = []
    with torch.no_grad():
        for part in images.split(BATCH):
            found.clear()
            t = torch.full((len(part),), level)
            bundle.network(bundle.levels.perturb(part, t, eps.expand_as(part)))
            rows.append(torch.cat(found, 1))
    for hook in hooks:
        hook.remove()
    return torch.cat(rows)


def kernel_distance(
    drawn: Tensor, real: Tensor
) -> tuple[Callable[[NDArray[np.intp]], float], float]:
    """Squared discrepancy of `drawn` from `real`: a function of row numbers, and its full value."""
    width = float(torch.pdist(real).median())

    def kernel(a: Tensor, b: Tensor) -> NDArray[np.float64]:
        return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * width**2)).numpy()

    within, between, among = kernel(drawn, drawn), kernel(drawn, real), kernel(real, real)

    def off_diagonal(matrix: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
        return float(matrix[~same].mean())

    fixed = off_diagonal(among, np.eye(len(real), dtype=bool))

    def distance(rows: NDArray[np.intp]) -> float:
        # Two copies of a row in a bootstrap draw are not a pair of samples.
        same = rows[:, None] == rows[None]
        inner = off_diagonal(within[np.ix_(rows, rows)], same)
        return inner + fixed - 2 * float(between[rows].mean())

    return distance, distance(np.arange(len(drawn)))


def measure(drawn: Tensor, real: Tensor) -> dict[str, float]:
    """Squared kernel distance and its interval."""
    distance, value = kernel_distance(drawn.flatten(1).double(), real.flatten(1).double())
    rng = np.random.default_rng(0)
    size = len(drawn)
    again = [distance(rng.integers(size, size=size)) for _ in range(BOOTSTRAPS)]
    low, high = np.quantile(again, (0.025, 0.975))
    return {"value": value, "low": float(low), "high": float(high)}


def write_sheet(images: Tensor, path: Path) -> None:
    """Write the first images side by side, marked as synthetic in pixels and metadata."""
    rows = [torch.cat(list(images[r * SHEET : (r + 1) * SHEET, 0]), 1) for r in range(SHEET // 2)]
    grey = ((torch.cat(rows) + 1) * 127.5).clamp(0, 255).byte().numpy()
    sheet = Image.new("L", (grey.shape[1], grey.shape[0] + 14))
    sheet.paste(Image.fromarray(grey), (0, 14))
    text = "SYNTHETIC: drawn by a model. Research use only. Not a diagnosis."
    ImageDraw.Draw(sheet).text((2, 1), text, fill=255)
    info = PngInfo()
    info.add_text("Source", "synthetic; drawn by a classification diffusion model")
    sheet.save(path, pnginfo=info)


def main() -> None:
    """Parse the options, draw samples, measure distances and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--eta", type=float, default=0.0)
    options = parser.parse_args()
    bundle = read_bundle(find_bundle(options.bundle))
    eye = read_bundle(find_bundle(options.features))
    normals = read_normals(bundle, options.data)
    real = normals["test"]
    order = torch.randperm(len(normals["train"]), generator=torch.Generator().manual_seed(0))
    sets = {
        "samples": draw_samples(bundle, options.eta),
        "training normals": normals["train"][order[:COUNT]],
        "moved": normals["moved"],
        "unmoved": normals["unmoved"],
    }
    if options.sheet is not None:
        write_sheet(sets["samples"], options.sheet)
    reference = network_features(eye, real)
    centre, spread = reference.mean(0), reference.std(0).clamp_min(1e-12)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, images in sets.items():
        features = (network_features(eye, images) - centre) / spread
        result[name] = {
            "pixels": measure(images, real),
            "features": measure(features, (reference - centre) / spread),
        }
        for space, found in result[name].items():
            print(
                f"{name:<17} {space:<9} {found['value']:.5f} "
                f"[{found['low']:.5f}, {found['high']:.5f}]",
                flush=True,
            )
    assert all(math.isfinite(f["value"]) for spaces in result.values() for f in spaces.values())
    print(
        json.dumps({"bundle": bundle.hash, "features": eye.hash, "held out": len(real), **result})
    )


if __name__ == "__main__":
    main()
