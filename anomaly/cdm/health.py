r"""Health of a network: whether every part of it contributes to the output.

For an output :math:`F` of the network, such as the log ratio of pure noise to a noise
level, and the features :math:`h` that a part of it computes, gradient times activation

.. math:: A = \sum | h \cdot \partial F / \partial h |

measures how much of :math:`F` passes through the part. Its *share* is :math:`A` over the sum for
all parts. A unit (one feature at one place of one image) is *live* if its own
:math:`| h \cdot \partial F / \partial h |` is more than a millionth of the mean over all units of
all parts. A gradient counts as zero if it is smaller than the smallest normal number. A part is
*dead* if its share is below `DEAD` times an even share at every noise level: computing it is
useless.

The loss does not show a dead part, because the live parts learn what they can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anomaly.cdm.density import log_ratio
from anomaly.cdm.levels import NoiseLevels
from anomaly.errors import ConfigError

__all__ = [
    "DEAD",
    "HasParts",
    "NetworkHealth",
    "PartHealth",
    "Use",
    "dead_parts",
    "measure_use",
    "network_health",
    "rung_levels",
    "weight_rms",
]

DEAD = 0.04
"""Fraction of an even share below which, at every level, a part is dead: 1 % for four parts."""

LIVE_UNIT = 1e-6

RUNGS = 10
"""Number of levels examined: the middles of equal intervals between clean and pure noise."""


@runtime_checkable
class HasParts(Protocol):
    """A network that names its parts."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Modules within it whose outputs are features, by name, fine to coarse or in order."""


@dataclass(frozen=True)
class Use:
    """Contribution of one part to one output of a network.

    Attributes
    ----------
    activation : float
        Mean absolute feature.
    share : float in [0, 1]
        Share of gradient times activation, over all parts.
    live : float in [0, 1]
        Share of the part's units that are live.
    zero_gradient : float in [0, 1]
        Share of the part's gradient that is zero, or smaller than the smallest normal number.
    """

    activation: float
    share: float
    live: float
    zero_gradient: float


@dataclass(frozen=True)
class PartHealth:
    """One part of a network at several noise levels.

    Attributes
    ----------
    name : str
    weight_rms : float
        Root mean square of its weights.
    by_level : tuple of Use
        One for each level of `NetworkHealth.noise_to_signal`.
    """

    name: str
    weight_rms: float
    by_level: tuple[Use, ...]

    @property
    def share(self) -> float:
        """Largest share over the levels; NaN if one is not finite."""
        shares = [use.share for use in self.by_level]
        return math.nan if any(map(math.isnan, shares)) else max(shares)


@dataclass(frozen=True)
class NetworkHealth:
    """All parts of a network.

    Attributes
    ----------
    noise_to_signal : tuple of float
        ``sigma / alpha`` of the examined levels.
    parts : tuple of PartHealth
    """

    noise_to_signal: tuple[float, ...]
    parts: tuple[PartHealth, ...]

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of the dead parts."""
        return dead_parts({part.name: part.share for part in self.parts})

    def record(self) -> dict[str, Any]:
        """Return plain numbers for JSON: lists over the levels, by part."""
        return {
            "noise_to_signal": list(self.noise_to_signal),
            "dead": list(self.dead),
            "parts": {
                part.name: {
                    "weight_rms": part.weight_rms,
                    "activation": [use.activation for use in part.by_level],
                    "share": [use.share for use in part.by_level],
                    "live": [use.live for use in part.by_level],
                    "zero_gradient": [use.zero_gradient for use in part.by_level],
                }
                for part in self.parts
            },
        }

    def lines(self) -> list[str]:
        """Return a readable table with one line per part."""
        head = f"{'part':<10} {'share':>7} {'at sigma/alpha':>15} {'live':>6} {'activation':>11} "
        rows = [head + f"{'weights':>8} {'zero gradient':>14}"]
        for part in self.parts:
            best = max(range(len(part.by_level)), key=lambda i: part.by_level[i].share)
            use = part.by_level[best]
            rows.append(
                f"{part.name:<10} {use.share:>7.1%} {self.noise_to_signal[best]:>15.3g} "
                f"{use.live:>6.0%} {use.activation:>11.3g} {part.weight_rms:>8.3g} "
                f"{use.zero_gradient:>14.1%}{'  DEAD' if part.name in self.dead else ''}"
            )
        return rows


def network_health(
    network: nn.Module, parts: Mapping[str, nn.Module], levels: NoiseLevels, x_0: Tensor
) -> NetworkHealth:
    """Examine every part of a noise-level classifier at several noise levels.

    Parameters
    ----------
    network : Module
        ``(B, C, H, W) -> logits (B, T + 2)``; examined in evaluation mode, then restored to its
        own mode.
    parts : mapping of str to Module
        Modules within it whose outputs are examined, by name.
    levels : NoiseLevels
    x_0 : Tensor (B, C, H, W) in [-1, 1]
        Some clean images, on the network's device; their noise is the same every time.
    """
    generator = torch.Generator().manual_seed(0)
    chosen = rung_levels(levels)
    uses: dict[str, list[Use]] = {name: [] for name in parts}
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        for level in chosen:
            eps = torch.randn(x_0.shape, generator=generator).to(x_0)
            t = torch.full((len(x_0),), level, device=x_0.device)
            x_t = levels.perturb(x_0, t, eps)

            def ratio(x_t: Tensor = x_t, t: Tensor = t) -> Tensor:
                return log_ratio(network(x_t.requires_grad_()), t).sum()

            for name, use in measure_use(parts, ratio).items():
                uses[name].append(use)
    finally:
        for module, training in modes.items():
            module.training = training
    norms = weight_rms(parts)
    return NetworkHealth(
        tuple(float(levels.sigma[t] / levels.alpha[t]) for t in chosen),
        tuple(PartHealth(name, norms[name], tuple(uses[name])) for name in parts),
    )


def dead_parts(shares: Mapping[str, float]) -> tuple[str, ...]:
    """Names of the parts whose share is below `DEAD` times an even share, or not finite."""
    return tuple(name for name, share in shares.items() if not share * len(shares) >= DEAD)


def rung_levels(levels: NoiseLevels) -> Sequence[int]:
    """Return the middles of `RUNGS` equal intervals of levels between clean and pure noise."""
    inner = levels.last - 1
    return sorted({1 + int(inner * (k + 0.5) / RUNGS) for k in range(RUNGS)})


def measure_use(parts: Mapping[str, nn.Module], compute: Callable[[], Tensor]) -> dict[str, Use]:
    """Measure the contribution of each part to an output; each part must be called once.

    Parameters
    ----------
    parts : mapping of str to Module
    compute : callable
        Runs the network and returns a scalar with a graph.

    Raises
    ------
    ConfigError
        If a part is not called.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            outputs[name] = output

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    try:
        with torch.enable_grad():
            value = compute()
    finally:
        for hook in hooks:
            hook.remove()
    if missing := sorted(parts.keys() - outputs.keys()):
        raise ConfigError(f"{missing} never ran: expected modules that the network calls")
    gradients = torch.autograd.grad(value, list(outputs.values()), allow_unused=True)
    pairs = {
        name: (h.detach().float(), torch.zeros_like(h) if g is None else g.float())
        for (name, h), g in zip(outputs.items(), gradients, strict=True)
    }
    products = {name: (h * g).abs() for name, (h, g) in pairs.items()}
    total = sum(float(p.sum(dtype=torch.float64)) for p in products.values())
    floor = LIVE_UNIT * total / sum(p.numel() for p in products.values())
    tiny = torch.finfo(torch.float32).tiny
    return {
        name: Use(
            activation=float(pairs[name][0].abs().mean()),
            share=float(products[name].sum(dtype=torch.float64)) / total if total else 0.0,
            live=float((products[name] > floor).float().mean()),
            zero_gradient=float((pairs[name][1].abs() < tiny).float().mean()),
        )
        for name in parts
    }


def weight_rms(parts: Mapping[str, nn.Module]) -> dict[str, float]:
    """Root mean square of the weights of every part; 0 for a part without any."""
    norms = {}
    for name, part in parts.items():
        squares = [p.detach().double().square().sum() for p in part.parameters()]
        count = sum(p.numel() for p in part.parameters())
        norms[name] = float(torch.stack(squares).sum() / count) ** 0.5 if count else 0.0
    return norms
