"""The oracle: on Gaussian data every identity of the method has a closed form."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.distributions import MultivariateNormal

from anomaly.cdm.density import (
    bits_per_dim,
    denoising_bits_per_dim,
    grey_step,
    log_density,
    predict_noise,
    score,
)
from anomaly.cdm.gaussian import CosineGaussianCDM, GaussianCDM, cosine_basis
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.schedules import SCHEDULES

NAMES = sorted(SCHEDULES)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 2**32 - 1)


def gaussian(shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Draw a mean image and a covariance with eigenvalues of 0.05 and more."""
    generator = torch.Generator().manual_seed(seed)
    d = math.prod(shape)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    root = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return mean, root @ root.T / d + 0.05 * torch.eye(d, dtype=torch.float64)


def at_every_level(mean: Tensor, covariance: Tensor, levels: NoiseLevels) -> tuple[Tensor, Tensor]:
    """Mean (T + 2, d) and covariance (T + 2, d, d) of x_t = alpha x_0 + sigma eps."""
    alpha, sigma = levels.alpha[:, None], levels.sigma[:, None, None]
    eye = torch.eye(len(covariance), dtype=torch.float64)
    return alpha * mean.flatten(), alpha[..., None] ** 2 * covariance + sigma**2 * eye


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(shape=shapes, steps=st.integers(1, 12), seed=seeds)
def test_log_density_is_the_analytic_one_at_all_levels(
    name: str, shape: tuple[int, int, int], steps: int, seed: int
) -> None:
    levels = NoiseLevels.from_name(name, steps)
    mean, covariance = gaussian(shape, seed)
    centre, spread = at_every_level(mean, covariance, levels)
    x = 2 * torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = log_density(GaussianCDM(mean, covariance, levels)(x), x)
    expected = MultivariateNormal(centre, spread).log_prob(x.flatten(1)[:, None])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(shape=shapes, steps=st.integers(1, 12), seed=seeds)
def test_denoiser_and_score_are_the_analytic_ones_at_all_levels(
    name: str, shape: tuple[int, int, int], steps: int, seed: int
) -> None:
    levels = NoiseLevels.from_name(name, steps)
    mean, covariance = gaussian(shape, seed)
    centre, spread = at_every_level(mean, covariance, levels)
    t = torch.arange(len(levels))
    x = 2 * torch.randn(
        len(t), *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    network = GaussianCDM(mean, covariance, levels)
    # (eps, x_t) are jointly normal, with covariance sigma I:
    # E[eps | x_t] = sigma (alpha^2 Sigma + sigma^2 I)^-1 (x_t - alpha m).
    pulled = torch.linalg.solve(spread, x.flatten(1) - centre).reshape(x.shape)
    eps_hat = predict_noise(network, x, t, levels)
    sigma = levels.sigma.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(eps_hat, sigma * pulled, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score(network, x, t), -pulled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_denoising_error_is_the_bayes_optimum(name: str) -> None:
    # E |eps - E[eps | x_t]|^2 / d = mean_k (1 - sigma^2 / v_k) = mean_k alpha^2 lambda_k / v_k:
    # what is left of a unit variance after conditioning. 4 standard errors of the sample mean.
    levels = NoiseLevels.from_name(name, 6)
    mean, covariance = gaussian((1, 3, 2), 5)
    eigen = torch.linalg.eigvalsh(covariance)
    generator = torch.Generator().manual_seed(0)
    count = 4000
    x_0 = MultivariateNormal(mean.flatten(), covariance)
    noise = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    clean = (x_0.loc + noise @ x_0.scale_tril.T).reshape(count, 1, 3, 2)
    for level in range(1, levels.last + 1):
        t = torch.full((count,), level)
        eps = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        x_t = levels.perturb(clean, t, eps)
        eps_hat = predict_noise(GaussianCDM(mean, covariance, levels), x_t, t, levels)
        error = (eps - eps_hat).square().flatten(1).mean(1)
        signal = levels.alpha[level] ** 2 * eigen
        expected = (signal / (signal + levels.sigma[level] ** 2)).mean()
        assert abs(error.mean() - expected) < 4 * error.std() / math.sqrt(count) + 1e-12


def test_bits_per_dim_is_the_differential_entropy() -> None:
    # -E log p(x) = log det(2 pi e Sigma) / 2; the sample mean is within 4 standard errors of it.
    shape, grey_levels = (2, 3, 3), 256
    mean, covariance = gaussian(shape, 3)
    network = GaussianCDM(mean, covariance, NoiseLevels.from_name("log_snr", 4))
    d, count = 18, 20_000
    noise = torch.randn(count, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (mean.flatten() + noise @ torch.linalg.cholesky(covariance).T).reshape(count, *shape)
    bits = bits_per_dim(log_density(network(x), x)[:, 0], d, grey_levels)
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance)) / math.log(2) / d
    expected = entropy + math.log2((grey_levels - 1) / 2)
    assert abs(float(bits.mean()) - expected) < 4 * float(bits.std()) / math.sqrt(count)
    # The entropy is the least of all code lengths: another Gaussian codes the same data worse.
    wrong = GaussianCDM(mean + 0.1, 1.3 * covariance, NoiseLevels.from_name("log_snr", 4))
    worse = bits_per_dim(log_density(wrong(x), x)[:, 0], d, grey_levels)
    assert float(worse.mean()) > expected + 0.01


def test_the_errors_of_the_best_denoiser_prove_the_entropy() -> None:
    # Every level once, with its expected error: mean of a^2 v / (a^2 v + s^2) over eigenvalues v.
    levels = NoiseLevels.from_name("log_snr", 400)
    eigen = torch.tensor([0.05, 0.3, 1.0, 2.5], dtype=torch.float64)
    signal = levels.alpha.square()[:, None] * eigen
    best = (signal / (signal + levels.sigma.square()[:, None])).mean(1)
    t = torch.arange(len(levels))
    entropy = 0.5 * float(torch.log(2 * math.pi * math.e * eigen).mean()) / math.log(2)
    expected = entropy + math.log2(255 / 2)
    assert denoising_bits_per_dim(best, t, levels, 256) == pytest.approx(expected, abs=1e-3)
    # Another denoiser proves less: 0.01 more error over the whole ladder.
    worse = denoising_bits_per_dim(best + 0.01, t, levels, 256)
    width = 2 * math.log(100 / 0.005)
    assert worse - expected == pytest.approx(0.01 * width / 2 / math.log(2), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10)
@given(shape=shapes, seed=seeds)
def test_cosine_classifier_is_the_gaussian_of_its_covariance(
    name: str, shape: tuple[int, int, int], seed: int
) -> None:
    levels = NoiseLevels.from_name(name, 7)
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    spectrum = 0.05 + torch.rand(shape, generator=generator, dtype=torch.float64)
    # Flattened row by row, a 2-D transform is the Kronecker product of its two 1-D matrices.
    plane = torch.kron(cosine_basis(shape[1]), cosine_basis(shape[2]))
    transform = torch.block_diag(*[plane] * shape[0])
    covariance = transform.T @ torch.diag(spectrum.flatten()) @ transform
    x = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        CosineGaussianCDM(mean, spectrum, levels)(x),
        GaussianCDM(mean, covariance, levels)(x),
        rtol=1e-8,
        atol=1e-8,
    )


def test_fit_recovers_a_known_spectrum_and_mean() -> None:
    shape, count, floor = (2, 4, 6), 5000, 0.01
    generator = torch.Generator().manual_seed(0)
    spectrum = 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = torch.randn(count, *shape, generator=generator, dtype=torch.float64) * spectrum.sqrt()
    images = mean + cosine_basis(4).T @ z @ cosine_basis(6)
    levels = NoiseLevels.from_name("flow", 3)
    fitted = CosineGaussianCDM.fit(images, levels, floor=floor)
    # At level 0 the logit is -(z - m)^2 / (2 lambda): its coefficients give lambda and m back.
    variance = (-0.5 / fitted.quadratic[0]).reshape(shape)
    centre = (fitted.linear[0] * variance.flatten()).reshape(shape)
    # A variance of n normals has relative error sqrt(2 / n) = 2 %, a mean sqrt(lambda / n); 48
    # coefficients stay within 4.5 of those.
    assert ((variance - floor) / spectrum - 1).abs().max() < 4.5 * math.sqrt(2 / count)
    rotated = cosine_basis(4) @ mean @ cosine_basis(6).T
    assert ((centre - rotated).abs() / (spectrum / count).sqrt()).max() < 4.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_spectrum_are_the_whole_state(dtype: torch.dtype) -> None:
    levels = NoiseLevels.from_name("log_snr", 9)
    images = torch.rand(20, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    fitted = CosineGaussianCDM.fit(images, levels, floor=1e-3)
    state = fitted.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "mean": (2, 5, 4),
        "spectrum": (2, 5, 4),
    }
    assert all(value.dtype == dtype for value in state.values())
    torch.testing.assert_close(state["mean"], images.mean(0))
    # Rebuilt from what was rounded, not from what was measured: equal to the last bit.
    again = CosineGaussianCDM(state["mean"], state["spectrum"], levels)
    assert torch.equal(again(images), fitted(images))
    assert torch.equal(again.denoising_error(), fitted.denoising_error())


def test_floor_keeps_constant_images_finite() -> None:
    # No image varies: N(m, floor I), whose density at m is (2 pi floor)^(-d/2).
    image = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(1, 4, 5)
    floor = grey_step(256) ** 2 / 12
    levels = NoiseLevels.from_name("log_snr", 5)
    network = CosineGaussianCDM.fit(image.expand(6, -1, -1, -1), levels, floor=floor)
    got = log_density(network(image[None]), image[None])[0, 0]
    assert float(got) == pytest.approx(-10 * math.log(2 * math.pi * floor), rel=1e-6)


def test_single_precision_costs_less_than_a_thousandth_bit() -> None:
    shape, grey_levels = (1, 32, 32), 256
    generator = torch.Generator().manual_seed(0)
    frequency = torch.arange(32.0)[:, None] + torch.arange(32.0)[None] + 1
    spectrum = (4 / frequency**3 + grey_step(grey_levels) ** 2 / 12)[None].double()
    mean = torch.linspace(-0.9, 0.4, 32, dtype=torch.float64).expand(shape)
    z = torch.randn(8, *shape, generator=generator, dtype=torch.float64) * spectrum.sqrt()
    x = mean + cosine_basis(32).T @ z @ cosine_basis(32)
    levels = NoiseLevels.from_name("log_snr", 50)
    wide = CosineGaussianCDM(mean, spectrum, levels)
    narrow = CosineGaussianCDM(mean.float(), spectrum.float(), levels)
    assert narrow(x.float()).dtype == torch.float32
    bits = [
        bits_per_dim(log_density(network(value), value), 1024, grey_levels)
        for network, value in ((wide, x), (narrow, x.float()))
    ]
    assert (bits[0] - bits[1]).abs().max() < 1e-3


@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_cosine_basis_is_orthonormal(size: int) -> None:
    basis = cosine_basis(size)
    torch.testing.assert_close(basis @ basis.T, torch.eye(size, dtype=torch.float64))


def test_cosine_basis_by_hand() -> None:
    # n = 2: the mean and the difference, both over sqrt(2).
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [half, -half]], dtype=torch.float64)
    torch.testing.assert_close(cosine_basis(2), expected)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_denoising_error_is_the_mean_share_of_noise_that_cannot_be_told(name: str) -> None:
    # Var(eps | x_t) = alpha^2 lambda / (alpha^2 lambda + sigma^2) for every coordinate.
    levels = NoiseLevels.from_name(name, 7)
    spectrum = torch.tensor([[[0.5, 0.1], [0.02, 3.0]]], dtype=torch.float64)
    model = CosineGaussianCDM(torch.zeros_like(spectrum), spectrum, levels)
    signal = levels.alpha[:, None] ** 2 * spectrum.flatten()
    expected = (signal / (signal + levels.sigma[:, None] ** 2)).mean(1)
    torch.testing.assert_close(model.denoising_error(), expected)
