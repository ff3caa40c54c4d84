"""Integrated gradients: completeness, closed form of a Gaussian, and what is refused."""

from __future__ import annotations

import pytest
import torch

from anomaly.cdm.attribution import integrated_gradient
from anomaly.cdm.density import log_density
from anomaly.cdm.gaussian import GaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.errors import ConfigError
from tests.cdm.test_density import draw, tiny_network

LEVELS = NoiseLevels.from_name("log_snr", 10)


def test_pixels_add_up_to_the_difference_of_the_log_densities() -> None:
    network = tiny_network(LEVELS, dims=4)
    x, other = draw(5, 1, 2, 2), draw(5, 1, 2, 2, seed=1)
    t = torch.tensor([0, 2, 4, 6, 9])
    parts = integrated_gradient(network, x, other, t, nodes=16)
    difference = log_density(network(x), x) - log_density(network(other), other)
    expected = difference.gather(1, t[:, None])[:, 0]
    torch.testing.assert_close(parts.flatten(1).sum(1), expected.detach(), atol=1e-6, rtol=0)


def test_a_gaussian_by_hand_needs_one_node() -> None:
    # Independent pixels of variance v: a_i = -(x_i^2 - x'_i^2) / 2 v about the mean 0.
    variance = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    density = GaussianCDM(torch.zeros(1, 2, 2, dtype=torch.float64), torch.diag(variance), LEVELS)
    x, other = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    parts = integrated_gradient(density, x, other, torch.zeros(3, dtype=torch.int64), nodes=1)
    expected = -(x.square() - other.square()).flatten(1) / (2 * variance)
    torch.testing.assert_close(parts.flatten(1), expected)


def test_equal_images_have_no_attribution_and_unequal_shapes_are_refused() -> None:
    network, x = tiny_network(LEVELS), draw(1, 1, 2, 2)
    t = torch.zeros(1, dtype=torch.int64)
    assert not integrated_gradient(network, x, x, t).any()
    with pytest.raises(ConfigError, match="have shapes"):
        integrated_gradient(network, x, x[..., :1], t)
    with pytest.raises(ConfigError, match="nodes is 0"):
        integrated_gradient(network, x, x, t, nodes=0)
