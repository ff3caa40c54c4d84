"""Bundles that are installed with the package: intact, small, described, ready to flag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomaly.cdm.health import network_health
from anomaly.detection.scoring import Scores, score_observation
from anomaly.store.bundle import Bundle, read_bundle
from anomaly.store.bundle_files import SHIPPED, find_bundle

SCORES, PEAKS, LIMIT = [30.5539, 10.1445], [0.991536, 0.725168], 1.0126577615737917

NAMES = sorted(path.name for path in SHIPPED.iterdir() if path.is_dir())


def test_there_is_one_for_the_benchmark() -> None:
    assert "zhanglab" in NAMES


def test_a_name_finds_it_and_a_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle(Path("zhanglab")) == SHIPPED / "zhanglab"
    (tmp_path / "zhanglab").mkdir()
    assert find_bundle(Path("zhanglab")) == Path("zhanglab")
    assert find_bundle(Path("nothing")) == Path("nothing")
    assert find_bundle(Path("runs/zhanglab")) == Path("runs/zhanglab")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_intact_small_and_described(name: str) -> None:
    folder = SHIPPED / name
    bundle = read_bundle(folder)
    assert len(bundle.calibration().scores.scores) * bundle.config.alpha >= 1
    assert sum(path.stat().st_size for path in folder.iterdir()) < 16 * 2**20
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert bundle.hash in card
    for said in ("Research use only. Not a diagnosis.", "Licence", "Intended use", "cannot see"):
        assert said in card


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_its_network_lives(name: str) -> None:
    bundle = read_bundle(SHIPPED / name)
    mean = bundle.reference[None].expand(4, -1, -1, -1)
    health = network_health(bundle.network, bundle.network.parts, bundle.levels, mean)
    for part in health.parts:
        assert part.share >= 0.05, part.name
        assert max(use.live for use in part.by_level) > 0.99, part.name


def look(bundle: Bundle, blank: NDArray[np.bool_] | None = None) -> Scores:
    """Ask a bundle about noise and about a slope."""
    size = bundle.config.preprocessing.size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 1, size, size), generator=generator) / 127.5 - 1
    slope = (torch.linspace(0, 255, size).round() / 127.5 - 1).expand(1, 1, size, size)
    seen = bundle.extractor(torch.device("cpu"))(torch.cat([noise, slope]), blank)
    return score_observation(seen, bundle.config.features, bundle.detector, bundle.heatmap)


@pytest.mark.parametrize("name", NAMES)
def test_it_flags_noise_and_a_blank_gradient(name: str) -> None:
    bundle = read_bundle(SHIPPED / name)
    said = look(bundle)
    scores = bundle.calibration().scores
    assert np.all(said.scores >= scores.threshold(bundle.config.alpha))
    assert np.all(scores.p_values(said.scores) == 1 / (len(scores.scores) + 1))


def test_what_it_is_calibrated_for_has_not_changed() -> None:
    """Whoever changes what scores or maps are must calibrate the bundle again, and this."""
    bundle = read_bundle(SHIPPED / "zhanglab")
    # In float32, which every processor computes alike.
    features = replace(bundle.config.features, precision="float32")
    bundle = replace(bundle, config=replace(bundle.config, features=features))
    blank = np.zeros((2, 64, 64), np.bool_)
    blank[:, :2] = blank[:, -2:] = blank[:, :, :2] = blank[:, :, -2:] = True
    said = look(bundle, blank)
    np.testing.assert_allclose(said.scores, SCORES, rtol=1e-3)
    np.testing.assert_allclose(said.evidence.max((1, 2)), PEAKS, rtol=1e-3)
    np.testing.assert_allclose(bundle.calibration().peaks.threshold(0.05), LIMIT, rtol=1e-6)
