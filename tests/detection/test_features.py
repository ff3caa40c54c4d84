"""Features of the Gaussian oracle: every column has a closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.distributions import MultivariateNormal

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM, GaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.detection.extractor import FeatureExtractor, Observation, join
from anomaly.detection.features import GROUPS, FeatureSettings, feature_groups, reported_names
from anomaly.detection.local import Cells, cell_energies, image_bands
from anomaly.detection.placement import Placement
from anomaly.detection.registration import register
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


def chosen(**settings: Any) -> FeatureSettings:
    # One cell: the least that divides 3 x 4 pixels.
    usual: dict[str, Any] = {"noise_to_signal": RATIOS, "draws": 1, "grid": 1, "border": 0}
    return FeatureSettings(**{**usual, **settings})


def look(
    images: Tensor,
    grey_levels: int = GREY,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Observation:
    network, mean, _ = oracle()
    extract = FeatureExtractor.of(
        network.to(device), LEVELS, chosen(**settings), grey_levels, mean.to(device)
    )
    return extract(images.to(device))


def column(seen: Observation, name: str, **settings: Any) -> NDArray[np.float64]:
    ((group, place),) = [
        (group, names.index(name))
        for group, names in feature_groups(chosen(**settings)).items()
        if name in names
    ]
    return seen.groups[group][:, place]


def table(seen: Observation) -> NDArray[np.float64]:
    return np.concatenate(list(seen.groups.values()), axis=1)


def at_level(level: int) -> MultivariateNormal:
    _, mean, covariance = oracle()
    alpha, sigma = LEVELS.alpha[level], LEVELS.sigma[level]
    spread = alpha**2 * covariance + sigma**2 * torch.eye(DIMS, dtype=torch.float64)
    return MultivariateNormal(alpha * mean.flatten(), spread)


def bits(log_p: Tensor, grey_levels: int) -> NDArray[np.float64]:
    return (-log_p / (DIMS * math.log(2)) + math.log2((grey_levels - 1) / 2)).numpy()


def test_names_by_hand() -> None:
    settings = FeatureSettings(noise_to_signal=(0.12, 1.0, 2.5), grid=4, border=1, bands=3)
    ladder = ("0.12", "1", "2.5")
    assert feature_groups(settings) == {
        "nll": ("nll",),
        "nll_excess": ("nll_excess",),
        "profile": tuple(f"profile_{k}" for k in range(16)),
        "posterior": ("posterior_mean", "posterior_clean"),
        "score_norm": ("score_norm_0.12", "score_norm_1", "score_norm_2.5"),
        "residual": ("residual_0.12", "residual_1", "residual_2.5"),
        "octave": tuple(f"octave_{r}_{k}" for r in ladder for k in range(4)),
        # A grid of 4 x 4 without its border has 2 x 2 cells.
        "energy": tuple(f"energy_{r}_{c}" for r in ladder for c in range(4)),
        "texture": tuple(f"texture_{k}_{c}" for k in range(3) for c in range(4)),
        "signed": tuple(f"signed_{r}_{c}" for r in ladder for c in range(4)),
        "placement": (
            *("shift_rows", "shift_columns", "scale_rows", "scale_columns", "rotation"),
            "agreement",
        ),
        "evidence": (
            *("evidence_mean", "evidence_top", "evidence_peak"),
            *("evidence_bright", "evidence_dark"),
        ),
    }


def test_groups_have_a_column_a_name(device: torch.device) -> None:
    seen = look(draw_images(2), device=device)
    names = feature_groups(chosen())
    assert tuple(names) == tuple(GROUPS)
    # The evidence comes later, of a heatmap model.
    assert list(seen.groups) == [group for group in GROUPS if group != "evidence"]
    for group, values in seen.groups.items():
        assert values.shape == (2, len(names[group])), group
        assert values.dtype == np.float64, group
        assert np.isfinite(values).all(), group
    assert seen.residuals.shape == (2, len(RATIOS), 3, 4)


def test_names_of_the_default_ladder_are_unique() -> None:
    names = [name for group in feature_groups(FeatureSettings()).values() for name in group]
    assert (
        len(set(names)) == len(names) == 1 + 1 + 16 + 2 + 8 + 8 + 8 * 4 + (8 + 4 + 8) * 36 + 6 + 5
    )


def test_reported_are_all_but_the_grids() -> None:
    names = feature_groups(FeatureSettings())
    reported = reported_names(FeatureSettings())
    assert len(reported) == 1 + 1 + 16 + 2 + 8 + 8 + 8 * 4 + 6 + 5
    assert not set(reported) & {
        name for group in GROUPS.values() if not group.reported for name in names[group.name]
    }


def test_nll_is_the_analytic_code_length(device: torch.device) -> None:
    images = draw_images(20)
    expected = bits(at_level(0).log_prob(images.flatten(1)), GREY)
    assert_allclose(column(look(images, device=device), "nll"), expected, atol=2e-3)


def test_profile_is_the_analytic_density_at_sixteen_rungs(device: torch.device) -> None:
    # From level 1 to T = 40 in 15 even strides of 2.6: 1, 3.6, 6.2, 8.8, ... 37.4, 40, rounded.
    rungs = [1, 4, 6, 9, 11, 14, 17, 19, 22, 24, 27, 30, 32, 35, 37, 40]
    images = draw_images(5)
    seen = look(images, device=device)
    for k, level in enumerate(rungs):
        expected = bits(at_level(level).log_prob(images.flatten(1)), GREY)
        assert_allclose(column(seen, f"profile_{k}"), expected, atol=2e-3)


def test_posterior_is_bayes_rule_over_even_levels(device: torch.device) -> None:
    images = draw_images(5)
    flat = images.flatten(1)
    log_p = torch.stack([at_level(t).log_prob(flat) for t in range(42)], 1).numpy()
    odds = np.exp(log_p - log_p.max(1, keepdims=True))
    posterior = odds / odds.sum(1, keepdims=True)
    seen = look(images, device=device)
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


def test_two_draws_give_residual_maps_without_noise() -> None:
    # The score of a Gaussian is linear, so of a draw and its negative only the mean is left: with
    # V = alpha^2 Sigma + sigma^2 I, x_0 - E[x_0 | x_t] is sigma^2 V^-1 (x_0 - m) there.
    _, mean, _ = oracle()
    images = draw_images(6)
    seen, single = look(images, draws=2), look(images, draws=1)
    assert seen.residuals.shape == (6, 3, 3, 4)
    for index, ratio in enumerate(RATIOS):
        level = LEVELS.nearest(ratio)
        spread = at_level(level).covariance_matrix
        pulled = torch.linalg.solve(spread, (images - mean).flatten(1).T).T
        expected = (LEVELS.sigma[level] ** 2 * pulled).reshape(6, 3, 4).numpy()
        assert_allclose(seen.residuals[:, index], expected, atol=1e-6)
        assert np.abs(expected).max() > 0.05
        # One draw alone is noisy: the agreement is that of the pair.
        assert np.abs(single.residuals[:, index] - expected).max() > 0.02


def test_dequantisation_cancels_in_pairs_too() -> None:
    # Cells of 1, and no less exact: u and 1 - u lie on opposite sides of the grey value.
    images = draw_images(3).round().clamp(-1, 1)
    coarse, fine = (look(images, grey_levels=g, draws=2).residuals for g in (3, GREY))
    assert_allclose(coarse, fine, atol=1e-6)


@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_pairs_share_their_noise_and_no_others(draws: int) -> None:
    # An odd draw is left over: the maps are exact after 2 and 4 draws, not after 1 and 3.
    images = draw_images(2)
    gap = np.abs(look(images, draws=draws).residuals - look(images, draws=2).residuals).max()
    assert (gap < 1e-9) == (draws % 2 == 0)


def isotropic(shape: tuple[int, int, int], variance: float) -> GaussianCDM:
    d = math.prod(shape)
    eye = torch.eye(d, dtype=torch.float64)
    return GaussianCDM(torch.zeros(shape, dtype=torch.float64), variance * eye, LEVELS)


def test_colour_channels_share_one_map() -> None:
    shape = (3, 2, 2)
    settings = chosen(noise_to_signal=(2.0,), draws=2)
    image = torch.zeros(1, *shape, dtype=torch.float64)
    image[0, 0, 1, 0] = 0.9
    seen = FeatureExtractor.of(isotropic(shape, 0.1), LEVELS, settings, GREY, image[0])(image)
    level = LEVELS.nearest(2.0)
    noise = LEVELS.sigma[level] ** 2
    shrink = float(noise / (0.1 * LEVELS.alpha[level] ** 2 + noise))
    # One channel of three departs by 0.9: 0.3 on the mean map.
    assert seen.residuals.shape == (1, 1, 2, 2)
    expected = np.array([[0.0, 0.0], [0.3 * shrink, 0.0]])
    assert_allclose(seen.residuals[0, 0], expected, atol=1e-6)


def test_grids_and_octaves_are_of_the_residual_maps() -> None:
    # White data of variance 0.1: the residual is x shrunk by sigma^2 / (0.1 alpha^2 + sigma^2).
    image = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    image[0, 0, :2, :2] = 0.8
    image[0, 0, 2:, 2:] = torch.tensor([[0.2, -0.2], [-0.2, 0.2]])
    settings = chosen(grid=2, draws=2)
    seen = FeatureExtractor.of(isotropic((1, 4, 4), 0.1), LEVELS, settings, GREY, image[0])(image)
    for ratio in RATIOS:
        level = LEVELS.nearest(ratio)
        noise = float(LEVELS.sigma[level] ** 2)
        shrink = noise / (0.1 * float(LEVELS.alpha[level] ** 2) + noise)
        x = (image.numpy() * shrink).astype(np.float32)
        cells = [
            [column(seen, f"{group}_{ratio:g}_{c}", grid=2)[0] for c in range(4)]
            for group in ("signed", "energy")
        ]
        weights = Cells.of(Placement.unmoved(1), (4, 4), 2, 0)
        assert_allclose(cells[0], weights.means(x)[0, 0], atol=1e-6)
        assert_allclose(cells[1], cell_energies(x, weights)[0, 0], atol=1e-6)
        octaves = [column(seen, f"octave_{ratio:g}_{k}")[0] for k in range(4)]
        # 4 of 16 pixels hold 0.64 and 4 hold 0.04. The mean, 0.2, is all below 1/16.
        mean_square = 0.17 * shrink**2
        assert np.exp(octaves).sum() == pytest.approx(mean_square, abs=1e-6)
        assert np.exp(octaves[3]) == pytest.approx((0.2 * shrink) ** 2, abs=1e-6)


def test_texture_is_of_the_image_and_no_network_changes_it() -> None:
    images = draw_images(3)
    one = FeatureExtractor.of(isotropic(SHAPE, 0.1), LEVELS, chosen(grid=2), GREY, images[0])(
        images
    )
    other = FeatureExtractor.of(oracle()[0], LEVELS, chosen(grid=2), GREY, images[0])(images)
    assert_array_equal(one.groups["texture"], other.groups["texture"])
    plain = images[:, 0].numpy().astype(np.float32)
    weights = Cells.of(register(plain, plain[0]), SHAPE[1:], 2, 0)
    expected = cell_energies(image_bands(plain, 4), weights).reshape(3, -1)
    assert_allclose(one.groups["texture"], expected)
    assert np.abs(expected).max() > 0.1


def test_the_grid_moves_with_the_anatomy() -> None:
    # A wide reference and the same scene four rows lower: inner cells say the same of both. The
    # oracle is white, so residuals move with the image.
    scene = gaussian_filter(np.random.default_rng(0).normal(size=(64, 64)), 2, mode="wrap") * 3
    pair = torch.as_tensor(np.stack([scene, np.roll(scene, (4, 0), (0, 1))]))[:, None]
    settings = chosen(noise_to_signal=(1.0,), draws=2, grid=8, border=3)
    # White noise is white in any basis: the cosine form needs no matrix of 4096 x 4096.
    shape = (1, 64, 64)
    zero = torch.zeros(shape, dtype=torch.float64)
    white = CosineGaussianCDM(zero, torch.full(shape, 0.1, dtype=torch.float64), LEVELS)
    seen = FeatureExtractor.of(white, LEVELS, settings, GREY, pair[0])(pair)
    for group in ("energy", "texture", "signed"):
        still, moved = seen.groups[group]
        assert_allclose(moved, still, atol=1e-2)
        assert np.abs(still).max() > 0.05


@pytest.mark.parametrize(("channels", "grey_levels"), [(1, 256), (3, 256), (1, 4096)])
def test_excess_is_the_code_length_less_that_of_the_png(
    channels: int, grey_levels: int, tmp_path: Path
) -> None:
    # A smooth image, then a rough one: 24 x 20 pixels a channel.
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(24), np.arange(20)) * (grey_levels - 1) // 42
    rough = rng.integers(0, grey_levels, (24, 20))
    shape = (channels, 24, 20)
    values = np.stack([np.broadcast_to(v, shape) for v in (smooth, rough)])
    images = torch.as_tensor(values / (grey_levels - 1) * 2 - 1)
    settings = chosen(noise_to_signal=(2.0,))
    seen = FeatureExtractor.of(isotropic(shape, 0.1), LEVELS, settings, grey_levels, images[0])(
        images
    )
    saved = []
    for index, value in enumerate((smooth, rough)):
        path = tmp_path / f"{index}.png"
        kind = np.uint8 if grey_levels == 256 else np.uint16
        Image.fromarray(value.astype(kind)).save(path)
        with Image.open(path) as again:
            assert_array_equal(np.asarray(again), value)
        saved.append(8 * path.stat().st_size / (24 * 20))
    # A file a channel, over all pixels of all channels: the mean of equal files.
    assert_allclose(seen.groups["nll"] - seen.groups["nll_excess"], np.array(saved)[:, None])
    assert saved[1] > 2 * saved[0]


def test_parts_of_an_observation_join_to_the_whole() -> None:
    whole = look(draw_images(5))
    again = join([whole.select(np.array([0, 1])), whole.select(np.arange(5) > 1)])
    assert_array_equal(table(again), table(whole))
    assert_array_equal(again.residuals, whole.residuals)
    assert list(again.groups) == list(whole.groups)


def test_order_and_batch_do_not_matter() -> None:
    images = draw_images(7)
    turned = [3, 6, 0, 5, 1, 2, 4]
    whole, other = look(images), look(images[turned])
    assert_allclose(table(other), table(whole)[turned], rtol=1e-9, atol=1e-12)
    assert_allclose(other.residuals, whole.residuals[turned], rtol=1e-6, atol=1e-9)
    for i in range(7):
        alone = look(images[i : i + 1])
        assert_allclose(table(alone)[0], table(whole)[i], rtol=1e-9, atol=1e-12)


def test_features_are_a_function_of_the_seed() -> None:
    images = draw_images(3)
    assert_array_equal(table(look(images, seed=4)), table(look(images, seed=4)))
    assert not np.array_equal(table(look(images, seed=4)), table(look(images, seed=5)))


def test_draws_are_averaged_and_differ() -> None:
    images = draw_images(3)
    one, two = (table(look(images, draws=d)) for d in (1, 2))
    four = table(look(images, draws=4))
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


def test_half_precision_of_the_layers_is_close_and_everything_else_stays_whole() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 1, 32, 32).mul(255).round() / 127.5 - 1
    levels = NoiseLevels.from_name("log_snr", 40)
    network = LevelClassifier(build_network(EncoderSettings(widths=(8, 16)), levels)).eval()
    found = {}
    for precision in ("float32", "bfloat16"):
        settings = FeatureSettings(noise_to_signal=(0.25, 1.0), precision=precision)
        found[precision] = FeatureExtractor.of(network, levels, settings, 256, images.mean(0))(
            images
        )
    whole, half = found["float32"], found["bfloat16"]
    assert half.residuals.dtype == np.float32
    assert not np.array_equal(half.residuals, whole.residuals)
    # bfloat16 keeps 8 bits (0.4 %); a handful of layers and their gradient add up to per cents.
    for name in ("nll", "score_norm", "energy"):
        assert half.groups[name].dtype == np.float64
        assert_allclose(half.groups[name], whole.groups[name], rtol=0.05, atol=0.05)
    assert_array_equal(half.groups["texture"], whole.groups["texture"])


def test_observing_leaves_no_gradients_on_the_network() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 42)).double()
    settings = chosen(noise_to_signal=(1.0,))
    images = draw_images(2)
    FeatureExtractor.of(network, LEVELS, settings, 256, images[0])(images)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_to_signal": ()}, "expected rising values"),
        ({"noise_to_signal": (0.5, 0.5)}, "expected rising values"),
        ({"noise_to_signal": (1.0, 0.5)}, "expected rising values"),
        ({"noise_to_signal": (0.0, 0.5)}, "starts at 0.0: expected > 0"),
        ({"draws": 0}, "draws is 0"),
        ({"grid": 0, "border": 0}, "grid is 0"),
        ({"bands": 0}, "bands is 0"),
        ({"border": -1}, "border is -1: expected 0 or more"),
        ({"border": 4}, "border is 4: .* cells left inside a grid of 8"),
        ({"grid": 1}, "border is 1: .* cells left inside a grid of 1"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureSettings(**settings)
