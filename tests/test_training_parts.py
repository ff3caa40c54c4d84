"""A training step in parts: the same as in one piece, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from anomaly.cdm.encoder import EncoderSettings
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import CDMLoss
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.cdm.unet import UNetSettings
from anomaly.training import state as module
from anomaly.training.settings import TrainingSettings
from anomaly.training.state import Batch, TrainingState

LEVELS = NoiseLevels.from_name("log_snr", 20)
BATCH = Batch(
    torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).round() / 127.5
    - 1,
    [""] * 12,
)


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trained(network: EncoderSettings | UNetSettings, *, steps: int = 3) -> tuple[Tensor, float]:
    """All weights after a few steps, and the last loss."""
    torch.manual_seed(0)
    loss = CDMLoss(LevelClassifier(build_network(network, LEVELS)), LEVELS, 1e-2)
    state = TrainingState(loss, TrainingSettings(steps=10, batch_size=12, learning_rate=1e-2))
    for _ in range(steps):
        terms, levels, _ = state.train_on(BATCH, 0, 1, 256)
    assert terms.denoising.shape == terms.cross_entropy.shape == levels.shape == (12,)
    weights = nn.utils.parameters_to_vector(loss.parameters()).detach()
    return weights, float(terms.total.detach())


SMALL = EncoderSettings(widths=(8, 12), features=6)


def test_the_number_of_threads_changes_no_bit() -> None:
    torch.set_num_threads(1)
    alone, loss = trained(SMALL)
    torch.set_num_threads(2)
    together, same = trained(SMALL)
    assert torch.equal(alone, together)
    assert loss == same


def test_parts_add_up_to_the_step_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 8 and 4 images: their losses weigh as their sizes."""
    assert module.PART == 8
    parts, loss = trained(SMALL)
    monkeypatch.setattr(module, "PART", 12)
    whole, same = trained(SMALL)
    # Adam divides by the size of a gradient, so that rounding counts where one is small.
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)
    assert loss == pytest.approx(same, rel=1e-4)


def test_a_network_with_dropout_is_not_divided() -> None:
    """Its draws come from one generator, whose order threads would change."""
    settings = UNetSettings(widths=(32, 32), blocks=1, dropout=0.5)
    torch.set_num_threads(2)
    first, _ = trained(settings, steps=2)
    second, _ = trained(settings, steps=2)
    assert torch.equal(first, second)
