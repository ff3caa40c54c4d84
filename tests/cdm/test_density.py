"""Density, score and denoiser: invariances, hand numbers, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from anomaly.cdm.density import (
    bits_per_dim,
    clean_estimate,
    dequantize,
    grey_step,
    log_density,
    log_ratio,
    log_reference,
    logits_and_gradient,
    noise_of_gradient,
    predict_noise,
    score,
)
from anomaly.cdm.levels import SCHEDULES, NoiseLevels
from anomaly.errors import ConfigError

LEVELS = NoiseLevels.from_name("cosine", 4)


def tiny_network(levels: NoiseLevels = LEVELS, dims: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(dims, 5), nn.Tanh(), nn.Linear(5, len(levels))
    return nn.Sequential(*layers).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_log_reference_is_the_standard_normal_even_for_float32_images() -> None:
    x = draw(3, 1, 64, 64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(log_reference(x), expected, rtol=1e-12, atol=0)
    # 4096 values of about -1.4 nats: a float32 sum would be off by 1e-3 and more.
    narrow = x.float()
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(narrow.double()).flatten(1).sum(1)
    assert (log_reference(narrow) - exact).abs().max() < 1e-9


def test_log_reference_of_zero_by_hand() -> None:
    assert float(log_reference(torch.zeros(1, 2, 3, 5))) == pytest.approx(
        -15 * math.log(2 * math.pi)
    )


def test_log_ratio_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 5.0], [0.5, -1.0, 0.25]])
    assert log_ratio(logits, torch.tensor([1, 0])).tolist() == [3.0, -0.25]


def test_log_ratio_at_pure_noise_is_zero() -> None:
    logits = draw(7, len(LEVELS)) * 1e3
    assert torch.equal(log_ratio(logits, torch.full((7,), LEVELS.last)), torch.zeros(7).double())


def test_log_density_at_pure_noise_is_the_reference(device: torch.device) -> None:
    x = draw(5, 1, 2, 2).to(device)
    assert torch.equal(log_density(tiny_network().to(device)(x), x)[:, -1], log_reference(x))


@pytest.mark.parametrize("constant", [1.0, -300.0])
def test_a_constant_added_to_all_logits_changes_nothing(constant: float) -> None:
    network, x = tiny_network(), draw(6, 1, 2, 2)
    t = torch.arange(6)

    def shifted(x: Tensor) -> Tensor:
        # A constant of each image, not of x: its gradient is part of what must not matter.
        logits: Tensor = network(x)
        return logits + constant * (1 + x.flatten(1).sum(1, keepdim=True))

    torch.testing.assert_close(log_density(shifted(x), x), log_density(network(x), x))
    torch.testing.assert_close(score(shifted, x, t), score(network, x, t))
    torch.testing.assert_close(
        predict_noise(shifted, x, t, LEVELS), predict_noise(network, x, t, LEVELS)
    )


def test_score_is_the_gradient_of_the_log_density(device: torch.device) -> None:
    network, x = tiny_network().to(device), draw(6, 1, 2, 2).to(device).requires_grad_()
    t = torch.arange(6, device=device)
    at_t = log_density(network(x), x).gather(1, t[:, None]).sum()
    (expected,) = torch.autograd.grad(at_t, x)
    torch.testing.assert_close(score(network, x.detach(), t), expected)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_denoiser_is_the_score_times_minus_sigma(name: str, device: torch.device) -> None:
    levels = NoiseLevels.from_name(name, 4)
    network, x = tiny_network(levels).to(device), draw(6, 1, 2, 2).to(device)
    t = torch.arange(6, device=device)
    eps_hat = predict_noise(network, x, t, levels)
    sigma = levels.sigma.reshape(-1, 1, 1, 1).to(device)
    torch.testing.assert_close(eps_hat, -sigma * score(network, x, t))


def test_denoiser_at_pure_noise_returns_the_image(device: torch.device) -> None:
    x = draw(3, 1, 2, 2).to(device)
    t = torch.full((3,), LEVELS.last, device=device)
    eps_hat = predict_noise(tiny_network().to(device), x, t, LEVELS)
    assert torch.equal(eps_hat, x)


def test_denoiser_of_a_clean_image_is_zero() -> None:
    x = draw(3, 1, 2, 2)
    eps_hat = predict_noise(tiny_network(), x, torch.zeros(3, dtype=torch.long), LEVELS)
    assert not eps_hat.any()


def test_denoiser_works_without_grad_and_leaves_no_graph() -> None:
    x, t = draw(3, 1, 2, 2), torch.tensor([1, 2, 3])
    with torch.no_grad():
        eps_hat = predict_noise(tiny_network(), x, t, LEVELS)
        direction = score(tiny_network(), x, t)
    torch.testing.assert_close(eps_hat, predict_noise(tiny_network(), x, t, LEVELS))
    assert not eps_hat.requires_grad
    assert not direction.requires_grad
    assert not x.requires_grad


def test_clean_estimate_inverts_perturb() -> None:
    x_0, eps, t = draw(5, 1, 2, 2), draw(5, 1, 2, 2, seed=1), torch.arange(5)
    x_t = LEVELS.perturb(x_0, t, eps)
    torch.testing.assert_close(clean_estimate(x_t, eps, t, LEVELS), x_0)


def test_parameter_gradients_through_the_denoiser_equal_finite_differences() -> None:
    network, t = tiny_network(), torch.tensor([0, 1, 2, 3, 4, 5])
    x, eps = draw(6, 1, 2, 2), draw(6, 1, 2, 2, seed=1)

    def loss() -> Tensor:
        logits, gradient = logits_and_gradient(network, x, t)
        eps_hat = noise_of_gradient(gradient, x, t, LEVELS)
        return (eps - eps_hat).square().mean() + 0.1 * nn.functional.cross_entropy(logits, t)

    loss().backward()
    step = 1e-5
    for parameter in network.parameters():
        assert parameter.grad is not None
        values = parameter.data.view(-1)
        for i in range(values.numel()):
            kept = float(values[i])
            ends = []
            for value in (kept + step, kept - step):
                values[i] = value
                ends.append(float(loss().detach()))
            values[i] = kept
            expected = (ends[0] - ends[1]) / (2 * step)
            # Central differences err by step^2 = 1e-10, and 1e-16 / step by rounding.
            assert float(parameter.grad.view(-1)[i]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("grey_levels", [2, 3, 256, 4096])
@pytest.mark.parametrize("dims", [1, 12])
def test_bits_per_dim_of_the_uniform_density_on_the_range(grey_levels: int, dims: int) -> None:
    # p = 2^-d on [-1, 1]^d: -log p / (d ln 2) = 1, and 1 + log2((n - 1) / 2) = log2(n - 1): the
    # range holds n - 1 grey steps, so that many equal cells.
    log_p = torch.tensor([-dims * math.log(2)], dtype=torch.float64)
    bits = bits_per_dim(log_p, dims, grey_levels)
    assert float(bits) == pytest.approx(math.log2(grey_levels - 1), abs=1e-12)


@pytest.mark.parametrize(("cells", "bits"), [(1, 0.0), (2, 1.0), (256, 8.0)])
def test_bits_per_dim_of_a_density_uniform_over_some_cells(cells: int, bits: float) -> None:
    # Spread evenly over `cells` grey steps, p = 1 / (cells * step): a code of log2(cells) bits.
    log_p = torch.tensor(-7 * math.log(cells * grey_step(256)), dtype=torch.float64)
    assert float(bits_per_dim(log_p, 7, 256)) == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize(("grey_levels", "step"), [(2, 2.0), (3, 1.0), (5, 0.5)])
def test_grey_step_by_hand(grey_levels: int, step: float) -> None:
    assert grey_step(grey_levels) == step


@pytest.mark.parametrize("grey_levels", [1, 0, -1])
def test_fewer_than_two_grey_values_are_refused(grey_levels: int) -> None:
    with pytest.raises(ConfigError, match=f"{grey_levels} grey levels"):
        grey_step(grey_levels)


def test_dequantised_values_stay_in_their_cell_and_fill_it_evenly() -> None:
    grey_levels, step = 16, 2 / 15
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(grey_levels, (50, 1, 10, 10), generator=generator)
    x = grey.double() * step - 1
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    offset = (dequantize(x, grey_levels, noise) - x) / step
    assert offset.min() >= -0.5 - 1e-9
    assert offset.max() < 0.5 + 1e-9
    assert stats.kstest(offset.flatten().numpy(), stats.uniform(-0.5, 1).cdf).pvalue > 0.01
    # Rounding to the grid gives the grey value back.
    assert torch.equal(((dequantize(x, grey_levels, noise) + 1) / step).round().long(), grey)
