"""refit and calibrate --adapt: a new detector on a known network, moved to another site."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import anomaly
from anomaly.data.synthetic.phantom import draw_phantom
from anomaly.data.table.manifest import Manifest
from anomaly.errors import CalibrationError
from anomaly.pipelines.run import RunFolder
from anomaly.scoring.adapting import halves
from anomaly.store.bundle import read_bundle
from tests.pipelines.road import Road, copy, done, refused

SIZE = ("--set", "preprocessing.size=32")
COMBINED = "[{kind: combined, use: [energy], guard: [octave], given: [scale_rows]}]"


def site(folder: Path, count: int, seed: int) -> list[Path]:
    """Normal phantoms of a site whose images are darker and cut narrower, two to a patient."""
    folder.mkdir(parents=True)
    paths = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        pixels = draw_phantom(rng, size=(96, 84)).image ** 1.4
        path = folder / f"p{index // 2:03}_{index % 2}.png"
        Image.fromarray(np.rint(255 * pixels[4:-4, 6:-6]).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


@dataclass(frozen=True)
class Site:
    """A refitted bundle, and a run that is prepared on the scans of another site."""

    bundle: Path
    scans: Path
    run: RunFolder


@pytest.fixture(scope="module")
def elsewhere(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Site:
    place = tmp_path_factory.mktemp("site")
    fitted = RunFolder(place / "fitted")
    done("prepare", fitted.path, "--config", road.config, "--data", road.scans)
    done(
        *("refit", fitted.path, "--bundle", road.trained.bundle, "--data", road.scans),
        *("--set", f"detector.candidates={COMBINED}"),
    )
    site(place / "scans" / "normal", 60, 0)
    run = RunFolder(place / "run")
    settings = [
        "data.labels={normal: [normal/*]}",
        "data.masks=null",
        r"data.patient_pattern=^(p\d+)_",
        "data.splits={train: 0.01, validation: 0.01, calibration: 0.97, test: 0.01}",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    done("prepare", run.path, "--config", road.config, "--data", place / "scans", *overrides)
    return Site(fitted.bundle, place / "scans", run)


def test_refit_keeps_the_network_and_replaces_the_detector(road: Road, elsewhere: Site) -> None:
    old, new = read_bundle(road.trained.bundle), read_bundle(elsewhere.bundle)
    for name, value in old.network.state_dict().items():
        assert (new.network.state_dict()[name] == value).all()
    assert (new.reference == old.reference).all()
    assert new.detector.kind == "combined"
    assert new.seen == old.seen
    assert new.calibrated is None


def test_refit_needs_the_images_of_the_network(road: Road, elsewhere: Site, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    done("prepare", run.path, "--config", road.config, "--data", road.scans)
    message = refused(
        *("refit", run.path, "--bundle", road.trained.bundle, "--set", "preprocessing.size=32")
    )
    assert "--set preprocessing.size has no effect here (refit)" in message
    other = tmp_path / "other"
    done("prepare", other, "--config", road.config, "--data", road.scans, *SIZE)
    message = refused("refit", other, "--bundle", road.trained.bundle)
    assert "preprocessing.size is 32, there 16" in message


def test_a_run_keeps_the_bundle_that_it_has_trained(
    road: Road, elsewhere: Site, tmp_path: Path
) -> None:
    run = copy(road.trained, tmp_path / "run")
    message = refused("refit", run.path, "--bundle", elsewhere.bundle)
    assert "has trained a bundle of its own, which would be lost" in message
    done("refit", run.path, "--bundle", run.bundle)  # on its own network it may


def test_half_adapts_and_half_calibrates(elsewhere: Site) -> None:
    done(
        *("calibrate", elsewhere.run.path, "--bundle", elsewhere.bundle, "--adapt"),
        *("--data", elsewhere.scans, "--set", "alpha=0.1"),
    )
    bundle, source = read_bundle(elsewhere.run.bundle), read_bundle(elsewhere.bundle)
    manifest = Manifest.read(elsewhere.run.manifest, elsewhere.scans)
    rows = manifest.select(split="calibration")
    first, second = halves(rows, bundle.config.detector.seed)
    assert bundle.adapted is not None
    assert bundle.calibrated is not None
    assert bundle.adapted.scans == len(first)
    assert bundle.adapted.manifest_hash == manifest.hash
    assert len(bundle.calibrated.scores.scores) == len(second)
    assert {row.patient for row in first}.isdisjoint({row.patient for row in second})
    assert abs(len(first) - len(second)) <= 2
    # The bundle knows what it was adapted on: such scans no longer calibrate anything.
    assert all(bundle.has_learned(row) for row in first)
    assert not any(bundle.has_learned(row) for row in second)
    assert not np.array_equal(bundle.detector.mean, source.detector.mean)
    assert not np.array_equal(bundle.heatmap.mean, source.heatmap.mean)
    record = json.loads((elsewhere.run.path / "run.jsonl").read_text().splitlines()[-1])
    assert record["adapted_on"] == len(first)
    # An adapted bundle is not adapted once more.
    again = refused("calibrate", elsewhere.run.path, "--adapt", "--data", elsewhere.scans)
    assert "is adapted to" in again


def test_the_door_adapts_too(elsewhere: Site, tmp_path: Path) -> None:
    detector = anomaly.load(elsewhere.bundle)
    normals = site(tmp_path / "more", 56, 1)
    adapted = detector.calibrate(normals, alpha=0.1, adapt=True)
    adapted.save(tmp_path / "bundle")
    again = anomaly.load(tmp_path / "bundle")
    assert again.bundle.adapted is not None
    assert again.bundle.adapted.scans == 28
    new = site(tmp_path / "new", 40, 2)
    plain = detector.calibrate([*elsewhere.scans.glob("normal/*")][:28], alpha=0.1)
    rates = [
        np.mean([verdict.flagged for verdict in found.score_many(new)]) for found in (again, plain)
    ]
    # 28 scans calibrate: the rate of normals is Beta(2, 27), below 0.25 with 99 %.
    assert max(rates) < 0.25
    verdict = again.score(new[0])
    assert verdict.explanation
    assert verdict.spread is not None
    assert verdict.spread.shape == (88, 72)


def test_fewer_than_fifty_scans_are_refused(elsewhere: Site, tmp_path: Path) -> None:
    normals = site(tmp_path / "few", 40, 3)
    detector = anomaly.load(elsewhere.bundle)
    with pytest.raises(CalibrationError, match=r"40 normal scans .* expected at least 50"):
        detector.calibrate(normals, alpha=0.1, adapt=True)
    with pytest.raises(CalibrationError, match="twice the same scan"):
        detector.calibrate([*normals, normals[0]], alpha=0.1, adapt=True)
