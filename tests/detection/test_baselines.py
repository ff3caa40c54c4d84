"""Baselines: closed forms where there are any, and the promises that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.levels import NoiseLevels
from anomaly.detection.baselines import (
    AutoEncoderReconstruction,
    Baseline,
    DenoiserMSMA,
    DenoiserReconstruction,
    PCAReconstruction,
    PixelNeighbours,
    PlainDenoiser,
    TotalVariation,
    default_baselines,
)
from anomaly.detection.baselines.base import Budget, train_network
from anomaly.errors import CalibrationError, ConfigError, TrainingError

LEVELS = NoiseLevels.from_name("log_snr", 40)
SIDE = 16
STEPS, BATCH = 40, 16

NAMES = [
    "total_variation",
    "total_variation_low",
    "pca_reconstruction",
    "pixel_neighbours",
    "autoencoder_reconstruction",
    "vae_reconstruction",
    "denoiser_msma",
    "denoiser_reconstruction",
]
WITH_MAPS = {name for name in NAMES if "reconstruction" in name} | {"denoiser_msma"}


def normals(count: int, seed: int) -> Tensor:
    """Smooth images: a product of cosines, two random amplitudes, and weak noise."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.cos(torch.linspace(0, torch.pi, SIDE))
    shapes = torch.stack([wave[:, None].expand(SIDE, SIDE), wave[:, None] * wave])
    weights = 0.5 * torch.rand(count, 2, generator=generator)
    noise = torch.randn(count, SIDE, SIDE, generator=generator)
    return (torch.einsum("nk,khw->nhw", weights, shapes) + 0.02 * noise)[:, None].clamp(-1, 1)


def with_square(images: Tensor) -> Tensor:
    marked = images.clone()
    marked[:, :, 4:8, 9:13] = 1.0
    return marked


def checkerboards(count: int) -> Tensor:
    parity = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2
    return (1.6 * parity - 0.8).expand(count, 1, -1, -1) + 0 * normals(count, 9)


def plain(steps: int = STEPS, learning_rate: float = 2e-3) -> PlainDenoiser:
    return PlainDenoiser(
        LEVELS,
        widths=(8, 12),
        blocks=1,
        patch=2,
        steps=steps,
        batch_size=BATCH,
        learning_rate=learning_rate,
    )


def build() -> dict[str, Baseline]:
    settings = EncoderSettings(widths=(8, 12))
    made = default_baselines(LEVELS, settings, steps=STEPS, batch_size=BATCH)
    return {baseline.name: baseline for baseline in made}


@cache
def fitted(seed: int, again: int = 0) -> dict[str, Baseline]:
    """Every baseline on the toy set; ``again`` asks for another fit of the same."""
    baselines = build()
    for baseline in baselines.values():
        baseline.fit(normals(48, 0), normals(24, 1), seed)
    return baselines


def test_the_default_baselines_come_in_the_stated_order() -> None:
    assert list(build()) == NAMES


def test_a_part_that_died_in_training_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        @property
        def parts(self) -> dict[str, nn.Module]:
            return {"used": self.used, "unused": self.unused}

    def loss(x: Tensor, noise: torch.Generator) -> Tensor:
        return (network.used(x) + 0 * network.unused(x) - x).square().mean()

    network = Half()
    train_network(network, loss, normals(8, 0), Budget(2, 4, 1e-3), 0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "unused of a baseline's network is dead" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_no_part_of_a_baseline_is_dead(name: str, caplog: pytest.LogCaptureFixture) -> None:
    build()[name].fit(normals(48, 0), normals(24, 1), 0)
    assert not caplog.records


@pytest.mark.parametrize("name", NAMES)
def test_shapes_types_and_signs(name: str) -> None:
    said = fitted(0)[name].score(with_square(normals(3, 2)))
    assert said.scores.shape == (3,)
    assert said.scores.dtype == np.float64
    assert np.isfinite(said.scores).all()
    assert (said.maps is not None) == (name in WITH_MAPS)
    if said.maps is not None:
        assert said.maps.shape == (3, SIDE, SIDE)
        assert said.maps.dtype == np.float32
        assert said.maps.min() >= 0
        assert said.maps.max() > 0


@pytest.mark.parametrize("name", [n for n in NAMES if "reconstruction" in n])
def test_a_reconstruction_score_is_the_mean_of_its_map(name: str) -> None:
    said = fitted(0)[name].score(normals(3, 2))
    assert said.maps is not None
    assert_allclose(said.scores, said.maps.astype(np.float64).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    images = with_square(normals(3, 2))
    one, two = (fitted(0, again)[name].score(images) for again in (0, 1))
    assert_array_equal(one.scores, two.scores)
    if one.maps is not None:
        assert_array_equal(one.maps, two.maps)


@pytest.mark.parametrize("name", [n for n in NAMES if "coder" in n or "vae" in n or "denois" in n])
def test_another_seed_gives_other_weights(name: str) -> None:
    images = normals(3, 2)
    assert (fitted(0)[name].score(images).scores != fitted(5)[name].score(images).scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_order_and_batch_do_not_matter(name: str) -> None:
    images = torch.cat([with_square(normals(33, 2)), normals(34, 3)])  # more than a batch of 64
    turned = torch.randperm(67, generator=torch.Generator().manual_seed(4))
    baseline = fitted(0)[name]
    whole, other, alone = (baseline.score(x) for x in (images, images[turned], images[66:]))
    assert_allclose(other.scores, whole.scores[turned.numpy()], rtol=1e-4)
    assert_allclose(alone.scores, whole.scores[66:], rtol=1e-4)
    if whole.maps is not None and other.maps is not None:
        assert_allclose(other.maps, whole.maps[turned.numpy()], rtol=1e-3, atol=1e-5)


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    for baseline in build().values():
        baseline.fit(normals(12, 0), normals(12, 1), 3)
        baseline.score(normals(2, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_scoring_before_fitting_is_refused(name: str) -> None:
    with pytest.raises(TrainingError, match=f"{name} has learnt nothing"):
        build()[name].score(normals(1, 0))


@pytest.mark.parametrize("name", NAMES)
def test_colour_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected \(N, 1, S, S\)"):
        fitted(0)[name].score(torch.zeros(2, 3, SIDE, SIDE))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "total_variation_low"])
def test_checkerboards_are_far_from_smooth_images(name: str) -> None:
    normal, odd = (fitted(0)[name].score(x).scores for x in (normals(20, 2), checkerboards(3)))
    assert odd.min() > normal.max()


def test_total_variation_by_hand() -> None:
    # [[0, 0.2], [0.5, -0.3]]: down 0.5 and 0.5, right 0.2 and 0.8; mean 0.5. Of zeros 0.
    # Scaled by 1 and 0.6: 0.5 and 0.3, so mean 0.4, standard deviation 0.1.
    image = torch.tensor([[[[0.0, 0.2], [0.5, -0.3]]]])
    validation = torch.cat([image, 0.6 * image])
    images = torch.cat([0 * image, 1.2 * image, 0.8 * image])
    expected = {"two": [4.0, 2.0, 0.0], "low": [4.0, -2.0, 0.0]}
    for baseline in (TotalVariation("two"), TotalVariation("low")):
        baseline.fit(validation[:1], validation, 0)
        assert_allclose(baseline.score(images).scores, expected[baseline.side], atol=1e-5)


def test_equally_rough_images_have_no_spread_of_roughness() -> None:
    image = normals(1, 0)
    with pytest.raises(CalibrationError, match="total variation is"):
        TotalVariation().fit(image, image.expand(5, -1, -1, -1), 0)


def corner_images() -> Tensor:
    """Six images that span the first three pixels, and have mean 0."""
    images = torch.zeros(6, 1, SIDE, SIDE)
    for index, size in enumerate((0.9, 0.6, 0.3)):
        images[2 * index, 0, 0, index], images[2 * index + 1, 0, 0, index] = size, -size
    return images


def test_pca_leaves_what_is_outside_its_span() -> None:
    baseline = PCAReconstruction(3)
    baseline.fit(corner_images(), corner_images(), 0)
    inside = torch.zeros(1, 1, SIDE, SIDE)
    inside[0, 0, 0, :3] = torch.tensor([0.5, -0.7, 0.2])
    outside = inside.clone()
    outside[0, 0, 7, 8] = 0.8
    said = baseline.score(torch.cat([inside, outside]))
    assert_allclose(said.scores, [0, 0.8**2 / SIDE**2], atol=1e-12)
    expected = np.zeros((2, SIDE, SIDE))
    expected[1, 7, 8] = 0.8**2
    assert said.maps is not None
    assert_allclose(said.maps, expected, atol=1e-7)


def test_pca_keeps_the_largest_components() -> None:
    baseline = PCAReconstruction(2)
    baseline.fit(corner_images(), corner_images(), 0)
    assert_allclose(
        baseline.score(corner_images()).scores, [0, 0, 0, 0, *[0.09 / 256] * 2], atol=1e-9
    )


def test_pca_has_no_more_components_than_images() -> None:
    baseline = PCAReconstruction(64)
    baseline.fit(normals(5, 0), normals(5, 1), 0)
    assert_allclose(baseline.score(normals(5, 0)).scores, 0, atol=1e-9)


def test_a_bright_square_glows_on_the_map_of_pca() -> None:
    baseline = PCAReconstruction(2)
    baseline.fit(normals(48, 0), normals(2, 1), 0)
    maps = baseline.score(with_square(normals(10, 2))).maps
    assert maps is not None
    places = [np.unravel_index(m.argmax(), m.shape) for m in maps]
    assert all(4 <= row < 8 and 9 <= column < 13 for row, column in places)


def test_neighbours_by_hand() -> None:
    # Flat images of grey g are 16 |g - h| apart. From 0.1: to 0 1.6, to 0.4 4.8, to 1 14.4.
    train = torch.tensor([0.0, 0.4, 1.0])[:, None, None, None].expand(-1, 1, 32, 32)
    baseline = PixelNeighbours(k=2)
    baseline.fit(train, train, 0)
    image = torch.full((1, 1, 32, 32), 0.1)
    assert_allclose(baseline.score(image).scores, [(1.6 + 4.8) / 2], rtol=1e-5)


def test_neighbours_see_means_of_blocks() -> None:
    train = torch.zeros(1, 1, 32, 32)
    baseline = PixelNeighbours(k=5)
    baseline.fit(train, train, 0)
    fine, block = train.clone(), train.clone()
    fine[..., ::2, :], fine[..., 1::2, :] = 1.0, -1.0
    block[0, 0, 4:6, 10:12] = torch.tensor([[1.0, 0.5], [0.0, 0.1]])
    assert_allclose(baseline.score(torch.cat([fine, block])).scores, [0, 0.4], atol=1e-6)


@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
def test_an_autoencoder_learns_a_few_images(kind: str) -> None:
    images = normals(6, 0)

    def error(steps: int, learning_rate: float) -> float:
        baseline = AutoEncoderReconstruction(
            "vae" if kind == "vae" else "autoencoder",
            steps=steps,
            batch_size=6,
            learning_rate=learning_rate,
        )
        baseline.fit(images, images, 0)
        return float(baseline.score(images).scores.mean())

    # Less than the best that says the same of all images.
    constant = float((images - images.mean(0)).square().mean())
    assert error(200, 5e-3) < min(0.7 * constant, 0.2 * error(1, 1e-9))


@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
def test_an_autoencoder_needs_a_side_of_sixteens(kind: str) -> None:
    baseline = build()[f"{kind}_reconstruction"]
    with pytest.raises(ConfigError, match=r"24x24: .* multiples of 16"):
        baseline.fit(torch.zeros(2, 1, 24, 24), torch.zeros(2, 1, 24, 24), 0)


@pytest.mark.parametrize(("steps", "batch", "rate"), [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)])
def test_a_budget_that_trains_nothing_is_refused(steps: int, batch: int, rate: float) -> None:
    with pytest.raises(ConfigError, match="budget is"):
        AutoEncoderReconstruction("vae", steps=steps, batch_size=batch, learning_rate=rate)


def eps_error(denoiser: PlainDenoiser, ratio: float) -> float:
    """Mean squared error of the estimated noise on unseen images; 1 for predicting zero."""
    network, images = denoiser.fit(normals(48, 0), 0), normals(64, 7)
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(8))
    t = torch.full((64,), LEVELS.nearest(ratio))
    with torch.no_grad():
        return float((network(LEVELS.perturb(images, t, eps), t) - eps).square().mean())


def test_training_teaches_the_denoiser_to_find_noise() -> None:
    trained, untrained = plain(steps=200), plain(steps=1, learning_rate=1e-12)
    for ratio in (0.25, 0.5, 1.0):
        assert eps_error(trained, ratio) < 0.7 * min(1.0, eps_error(untrained, ratio))


def test_an_untrained_denoiser_passes_on_pure_noise() -> None:
    network = plain(steps=1, learning_rate=1e-12).fit(normals(4, 0), 0)
    eps = torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert_allclose(network(eps, torch.full((4,), LEVELS.last)).numpy(), eps.numpy(), atol=1e-6)


def test_the_denoiser_is_told_its_level() -> None:
    network = plain(steps=30).fit(normals(48, 0), 0)
    image = normals(1, 3)
    out = [network(image, torch.tensor([LEVELS.nearest(r)])) for r in (0.02, 0.03)]
    sigma = [float(LEVELS.sigma[LEVELS.nearest(r)]) for r in (0.02, 0.03)]
    v = [o - s * image for o, s in zip(out, sigma, strict=True)]  # alpha is 1 but for 5e-4
    assert float((v[0] - v[1]).abs().max()) > 2e-3


def test_the_denoiser_is_trained_once_for_both_views() -> None:
    denoiser, train = plain(steps=2), normals(12, 0)
    network = denoiser.fit(train, 0)
    assert denoiser.fit(train.clone(), 0) is network
    assert denoiser.fit(train, 1) is not network
    assert denoiser.fit(train + 1e-3, 1) is not denoiser.fit(train, 1)


def test_a_view_keeps_its_network_when_the_denoiser_is_trained_anew() -> None:
    denoiser, train, images = plain(steps=2), normals(12, 0), normals(2, 2)
    for view in (DenoiserMSMA(denoiser), DenoiserReconstruction(denoiser)):
        view.fit(train, normals(12, 1), 0)
        before = view.score(images).scores
        denoiser.fit(train, 1)
        assert_array_equal(view.score(images).scores, before)


def test_the_denoiser_needs_a_side_that_can_be_halved() -> None:
    with pytest.raises(ConfigError, match=r"18x18: .* multiples of 4"):
        plain().fit(torch.zeros(2, 1, 18, 18), 0)


class KnowsOneImage(nn.Module):
    """The exact denoiser of data that are all one image m: ``eps = (x_t - alpha m) / sigma``."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - LEVELS.alpha_at(t, x_t) * self.image) / LEVELS.sigma_at(t, x_t)


class Oracle(PlainDenoiser):
    """Trained to perfection on one image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__(LEVELS, widths=(4,), blocks=1, patch=2, steps=1, batch_size=1)
        self.network = KnowsOneImage(image)

    def fit(self, train: Tensor, seed: int) -> nn.Module:
        return self.network


@pytest.mark.parametrize("view", [DenoiserMSMA, DenoiserReconstruction])
def test_the_exact_denoiser_of_one_image_finds_the_difference_from_it(
    view: Callable[[PlainDenoiser], Baseline],
) -> None:
    # E[x_0 | x_t] = m whatever x_t, in one step as in ten: the map is (x_0 - m)^2.
    mean = normals(1, 0)[0]
    baseline = view(Oracle(mean))
    baseline.fit(normals(12, 0), normals(12, 1), 0)
    images = with_square(normals(3, 2))
    maps = baseline.score(images).maps
    assert maps is not None
    assert_allclose(maps, (images - mean).square()[:, 0].numpy(), atol=2e-5)


def test_score_norms_of_the_exact_denoiser() -> None:
    # eps_hat = eps + (x_0 - m) / (sigma / alpha), so normals at m + N(0, 0.1^2 I) have the norm
    # 1 + (0.1 / r)^2 up to chance of sqrt(2 / 256) = 9 %; those at m + N(0, 0.2^2 I) are far.
    mean = torch.zeros(1, SIDE, SIDE)
    noise = torch.randn(60, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    baseline = DenoiserMSMA(Oracle(mean))
    baseline.fit(0.1 * noise[:1], 0.1 * noise[:40], 0)
    same, other = (baseline.score(s * noise[40:]).scores for s in (0.1, 0.2))
    # Eight standardised numbers: a squared distance of 8, somewhat more on images not fitted on.
    assert 2 < same.mean() < 5
    assert other.min() > same.max()
    # Two-sided: less deviation than any normal image has is abnormal too.
    assert baseline.score(0.02 * noise[40:]).scores.min() > same.max()


def test_msma_needs_normals_for_its_density() -> None:
    with pytest.raises(CalibrationError, match="9 normal scans"):
        DenoiserMSMA(plain(steps=1)).fit(normals(4, 0), normals(9, 1), 0)


def test_msma_needs_a_draw() -> None:
    with pytest.raises(ConfigError, match="0 draws"):
        DenoiserMSMA(plain(), draws=0)


def test_a_short_schedule_is_enough() -> None:
    levels = NoiseLevels.from_name("log_snr", 3)
    baselines = default_baselines(levels, EncoderSettings(widths=(4,)), steps=1, batch_size=4)
    for baseline in baselines[-2:]:
        baseline.fit(normals(4, 0), normals(12, 1), 0)
        assert np.isfinite(baseline.score(normals(2, 2)).scores).all()
