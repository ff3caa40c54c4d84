"""Numbers below the smallest normal one are flushed where a network computes, at no cost."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional

from anomaly.cdm.density import logits_and_gradient
from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import build_network


def printed(script: str) -> list[str]:
    """Lines that a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_process_that_scores_flushes_in_all_its_threads() -> None:
    """Before the import it does not, so it is the import that makes it."""
    lines = printed("""
        import threading
        import torch

        def left(size=8):
            print(int((torch.full((size,), 1e-39) * 1.0).count_nonzero()))

        left()
        import anomaly.scoring.scorer
        if not torch.set_flush_denormal(True):
            print("no flush mode")
            raise SystemExit
        left()
        thread = threading.Thread(target=left)
        thread.start()
        thread.join()
        torch.set_num_threads(2)
        left(1 << 20)
    """)
    if "no flush mode" in lines:
        pytest.skip("this processor has no flush mode")
    assert lines == ["8", "0", "0", "0"]


def test_the_import_alone_flushes() -> None:
    (left,) = printed("""
        import torch
        import anomaly.cdm
        print(int((torch.full((8,), 1e-39) * 1.0).count_nonzero()))
    """)
    assert left == "0" or not torch.set_flush_denormal(True)


def test_results_agree_with_those_of_a_process_that_does_not_flush() -> None:
    # The old network, saturated: the slope of SiLU at -87 is e^-87 times 86, about 1e-36.
    levels = NoiseLevels.from_name("log_snr", 20)
    torch.manual_seed(0)
    network = build_network(EncoderSettings(widths=(8, 12), features=8, normalize=False), levels)
    torch.nn.init.zeros_(network.get_parameter("reads.1.weight"))
    torch.nn.init.constant_(network.get_parameter("reads.1.bias"), -87.0)
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1, 5, 10, 20])

    def slope() -> float:
        z = torch.full((8,), -87.0, requires_grad=True)
        (gradient,) = torch.autograd.grad(1e-6 * functional.silu(z).sum(), z)
        return abs(float(gradient[0].double()))

    try:
        torch.set_flush_denormal(False)
        assert 0 < slope() < torch.finfo(torch.float32).tiny
        exact = logits_and_gradient(network, x, t)
    finally:
        flushes = torch.set_flush_denormal(True)
    if flushes:
        assert slope() == 0
    for found, expected in zip(logits_and_gradient(network, x, t), exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
