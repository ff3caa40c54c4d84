"""Numbers below the smallest normal one are flushed wherever a network computes, at no cost."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch

import anomaly.cdm
from anomaly.cdm.density import predict_noise
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import EncoderSettings, build_network

DENORMAL = 1e-39
pytestmark = pytest.mark.skipif(
    not torch.set_flush_denormal(True), reason="this processor has no flush mode"
)


def flushes() -> bool:
    return not (torch.full((8,), DENORMAL) * 1.0).any()


def test_this_process_and_its_threads_flush() -> None:
    assert anomaly.cdm.__doc__
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(flushes()))
    thread.start()
    thread.join()
    assert flushes()
    assert found == [True]


def test_a_fresh_process_that_scores_flushes_with_all_its_threads() -> None:
    code = (
        "import pipelines.batches, torch; torch.set_num_threads(2); "
        "print(int((torch.full((1 << 20,), 1e-39) * 1.0).count_nonzero()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_results_agree_with_those_of_a_process_that_does_not_flush() -> None:
    # The old network far from the origin: the gradient of its coarse scale is below 1e-30.
    levels = NoiseLevels.from_name("log_snr", 20)
    torch.manual_seed(0)
    network = build_network(EncoderSettings(widths=(8, 12), features=8, normalize=False), levels)
    torch.nn.init.constant_(network.reads[1].bias, -86.0)
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1, 5, 10, 20])
    flushed = predict_noise(network, x, t, levels)
    try:
        torch.set_flush_denormal(False)
        assert not flushes()
        exact = predict_noise(network, x, t, levels)
    finally:
        torch.set_flush_denormal(True)
    for found, expected in zip(flushed, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
