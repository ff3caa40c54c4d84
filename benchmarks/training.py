"""Measure training steps per second, starting from a trained network and including augmentation.

    python benchmarks/training.py --bundle zhanglab --steps 60 --threads 1

Starts from the bundle's weights, because speed may depend on them: some processors are many times
slower if gradients are smaller than the smallest normal number. Batches contain 16 random images of
the bundle's size, augmented according to its configuration. Prints the median over the steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from anomaly.cdm.loss import CDMLoss
from anomaly.data.images.loaders import Deal, step_batches
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.training.loop import Observers, TrainingFolder, fit
from anomaly.training.state import Batch

IMAGES, BATCH, WARM = 64, 16, 5


def main() -> None:
    """Parse the options, train and print the speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundle = read_bundle(find_bundle(options.bundle))
    config = bundle.config
    side = 2 * config.preprocessing.size
    # The bundle's mean image with noise, which is similar to the training images.
    mean = torch.nn.functional.interpolate((bundle.reference[None] + 1) / 2, (side, side))
    noise = torch.randn(IMAGES, 1, side, side, generator=torch.Generator().manual_seed(0))
    framed = (mean + 0.05 * noise).clamp(0, 1)
    settings = replace(
        config.training,
        steps=options.steps,
        batch_size=BATCH,
        learning_rate=1e-9,  # keeps the weights almost constant
        validate_every=options.steps,
        checkpoint_every=options.steps,
    )

    def batches(start: int) -> Iterator[Batch]:
        loader = step_batches(
            framed,
            [""] * IMAGES,
            config.augmentation,
            config.preprocessing,
            range(start, options.steps),
            Deal(BATCH, seed=0, total=options.steps),
        )
        for images, keys in loader:
            yield Batch(images, keys)

    at = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        fit(
            CDMLoss(bundle.network.requires_grad_(True), bundle.levels, settings.ce_weight),
            batches,
            settings,
            TrainingFolder(Path(folder), {}),
            grey_levels=config.preprocessing.grey_levels,
            observers=Observers(on_step=lambda step, loss: at.append(time.perf_counter())),
        )
    seconds = statistics.median(b - a for a, b in zip(at[WARM:-1], at[WARM + 1 :], strict=True))
    print(
        f"{1 / seconds:.2f} steps/s ({BATCH} images of {side // 2}x{side // 2}, "
        f"{options.threads} threads)"
    )


if __name__ == "__main__":
    main()
