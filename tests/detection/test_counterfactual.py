"""The counterfactual on oracles: Gaussians with known expectations, a mixture, phantoms."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly.cdm.density import Network, grey_step
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM, GaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.data.images.transforms import Frame
from anomaly.data.synthetic.phantom import VISIBLE, draw_phantom
from anomaly.detection.counterfactual import (
    CounterfactualSettings,
    counterfactual,
    suspect_pixels,
)
from anomaly.errors import ConfigError

LEVELS = NoiseLevels.from_name("log_snr", 200)
SHAPE = (1, 4, 5)
DIMS = math.prod(SHAPE)


def field(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (1, 4, 5), covariance (20, 20) and draws (N, 1, 4, 5) of a smooth field, sd 0.2."""
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(5.0)).double()
    covariance = 0.04 * torch.exp(-torch.cdist(place, place) / 3)
    generator = torch.Generator().manual_seed(seed)
    mean = 0.3 * (torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 0.5)
    noise = torch.randn(count, DIMS, generator=generator, dtype=torch.float64)
    drawn = mean.flatten() + noise @ torch.linalg.cholesky(covariance).T
    return mean, covariance, drawn.reshape(count, *SHAPE).clamp(-1, 1)


def conditional(mean: Tensor, covariance: Tensor, x: Tensor, m: Tensor, noise: float) -> Tensor:
    """E[x_M | x_K + noise n] (N, |M|) for pixels `m` (20,) bool: the textbook formula."""
    known = covariance[~m][:, ~m] + noise**2 * torch.eye(int((~m).sum()), dtype=torch.float64)
    off = (x.flatten(1) - mean.flatten())[:, ~m]
    return mean.flatten()[m] + off @ torch.linalg.solve(known, covariance[~m][:, m])


def block() -> Tensor:
    """Suspect pixels (4, 5): two rows by three columns in the middle."""
    suspect = torch.zeros(4, 5, dtype=torch.bool)
    suspect[1:3, 1:4] = True
    return suspect


@pytest.mark.parametrize("finest", [0.3, 0.1])
def test_gaussian_data_settle_where_the_algebra_says(finest: float) -> None:
    mean, covariance, x = field(0, 6)
    suspect = block()
    settings = CounterfactualSettings(noise_to_signal=(1.0, finest), rounds=150)
    got = counterfactual(
        GaussianCDM(mean, covariance, LEVELS), LEVELS, x, suspect.expand(6, -1, -1), settings
    )
    t = LEVELS.nearest(finest)
    noise = float(LEVELS.sigma[t] / LEVELS.alpha[t])
    expected = conditional(mean, covariance, x, suspect.flatten(), noise)
    torch.testing.assert_close(got[:, 0, suspect], expected, rtol=0, atol=1e-6)


def test_the_default_ladder_reaches_the_conditional_expectation() -> None:
    # Whatever was painted into the suspect pixels: what is left of the exact E[x_M | x_K] is the
    # bias of the last level, far below the spread of what could be there.
    mean, covariance, x = field(1, 200)
    suspect = block()
    m = suspect.flatten()
    lesion = x.clone()
    lesion[..., suspect] = 0.9
    network = GaussianCDM(mean, covariance, LEVELS)
    got = counterfactual(
        network, LEVELS, lesion, suspect.expand(200, -1, -1), CounterfactualSettings()
    )
    exact = conditional(mean, covariance, x, m, 0.0)
    given = covariance[m][:, m] - covariance[m][:, ~m] @ torch.linalg.solve(
        covariance[~m][:, ~m], covariance[~m][:, m]
    )
    spread = given.diagonal().mean().sqrt()
    error = (got[:, 0, suspect] - exact).square().mean().sqrt()
    assert error < 0.35 * spread
    # The truth lies around its expectation as far as it must, and around what we say hardly more.
    truth = (got - x)[:, 0, suspect].square().mean().sqrt()
    assert truth < 1.1 * spread


def test_less_noise_at_the_end_is_nearer_to_the_exact_expectation() -> None:
    mean, covariance, x = field(2, 10)
    suspect = block()
    exact = conditional(mean, covariance, x, suspect.flatten(), 0.0)
    errors = []
    for ladder in ((1.0,), (1.0, 0.3), (1.0, 0.3, 0.1), (1.0, 0.3, 0.1, 0.03)):
        settings = CounterfactualSettings(noise_to_signal=ladder, rounds=80)
        got = counterfactual(
            GaussianCDM(mean, covariance, LEVELS), LEVELS, x, suspect.expand(10, -1, -1), settings
        )
        errors.append(float((got[:, 0, suspect] - exact).square().mean().sqrt()))
    assert all(later < 0.6 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 0.02 * 0.2


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_round_by_hand(rounds: int) -> None:
    # Independent pixels N(m, v): E[x_0 | x_t] = m + v / (v + s^2) (x_t / alpha - m), the noise and
    # its negative cancel, and nothing is learnt from the neighbours.
    mean = torch.full(SHAPE, 0.1, dtype=torch.float64)
    v = 0.09
    network = GaussianCDM(mean, v * torch.eye(DIMS, dtype=torch.float64), LEVELS)
    x = torch.linspace(-0.8, 0.8, DIMS, dtype=torch.float64).reshape(1, *SHAPE)
    t = LEVELS.nearest(0.5)
    s2 = float((LEVELS.sigma[t] / LEVELS.alpha[t]) ** 2)
    settings = CounterfactualSettings(noise_to_signal=(0.5,), rounds=rounds)
    got = counterfactual(network, LEVELS, x, block()[None], settings)
    expected = torch.where(block(), 0.1 + (v / (v + s2)) ** rounds * (x - 0.1), x)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_of_two_kinds_of_patient_the_one_that_the_rest_shows_is_continued() -> None:
    # Half the patients are dark, half bright. Their common Gaussian expects grey; the rest of the
    # image says which it is, and the suspect pixels show the other.
    eye = 0.01 * torch.eye(DIMS, dtype=torch.float64)
    dark, bright = (
        GaussianCDM(torch.full(SHAPE, grey, dtype=torch.float64), eye, LEVELS)
        for grey in (-0.5, 0.5)
    )

    def either(x: Tensor) -> Tensor:
        # The density of a mixture is the mean of its parts' at every level.
        return torch.logaddexp(dark(x), bright(x))

    x = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)
    x[1] = -0.5
    suspect = block().expand(2, -1, -1)
    lesion = torch.where(suspect[:, None], -x, x)
    got = counterfactual(either, LEVELS, lesion, suspect, CounterfactualSettings())
    assert (got - x).abs().max() < 0.02


def test_what_is_expected_stays_within_black_and_white() -> None:
    # A model that expects 1.5 everywhere: no grey value of an image is beyond 1.
    bright = torch.full(SHAPE, 1.5, dtype=torch.float64)
    network = GaussianCDM(bright, 0.01 * torch.eye(DIMS, dtype=torch.float64), LEVELS)
    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    got = counterfactual(network, LEVELS, x, block()[None], CounterfactualSettings())
    assert torch.equal(got[0, 0], block().double())


def trained_on_nothing() -> LevelClassifier:
    torch.manual_seed(0)
    settings = EncoderSettings(widths=(8, 8), features=8)
    network = LevelClassifier(build_network(settings, LEVELS))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return network.eval()


def some_images() -> tuple[Tensor, Tensor]:
    """Images (5, 1, 16, 16) and suspect pixels (5, 16, 16); those of image 2 are none."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(5, 1, 16, 16, generator=generator) * 2 - 1
    suspect = torch.rand(5, 16, 16, generator=generator) < 0.3
    suspect[2] = False
    return images, suspect


def test_the_rest_of_the_image_is_kept_to_the_last_bit() -> None:
    images, suspect = some_images()
    before = images.clone()
    got = counterfactual(trained_on_nothing(), LEVELS, images, suspect, CounterfactualSettings())
    assert torch.equal(images, before)
    keep = ~suspect[:, None]
    assert torch.equal(got[keep], images[keep])
    assert torch.equal(got[2], images[2])
    assert not torch.equal(got[0], images[0])
    assert float(got.abs().max()) <= 1
    assert not got.requires_grad


def test_nothing_suspect_costs_nothing() -> None:
    def refuses(x: Tensor) -> Tensor:
        raise AssertionError(f"asked about {len(x)} images")

    images, _ = some_images()
    nothing = torch.zeros(5, 16, 16, dtype=torch.bool)
    got = counterfactual(refuses, LEVELS, images, nothing, CounterfactualSettings())
    assert torch.equal(got, images)
    empty = counterfactual(refuses, LEVELS, images[:0], nothing[:0], CounterfactualSettings())
    assert empty.shape == (0, 1, 16, 16)


def test_neither_batch_nor_order_matters_and_the_seed_decides() -> None:
    images, suspect = some_images()
    network = trained_on_nothing()
    settings = CounterfactualSettings(rounds=1)
    one = counterfactual(network, LEVELS, images, suspect, settings)
    again = counterfactual(network, LEVELS, images, suspect, settings)
    assert torch.equal(one, again)
    alone = replace(settings, batch=1)
    turned = counterfactual(network, LEVELS, images.flip(0), suspect.flip(0), alone).flip(0)
    torch.testing.assert_close(turned, one, rtol=0, atol=1e-4)
    other = counterfactual(network, LEVELS, images, suspect, replace(settings, seed=1))
    assert (other - one).abs().max() > 1e-3


def test_memory_and_work_are_bounded() -> None:
    images, suspect = some_images()
    network = trained_on_nothing()
    seen: list[int] = []

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return network(x)

    settings = CounterfactualSettings(noise_to_signal=(1.0, 0.5), rounds=3, batch=3)
    counterfactual(counted, LEVELS, images, suspect, settings)
    # Four images have suspect pixels: 3 and 1, each two levels, three rounds, noise and negative.
    assert seen == [3] * 12 + [1] * 12


def phantoms(count: int, lesion: bool, first: int) -> tuple[Tensor, Tensor]:
    """Phantoms and their lesion-free twins at 32 x 32: (N, 1, 32, 32) in [-1, 1] each."""
    frame = Frame((64, 56), 32, "pad")
    pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number in range(first, first + count):
        drawn = draw_phantom(
            np.random.default_rng([5, number]), (64, 56), "consolidation" if lesion else None
        )
        for images, pixels in zip(pairs, (drawn.image, drawn.twin), strict=True):
            unit = frame.to_network(torch.from_numpy(pixels.astype(np.float32))[None])
            images.append(unit * 2 - 1)
    return torch.stack(pairs[0]), torch.stack(pairs[1])


def test_a_phantoms_lesion_is_taken_out() -> None:
    normals, _ = phantoms(150, False, 0)
    network: Network = CosineGaussianCDM.fit(normals, LEVELS, floor=grey_step(256) ** 2 / 12)
    seen, twin = phantoms(12, True, 1000)
    lesion = (seen - twin).abs()[:, 0] > 2 * VISIBLE
    suspect = torch.from_numpy(suspect_pixels(lesion.numpy(), 1))
    got = counterfactual(network, LEVELS, seen, suspect, CounterfactualSettings())

    def error(x: Tensor) -> Tensor:
        off = (x - twin)[:, 0].square() * lesion
        return (off.sum((1, 2)) / lesion.sum((1, 2))).sqrt()

    assert error(got).mean() < 0.6 * error(seen).mean()


def test_suspect_pixels_by_hand() -> None:
    marked = np.zeros((2, 4, 5), dtype=np.bool_)
    marked[0, 1, 1] = True
    np.testing.assert_array_equal(suspect_pixels(marked, 0), marked)
    grown = suspect_pixels(marked, 1)
    expected = np.zeros((2, 4, 5), dtype=np.bool_)
    expected[0, 0:3, 0:3] = True
    np.testing.assert_array_equal(grown, expected)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"noise_to_signal": ()}, "falling values above 0"),
        ({"noise_to_signal": (1.0, 1.0)}, "falling values above 0"),
        ({"noise_to_signal": (0.5, 0.0)}, "falling values above 0"),
        ({"rounds": 0}, "counterfactual.rounds is 0: expected 1 or more"),
        ({"dilation": -1}, "counterfactual.dilation is -1: expected 0 or more"),
        ({"batch": 0}, "counterfactual.batch is 0: expected 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CounterfactualSettings(**values)


def test_suspect_pixels_of_another_size_are_refused() -> None:
    images, suspect = some_images()
    with pytest.raises(ConfigError, match=r"\(5, 16, 15\): expected \(5, 16, 16\)"):
        counterfactual(
            trained_on_nothing(), LEVELS, images, suspect[:, :, 1:], CounterfactualSettings()
        )
