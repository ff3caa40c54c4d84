"""Both networks: shapes, refusals, gradients, sizes of the paper, precision, batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anomaly.cdm.density import log_density, logits_and_gradient
from anomaly.cdm.encoder import Encoder, EncoderSettings
from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import CDMLoss
from anomaly.cdm.network import LevelClassifier, NetworkSettings, build_network
from anomaly.cdm.unet import PaperUNet, UNetSettings
from anomaly.errors import ConfigError

LEVELS = NoiseLevels.from_name("log_snr", 10)


def encoder(channels: int = 1) -> EncoderSettings:
    return EncoderSettings(channels=channels, widths=(8, 16), features=4)


def unet(channels: int = 1) -> UNetSettings:
    # 64 channels in 32 groups: with one a group, the norm would cancel every bias before it.
    return UNetSettings(channels=channels, widths=(64, 64), blocks=1)


def build(settings: NetworkSettings) -> Encoder | PaperUNet:
    torch.manual_seed(0)
    return build_network(settings, LEVELS)


def images(count: int, channels: int, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, channels, height, width, generator=generator)


BOTH = pytest.mark.parametrize("settings", [encoder(), encoder(3), unet(), unet(3)], ids=repr)


@pytest.mark.parametrize(
    ("settings", "kind", "stride"),
    [
        (encoder(), Encoder, 4),  # a patch of 2, halved once
        (EncoderSettings(patch=1, widths=(8, 8, 8)), Encoder, 4),
        (EncoderSettings(patch=4, widths=(8,)), Encoder, 4),
        (unet(), PaperUNet, 2),
        (UNetSettings(widths=(8, 8, 8), attention_stride=4), PaperUNet, 4),
    ],
    ids=repr,
)
def test_stride_follows_from_the_settings(
    settings: NetworkSettings, kind: type[nn.Module], stride: int
) -> None:
    network = build(settings)
    assert isinstance(network, kind)
    assert network.stride == stride
    assert LevelClassifier(network).stride == stride


@BOTH
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 8), (4, 16)])
def test_logits_have_one_column_a_level(
    settings: NetworkSettings, size: tuple[int, int], device: torch.device
) -> None:
    logits = build(settings).to(device)(images(3, settings.channels, *size).to(device))
    assert logits.device.type == device.type
    assert logits.shape == (3, 12)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@BOTH
@pytest.mark.parametrize("size", [(9, 8), (8, 9), (7, 7)])
def test_sides_that_do_not_divide_are_refused(
    settings: NetworkSettings, size: tuple[int, int]
) -> None:
    network = build(settings)
    with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]}.*multiples of {network.stride}"):
        network(images(1, settings.channels, *size))


@BOTH
def test_every_parameter_learns_from_the_loss(
    settings: NetworkSettings, device: torch.device
) -> None:
    # No parameter is exempt. (Within a tensor some entries have no gradient by symmetry: the first
    # step of the cumulative sum and the bias of the attention's keys move nothing.)
    network = build(settings).to(device)
    x, t = images(12, settings.channels).to(device), torch.arange(12, device=device)
    CDMLoss(network, LEVELS, 1e-3)(x, t, x.flip(0)).total.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert float(parameter.grad.abs().max()) > 1e-7, name


@BOTH
def test_denoising_alone_reaches_every_parameter_but_the_constants(
    settings: NetworkSettings, device: torch.device
) -> None:
    # Constants of the logits have no input gradient; only cross-entropy can learn them.
    constants = {
        "encoder": {"offset"},
        "unet": {"classify.bias", "head.2.bias"},  # the latter is pooled into a constant too
    }[settings.kind]
    network = build(settings).to(device)
    x, t = images(12, settings.channels).to(device), torch.arange(12, device=device)
    CDMLoss(network, LEVELS, 0.0)(x, t, x.flip(0)).total.backward()
    still = {
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert still == constants


@pytest.mark.parametrize(
    ("widths", "attention_stride", "millions"),
    [((128, 256, 256, 256), 2, 33.4), ((128, 256, 256, 256, 512), 4, 74.8)],
)
def test_parameter_counts_are_the_papers(
    widths: tuple[int, ...], attention_stride: int, millions: float
) -> None:
    settings = UNetSettings(channels=3, widths=widths, attention_stride=attention_stride)
    levels = NoiseLevels.from_name("linear", 1000)
    with torch.device("meta"):
        network = PaperUNet(settings, levels)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_default_unet_is_the_papers_for_32_pixels() -> None:
    defaults = UNetSettings()
    assert (defaults.widths, defaults.blocks) == ((128, 256, 256, 256), 2)
    assert (defaults.attention_stride, defaults.dropout) == (2, 0.1)


def test_unet_logits_are_a_cumulative_sum_over_levels() -> None:
    network = build(unet()).eval()
    assert isinstance(network, PaperUNet)
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output)

    network.classify.register_forward_hook(keep)
    logits = network(images(2, 1))
    steps = torch.cat([logits[:, :1], logits.diff(dim=1)], 1)
    torch.testing.assert_close(steps, seen[0], rtol=0, atol=1e-6)
    # So raising one bias moves that level and all noisier ones by as much.
    with torch.no_grad():
        network.classify.bias[5] += 1
    moved = network(images(2, 1)) - logits
    expected = torch.tensor([0.0] * 5 + [1.0] * 7).expand(2, -1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_unet_attention_mixes_every_place_at_its_stride_only() -> None:
    network = build(UNetSettings(widths=(8, 8, 8), blocks=1, attention_stride=2))
    attending = [n for n, m in network.named_modules() if type(m).__name__ == "_Attention"]
    # Down at the middle resolution (block, conv, block), the bottom, up again (two blocks).
    assert sorted(attending) == [
        "down.2.attention",
        "middle.0.attention",
        "up.3.attention",
        "up.4.attention",
    ]


def test_encoder_logit_of_pure_noise_is_no_function_of_the_image() -> None:
    network = build(encoder())
    logits = network(images(5, 1))
    assert torch.equal(logits[:, -1], logits[:1, -1].expand(5))
    assert float(logits[:, 5].detach().std()) > 0


def test_encoder_offset_is_scaled_by_the_root_of_the_dimensions() -> None:
    network = build(encoder())
    assert isinstance(network, Encoder)
    before = network(images(2, 1))
    with torch.no_grad():
        network.offset[3] += 0.5
    # 64 pixels: 0.5 * 8 nats at level 3.
    change = network(images(2, 1)) - before
    assert change[:, 3].tolist() == pytest.approx([4, 4], rel=1e-3)
    assert not change[:, :3].any()
    assert not change[:, 4:].any()


@BOTH
def test_a_row_does_not_depend_on_its_batch(settings: NetworkSettings) -> None:
    network = build(settings).eval()
    x, t = images(5, settings.channels), torch.tensor([1, 3, 5, 7, 9])
    with torch.no_grad():
        together, gradient = logits_and_gradient(network, x, t)
    scale, steepness = float(together.std()), float(gradient.abs().max())
    for i in range(5):
        with torch.no_grad():
            alone, one = logits_and_gradient(network, x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(one[0], gradient[i], rtol=1e-4, atol=1e-5 * steepness)


@BOTH
def test_bfloat16_autocast_gives_float32_logits_close_to_full_precision(
    settings: NetworkSettings,
) -> None:
    network = build(settings).eval()
    x, t = images(6, settings.channels), torch.arange(6)
    with torch.no_grad():
        full, gradient_full = logits_and_gradient(network, x, t)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half, gradient_half = logits_and_gradient(network, x, t)
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits (0.4 %); a handful of layers add up to a few per cent.
    assert (half - full).abs().max() < 0.05 * full.std()
    assert (gradient_half - gradient_full).abs().mean() < 0.05 * gradient_full.abs().mean()
    assert not torch.equal(half, full)


def test_classifier_adds_network_base_and_intercept() -> None:
    x = images(4, 1)
    base = CosineGaussianCDM(torch.zeros(1, 8, 8), torch.ones(1, 8, 8), LEVELS)
    network = build(encoder())
    classifier = LevelClassifier(network, base)
    torch.testing.assert_close(classifier(x), network(x) + base(x))
    classifier.intercept += torch.arange(12.0)
    torch.testing.assert_close(classifier(x), network(x) + base(x) + torch.arange(12.0))
    torch.testing.assert_close(LevelClassifier(network)(x), network(x))


def test_base_is_exact_under_autocast_and_not_trained() -> None:
    x = images(4, 1)
    base = CosineGaussianCDM(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.01), LEVELS)
    network = build(encoder())
    classifier = LevelClassifier(network, base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(x) - network(x)
    # Thousands of nats at the clean end, where bfloat16 would be off by tens.
    torch.testing.assert_close(logits, base(x), rtol=1e-5, atol=1e-2)
    assert float(base(x).abs().max()) > 1000
    assert {n.split(".")[0] for n, _ in classifier.named_parameters()} == {"network"}
    kept = {name for name in classifier.state_dict() if not name.startswith("network.")}
    assert kept == {"intercept", "base.mean", "base.spectrum"}


def test_weights_survive_a_round_trip_through_the_state() -> None:
    x = images(3, 1)
    torch.manual_seed(7)
    one = LevelClassifier(build_network(encoder(), LEVELS))
    other = LevelClassifier(build_network(encoder(), LEVELS))
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(log_density(one(x), x), log_density(other(x), x))


def test_the_network_of_old_bundles_says_what_it_said() -> None:
    """Logits of these weights under the version that wrote bundles of format 5."""
    levels = NoiseLevels.from_name("log_snr", 5)
    settings = EncoderSettings(widths=(4, 6), features=3, normalize=False)
    network = build_network(settings, levels)
    state = {
        name: 0.3 * torch.cos(torch.arange(value.numel()) * 1.7 + place).reshape(value.shape)
        for place, (name, value) in enumerate(network.state_dict().items())
    }
    network.load_state_dict(state)
    logits = network(torch.sin(torch.arange(64.0)).reshape(1, 1, 8, 8))
    expected = [-6.859566, -19.287302, 11.459629, 16.621197, -16.829891, -12.032207, 19.165989]
    torch.testing.assert_close(logits, torch.tensor([expected]), rtol=1e-5, atol=1e-5)


def test_the_clean_level_reads_as_its_neighbour_until_it_is_taught() -> None:
    levels = NoiseLevels.from_name("log_snr", 400)
    torch.manual_seed(0)
    network = build_network(EncoderSettings(widths=(8, 16), features=4), levels)
    logits = network(images(4, 1, 16, 16)).detach()
    steps = (logits[:, :-2] - logits[:, 1:-1]).abs().mean(0)  # from each level to the next
    assert float(steps[0]) < 2 * float(steps[1:5].mean())
