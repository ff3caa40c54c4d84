"""The benchmark, whole, on a small archive of drawn images; its tables against plain counting."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from anomaly.config import Config, load_config
from anomaly.data.images.network_images import Change, ImageReader
from anomaly.data.synthetic.alterations import (
    ALTERATIONS,
    GROSS,
    LESIONS,
    NUISANCES,
    WIDE_NUISANCES,
)
from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import CalibrationError, ConfigError
from anomaly.evaluation.benchmark.splits import published_labels, split_hash
from anomaly.pipelines import benchmark as stage
from anomaly.pipelines.__main__ import main
from anomaly.pipelines.benchmark import benchmark, benchmark_config
from anomaly.pipelines.run import RunFolder
from anomaly.scoring.scorer import ScoredScan, Scorer
from anomaly.store.bundle import read_bundle
from anomaly.training.detector_fit import calibration_change

ALPHA = 0.1
CPU = torch.device("cpu")
SIDE = 64
SETTINGS: dict[str, Any] = {
    "name": "Drawn chests",
    "data": {
        "labels": {"normal": ["train/NORMAL/*"], "opacity": ["dev/OPACITY/*"]},
        "patient_pattern": r"^(\w+?)_",
        "splits": {"train": 0.34, "validation": 0.22, "calibration": 0.22, "test": 0.22},
    },
    "preprocessing": {"size": 32},
    "augmentation": {"rotate": 3, "gamma": 0.1},
    "levels": {"steps": 20},
    "network": {"widths": [8, 8], "features": 8},
    "features": {"noise_to_signal": [0.25, 1.0], "draws": 1},
    "detector": {
        "candidates": [
            {"use": ["energy"]},
            {"use": ["signed"], "guard": ["energy"], "kind": "guarded"},
        ],
        "fit_on": ["train", "validation"],
        "nuisance_copies": 1,
        "calibrate_under_nuisance": True,
    },
    "training": {
        "steps": 12,
        "batch_size": 8,
        "warmup_steps": 2,
        "validate_every": 12,
        "checkpoint_every": 12,
    },
    "alpha": ALPHA,
}


def chest(rng: np.random.Generator, *, ill: bool) -> NDArray[np.uint8]:
    """Two dark lungs in a grey body, a little elsewhere each time; a bright ball if ill."""
    rows, columns = ((np.arange(SIDE) + 0.5) / SIDE,) * 2
    body = np.full((SIDE, SIDE), 0.7)
    for centre in (0.3, 0.7):
        middle, row = centre + rng.normal(0, 0.01), 0.45 + rng.normal(0, 0.01)
        away = ((rows - row) / 0.26)[:, None] ** 2 + ((columns - middle) / 0.13) ** 2
        body[away <= 1] = 0.25 + rng.normal(0, 0.02)
    if ill:
        away = ((rows - 0.5) / 0.15)[:, None] ** 2 + ((columns - 0.7) / 0.15) ** 2
        body[away <= 1] = 0.95
    image = ndimage.gaussian_filter(body, 1) + 0.02 * rng.standard_normal(body.shape)
    return (image.clip(0, 1) * 255).astype(np.uint8)


def draw(folder: Path, count: int, seed: int, *, ill: bool) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        name = f"{folder.parent.name}{folder.name}{index:02d}_1.png"
        Image.fromarray(chest(rng, ill=ill)).save(folder / name)


def write_settings(path: Path) -> Path:
    path.write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Done:
    """A finished benchmark: its archive, configuration, run and result."""

    data: Path
    config: Path
    run: RunFolder
    result: dict[str, Any]
    said: str

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.run.manifest, self.data)

    def resolved(self, *overrides: str) -> Config:
        return benchmark_config("drawn", self.data, self.config, None, list(overrides))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Run the command once on 54 normals, 8 ill scans and a published test set of 5 + 4."""
    root = tmp_path_factory.mktemp("benchmark")
    data = root / "archive"
    draw(data / "train" / "NORMAL", 54, 0, ill=False)
    draw(data / "dev" / "OPACITY", 8, 1, ill=True)
    draw(data / "test" / "NORMAL", 5, 2, ill=False)
    draw(data / "test" / "OPACITY", 4, 3, ill=True)
    config = write_settings(root / "drawn.yaml")
    run = RunFolder(root / "run")
    arguments = ["benchmark", "drawn", "--data", data, "--out", run.path, "--config", config]
    said = command(*arguments, "--device", "cpu", "--baseline-steps", 2)
    result = json.loads((run.path / "benchmark.json").read_text(encoding="utf-8"))
    return Done(data, config, run, result, said)


def command(*arguments: object) -> str:
    """Run a command in this process; return what it logged."""
    log, before = io.StringIO(), sys.argv
    handler = logging.StreamHandler(log)
    top = logging.getLogger("anomaly.pipelines")
    level = top.level
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    sys.argv = ["anomaly", *map(str, arguments)]
    try:
        with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as end:
            main()
    finally:
        sys.argv = before
        top.removeHandler(handler)
        top.setLevel(level)
    assert not end.value.code, log.getvalue()
    return log.getvalue()


def scores_of(
    done: Done, rows: tuple[ManifestRow, ...], change: Change | None = None
) -> NDArray[np.float64]:
    """Score rows as `anomaly score` does, apart from the benchmark."""
    bundle = read_bundle(done.run.bundle)
    reader = ImageReader(done.data, bundle.config.intensity, bundle.config.preprocessing, change)
    scored = [item for _, item in Scorer(bundle, reader, CPU).score((0, row) for row in rows)]
    assert all(isinstance(item, ScoredScan) for item in scored)
    return np.array([item.score for item in scored if isinstance(item, ScoredScan)])


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers(part)
    elif isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield float(value)


HELD_OUT, PUBLISHED = "held-out: normal vs opacity", "published test: normal vs opacity"


def test_every_table_is_there_and_finite(done: Done) -> None:
    result = done.result
    assert all(math.isfinite(number) for number in numbers(result))
    nuisances = [a.name for a in NUISANCES + WIDE_NUISANCES]
    assert [row["name"] for row in result["nuisances"]] == nuisances
    assert [row["name"] for row in result["alterations"]] == [a.name for a in GROSS + LESIONS]
    assert {row["lesion"] for row in result["localisation"]} == {a.name for a in LESIONS}
    assert {row["map"] for row in result["localisation"]} == {
        "evidence",
        "gradient",
        "auto-encoder",
        "plain denoiser",
    }
    law = [row["name"] for row in result["false_alarm_law"]]
    assert law == ["as calibrated", "unaltered", *nuisances]
    assert len(result["baselines"]) == 8
    for table in ("detectors", "features", "baselines"):
        for row in result[table]:
            assert "problem" not in row, row
            assert set(row["sets"]) == {HELD_OUT, PUBLISHED}
    assert result["notice"] == "Research use only. Not a diagnosis."


def test_the_detectors_are_the_candidates_other_densities_and_single_groups(done: Done) -> None:
    rows = done.result["detectors"]
    roles = {row["name"]: row["role"] for row in rows}
    assert roles["ledoit_wolf over energy"] == "candidate"
    assert roles["guarded over signed, guard energy"] == "candidate"
    assert roles["ledoit_wolf over octave"] == "single group"
    assert sum(role == "other density" for role in roles.values()) == 4
    assert rows[0]["role"] == "default"
    margins = {row["name"]: row["margin"] for row in rows if row["role"] == "candidate"}
    assert margins == dict(read_bundle(done.run.bundle).margins)
    assert "no abnormal scan took part" in done.result["chosen"]
    assert done.result["chosen"].startswith(read_bundle(done.run.bundle).chosen)
    # fitted anew on the same normals, the chosen candidate is the bundle's detector again
    again = next(row for row in rows if rows[0]["name"] == f"bundle: {row['name']}")
    assert again["sets"][HELD_OUT]["auroc"]["value"] == pytest.approx(
        rows[0]["sets"][HELD_OUT]["auroc"]["value"], abs=0.02
    )


def test_thresholds_come_from_the_calibration_split(done: Done) -> None:
    manifest = done.manifest
    bundle = read_bundle(done.run.bundle)
    change = calibration_change(bundle.config)
    calibration = scores_of(done, manifest.select(split="calibration"), change)
    assert bundle.calibration().under_nuisance
    assert np.allclose(np.sort(calibration), bundle.calibration().scores.scores)
    plain = scores_of(done, manifest.select(split="calibration"))
    assert not np.isclose(plain, calibration).any()
    normal, ill = (
        scores_of(done, manifest.select(split="test", label=label))
        for label in ("normal", "opacity")
    )
    allowed = math.floor((len(calibration) + 1) * ALPHA)
    limit = np.sort(calibration)[-allowed]
    found = done.result["detectors"][0]["sets"][HELD_OUT]
    assert found["sensitivity"]["count"] == (ill > limit).sum()
    assert found["sensitivity"]["total"] == len(ill) == 8
    assert found["specificity"]["count"] == (normal <= limit).sum()
    assert found["false_alarms"]["count"] == (normal > limit).sum()
    assert found["false_alarms"]["total"] == len(normal)
    pairs = ill[:, None] - normal
    assert found["auroc"]["value"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_the_published_test_set_is_measured_and_nothing_learns_from_it(done: Done) -> None:
    scans = done.result["scans"]
    assert (scans[f"{PUBLISHED}, normal"], scans[f"{PUBLISHED}, abnormal"]) == (5, 4)
    assert scans["held-out normals"] == scans[f"{HELD_OUT}, normal"]
    splits = {row.split for row in done.manifest.rows if row.path.startswith("test/")}
    assert splits == {"test"}
    found = done.result["detectors"][0]["sets"][PUBLISHED]
    assert (found["sensitivity"]["total"], found["specificity"]["total"]) == (4, 5)


def test_features_are_one_sided_and_the_inverted_are_marked(done: Done) -> None:
    rows = {row["name"]: row["sets"][HELD_OUT] for row in done.result["features"]}
    assert {"nll", "nll two-sided", "evidence_peak"} <= set(rows)
    for row in rows.values():
        assert row["inverted"] == (row["auroc"]["value"] < 0.5)


def test_the_page_shows_the_notice_the_split_and_every_detector(done: Done) -> None:
    page = (done.run.path / "benchmark.md").read_text(encoding="utf-8")
    assert page.index("Research use only. Not a diagnosis.") < page.index("| ---")
    assert done.result["split_hash"] in page
    for table in ("detectors", "baselines", "features", "nuisances", "alterations"):
        for row in done.result[table]:
            assert f"| {row['name']} |" in page
    assert page in done.said
    widths = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert min(widths) >= 3


def test_neither_paths_nor_patients_are_written(done: Done) -> None:
    for name in ("benchmark.json", "benchmark.md"):
        text = (done.run.path / name).read_text(encoding="utf-8")
        assert str(done.data) not in text
        assert not any(row.patient in text or row.key in text for row in done.manifest.select())


def test_the_split_has_a_hash_of_its_own(done: Done) -> None:
    manifest = done.manifest
    found = split_hash(manifest)
    assert found == done.result["split_hash"] == done.result["provenance"]["split"]
    assert re.fullmatch(r"[0-9a-f]{64}", found)
    assert split_hash(replace(manifest, rows=manifest.rows[::-1])) == found
    labelled = tuple(row for row in manifest.rows if row.label)
    assert len(labelled) < len(manifest.rows)
    assert split_hash(replace(manifest, rows=labelled)) == found
    assert replace(manifest, rows=labelled).hash == found
    moved = replace(labelled[0], split="train" if labelled[0].split != "train" else "test")
    assert split_hash(replace(manifest, rows=(moved, *labelled[1:]))) != found


def test_another_split_than_the_known_one_is_a_warning(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(done.run.path, run.path)
    trained = run.bundle.joinpath("weights.safetensors").stat().st_mtime_ns
    monkeypatch.setitem(stage.SPLITS, "drawn", "0" * 64)
    result = benchmark(run, "drawn", done.resolved(), CPU, baseline_steps=1, alterations=())
    assert "cannot be compared with published ones" in caplog.text
    page = (run.path / "benchmark.md").read_text(encoding="utf-8")
    assert "cannot be compared with published ones" in page
    # what the run held was used: no scan was read anew, nothing was trained again
    assert run.bundle.joinpath("weights.safetensors").stat().st_mtime_ns == trained
    lines = (run.path / "run.jsonl").read_text(encoding="utf-8").splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert stages.count("prepare") == stages.count("train") == stages.count("calibrate") == 1
    assert result["detectors"] == done.result["detectors"]
    assert result["nuisances"] == result["alterations"] == result["localisation"] == []


def test_a_bundle_is_measured_on_scans_that_it_has_not_seen(done: Done, tmp_path: Path) -> None:
    config = benchmark_config("drawn", done.data, None, done.run.bundle, [])
    run = RunFolder(tmp_path / "unseen")
    found = benchmark(
        run,
        "drawn",
        config,
        CPU,
        bundle_folder=done.run.bundle,
        baseline_steps=1,
        alterations=ALTERATIONS[:1],
    )
    assert found["split_hash"] == done.result["split_hash"]  # the same settings deal the same split
    assert found["provenance"]["bundle"] == read_bundle(run.bundle).hash
    assert found["detectors"][0] == done.result["detectors"][0]
    assert not (run.path / "checkpoint.pt").exists()


def test_a_bundle_that_has_seen_the_held_out_scans_is_refused(done: Done, tmp_path: Path) -> None:
    config = benchmark_config("drawn", done.data, None, done.run.bundle, ["data.seed=1"])
    run = RunFolder(tmp_path / "seen")
    with pytest.raises(CalibrationError, match=r"held-out scans were used to train") as error:
        benchmark(run, "drawn", config, CPU, bundle_folder=done.run.bundle)
    assert "Benchmark it on scans that it has not seen" in str(error.value)
    assert not (run.path / "benchmark.json").exists()


def test_a_copy_of_a_training_scan_is_left_out_of_the_published_set(
    done: Done, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "archive"
    shutil.copytree(done.data, data)
    known = next(row for row in done.manifest.select(split="train", label="normal"))
    shutil.copy(data / known.path, data / "test" / "NORMAL" / "copy_1.png")
    manifest = Manifest(data, done.manifest.rows)
    config = load_config(done.config, [f"data.root={data}"])
    rows = stage._published(RunFolder(tmp_path), config, manifest)
    assert len(rows) == 9
    assert known.sha256 not in {row.sha256 for row in rows}
    assert "1 of 10 published scans are of patients of the other splits: left out" in caplog.text


def test_folders_of_a_published_test_set_are_named_by_their_words(tmp_path: Path) -> None:
    for folder in ("NORMAL", "Normal 2", "ABNORMAL", "good", "Virus", ".hidden"):
        (tmp_path / "test" / folder).mkdir(parents=True)
    data = replace(
        load_config(write_settings(tmp_path / "drawn.yaml")).data,
        root=tmp_path,
        labels={"healthy": ["train/Good/*"]},
        normal="healthy",
    )
    config = replace(load_config(tmp_path / "drawn.yaml"), data=data)
    assert published_labels(config) == {
        "healthy": ["NORMAL/*", "Normal 2/*", "good/*"],
        "abnormal": ["ABNORMAL/*"],
        "virus": ["Virus/*"],
    }
    shutil.rmtree(tmp_path / "test")
    assert published_labels(config) == {}


def test_a_name_chooses_its_configuration(tmp_path: Path) -> None:
    found = benchmark_config("zhanglab", tmp_path, None, None, ["alpha=0.1"])
    assert (found.data.root, found.alpha) == (tmp_path, 0.1)
    assert "pneumonia" in found.data.labels
    with pytest.raises(ConfigError, match=r"nowhere-64.yaml does not exist.*'zhanglab'"):
        benchmark_config("nowhere", tmp_path, None, None, [])


def test_a_bundle_brings_its_own_settings(done: Done) -> None:
    with pytest.raises(ConfigError, match="a bundle brings its own settings"):
        benchmark_config("drawn", done.data, done.config, done.run.bundle, [])
    with pytest.raises(ConfigError, match="only data, detector and alpha can be set"):
        benchmark_config("drawn", done.data, None, done.run.bundle, ["features.draws=4"])


def test_a_run_of_another_archive_is_not_overwritten(done: Done, tmp_path: Path) -> None:
    config = done.resolved("data.seed=3")
    before = done.run.manifest.read_bytes()
    with pytest.raises(ConfigError, match="other data settings"):
        benchmark(done.run, "drawn", config, CPU)
    assert done.run.manifest.read_bytes() == before
