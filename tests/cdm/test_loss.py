"""The training loss: level draws, and both terms by hand on the Gaussian oracle."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from anomaly.cdm.gaussian import GaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import POWERS, CDMLoss, LossTerms, inverse_error_weights, stratified_levels

# Standard normal data, one pixel, one level between: alpha = 1, 1/2, 0 and sigma = 0, 1/2, 1, so
# the variances v = alpha^2 + sigma^2 are 1, 1/2, 1 and exp(logit_t) is proportional to
# v^(-1/2) exp(-x^2 / 2v) = exp(-x^2 / 2), sqrt(2) exp(-x^2), exp(-x^2 / 2).
LEVELS = NoiseLevels.from_name("flow", 1)
ORACLE = GaussianCDM(torch.zeros(1, 1, 1).double(), torch.eye(1).double(), LEVELS)


def pixel(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("x_0", "eps", "t", "cross_entropy", "denoising"),
    [
        # x_t = 1/2 - 1/2 = 0: odds 1 : sqrt(2) : 1; E[eps | 0] = 0, so the error is eps^2.
        (1.0, -1.0, 1, math.log((2 + math.sqrt(2)) / math.sqrt(2)), 1.0),
        # x_t = 1 + 1 = 2: odds exp(-2) : sqrt(2) exp(-4) : exp(-2); E[eps | x_t] = sigma x / v = 2.
        (2.0, 2.0, 1, math.log((2 + math.sqrt(2) * math.exp(-2)) / math.sqrt(2)) + 2, 0.0),
        # x_t = x_0 = 1 and nothing can be said of eps: the guess is 0, the error eps^2.
        (1.0, 2.0, 0, math.log(2 + math.sqrt(2) * math.exp(-0.5)), 4.0),
        # x_t = eps: known without error.
        (1.0, 2.0, 2, math.log(2 + math.sqrt(2) * math.exp(-2)), 0.0),
    ],
)
def test_both_terms_by_hand(
    x_0: float, eps: float, t: int, cross_entropy: float, denoising: float, device: torch.device
) -> None:
    loss = CDMLoss(deepcopy(ORACLE), LEVELS, 0.25).to(device)
    terms = loss(pixel(x_0).to(device), torch.tensor([t], device=device), pixel(eps).to(device))
    assert float(terms.cross_entropy) == pytest.approx(cross_entropy, abs=1e-12)
    assert float(terms.denoising) == pytest.approx(denoising, abs=1e-12)
    assert float(terms.total.detach()) == pytest.approx(0.25 * cross_entropy + denoising, abs=1e-12)


def test_total_is_the_weighted_mean_of_the_rows() -> None:
    x_0, eps, t = pixel(1, 2, 1, 1), pixel(-1, 2, 2, 2), torch.tensor([1, 1, 0, 2])
    terms: LossTerms = CDMLoss(ORACLE, LEVELS, 0.1)(x_0, t, eps)
    assert terms.denoising.tolist() == pytest.approx([1, 0, 4, 0], abs=1e-12)
    expected = 0.1 * float(terms.cross_entropy.mean()) + 5 / 4
    assert float(terms.total.detach()) == pytest.approx(expected, abs=1e-12)
    rows = [CDMLoss(ORACLE, LEVELS, 0.1)(x_0[i, None], t[i, None], eps[i, None]) for i in range(4)]
    assert terms.cross_entropy.tolist() == pytest.approx([float(r.cross_entropy) for r in rows])


def test_denoising_of_clean_images_is_the_mean_square_of_the_noise(device: torch.device) -> None:
    levels = NoiseLevels.from_name("cosine", 3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5))
    x_0, eps = torch.randn(4, 1, 2, 3).to(device), torch.randn(4, 1, 2, 3).to(device)
    t = torch.zeros(4, dtype=torch.long, device=device)
    terms = CDMLoss(network, levels, 1.0).to(device)(x_0, t, eps)
    torch.testing.assert_close(terms.denoising, eps.square().mean((1, 2, 3)))


def test_loss_has_a_graph_only_where_gradients_are_wanted(device: torch.device) -> None:
    levels = NoiseLevels.from_name("cosine", 3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5))
    loss = CDMLoss(network, levels, 0.0).to(device)
    x_0, eps = torch.randn(4, 1, 2, 3).to(device), torch.randn(4, 1, 2, 3).to(device)
    t = torch.tensor([1, 2, 3, 4], device=device)
    terms = loss(x_0, t, eps)
    assert not terms.cross_entropy.requires_grad
    assert not terms.denoising.requires_grad
    terms.total.backward()
    first = next(network.parameters()).grad
    # Without cross-entropy only the gradient through the input gradient is left.
    assert first is not None
    assert float(first.abs().max()) > 1e-4
    with torch.no_grad():
        assert float(loss(x_0, t, eps).total) == pytest.approx(
            float(terms.total.detach()), rel=1e-6
        )


@pytest.mark.parametrize(("count", "levels"), [(7, 11), (32, 12), (12, 12), (40, 3), (1, 5)])
def test_every_batch_covers_the_ladder_evenly(count: int, levels: int) -> None:
    # A grid of spacing 1/count puts floor or ceil of count/levels points into each 1/levels.
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        t = stratified_levels(count, levels, generator)
        assert t.dtype == torch.int64
        seen = torch.bincount(t, minlength=levels)
        assert len(seen) == levels
        assert int(seen.min()) >= count // levels
        assert int(seen.max()) <= -(-count // levels)


@pytest.mark.parametrize("position", [0, 3, 6])
def test_each_level_is_uniform_at_every_place_of_a_batch(position: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([stratified_levels(7, 11, generator) for _ in range(4000)])
    seen = torch.bincount(drawn[:, position], minlength=11)
    assert stats.chisquare(seen.numpy()).pvalue > 0.01


def test_neighbours_in_a_batch_are_not_neighbours_in_noise() -> None:
    # Of 12 distinct levels an ordered pair differs by one, around the end too, 2 times in 11; a
    # batch that was never shuffled would always do so.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([stratified_levels(12, 12, generator) for _ in range(2000)])
    step = (drawn[:, 1] - drawn[:, 0]) % 12
    assert stats.chisquare(torch.bincount(step, minlength=12)[1:].numpy()).pvalue > 0.01


def test_levels_are_a_function_of_the_generator() -> None:
    a, b, c = (stratified_levels(32, 12, torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        # Errors 1, 1/4 and 0.001, the last held at 0.01.
        ("uniform", [1.0, 1.0, 1.0]),
        ("balanced", [1.0, 4.0**0.7, 100.0**0.7]),
        ("relative", [1.0, 4.0, 100.0]),
    ],
)
def test_level_weights_by_hand(name: str, weights: list[float]) -> None:
    found = inverse_error_weights(torch.tensor([1.0, 0.25, 0.001]), POWERS[name])
    torch.testing.assert_close(found, 3 * torch.tensor(weights) / sum(weights))


def test_level_weights_multiply_the_denoising_error_of_their_level_alone(
    device: torch.device,
) -> None:
    levels = NoiseLevels.from_name("log_snr", 3)
    network = GaussianCDM(torch.zeros(1, 2, 2), 0.25 * torch.eye(4), levels)
    x_0, eps = torch.full((2, 1, 2, 2), 0.3).to(device), torch.ones(2, 1, 2, 2).to(device)
    t = torch.tensor([1, 3], device=device)
    weights = torch.tensor([9.0, 2.0, 9.0, 5.0, 9.0])
    plain: LossTerms = CDMLoss(network, levels, 0.0).to(device)(x_0, t, eps)
    weighted: LossTerms = CDMLoss(network, levels, 0.0, weights).to(device)(x_0, t, eps)
    torch.testing.assert_close(weighted.denoising, plain.denoising)
    torch.testing.assert_close(
        weighted.total, (2 * plain.denoising[0] + 5 * plain.denoising[1]) / 2
    )
