"""Measure training steps per second, starting from a trained network and including augmentation.

    python benchmarks/training.py --bundle zhanglab --steps 60 --threads 1

Starts from the bundle's weights, because speed may depend on them: some processors are many times
slower if gradients are smaller than the smallest normal number. Batches contain 16 random images of
the bundle's size, augmented according to its configuration. Prints the median over the steps, and
from the same run, without data, optimiser and average: a forward pass, the step of a plain denoiser
with the same trunk down and up again (`anomaly.detection.baselines.denoiser`), and a training step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from anomaly.cdm.loss import CDMLoss
from anomaly.data.images.loaders import Deal, step_batches
from anomaly.detection.baselines.denoiser import PlainDenoiser
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import find_bundle
from anomaly.training.loop import Observers, TrainingFolder, fit
from anomaly.training.state import Batch

IMAGES, BATCH, WARM = 64, 16, 5


def middle_ms(function: Callable[[], object], repeat: int = 15) -> float:
    """Milliseconds of one call: the median, after two calls."""
    times = []
    for _ in range(repeat + 2):
        began = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])


def compare(loss: CDMLoss, framed: Tensor) -> None:
    """Print the cost of a step beside a forward pass and a plain denoiser's step."""
    network, levels = loss.network, loss.levels
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.nn.functional.avg_pool2d(framed[:BATCH], 2) * 2 - 1
    eps = torch.randn(x_0.shape, generator=generator)
    t = torch.randint(1, levels.last, (BATCH,), generator=generator)
    x_t = levels.perturb(x_0, t, eps)
    trunk = {"widths": (32, 48, 64, 64), "blocks": 1, "patch": 2}
    plain = PlainDenoiser(levels, **trunk, steps=1, batch_size=4).fit(x_0, 0).requires_grad_(True)  # type: ignore[arg-type]

    def forward() -> None:
        with torch.no_grad():
            network(x_t)

    def plain_step() -> None:
        plain.zero_grad()
        torch.nn.functional.mse_loss(plain(x_t, t), eps).backward()

    def step() -> None:
        network.zero_grad()
        loss(x_0, t, eps).total.backward()

    one, denoiser, ours = (middle_ms(function) for function in (forward, plain_step, step))
    print(
        f"forward {one:.1f} ms, plain denoiser's step {denoiser:.1f} ms, training step {ours:.1f} "
        f"ms: {ours / one:.1f} forwards, {ours / denoiser:.2f} plain steps"
    )


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
    loss = CDMLoss(bundle.network.requires_grad_(True), bundle.levels, settings.ce_weight)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            loss,
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
    compare(loss, framed)


if __name__ == "__main__":
    main()
