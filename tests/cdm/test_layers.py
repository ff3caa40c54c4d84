"""Layers against autograd: their input gradients, and the derivatives of these."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly.cdm.density import HasInputGradient, log_ratio, logits_and_gradient
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.layers import (
    Residual,
    Stage,
    convolution,
    convolution_gradient,
    normalize,
    normalize_gradient,
    silu_gradient,
)
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import CDMLoss
from anomaly.cdm.network import LevelClassifier, build_network

LEVELS = NoiseLevels.from_name("log_snr", 20)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


Run = tuple[Tensor, Callable[[Tensor], Tensor]]
"""Output of a layer, and its input gradient from that of the output."""


def staged(h: Tensor) -> Run:
    torch.manual_seed(0)
    stage, hidden = Stage(Residual(4), Residual(4)).double(), list[Tensor]()
    return stage(h, hidden), lambda g: stage.gradient(g, hidden)


def convolved(side: int, stride: int, padding: int) -> Callable[[Tensor], Run]:
    def run(h: Tensor) -> Run:
        torch.manual_seed(0)
        layer = convolution(4, 6, side, stride=stride, padding=padding).double()
        return layer(h), lambda g: convolution_gradient(g, layer)

    return run


def normalized(h: Tensor) -> Run:
    result = normalize(h)
    return result.features, lambda g: normalize_gradient(g, result)


LAYERS: dict[str, Callable[[Tensor], Run]] = {
    "3x3": convolved(3, 1, 1),
    "3x3 without padding": convolved(3, 1, 0),
    "1x1": convolved(1, 1, 0),
    "2x2 stride 2": convolved(2, 2, 0),
    "normalize": normalized,
    "stage": staged,
    "silu": lambda h: (functional.silu(h), lambda g: silu_gradient(g, h)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("recorded", [True, False], ids=["with a graph", "without"])
def test_the_input_gradient_of_a_layer_is_that_of_autograd(name: str, recorded: bool) -> None:
    h = draw(2, 4, 6, 8).requires_grad_()
    output, gradient = LAYERS[name](h)
    g = draw(*output.shape, seed=1)
    (expected,) = torch.autograd.grad((output * g).sum(), h)
    with torch.set_grad_enabled(recorded):
        torch.testing.assert_close(gradient(g), expected)


def test_the_gradient_of_silu_can_be_differentiated() -> None:
    g, a = draw(3, 4).requires_grad_(), (3 * draw(3, 4, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(silu_gradient, (g, a))


def test_the_gradient_of_silu_broadcasts() -> None:
    g, a = draw(2, 3, 1, 1), draw(2, 3, 4, 5, seed=1)
    assert torch.equal(silu_gradient(g, a), silu_gradient(g.expand_as(a).clone(), a))


def classifier(settings: EncoderSettings, *, base: bool) -> LevelClassifier:
    torch.manual_seed(0)
    images = 0.5 * torch.randn(20, settings.channels, 16, 16)
    fitted = CosineGaussianCDM.fit(images, LEVELS, floor=1e-4) if base else None
    network = LevelClassifier(build_network(settings, LEVELS), fitted)
    nn.init.normal_(network.network.get_parameter("level_weights.4.weight"))
    return network.double()


class Opaque(nn.Module):
    """A network of which only the logits can be asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


SHAPES = pytest.mark.parametrize(
    ("settings", "base"),
    [
        (EncoderSettings(widths=(8, 12, 16), features=6, blocks=2), True),
        (EncoderSettings(widths=(8, 12), features=6, channels=3, patch=4), False),
        (EncoderSettings(widths=(8, 12), features=6, normalize=False), True),
    ],
    ids=["default", "colour", "formerly"],
)


@SHAPES
def test_the_input_gradient_of_the_network_is_that_of_autograd(
    settings: EncoderSettings, base: bool
) -> None:
    """In float32 to 1e-5 of the largest value, at every level; in float64 to rounding."""
    network = classifier(settings, base=base)
    x = draw(len(LEVELS), settings.channels, 16, 16).requires_grad_()
    t = torch.arange(len(LEVELS))
    logits = network(x)
    (expected,) = torch.autograd.grad(log_ratio(logits, t).sum(), x)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        network.to(dtype)
        with torch.no_grad():
            found, gradient = network.logits_and_gradient(x.to(dtype), t)
            alone = network.log_ratio_gradient(x.to(dtype), t)
        assert torch.equal(alone, gradient)
        size = expected.abs().amax((1, 2, 3))
        error = (gradient.double() - expected).abs().amax((1, 2, 3))
        assert (error <= bound * size + 1e-12).all()
        assert torch.equal(found, network(x.to(dtype)))


@SHAPES
def test_the_loss_has_the_gradient_that_double_backpropagation_has(
    settings: EncoderSettings, base: bool
) -> None:
    network = classifier(settings, base=base)
    opaque = Opaque(network)
    assert isinstance(network, HasInputGradient)
    assert not isinstance(opaque, HasInputGradient)
    x, eps = draw(6, settings.channels, 16, 16), draw(6, settings.channels, 16, 16, seed=1)
    t = torch.tensor([1, 4, 8, 12, 16, 20])
    gradients = []
    for module in (network, opaque):
        network.zero_grad()
        CDMLoss(module, LEVELS, ce_weight=0.01)(x, t, eps).total.backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    explicit, double = gradients
    assert len(explicit) == len(list(network.parameters()))
    for one, other in zip(explicit, double, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_logits_without_a_graph_keep_none() -> None:
    network = Opaque(classifier(EncoderSettings(widths=(8, 12), features=6), base=False))
    x, t = draw(2, 1, 16, 16), torch.tensor([3, 5])
    with torch.no_grad():
        logits, gradient = logits_and_gradient(network, x, t)
    assert not logits.requires_grad
    assert not gradient.requires_grad
