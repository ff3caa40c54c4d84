"""Noise schedules: ends, order, hand-derived values, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from anomaly.cdm.levels import SCHEDULES, NoiseLevels
from anomaly.errors import ConfigError

NAMES = sorted(SCHEDULES)
STEPS = [1, 2, 10, 1000]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_ends_are_exactly_clean_and_noise(name: str, steps: int) -> None:
    levels = NoiseLevels.from_name(name, steps)
    assert len(levels) == steps + 2
    assert levels.last == steps + 1
    assert levels.alpha[[0, -1]].tolist() == [1, 0]
    assert levels.sigma[[0, -1]].tolist() == [0, 1]
    assert levels.alpha.dtype == levels.sigma.dtype == torch.float64


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_every_level_is_noisier_than_the_one_before(name: str, steps: int) -> None:
    levels = NoiseLevels.from_name(name, steps)
    assert (levels.sigma.diff() > 0).all()
    assert (levels.alpha.diff() < 0).all()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"flow"}))
def test_variance_preserving(name: str, steps: int) -> None:
    levels = NoiseLevels.from_name(name, steps)
    assert torch.allclose(levels.alpha**2 + levels.sigma**2, torch.ones(steps + 2).double())


@pytest.mark.parametrize("steps", STEPS)
def test_flow_is_a_straight_line(steps: int) -> None:
    levels = NoiseLevels.from_name("flow", steps)
    assert torch.allclose(levels.alpha + levels.sigma, torch.ones(steps + 2).double())
    assert torch.allclose(levels.sigma.diff(), torch.full((steps + 1,), 1 / (steps + 1)).double())


def test_uniform_steps_are_even_in_sigma() -> None:
    levels = NoiseLevels.from_name("uniform", 3)
    assert levels.sigma.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_linear_is_ddpm_at_a_thousand_steps() -> None:
    levels = NoiseLevels.from_name("linear", 1000)
    # beta_1 = 1e-4 and sigma^2 = 1 - alpha_bar; Ho et al. 2020 end at alpha_bar = 4.04e-5.
    assert float(levels.sigma[1] ** 2) == pytest.approx(1e-4)
    # beta_2 = 1e-4 + (0.02 - 1e-4) / 999; alpha_bar_2 = (1 - beta_1) (1 - beta_2).
    beta_2 = 1e-4 + 0.0199 / 999
    assert float(levels.alpha[2] ** 2) == pytest.approx((1 - 1e-4) * (1 - beta_2))
    assert float(levels.alpha[1000] ** 2) == pytest.approx(4.04e-5, rel=2e-3)


def test_cosine_by_hand() -> None:
    # One step in between: t = 1/2 of the way, offset 0.008.
    top = math.cos(0.508 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert float(NoiseLevels.from_name("cosine", 1).alpha[1]) == pytest.approx(top)


def test_log_snr_is_a_geometric_ladder() -> None:
    levels = NoiseLevels.from_name("log_snr", 3)
    # From 1/200 to 100 in three: the middle one is sqrt(0.005 * 100) = sqrt(0.5).
    ratio = levels.sigma[1:-1] / levels.alpha[1:-1]
    assert ratio.tolist() == pytest.approx([0.005, math.sqrt(0.5), 100])


@pytest.mark.parametrize("name", NAMES)
def test_nearest_finds_every_level_by_its_own_ratio(name: str) -> None:
    levels = NoiseLevels.from_name(name, 20)
    found = [levels.nearest(float(levels.sigma[t] / levels.alpha[t])) for t in range(1, 21)]
    assert found == list(range(1, 21))


def test_nearest_is_in_logarithm_and_never_an_end() -> None:
    levels = NoiseLevels.from_name("flow", 3)  # sigma / alpha = 1/3, 1, 3
    # ln(0.6 / (1/3)) = 0.588 > ln(1 / 0.6) = 0.511, although 0.6 - 1/3 < 1 - 0.6.
    assert levels.nearest(0.6) == 2
    # ln(0.5 / (1/3)) = 0.405 < ln(1 / 0.5) = 0.693.
    assert levels.nearest(0.5) == 1
    assert levels.nearest(1e-9) == 1
    assert levels.nearest(1e9) == 3


def test_perturb_by_hand_row_by_row() -> None:
    levels = NoiseLevels.from_name("flow", 3)  # alpha = 1, 3/4, 1/2, 1/4, 0
    x_0 = torch.tensor([8.0, 8.0, 8.0]).reshape(3, 1, 1, 1).expand(3, 2, 2, 1)
    eps = -torch.ones(3, 2, 2, 1)
    x_t = levels.perturb(x_0, torch.tensor([0, 1, 4]), eps)
    assert x_t.dtype == torch.float32
    # 8, 3/4 * 8 - 1/4, -1
    assert x_t[:, 0, 0, 0].tolist() == [8, 5.75, -1]
    assert torch.equal(x_t, x_t[:, :1, :1, :1].expand_as(x_t))


@pytest.mark.parametrize("name", ["", "Linear", "sigmoid"])
def test_unknown_schedule_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name!r} is unknown.*cosine.*flow.*log_snr"):
        NoiseLevels.from_name(name, 10)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match=f"not {steps}"):
        NoiseLevels.from_name("flow", steps)
