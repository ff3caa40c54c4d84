"""Samplers on the Gaussian oracle: hand-derived steps, mean and covariance of the samples."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from anomaly.cdm.gaussian import GaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.sampling import sample, step_ladder
from anomaly.errors import ConfigError


@pytest.mark.parametrize(
    ("steps", "ladder"),
    [
        (1, [10, 0]),
        (2, [10, 5, 0]),
        (3, [10, 7, 3, 0]),  # 10, 6.67, 3.33
        (5, [10, 8, 6, 4, 2, 0]),
        (10, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_step_ladder_by_hand(steps: int, ladder: list[int]) -> None:
    assert step_ladder(NoiseLevels.from_name("cosine", 10), steps) == ladder


@pytest.mark.parametrize("top", [1, 7, 200])
def test_step_ladder_never_rests(top: int) -> None:
    levels = NoiseLevels.from_name("cosine", top)
    for steps in range(1, top + 1):
        ladder = step_ladder(levels, steps)
        assert (len(ladder), ladder[0], ladder[-1]) == (steps + 1, top, 0)
        assert all(t > s for t, s in pairwise(ladder))


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"{steps} sampling steps: expected 1 to 10"):
        step_ladder(NoiseLevels.from_name("cosine", 10), steps)


def standard_normal(levels: NoiseLevels) -> GaussianCDM:
    return GaussianCDM(torch.zeros(1, 2, 2).double(), torch.eye(4).double(), levels)


def draw(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 2, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ddim_of_standard_normal_data_by_hand(steps: int, device: torch.device) -> None:
    # Variance-preserving noise leaves N(0, I) as it is: eps_hat = sin(a) x, x_0 = cos(a) x with the
    # angle a = asin(sigma). A step from a to b multiplies by cos(b) cos(a) + sin(b) sin(a).
    levels = NoiseLevels.from_name("cosine", 7)
    angle = torch.asin(levels.sigma)[step_ladder(levels, steps)]
    noise = draw(5)
    network = standard_normal(levels).to(device)
    got = sample(network, levels, noise.to(device), steps=steps, eta=0.0, clip=False)
    torch.testing.assert_close(got.cpu(), noise * torch.cos(angle.diff()).prod())


@pytest.mark.parametrize("name", ["cosine", "uniform", "linear"])
def test_ancestral_step_is_bayes_rule(name: str, device: torch.device) -> None:
    # Given x_0, x_s is N(alpha_s x_0, sigma_s^2) and x_t is N(a x_s, b) with a = alpha_t / alpha_s,
    # b = sigma_t^2 - a^2 sigma_s^2. So x_s given both has precision 1 / sigma_s^2 + a^2 / b. For
    # standard normal data x_0 is estimated by alpha_t x, and the last step multiplies by alpha_s.
    levels = NoiseLevels.from_name(name, 8)
    noise, generator = draw(5), torch.Generator().manual_seed(3)
    network = standard_normal(levels).to(device)
    got = sample(
        network, levels, noise.to(device), steps=2, eta=1.0, generator=generator, clip=False
    )
    (alpha_t, alpha_s), (sigma_t, sigma_s) = levels.alpha[[8, 4]], levels.sigma[[8, 4]]
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / b
    mean = (alpha_s * alpha_t * noise / sigma_s**2 + a * noise / b) / precision
    z = torch.randn(5, 1, 2, 2, generator=generator.manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(got.cpu(), alpha_s * (mean + z / precision.sqrt()))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_step_is_the_posterior_mean(eta: float) -> None:
    # To the clean level no noise is added: x_0 = alpha_T x for standard normal data.
    levels = NoiseLevels.from_name("uniform", 4)
    noise = draw(5)
    got = sample(standard_normal(levels), levels, noise, steps=1, eta=eta, clip=False)
    torch.testing.assert_close(got, noise * levels.alpha[4])


@pytest.mark.parametrize("name", ["log_snr", "cosine", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_mean_and_covariance_of_the_data(
    name: str, eta: float, device: torch.device
) -> None:
    levels = NoiseLevels.from_name(name, 100)
    mean = torch.tensor([[[0.5, -0.5], [0.2, 0.0]]], dtype=torch.float64)
    root = torch.tensor(
        [[0.4, 0, 0, 0], [0.2, 0.3, 0, 0], [0, 0.1, 0.5, 0], [-0.1, 0, 0.2, 0.3]],
        dtype=torch.float64,
    )
    covariance = root @ root.T
    count = 1000
    x = sample(
        GaussianCDM(mean, covariance, levels).to(device),
        levels,
        draw(count).to(device),
        steps=100,
        eta=eta,
        generator=torch.Generator().manual_seed(1),
        clip=False,
    )
    x = x.flatten(1).cpu()
    spread = covariance.diagonal()
    # 4 standard errors of mean and covariance of normals, and 2 % of the spread for 100 steps.
    error = (x.mean(0) - mean.flatten()).abs()
    assert (error < 4 * (spread / count).sqrt() + 0.02 * spread.sqrt()).all()
    size = torch.outer(spread, spread)
    bound = 4 * ((size + covariance**2) / count).sqrt() + 0.06 * size.sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < bound).all()


def test_clip_holds_images_in_range_and_is_off_on_request() -> None:
    levels = NoiseLevels.from_name("cosine", 20)
    wide = GaussianCDM(torch.zeros(1, 2, 2).double(), 4 * torch.eye(4).double(), levels)
    free = sample(wide, levels, draw(50), steps=20, eta=0.0, clip=False)
    held = sample(wide, levels, draw(50), steps=20, eta=0.0)
    assert float(free.abs().max()) > 2
    assert float(held.abs().max()) <= 1
    assert not held.requires_grad


def test_ancestral_noise_is_a_function_of_the_generator() -> None:
    levels = NoiseLevels.from_name("cosine", 8)

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample(
            standard_normal(levels), levels, draw(3), steps=8, eta=1.0, generator=generator
        )

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_single_precision_images_stay_finite_at_a_thousand_levels() -> None:
    levels = NoiseLevels.from_name("log_snr", 1000)
    network = GaussianCDM(torch.zeros(1, 2, 2), 0.1 * torch.eye(4), levels)
    x = sample(network, levels, draw(20).float(), steps=1000, eta=1.0, clip=False)
    assert x.dtype == torch.float32
    # 80 values of variance 0.1, within 4 standard errors.
    assert abs(float(x.var()) - 0.1) < 4 * 0.1 * math.sqrt(2 / 80)
