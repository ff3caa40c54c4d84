"""Features of the Gaussian oracle: every column has a closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import MultivariateNormal

from anomaly.cdm.gaussian import GaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.features import FeatureSettings, Observation, feature_names, observe
from anomaly.errors import ConfigError

LEVELS = NoiseLevels.from_name("log_snr", 40)
SHAPE, DIMS = (1, 3, 4), 12
GREY = 1 << 16  # cells of 3e-5: dequantisation changes nothing that is looked at here
RATIOS = (0.12, 0.5, 2.0)


def oracle() -> tuple[GaussianCDM, Tensor, Tensor]:
    root = torch.randn(DIMS, DIMS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = 0.1 * (root @ root.T / DIMS + 0.3 * torch.eye(DIMS, dtype=torch.float64))
    mean = torch.linspace(-0.5, 0.5, DIMS, dtype=torch.float64).reshape(SHAPE)
    return GaussianCDM(mean, covariance, LEVELS), mean, covariance


def draw_images(count: int, seed: int = 1) -> Tensor:
    _, mean, covariance = oracle()
    noise = torch.randn(
        count, DIMS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    images: Tensor = mean + (noise @ torch.linalg.cholesky(covariance).T).reshape(-1, *SHAPE)
    return images


def look(images: Tensor, grey_levels: int = GREY, **settings: Any) -> Observation:
    chosen = FeatureSettings(**{"noise_to_signal": RATIOS, "draws": 1, **settings})
    return observe(oracle()[0], LEVELS, images, chosen, grey_levels=grey_levels)


def column(seen: Observation, name: str, **settings: Any) -> NDArray[np.float64]:
    chosen = FeatureSettings(**{"noise_to_signal": RATIOS, "draws": 1, **settings})
    return seen.features[:, feature_names(chosen).index(name)]


def at_level(level: int) -> MultivariateNormal:
    _, mean, covariance = oracle()
    alpha, sigma = LEVELS.alpha[level], LEVELS.sigma[level]
    spread = alpha**2 * covariance + sigma**2 * torch.eye(DIMS, dtype=torch.float64)
    return MultivariateNormal(alpha * mean.flatten(), spread)


def bits(log_p: Tensor, grey_levels: int) -> NDArray[np.float64]:
    return (-log_p / (DIMS * math.log(2)) + math.log2((grey_levels - 1) / 2)).numpy()


def test_names_match_the_columns_by_hand() -> None:
    names = feature_names(FeatureSettings(noise_to_signal=(0.12, 1.0, 2.5)))
    assert names == (
        "nll",
        *[f"profile_{k}" for k in range(16)],
        "posterior_mean",
        "posterior_clean",
        "score_norm_0.12",
        "score_norm_1",
        "score_norm_2.5",
        "residual_0.12",
        "residual_1",
        "residual_2.5",
    )
    seen = look(draw_images(2))
    assert seen.features.shape == (2, 1 + 16 + 2 + 3 + 3)
    assert seen.features.dtype == np.float64


def test_names_of_the_default_ladder_are_unique() -> None:
    names = feature_names(FeatureSettings())
    assert len(set(names)) == len(names) == 1 + 16 + 2 + 8 + 8


def test_nll_is_the_analytic_code_length() -> None:
    images = draw_images(20)
    expected = bits(at_level(0).log_prob(images.flatten(1)), GREY)
    assert_allclose(column(look(images), "nll"), expected, atol=2e-3)


def test_profile_is_the_analytic_density_at_sixteen_rungs() -> None:
    # From level 1 to T = 40 in 15 even strides of 2.6: 1, 3.6, 6.2, 8.8, ... 37.4, 40, rounded.
    rungs = [1, 4, 6, 9, 11, 14, 17, 19, 22, 24, 27, 30, 32, 35, 37, 40]
    images = draw_images(5)
    seen = look(images)
    for k, level in enumerate(rungs):
        expected = bits(at_level(level).log_prob(images.flatten(1)), GREY)
        assert_allclose(column(seen, f"profile_{k}"), expected, atol=2e-3)


def test_posterior_is_bayes_rule_over_even_levels() -> None:
    images = draw_images(5)
    flat = images.flatten(1)
    log_p = torch.stack([at_level(t).log_prob(flat) for t in range(42)], 1).numpy()
    odds = np.exp(log_p - log_p.max(1, keepdims=True))
    posterior = odds / odds.sum(1, keepdims=True)
    seen = look(images)
    assert_allclose(column(seen, "posterior_mean"), posterior @ (np.arange(42) / 41), atol=1e-3)
    assert_allclose(column(seen, "posterior_clean"), -np.log(posterior[:, 0]), atol=2e-2)


def test_pure_noise_has_a_late_posterior_and_a_long_code() -> None:
    noise = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, normal = look(noise), look(draw_images(20))
    assert column(seen, "posterior_mean").mean() > 0.6
    assert column(normal, "posterior_mean").mean() < 0.4
    assert column(seen, "nll").min() > column(normal, "nll").max()


@pytest.mark.parametrize("ratio", RATIOS)
def test_residuals_and_score_norms_have_their_expected_size(ratio: float) -> None:
    # With v = alpha^2 lambda + sigma^2, E |eps_hat|^2 / d = mean sigma^2 / v and
    # E |eps_hat - eps|^2 / d = mean alpha^2 lambda / v over the eigenvalues. All images share the
    # noise, so the 300 draws rule the error: sqrt(2 / (300 * 12)) = 2.4 %; four of those.
    level = LEVELS.nearest(ratio)
    eigen = torch.linalg.eigvalsh(oracle()[2])
    signal, noise = LEVELS.alpha[level] ** 2 * eigen, LEVELS.sigma[level] ** 2
    seen = look(draw_images(300), draws=300)
    expected = float((noise / (signal + noise)).mean())
    assert column(seen, f"score_norm_{ratio:g}").mean() == pytest.approx(expected, rel=0.1)
    expected = float((signal / (signal + noise)).mean())
    assert column(seen, f"residual_{ratio:g}").mean() == pytest.approx(expected, rel=0.1)


def test_residual_maps_are_what_the_model_would_have_painted_differently() -> None:
    # With V = alpha^2 Sigma + sigma^2 I, the mean over the noise of x_0 - E[x_0 | x_t] is
    # sigma^2 V^-1 (x_0 - m).
    _, mean, _ = oracle()
    images = draw_images(6)
    seen = look(images, draws=1500, map_range=(0.5, 9.0))
    assert seen.residuals.shape == (6, 2, 3, 4)
    for index, ratio in enumerate((0.5, 2.0)):
        level = LEVELS.nearest(ratio)
        spread = at_level(level).covariance_matrix
        pulled = torch.linalg.solve(spread, (images - mean).flatten(1).T).T
        expected = (LEVELS.sigma[level] ** 2 * pulled).reshape(6, 3, 4).numpy()
        # Noise left: alpha sigma |V^-1 Sigma| / sqrt(1500), at most sqrt(lambda) / 2 / 38 = 0.008.
        assert_allclose(seen.residuals[:, index], expected, atol=0.035)
        assert np.abs(expected).max() > 0.2


def test_colour_channels_share_one_map() -> None:
    shape, d = (3, 2, 2), 12
    mean = torch.zeros(shape, dtype=torch.float64)
    network = GaussianCDM(mean, 0.1 * torch.eye(d, dtype=torch.float64), LEVELS)
    settings = FeatureSettings(noise_to_signal=(2.0,), map_range=(2.0, 2.0), draws=1000)
    image = torch.zeros(1, *shape, dtype=torch.float64)
    image[0, 0, 1, 0] = 0.9
    seen = observe(network, LEVELS, image, settings, grey_levels=GREY)
    level = LEVELS.nearest(2.0)
    noise = LEVELS.sigma[level] ** 2
    shrink = float(noise / (0.1 * LEVELS.alpha[level] ** 2 + noise))
    # One channel of three departs by 0.9: 0.3 on the mean map.
    assert seen.residuals.shape == (1, 1, 2, 2)
    expected = np.array([[0.0, 0.0], [0.3 * shrink, 0.0]])
    assert_allclose(seen.residuals[0, 0], expected, atol=0.02)


def test_order_and_batch_do_not_matter() -> None:
    images = draw_images(7)
    turned = [3, 6, 0, 5, 1, 2, 4]
    whole, other = look(images), look(images[turned])
    assert_allclose(other.features, whole.features[turned], rtol=1e-9, atol=1e-12)
    assert_allclose(other.residuals, whole.residuals[turned], rtol=1e-6, atol=1e-9)
    for i in range(7):
        alone = look(images[i : i + 1])
        assert_allclose(alone.features[0], whole.features[i], rtol=1e-9, atol=1e-12)


def test_features_are_a_function_of_the_seed() -> None:
    images = draw_images(3)
    assert_array_equal(look(images, seed=4).features, look(images, seed=4).features)
    assert not np.array_equal(look(images, seed=4).features, look(images, seed=5).features)


def test_draws_are_averaged_and_differ() -> None:
    images = draw_images(3)
    one, two = (look(images, draws=d).features for d in (1, 2))
    four = look(images, draws=4).features
    spread = np.abs(two - one).max()
    assert spread > 1e-3
    assert np.abs(four - two).max() < 10 * spread


def test_dequantisation_raises_the_code_length_of_a_coarse_grid() -> None:
    # Cells of 1 (three grey values) add variance 1/12 to every pixel: for a Gaussian model the
    # expected excess is tr(Sigma^-1) / 24 nats.
    _, mean, covariance = oracle()
    image = mean[None]
    seen = look(image, grey_levels=3, draws=1000)
    at_mean = float(at_level(0).log_prob(mean.flatten()))
    excess = float(torch.linalg.inv(covariance).trace()) / 24
    expected = (excess - at_mean) / (DIMS * math.log(2))  # log2((3 - 1) / 2) = 0
    assert column(seen, "nll")[0] == pytest.approx(expected, rel=0.06)


def test_observing_leaves_no_gradients_on_the_network() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 42)).double()
    settings = FeatureSettings(noise_to_signal=(1.0,), map_range=(1.0, 1.0), draws=1)
    observe(network, LEVELS, draw_images(2), settings, grey_levels=256)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_to_signal": ()}, "expected rising values"),
        ({"noise_to_signal": (0.5, 0.5)}, "expected rising values"),
        ({"noise_to_signal": (1.0, 0.5)}, "expected rising values"),
        ({"noise_to_signal": (0.0, 0.5)}, "starts at 0.0: expected > 0"),
        ({"map_range": (4.5, 9.0)}, "map_range is .*: expected a range that holds one of"),
        ({"use": ()}, "use is empty"),
        ({"use": ("evidences",)}, "use holds 'evidences': expected groups"),
        ({"draws": 0}, "draws is 0"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureSettings(**settings)


def test_maps_are_kept_within_the_stated_range() -> None:
    assert FeatureSettings(map_range=(0.5, 2.0)).map_ratios == (0.5, 1.0, 2.0)
