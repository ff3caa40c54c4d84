"""Every shipped configuration: it loads strictly, and what it describes can be built and run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.loss import CDMLoss
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.cdm.unet import UNetSettings
from anomaly.config import Config, load_config
from anomaly.data.images.augmentation import RandomAugmentation
from anomaly.data.images.transforms import network_image
from anomaly.data.table.splits import SPLITS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
ALL = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def build(config: Config, images: torch.Tensor) -> tuple[LevelClassifier, NoiseLevels]:
    torch.manual_seed(0)
    levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
    network = build_network(config.network, levels)
    base = (
        CosineGaussianCDM.fit(images, levels, floor=1e-5) if config.network.spectral_base else None
    )
    return LevelClassifier(network, base), levels


def test_there_are_configurations() -> None:
    assert {path.stem for path in CONFIGS} >= {
        *("phantom-64", "xray-64", "zhanglab-64", "paper-64"),
        *("any-64", "any-128"),
    }


@ALL
def test_the_splits_share_out_all_patients(path: Path) -> None:
    config = load_config(path)
    assert set(config.data.splits) == set(SPLITS)
    assert min(config.data.splits.values()) > 0
    assert math.isclose(sum(config.data.splits.values()), 1, abs_tol=1e-9)


@ALL
def test_the_schedule_runs_from_clean_to_noise(path: Path) -> None:
    config = load_config(path)
    levels = NoiseLevels.from_name(config.levels.schedule, config.levels.steps)
    assert len(levels) == config.levels.steps + 2
    ratio = levels.sigma[1:-1] / levels.alpha[1:-1]
    assert bool((ratio[1:] > ratio[:-1]).all())
    wanted = config.features.noise_to_signal
    # The ladder reaches the levels that features are read at: each has a rung of its own.
    assert len({levels.nearest(r) for r in wanted}) == len(wanted)


@ALL
def test_the_grid_fits_the_frame_and_candidates_can_be_told_apart(path: Path) -> None:
    config = load_config(path)
    # A cell of less than two pixels would be all blur.
    assert config.preprocessing.size / config.features.grid >= 2
    names = [str(candidate) for candidate in config.detector.candidates]
    assert len(set(names)) == len(names) >= 1


@ALL
def test_augmentation_gives_images_of_the_network(path: Path) -> None:
    config = load_config(path)
    how = config.preprocessing
    framed = torch.rand(1, 2 * how.size, 2 * how.size, generator=torch.Generator().manual_seed(0))
    change = RandomAugmentation(config.augmentation, how)
    change.set_random_state(seed=1)
    image = change(framed)
    assert image.shape == (config.network.channels, how.size, how.size)
    assert image.shape == network_image(framed, how).shape
    assert not torch.equal(torch.as_tensor(image), network_image(framed, how))


@ALL
def test_the_network_takes_a_step_at_its_own_size(path: Path) -> None:
    config = load_config(path)
    size = config.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, config.network.channels, size, size, generator=generator) * 2 - 1
    classifier, levels = build(config, images)
    assert size % classifier.stride == 0
    if isinstance(config.network, UNetSettings):  # 75 M weights: one image, no step
        with torch.no_grad():
            logits = classifier(images[:1])
        assert logits.shape == (1, len(levels))
        assert bool(torch.isfinite(logits).all())
        return
    loss = CDMLoss(classifier, levels, config.training.ce_weight)
    t = torch.tensor([1, levels.last // 2])
    terms = loss(images, t, torch.randn(images.shape, generator=generator))
    terms.total.backward()
    moved = 0
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        moved += float(parameter.grad.abs().sum()) > 0
    assert moved > 10
