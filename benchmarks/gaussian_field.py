"""Train a CDM on Gaussian fields of known covariance, and compare it with the truth.

    python benchmarks/gaussian_field.py --schedule log_snr
    python benchmarks/gaussian_field.py --schedule log_snr --spectral-base

During training, prints the excess of the held-out bits/dim over the true entropy, and the excess of
the denoising error over the optimum in per cent at ten levels spread evenly over the ladder. The
last line is JSON. Images are 16x16 with standard deviation 1/2: nine tenths of the variance has an
exponential correlation of length 3 pixels, one tenth is white.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from anomaly.cdm.density import bits_per_dim, log_density, predict_noise
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM, GaussianCDM
from anomaly.cdm.intercepts import fit_intercepts
from anomaly.cdm.levels import SCHEDULES, NoiseLevels
from anomaly.cdm.loss import POWERS, CDMLoss, inverse_error_weights
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.training.checkpoint import Metrics
from anomaly.training.loop import Observers, TrainingFolder, fit
from anomaly.training.settings import TrainingSettings
from anomaly.training.state import Batch

SIDE = 16
DIMS = SIDE * SIDE
HELD_OUT = 2000
# Number of fields for fitting the intercepts: for the curve during training, and at the end.
CURVE_DRAWS, FINAL_DRAWS = 4000, 20000


def covariance() -> Tensor:
    """Covariance matrix (256, 256) float64 of the field."""
    place = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    distance = torch.cdist(place, place)
    return 0.25 * (0.9 * torch.exp(-distance / 3) + 0.1 * torch.eye(DIMS))


def draw(count: int, factor: Tensor, seed: int) -> Tensor:
    """Random fields (count, 1, 16, 16) float32."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, DIMS, generator=generator, dtype=torch.float64)
    return (white @ factor.T).float().reshape(count, 1, SIDE, SIDE)


def bits(classifier: nn.Module, fields: Tensor) -> float:
    """Mean bits/dim, computed as for 256 grey levels; the fields are continuous."""
    with torch.no_grad():
        log_p = log_density(classifier(fields), fields)[:, 0]
    return float(bits_per_dim(log_p, DIMS, 256).mean())


def rungs(levels: NoiseLevels) -> list[int]:
    """Ten levels, evenly spread over ``1 .. T``."""
    return [1 + round((levels.last - 2) * (k + 0.5) / 10) for k in range(10)]


def denoising_errors(classifier: nn.Module, fields: Tensor, levels: NoiseLevels) -> list[float]:
    """Mean squared error of eps at the ten rungs."""
    errors = []
    for rung in rungs(levels):
        t = torch.full((len(fields),), rung)
        eps = torch.randn(fields.shape, generator=torch.Generator().manual_seed(rung))
        eps = eps.to(fields.dtype)
        eps_hat = predict_noise(classifier, levels.perturb(fields, t, eps), t, levels)
        errors.append(float((eps - eps_hat).square().mean()))
    return errors


def best_errors(truth: Tensor, levels: NoiseLevels) -> Tensor:
    """Mean squared error of eps of the best denoiser at every level: (T + 2,) float64."""
    signal = levels.alpha.square()[:, None] * torch.linalg.eigvalsh(truth)
    return (signal / (signal + levels.sigma.square()[:, None])).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="log_snr")
    parser.add_argument("--levels", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--ce-weight", type=float, default=3e-4)
    parser.add_argument("--ce-from", type=float, default=0.0)
    parser.add_argument("--level-weights", choices=sorted(POWERS), default="uniform")
    parser.add_argument("--widths", type=int, nargs="+", default=[24, 32, 48])
    parser.add_argument("--spectral-base", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    levels = NoiseLevels.from_name(options.schedule, options.levels)
    truth = covariance()
    factor = torch.linalg.cholesky(truth)
    held_out = draw(HELD_OUT, factor, seed=10**9)
    oracle = GaussianCDM(torch.zeros(1, SIDE, SIDE, dtype=torch.float64), truth, levels)
    # The oracle's bits/dim are measured on the held-out sample, so that the sampling error cancels.
    # The entropy is only reported.
    true_bits = bits(oracle, held_out.double())
    entropy_nats = 0.5 * float(torch.logdet(2 * math.pi * math.e * truth))
    entropy = float(bits_per_dim(torch.tensor(-entropy_nats), DIMS, 256))
    optimum = denoising_errors(oracle, held_out.double()[:500], levels)

    settings = EncoderSettings(
        patch=1, widths=tuple(options.widths), spectral_base=options.spectral_base
    )
    base = None
    if settings.spectral_base:
        base = CosineGaussianCDM.fit(draw(5000, factor, seed=7), levels, floor=1e-6)
    classifier = LevelClassifier(build_network(settings, levels), base)
    weights = sum(p.numel() for p in classifier.parameters())
    print(f"{options.schedule}, T = {options.levels}, {weights} weights, {options.threads} threads")
    print(f"entropy {entropy:.4f} bits/dim; true code length of the held-out {true_bits:.4f}")
    print("seconds  CPU s  step  gap bits/dim  excess denoising error, % at ten levels")
    began = time.perf_counter()

    def measure(averaged: nn.Module, step: int) -> Metrics:
        assert isinstance(averaged, LevelClassifier)
        before = averaged.intercept.clone()
        draws = FINAL_DRAWS if step == options.steps else CURVE_DRAWS
        fit_intercepts(
            averaged, draw(draws, factor, seed=8), levels, grey_levels=None, draws=draws, seed=1
        )
        gap = bits(averaged, held_out) - true_bits
        errors = denoising_errors(averaged, held_out[:500], levels)
        excess = [100 * (e / o - 1) for e, o in zip(errors, optimum, strict=True)]
        averaged.intercept.copy_(before)
        seconds, work = time.perf_counter() - began, time.process_time()
        print(
            f"{seconds:7.0f} {work:6.0f} {step:5d} {gap:13.4f}  "
            + " ".join(f"{e:5.1f}" for e in excess),
            flush=True,
        )
        return {"seconds": seconds, "cpu_seconds": work, "gap": gap, "excess_percent": excess}

    def batches(start: int) -> Iterator[Batch]:
        for step in range(start, options.steps):
            fields = draw(options.batch_size, factor, seed=2 * 10**9 + step)
            yield Batch(fields, [""] * options.batch_size)

    training = TrainingSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        ce_weight=options.ce_weight,
        ce_from=options.ce_from,
        seed=options.seed,
        validate_every=max(1, options.steps // 4),
        checkpoint_every=options.steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        # The error of the best denoiser is known here: that denoiser is linear.
        weights = inverse_error_weights(best_errors(truth, levels), POWERS[options.level_weights])
        fit(
            CDMLoss(classifier, levels, options.ce_weight, weights),
            batches,
            training,
            TrainingFolder(Path(folder), {"data": "gaussian field"}),
            grey_levels=None,
            observers=Observers(validate=measure),
        )
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    ratio = [float(levels.sigma[t] / levels.alpha[t]) for t in rungs(levels)]
    print(json.dumps({**vars(options), "sigma_over_alpha": ratio, **json.loads(lines[-1])}))


if __name__ == "__main__":
    main()
