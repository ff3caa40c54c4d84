"""Fitting the detector: changes that are a scan's own, copies that stay with it, a fair choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from PIL import Image

from anomaly.cdm.gaussian import CosineGaussianCDM
from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.network import LevelClassifier, build_network
from anomaly.config import Config, parse_config
from anomaly.data.images.network_images import ImageReader, framed_images, network_images
from anomaly.data.readers.intensity import IntensityPolicy
from anomaly.data.synthetic.seeded import changed
from anomaly.data.table.inspection import Inspection
from anomaly.data.table.listing import PathNames, build_manifest
from anomaly.data.table.manifest import ManifestRow
from anomaly.detection import extractor
from anomaly.detection.selection import choose, standard_error
from anomaly.errors import CalibrationError
from anomaly.training.detector_fit import ScanObserver, fit_detector, fitting_set

Kind = Literal["nuisance", "perturbation"]
BOTH: Callable[..., Any] = pytest.mark.parametrize("kind", ["nuisance", "perturbation"])
SIDE = 40


def picture(seed: int) -> NDArray[np.uint8]:
    """Broad waves of random phase and a little noise."""
    rng = np.random.default_rng(seed)
    place = np.arange(SIDE) * 2 * np.pi / SIDE
    wave = np.add.outer(np.sin(place + rng.uniform(0, 1)), np.cos(place + rng.uniform(0, 1)))
    return (127 + 50 * wave + 4 * rng.normal(size=(SIDE, SIDE))).clip(0, 255).astype(np.uint8)


def archive(root: Path, count: int, start: int = 0) -> tuple[ManifestRow, ...]:
    root.mkdir()
    for i in range(count):
        Image.fromarray(picture(start + i)).save(root / f"{i:02d}.png")
    return listed(root)


def listed(root: Path) -> tuple[ManifestRow, ...]:
    manifest = build_manifest(Inspection(root, IntensityPolicy(), b"k" * 32), PathNames())
    return manifest.rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[ManifestRow, ...]:
    return archive(tmp_path_factory.mktemp("fit") / "scans", 2)


PIXELS = np.asarray(picture(0) / np.float32(255), dtype=np.float32)


# --- changes ----------------------------------------------------------------------------------


@BOTH
def test_a_change_is_a_function_of_content_seed_and_copy(
    kind: Kind, rows: tuple[ManifestRow, ...]
) -> None:
    one, other = rows
    first = changed(kind, 0, 0, PIXELS, one)
    assert_array_equal(changed(kind, 0, 0, PIXELS.copy(), one), first)
    # The same bytes under another name, of another patient, in another split.
    renamed = replace(one, path="elsewhere/x.png", key="0" * 12, patient="p", split="test")
    assert_array_equal(changed(kind, 0, 0, PIXELS, renamed), first)
    for what, found in {
        "seed": changed(kind, 1, 0, PIXELS, one),
        "copy": changed(kind, 0, 1, PIXELS, one),
        "scan": changed(kind, 0, 0, PIXELS, other),
        "frame": changed(kind, 0, 0, PIXELS, replace(one, frame=1)),
    }.items():
        assert not np.array_equal(found, first), what


@BOTH
def test_a_changed_scan_is_a_scan(kind: Kind, rows: tuple[ManifestRow, ...]) -> None:
    before = PIXELS.copy()
    for copy in range(20):
        found = changed(kind, 0, copy, PIXELS, rows[0])
        assert found.shape == PIXELS.shape
        assert found.dtype == np.float32
        assert 0 <= found.min() < found.max() <= 1
        assert not np.array_equal(found, PIXELS)
    assert_array_equal(PIXELS, before)


def test_most_perturbations_are_of_a_place_and_nuisance_is_everywhere(
    rows: tuple[ManifestRow, ...],
) -> None:
    def moved(kind: Kind) -> NDArray[np.float64]:
        found = [changed(kind, 0, copy, PIXELS, rows[0]) for copy in range(20)]
        return np.array([np.mean(image != PIXELS) for image in found])

    # One family of three is of the whole image.
    assert np.median(moved("perturbation")) < 0.6
    assert moved("nuisance").min() > 0.5


# --- fitting ----------------------------------------------------------------------------------


def config(root: Path, **detector: Any) -> Config:
    return parse_config(
        {
            "name": "small",
            "data": {"root": str(root)},
            "preprocessing": {"size": 8},
            "levels": {"steps": 12},
            "network": {"widths": [8, 8], "features": 4},
            "features": {"noise_to_signal": [0.25, 1.0], "draws": 2, "grid": 4},
            "heatmap": {
                "channels": [
                    {"levels": [0.1, 0.5], "smoothing": 0.0},
                    {"levels": [0.1, 0.5], "smoothing": 1.0},
                ]
            },
            "detector": detector,
        }
    )


def watch(root: Path, rows: tuple[ManifestRow, ...], **detector: Any) -> ScanObserver:
    """Look with the closed-form base of the scans: a network that has learnt nothing more."""
    how = config(root, **detector)
    framed = framed_images(ImageReader(root, how.intensity, how.preprocessing), rows, 1)
    levels = NoiseLevels.from_name(how.levels.schedule, how.levels.steps)
    images = network_images(framed, how.preprocessing)
    base = CosineGaussianCDM.fit(images, levels, floor=1e-3)
    torch.manual_seed(0)
    network = LevelClassifier(build_network(how.network, levels), base)
    network.eval().requires_grad_(False)
    return ScanObserver(network, levels, how, images.mean(0), torch.device("cpu"))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[ManifestRow, ...]]:
    root = tmp_path_factory.mktemp("fit") / "scans"
    return root, archive(root, 36)


Scans = tuple[Path, tuple[ManifestRow, ...]]


def test_copies_have_the_number_of_their_scan(scans: Scans) -> None:
    root, rows = scans
    observer = watch(root, rows, nuisance_copies=2)
    observed, number = fitting_set(observer, rows[:5])
    assert_array_equal(number, [0, 1, 2, 3, 4] * 3)
    plain = observer.observe(rows[:5], "plain")
    assert_array_equal(observed.residuals[:5], plain.residuals)
    # First the scans as they are, then all first copies, then all second ones.
    maps = observed.groups["profile"]
    for copy in (1, 2):
        moved = observer.observe(rows[:5], "", partial(changed, "nuisance", 0, copy - 1))
        assert_array_equal(maps[5 * copy : 5 * copy + 5], moved.groups["profile"])
        assert (maps[5 * copy : 5 * copy + 5] != maps[:5]).any(1).all()


def test_batches_do_not_matter(scans: Scans, monkeypatch: pytest.MonkeyPatch) -> None:
    root, rows = scans
    observer = watch(root, rows)
    whole = observer.observe(rows[:7], "whole")
    monkeypatch.setattr(extractor, "batch_size", lambda side: 3)
    parts = observer.observe(rows[:7], "parts")
    for group, values in whole.groups.items():
        np.testing.assert_allclose(parts.groups[group], values, rtol=1e-4, atol=1e-4)


TWO = [{"use": ["energy"]}, {"use": ["evidence_peak"]}]
BOTH_SPLITS = {"fit_on": ["train", "validation"], "nuisance_copies": 1}


def test_one_candidate_is_taken_without_a_choice(scans: Scans) -> None:
    root, rows = scans
    observer = watch(root, rows, candidates=[{"use": ["nll", "profile_3"]}])
    fitted = fit_detector(observer, rows[:20], rows[20:])
    assert fitted.margins == {}
    assert fitted.detector.names == ("nll", "profile_3")
    # Fitted on validation alone: its mean is theirs.
    nll = observer.observe(rows[20:], "").groups["nll"]
    assert fitted.detector.mean[0] == pytest.approx(nll.mean())


def test_one_is_chosen_by_its_margin_and_fitted_on_all(scans: Scans) -> None:
    root, rows = scans
    observer = watch(root, rows, candidates=TWO, **BOTH_SPLITS)
    fitted = fit_detector(observer, rows[:20], rows[20:])
    assert list(fitted.margins) == ["ledoit_wolf over energy", "ledoit_wolf over evidence_peak"]
    held_out = len(rows) - 20
    error = standard_error(max(fitted.margins.values()), held_out, held_out)
    chosen = choose(fitted.margins, error)
    assert chosen == str(fitted.chosen)
    assert str(fitted.detector.names[0]).startswith(chosen.removeprefix("ledoit_wolf over "))
    observed, _ = fitting_set(observer, rows)
    size = np.sqrt(np.square(observed.residuals[:, 0]).mean())  # the level 0.25 alone
    np.testing.assert_allclose(fitted.heatmap.weights, [[1 / size, 0]] * 2, rtol=1e-5)
    # The same scans give the same choice to the last bit.
    again = fit_detector(observer, rows[:20], rows[20:])
    assert again.margins == fitted.margins


def test_margins_come_from_detectors_that_have_not_seen_validation(scans: Scans) -> None:
    root, rows = scans
    observer = watch(root, rows, candidates=TWO, **BOTH_SPLITS)
    # A validation scan twice weighs twice in both sets, and changes no detector: the margin stays.
    once, twice = (
        fit_detector(observer, rows[:20], [*rows[20:]] * times).margins for times in (1, 2)
    )
    assert once == pytest.approx(twice)


def test_too_few_scans_are_refused(scans: Scans) -> None:
    root, rows = scans
    with pytest.raises(CalibrationError, match="9 normal scans"):
        fit_detector(watch(root, rows), rows[:20], rows[20:29])
