"""Closed-form intercepts: known constants come back, with no more than sampling error."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch import Tensor, nn

from anomaly.cdm.density import log_density
from anomaly.cdm.encoder import Encoder
from anomaly.cdm.gaussian import GaussianCDM
from anomaly.cdm.intercepts import fit_intercepts, solve_intercepts
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier
from anomaly.errors import TrainingError

LEVELS = NoiseLevels.from_name("log_snr", 8)
CONSTANTS = torch.tensor([40, -7, 0, 3, -60, 12, 5, -1, 2, 9], dtype=torch.float64)


def oracle(size: int = 2) -> tuple[GaussianCDM, Tensor, Tensor]:
    d = size * size
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    covariance = 0.1 * (root @ root.T / d + 0.2 * torch.eye(d, dtype=torch.float64))
    mean = 0.3 * torch.ones(1, size, size, dtype=torch.float64)
    return GaussianCDM(mean, covariance, LEVELS), mean, covariance


def draw_images(count: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    noise = torch.randn(
        count, len(covariance), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    images: Tensor = mean + (noise @ torch.linalg.cholesky(covariance).T).reshape(-1, *mean.shape)
    return images


def sample_logits(per_level: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """True log densities (up to one constant) of images noised to every level equally often."""
    network, mean, covariance = oracle()
    t = torch.arange(len(LEVELS)).repeat(per_level)
    x_0 = draw_images(len(t), mean, covariance, seed)
    eps = torch.randn(
        x_0.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    return network(LEVELS.perturb(x_0, t, eps)), t


def standard_errors(logits: Tensor) -> Tensor:
    """Of the intercepts relative to the last one: the inverse Fisher information."""
    p = torch.softmax(logits, 1)
    information = torch.diag(p.sum(0)) - p.T @ p
    variance: Tensor = torch.linalg.inv(information[:-1, :-1])
    return variance.diagonal().sqrt()


def test_known_constants_come_back_within_sampling_error() -> None:
    logits, t = sample_logits(400)
    b = solve_intercepts(logits + CONSTANTS, t)
    expected = CONSTANTS[-1] - CONSTANTS
    assert b[-1] == 0
    assert ((b - expected)[:-1].abs() < 4 * standard_errors(logits)).all()


def test_more_samples_give_better_constants() -> None:
    errors = []
    for per_level in (20, 2000):
        logits, t = sample_logits(per_level)
        errors.append(float(solve_intercepts(logits, t).square().mean().sqrt()))
    # 100 times the samples, a tenth of the error, give or take the luck of ten numbers.
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_constants_added_to_the_logits_are_taken_off_exactly(scale: float) -> None:
    logits, t = sample_logits(30)
    moved = solve_intercepts(logits + scale * CONSTANTS, t)
    expected = solve_intercepts(logits, t) - scale * (CONSTANTS - CONSTANTS[-1])
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_a_general_convex_optimiser(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 5
    t = torch.cat([torch.arange(count), torch.randint(count, (295,), generator=generator)])
    logits = 2 * torch.randn(300, count, generator=generator, dtype=torch.float64)
    logits += 2 * nn.functional.one_hot(t, count)
    values, truth = logits.numpy(), t.numpy()

    def cross_entropy(b: np.ndarray) -> tuple[float, np.ndarray]:
        moved = values + np.append(b, 0)
        loss = (special.logsumexp(moved, axis=1) - moved[np.arange(300), truth]).sum()
        gradient = special.softmax(moved, axis=1).sum(0) - np.bincount(truth)
        return float(loss), gradient[:-1]

    best = optimize.minimize(
        cross_entropy, np.zeros(count - 1), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(solve_intercepts(logits, t).numpy()[:-1], best.x, atol=1e-5)


def test_two_levels_by_hand() -> None:
    # All logits equal: softmax(b) must be the frequencies 3/4 and 1/4, so b = log 3.
    b = solve_intercepts(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    assert b.tolist() == pytest.approx([math.log(3), 0], abs=1e-6)


def test_a_level_without_sample_is_refused() -> None:
    with pytest.raises(TrainingError, match="2 of 5 noise levels have no sample among 9"):
        solve_intercepts(torch.zeros(9, 5), torch.tensor([0, 0, 0, 0, 2, 2, 4, 4, 4]))


class Perturbed(nn.Module):
    """The oracle, off by a known constant at every level."""

    stride = 1
    level_count = len(LEVELS)

    def __init__(self, exact: GaussianCDM, constants: Tensor) -> None:
        super().__init__()
        self.exact = exact
        self.register_buffer("constants", constants)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.exact(x.double())) + cast(Tensor, self.constants)


def perturbed_classifier(constants: Tensor) -> tuple[LevelClassifier, GaussianCDM, Tensor]:
    exact, mean, covariance = oracle()
    network = cast(Encoder, Perturbed(exact, constants))
    return LevelClassifier(network), exact, draw_images(500, mean, covariance, 7).float()


def test_fitted_classifier_has_the_true_log_density() -> None:
    classifier, exact, images = perturbed_classifier(CONSTANTS)
    x = images[:20].double()
    truth = log_density(exact(x), x)
    assert float((log_density(classifier(x), x) - truth).abs().max()) > 50
    fit_intercepts(classifier, images, LEVELS, grey_levels=None, draws=8000, seed=0)
    # 800 draws a level; the sum over the ladder of errors near 1 / sqrt(800) stays below 0.3 nats.
    assert float((log_density(classifier(x), x) - truth).abs().max()) < 0.3


def test_fitting_a_second_time_changes_nothing() -> None:
    classifier, _, images = perturbed_classifier(CONSTANTS)
    for _ in range(2):
        before = classifier.intercept.clone()
        fit_intercepts(classifier, images, LEVELS, grey_levels=None, draws=1000, seed=0)
    assert float((classifier.intercept - before).abs().max()) < 1e-3


def test_coarse_dequantisation_is_seen_by_the_intercepts() -> None:
    intercepts = []
    for grey_levels in (None, 3):
        classifier, _, images = perturbed_classifier(CONSTANTS)
        fit_intercepts(classifier, images, LEVELS, grey_levels=grey_levels, draws=1000, seed=0)
        assert classifier.intercept.dtype == torch.float32
        intercepts.append(classifier.intercept)
    # Cells of 1 blur the images: the cleanest levels are no longer what the oracle expects.
    assert float((intercepts[0] - intercepts[1])[:3].abs().max()) > 0.5


def test_fewer_draws_than_levels_are_refused() -> None:
    classifier, _, images = perturbed_classifier(CONSTANTS)
    with pytest.raises(TrainingError, match="use more draws than levels"):
        fit_intercepts(classifier, images, LEVELS, grey_levels=None, draws=9, seed=0)
