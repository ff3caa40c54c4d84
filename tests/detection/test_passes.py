"""Precision of the passes: what is used, and that it agrees."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from anomaly.detection import passes
from anomaly.detection.passes import NetworkPasses, PassResults, multiplies_bfloat16
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import SHIPPED

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_bundle(SHIPPED / "zhanglab")


Precision = Literal["float32", "bfloat16", "auto"]


def computed(bundle: Bundle, precision: Precision) -> PassResults:
    settings = replace(bundle.config.features, precision=precision)
    own = NetworkPasses(bundle.network, bundle.levels, settings, 256, bundle.reference)
    noise = torch.randn((4, *bundle.reference.shape), generator=torch.Generator().manual_seed(1))
    images = ((bundle.reference + 0.1 * noise).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    return own(images)


def error_of(found: PassResults, exact: PassResults) -> float:
    """Largest relative error of a residual map."""
    difference = (found.residuals - exact.residuals).square().mean((2, 3)).sqrt()
    return float((difference / exact.residuals.square().mean((2, 3)).sqrt()).max())


def test_bfloat16_gives_the_same_maps_within_the_bound(bundle: Bundle) -> None:
    exact = computed(bundle, "float32")
    near = computed(bundle, "bfloat16")
    assert 0 < error_of(near, exact) < passes.PARITY
    assert near.residuals.dtype == torch.float32
    assert near.log_density.dtype == torch.float64


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_is_bfloat16_only_where_the_processor_multiplies_it(
    bundle: Bundle, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "multiplies_bfloat16", lambda device: multiplies)
    expected = computed(bundle, "bfloat16" if multiplies else "float32")
    found = computed(bundle, "auto")
    assert torch.equal(found.residuals, expected.residuals)


def test_auto_is_float32_where_the_maps_disagree(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound below what rounding to eight bits can do."""
    monkeypatch.setattr(passes, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(passes, "PARITY", 1e-6)
    another = read_bundle(SHIPPED / "zhanglab")  # a network is examined once
    found = computed(another, "auto")
    exact = computed(another, "float32")
    assert torch.equal(found.residuals, exact.residuals)


def test_the_processor_is_asked() -> None:
    capabilities = torch.cpu.get_capabilities()
    assert multiplies_bfloat16(CPU) == bool(capabilities.get("amx_bf16"))
    assert not multiplies_bfloat16(torch.device("meta"))
