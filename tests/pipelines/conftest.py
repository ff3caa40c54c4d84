"""The finished road is made once for all tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.pipelines.run import RunFolder
from tests.pipelines.road import CONFIG, Road, copy, done


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    root = tmp_path_factory.mktemp("road")
    scans, config = root / "archive", root / "config.yaml"
    write_phantom_studies(scans, normals=48, abnormals=8, seed=0, size=(96, 84))
    (scans / "notes.txt").write_text("not a scan")
    config.write_text(yaml.safe_dump(CONFIG))
    run = RunFolder(root / "run")
    done("prepare", run.path, "--config", config, "--data", scans)
    prepared = copy(run, root / "prepared")
    done("train", run.path, "--device", "cpu")
    trained = copy(run, root / "trained")
    for stage in ("calibrate", "score", "evaluate", "report"):
        done(stage, run.path)
    return Road(scans, config, prepared, trained, run)


@pytest.fixture
def run(road: Road, tmp_path: Path) -> RunFolder:
    """Return a copy of the finished run that a test may change."""
    return copy(road.run, tmp_path / "run")
