"""Measure training, scoring and likelihoods on a GPU, and train a network of 128x128 there.

    python benchmarks/gpu.py --minutes 5 --out gpu.json
    python benchmarks/gpu.py --images normals.npy --minutes 5 --out gpu.json

Needs PyTorch alone. `normals.npy` holds grey images (N, S, S) uint8, S at least 128; without it,
smoothed noise is used, whose cost is the same. Takes at most ten minutes with the default
`--minutes`. Prints a line of JSON per figure and, with `--out`, writes all of them:

- training steps per second and peak memory, at 64x64 and 128x128, in float32, bfloat16, compiled;
- images per second of the forward pass and of the input gradient, and the fraction of the device's
  measured matrix rate that they reach;
- seconds an image of a likelihood: ours (one pass), a bound by 1000 passes (ELBO) and an ODE of 100
  steps, each of which needs an input gradient and a divergence by one more;
- held-out bits/dim and denoising error of a 128x128 network after `--minutes` of training, whose
  checkpoint stays in `--folder` and can be resumed by the same command.

Without a GPU it runs on the CPU, and says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from anomaly.cdm.density import grey_step, log_ratio_gradient
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.intercepts import fit_intercepts
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import POWERS, CDMLoss, inverse_error_weights
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.training.loop import Observers, TrainingFolder, fit
from anomaly.training.settings import TrainingSettings
from anomaly.training.state import Batch, TrainingState
from anomaly.training.validation import validation_metrics

GREY = 256
SETTINGS = EncoderSettings(widths=(32, 48, 64, 64))
TRAINING = TrainingSettings(
    steps=16000, batch_size=64, learning_rate=0.008, ce_weight=1e-5, ce_from=0.75, warmup_steps=200
)


def images_of(path: Path | None, size: int) -> Tensor:
    """Images (N, 1, size, size) in [-1, 1] on the grid of grey values."""
    if path is None:
        noise = torch.randn(
            512, 1, size // 8, size // 8, generator=torch.Generator().manual_seed(0)
        )
        smooth = functional.interpolate(noise, (size, size), mode="bicubic").clamp(-2, 2) / 2
    else:
        import numpy as np

        raw = torch.from_numpy(np.load(path, allow_pickle=False)).float()[:, None]
        smooth = functional.interpolate(raw / 127.5 - 1, (size, size), mode="area")
    return ((smooth + 1) / 2 * (GREY - 1)).round() / (GREY - 1) * 2 - 1


def classifier(images: Tensor, levels: NoiseLevels) -> LevelClassifier:
    """Return a new network with a base fitted to images."""
    torch.manual_seed(0)
    base = CosineGaussianCDM.fit(images, levels, floor=grey_step(GREY) ** 2 / 12)
    return LevelClassifier(build_network(SETTINGS, levels), base)


class Figures:
    """Figures of a run: printed at once, written at the end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lines: list[dict[str, object]] = []

    def add(self, what: str, **values: object) -> None:
        """Print and keep a figure."""
        self.lines.append({"what": what, **values})
        print(json.dumps(self.lines[-1]), flush=True)

    def seconds(self, function: Callable[[], object], least: float = 2.0) -> float:
        """Seconds of one call, over at least `least` seconds after two warm-up calls."""
        for _ in range(2):
            function()
        self._wait()
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < least:
            function()
            self._wait()
            calls += 1
        return (time.perf_counter() - began) / calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_mib(self) -> int | None:
        """Peak memory on the device since the last call; None on a CPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak / 2**20)


def measure_matrix_rate(figures: Figures) -> float:
    """Print and return the float32 rate of a large matrix product, FLOP/s."""
    side = 4096 if figures.device.type == "cuda" else 1024
    a = torch.randn(side, side, device=figures.device)
    rate = 2 * side**3 / figures.seconds(lambda: a @ a)
    figures.add("matrix product, float32", teraflops=rate / 1e12)
    return rate


def measure_scoring(figures: Figures, network: nn.Module, images: Tensor, rate: float) -> None:
    """Print rates of forward pass and input gradient, and costs of likelihoods."""
    size, count = images.shape[-1], len(images)
    t = torch.full((count,), 200, device=images.device)

    def forward() -> Tensor:
        with torch.no_grad():
            result: Tensor = network(images)
        return result

    def gradient() -> Tensor:
        return log_ratio_gradient(network, images, t)

    with FlopCounterMode(display=False) as counter:
        forward()
    flops = counter.get_total_flops()
    one, two = figures.seconds(forward), figures.seconds(gradient)
    figures.add(
        f"scoring {size}x{size}, batch {count}",
        likelihoods_per_second=count / one,
        gradients_per_second=count / two,
        gradient_in_forwards=two / one,
        fraction_of_matrix_rate=flops / one / rate,
        peak_mib=figures.peak_mib(),
    )
    figures.add(
        f"likelihood {size}x{size}, seconds an image",
        ours=one / count,
        elbo_1000_passes=1000 * one / count,
        ode_100_steps=2 * 100 * two / count,
    )


def measure_training(figures: Figures, images: Tensor, levels: NoiseLevels) -> None:
    """Print training steps per second, plain, in bfloat16, and compiled where that works."""
    size = images.shape[-1]
    for precision in ("float32", "bfloat16"):
        settings = replace(TRAINING, precision=precision)
        loss = CDMLoss(classifier(images, levels), levels, settings.ce_weight).to(figures.device)
        state = TrainingState(loss, settings)
        batch = Batch(images[: settings.batch_size], [""] * settings.batch_size)
        seconds = figures.seconds(lambda s=state, b=batch: s.train_on(b, 0, 1, GREY), 4.0)  # type: ignore[misc]
        figures.add(
            f"training {size}x{size}, batch {settings.batch_size}, {precision}",
            steps_per_second=1 / seconds,
            peak_mib=figures.peak_mib(),
        )
    if figures.device.type != "cuda":
        return
    loss = CDMLoss(classifier(images, levels), levels, TRAINING.ce_weight).to(figures.device)
    state = TrainingState(loss, TRAINING)
    try:
        state.module = torch.compile(loss, mode="reduce-overhead")  # type: ignore[assignment]
        seconds = figures.seconds(lambda: state.train_on(batch, 0, 1, GREY), 4.0)
        figures.add(f"training {size}x{size}, compiled", steps_per_second=1 / seconds)
    except Exception as error:  # a compiler may be missing in many ways
        figures.add(f"training {size}x{size}, compiled", failed=str(error).splitlines()[0])


def train(
    figures: Figures, images: Tensor, levels: NoiseLevels, minutes: float, folder: Path
) -> None:
    """Train a 128x128 network for some minutes and print its held-out figures."""
    held_out = images[: len(images) // 5].cpu()
    learned = images[len(images) // 5 :]
    network = classifier(learned.cpu(), levels)
    assert network.base is not None
    weights = inverse_error_weights(network.base.denoising_error(), POWERS["balanced"])
    loss = CDMLoss(network, levels, TRAINING.ce_weight, weights).to(figures.device)
    end = time.monotonic() + 60 * minutes

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, TRAINING.steps):
            generator = torch.Generator().manual_seed(step)
            rows = torch.randint(len(learned), (TRAINING.batch_size,), generator=generator)
            yield Batch(learned[rows.to(learned.device)], [""] * TRAINING.batch_size)

    settings = replace(TRAINING, validate_every=TRAINING.steps, checkpoint_every=1000)
    observers = Observers(should_stop=lambda: time.monotonic() > end)
    result = fit(
        loss, batches, settings, TrainingFolder(folder, {}), grey_levels=GREY, observers=observers
    )
    averaged = result.network
    assert isinstance(averaged, LevelClassifier)
    fit_intercepts(averaged, learned.cpu(), levels, grey_levels=GREY, draws=len(levels), seed=0)
    metrics = validation_metrics(loss, averaged, held_out, grey_levels=GREY, seed=0, batch=64)
    figures.add(
        f"trained 128x128 for {minutes:g} minutes",
        steps=result.step,
        bits_per_dim=metrics["bits_per_dim"],
        denoising=metrics["denoising"],
        peak_mib=figures.peak_mib(),
    )


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = Figures(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: a CPU"
    figures.add("device", name=name, torch=torch.__version__)
    levels = NoiseLevels.from_name("log_snr", 400)
    rate = measure_matrix_rate(figures)
    for size in (64, 128):
        images = images_of(options.images, size)
        count = 256 if device.type == "cuda" else 16
        network = classifier(images, levels).to(device).eval().requires_grad_(False)
        measure_scoring(figures, network, images[:count].to(device), rate)
        measure_training(figures, images.to(device), levels)
    train(figures, images.to(device), levels, options.minutes, options.folder)
    if options.out is not None:
        options.out.write_text(json.dumps(figures.lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
