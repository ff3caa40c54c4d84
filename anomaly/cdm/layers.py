r"""Layers of the encoder, each with its input gradient as an ordinary forward computation.

For a layer :math:`y = L(h)` and the gradient :math:`g = \partial F / \partial y` of a scalar, the
function ``..._gradient`` returns :math:`\partial F / \partial h = J_L^T g`, from what the layer has
computed. So the gradient of a network is itself a network of convolutions and activations, which is

- cheap: no graph is recorded, and no gradient of a weight is prepared;
- differentiable once more, by ordinary backpropagation: a loss on the input gradient needs no
  second derivative of a convolution, whose implementation in PyTorch is slow;
- exportable: an export sees forward operations only.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Normalized",
    "Residual",
    "Stage",
    "convolution",
    "convolution_gradient",
    "normalize",
    "normalize_gradient",
    "silu_gradient",
]


def convolution(
    inputs: int, outputs: int, side: int, *, stride: int = 1, padding: int = 0
) -> nn.Conv2d:
    """Convolution with an initialisation that preserves the size of features (He et al. 2015).

    With PyTorch's default, features shrink layer by layer. Near zero SiLU is a parabola, so the
    input gradient of its sums is linear in x, and non-linear denoising is learned late.
    """
    layer = nn.Conv2d(inputs, outputs, side, stride=stride, padding=padding)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def convolution_gradient(g: Tensor, layer: nn.Conv2d) -> Tensor:
    """Input gradient of a convolution with square kernels, from that of its output.

    With stride 1 it is a convolution with transposed and flipped weights, which is faster than
    PyTorch's transposed convolution.
    """
    weight = layer.weight
    if layer.stride == (1, 1):
        margin = weight.shape[-1] - 1 - int(layer.padding[0])
        return functional.conv2d(g, weight.flip(2, 3).transpose(0, 1), padding=margin)
    return functional.conv_transpose2d(g, weight, stride=layer.stride)


def silu_gradient(g: Tensor, a: Tensor) -> Tensor:
    """Input gradient of SiLU at `a`, from that of its output (broadcast to `a`)."""
    if torch.is_grad_enabled():
        result: Tensor = _SiluGradient.apply(g, a)  # type: ignore[no-untyped-call]
        return result
    return torch.ops.aten.silu_backward(g.expand_as(a), a)  # type: ignore[no-any-return]


class _SiluGradient(torch.autograd.Function):
    r"""``g silu'(a)``, with its derivatives; PyTorch has none for its fused operation.

    With :math:`s` the logistic function, :math:`\mathrm{silu}'' = s (1 - s) (2 + a (1 - 2 s))`.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, a: Tensor) -> Tensor:
        g = g.expand_as(a)
        ctx.save_for_backward(g, a)
        return torch.ops.aten.silu_backward(g, a)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor]:
        (u,), (g, a) = outer, ctx.saved_tensors
        s = torch.sigmoid(a)
        curvature = (1 - 2 * s).mul_(a).add_(2).mul_(s).mul_(1 - s)
        by_g = torch.ops.aten.silu_backward(u, a)
        return by_g, curvature.mul_(u).mul_(g)


class Normalized(NamedTuple):
    """Normalised features.

    Attributes
    ----------
    features : Tensor (B, C, H, W)
        Root mean square of 1 over the channels of every position.
    factor : Tensor (B, 1, H, W)
        What they were multiplied by.
    """

    features: Tensor
    factor: Tensor


def normalize(h: Tensor) -> Normalized:
    """Bring features to a root mean square of 1 over the channels of every position.

    This is the pixel norm of Karras et al. 2018 (arXiv 1710.10196, section 4.2). Its derivative
    takes a few products only, while that of group norm is slow.
    """
    factor = torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-4)
    return Normalized(h * factor, factor)


def normalize_gradient(g: Tensor, normalized: Normalized) -> Tensor:
    r"""Input gradient of `normalize`, :math:`r (g - y \, \overline{g y})`, from that of its output.

    With :math:`r = (\overline{h^2} + \epsilon)^{-1/2}` and :math:`y = r h`,
    :math:`\partial r / \partial h = -r^3 h / C`.
    """
    y, factor = normalized
    return (g - y * (g * y).mean(1, keepdim=True)) * factor


class Residual(nn.Module):
    """``h + conv(silu(conv(h)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width, 3, padding=1)
        self.second = convolution(width, width, 3, padding=1)
        # A small initial branch preserves the size of the features without a norm layer.
        self.second.weight.data.mul_(0.3)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features, and the values before the activation, for `gradient`."""
        hidden: Tensor = self.first(h)
        return self.second(functional.silu(hidden)) + h, hidden

    def gradient(self, g: Tensor, hidden: Tensor) -> Tensor:
        """Input gradient, from that of the output."""
        inner = silu_gradient(convolution_gradient(g, self.second), hidden)
        return convolution_gradient(inner, self.first) + g


class Stage(nn.Sequential):
    """The residual blocks of one scale."""

    def forward(self, h: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """Return the features; append to `hidden`, if given, what `gradient` needs of blocks."""
        for block in self:
            h, values = block(h)
            if hidden is not None:
                hidden.append(values)
        return h

    def gradient(self, g: Tensor, hidden: list[Tensor]) -> Tensor:
        """Input gradient, from that of the output."""
        blocks = cast("list[Residual]", list(self))
        for block, values in zip(reversed(blocks), reversed(hidden), strict=True):
            g = block.gradient(g, values)
        return g
