"""Health of a network: by hand on a small one, and the old recipe that kills seen to fail."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.health import (
    HasParts,
    PartHealth,
    Use,
    dead_parts,
    measure_use,
    network_health,
    rung_levels,
    weight_rms,
)
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, NetworkSettings, build_network
from anomaly.cdm.unet import UNetSettings
from anomaly.errors import ConfigError

LEVELS = NoiseLevels.from_name("log_snr", 20)


class TwoParts(nn.Module):
    """``F = sum(2 x) + sum(relu(x - 3))``, through a part each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Conv2d(1, 1, 1, bias=False)
        self.bent = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.linear.weight, 2.0)
        nn.init.constant_(self.bent.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).sum() + functional.relu(self.bent(x) - 3).sum()

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"linear": self.linear, "bent": self.bent}


def test_use_by_hand() -> None:
    network = TwoParts()
    x = torch.tensor([1.0, -2.0, 5.0, 4.0]).reshape(1, 1, 2, 2).requires_grad_()
    use = measure_use(network.parts, lambda: network(x))
    # linear: features 2, -4, 10, 8 with gradient 1; bent: features x, gradient 1 where x > 3.
    assert use["linear"].activation == pytest.approx(6)
    assert use["bent"].activation == pytest.approx(3)
    assert use["linear"].share == pytest.approx(24 / 33)
    assert use["bent"].share == pytest.approx(9 / 33)
    assert (use["linear"].live, use["bent"].live) == (1.0, 0.5)
    assert (use["linear"].zero_gradient, use["bent"].zero_gradient) == (0.0, 0.5)


def test_a_part_that_moves_nothing_has_no_share() -> None:
    network = TwoParts()
    x = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    use = measure_use(network.parts, lambda: network(x))
    assert (use["bent"].share, use["bent"].live, use["bent"].zero_gradient) == (0.0, 0.0, 1.0)
    assert use["linear"].share == 1.0


def test_a_gradient_below_the_smallest_normal_number_counts_as_zero() -> None:
    network = TwoParts()
    nn.init.constant_(network.linear.weight, 1.0)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    use = measure_use({"linear": network.linear}, lambda: network.linear(x).sum() * 1e-30 * 1e-9)
    assert use["linear"].zero_gradient == 1.0


def test_a_part_that_is_not_called_is_named() -> None:
    network = TwoParts()
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    with pytest.raises(ConfigError, match=r"'bent'.*never ran"):
        measure_use(network.parts, lambda: network.linear(x).sum())


def test_hooks_are_taken_away_whatever_happens() -> None:
    network = TwoParts()

    def fail() -> Tensor:
        raise RuntimeError("no image")

    with pytest.raises(RuntimeError, match="no image"):
        measure_use(network.parts, fail)
    assert not network.linear._forward_hooks


def test_weight_rms_are_root_mean_squares() -> None:
    network = TwoParts()
    network.linear.weight.data = torch.tensor([3.0, 4.0]).reshape(2, 1, 1, 1)
    assert weight_rms(network.parts)["linear"] == pytest.approx(math.sqrt(12.5))
    assert weight_rms({"none": nn.SiLU()}) == {"none": 0.0}


def test_rungs_are_the_middles_of_equal_pieces() -> None:
    assert rung_levels(NoiseLevels.from_name("log_snr", 400)) == list(range(21, 400, 40))
    assert rung_levels(NoiseLevels.from_name("log_snr", 3)) == [1, 2, 3]


SETTINGS: list[NetworkSettings] = [
    EncoderSettings(widths=(8, 12, 16), features=8),
    EncoderSettings(widths=(8, 12, 16), features=8, normalize=False),
    UNetSettings(widths=(64, 64), blocks=1),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_every_part_lives_at_birth(settings: NetworkSettings) -> None:
    torch.manual_seed(0)
    network = LevelClassifier(build_network(settings, LEVELS))
    assert isinstance(network, HasParts)
    x_0 = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    health = network_health(network, network.parts, LEVELS, x_0)
    assert health.dead == ()
    for use in zip(*(part.by_level for part in health.parts), strict=True):
        assert sum(part.share for part in use) == pytest.approx(1)


def test_looking_changes_nothing_and_is_the_same_each_time() -> None:
    torch.manual_seed(0)
    network = LevelClassifier(build_network(SETTINGS[0], LEVELS)).eval().requires_grad_(False)
    x_0 = torch.rand(2, 1, 16, 16) * 2 - 1
    before = network(x_0)
    state = torch.random.get_rng_state()
    first, second = (network_health(network, network.parts, LEVELS, x_0) for _ in range(2))
    assert first == second
    assert torch.equal(network(x_0), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_looking_leaves_a_network_in_training_as_it_is() -> None:
    torch.manual_seed(0)
    network = build_network(UNetSettings(widths=(64, 64), blocks=1, dropout=0.5), LEVELS)
    network.get_submodule("middle").eval()  # a part may be in another mode than the whole
    modes = [module.training for module in network.modules()]
    x_0 = torch.rand(2, 1, 16, 16) * 2 - 1
    state = torch.random.get_rng_state()
    network_health(network, network.parts, LEVELS, x_0)
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ConfigError):
        network_health(network, network.parts, LEVELS, torch.zeros(2, 1, 15, 16))
    assert [module.training for module in network.modules()] == modes


@pytest.mark.parametrize("level", [0, 1])
def test_a_share_that_is_no_number_is_dead_at_whatever_level(level: int) -> None:
    uses = [Use(1.0, 0.5, 1.0, 0.0), Use(1.0, 0.5, 1.0, 0.0)]
    uses[level] = replace(uses[level], share=math.nan)
    part = PartHealth("scale 1", 1.0, tuple(uses))
    assert math.isnan(part.share)
    assert dead_parts({"scale 1": part.share, "scale 2": 0.5}) == ("scale 1",)


def test_dead_is_relative_to_an_even_share() -> None:
    few = {"one": 0.009, "two": 0.5, "three": 0.2, "four": 0.291}
    assert dead_parts(few) == ("one",)
    many = {**few, **{f"part {i}": 0.0 for i in range(4)}}
    assert "one" not in dead_parts(many)


def test_a_dead_part_is_named_in_record_and_table() -> None:
    torch.manual_seed(0)
    network = build_network(EncoderSettings(widths=(8, 12), features=8, normalize=False), LEVELS)
    nn.init.constant_(network.get_parameter("reads.1.bias"), -200.0)  # SiLU is flat there
    x_0 = torch.rand(2, 1, 16, 16) * 2 - 1
    health = network_health(network, network.parts, LEVELS, x_0)
    assert health.dead == ("scale 2",)
    record = json.loads(json.dumps(health.record(), allow_nan=False))
    assert record["dead"] == ["scale 2"]
    assert len(record["parts"]["scale 1"]["share"]) == len(record["noise_to_signal"]) == 10
    lines = health.lines()
    assert "DEAD" in lines[2]
    assert "DEAD" not in lines[1]


def test_the_slope_keeps_alive_what_a_bias_would_kill() -> None:
    torch.manual_seed(0)
    network = build_network(EncoderSettings(widths=(8, 12), features=8), LEVELS)
    nn.init.constant_(network.get_parameter("reads.1.bias"), -200.0)
    x_0 = torch.rand(2, 1, 16, 16) * 2 - 1
    assert network_health(network, network.parts, LEVELS, x_0).dead == ()
