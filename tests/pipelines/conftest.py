"""The finished road is made once for all tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from anomaly.data.synthetic.phantom_dicom import write_phantom_studies
from anomaly.pipelines.run import RunFolder
from tests.pipelines.road import CONFIG, Road, copy, done


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Road:
    """Return the road, which the first worker that needs it makes for all."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "road"
    scans, config, finished = root / "archive", root / "config.yaml", root / "finished"
    prepared, trained, run = (RunFolder(root / name) for name in ("prepared", "trained", "run"))
    with FileLock(f"{root}.lock"):
        if not finished.exists():
            make_road(scans, config, prepared, trained, run)
            finished.touch()
    return Road(scans, config, prepared, trained, run)


def make_road(
    scans: Path, config: Path, prepared: RunFolder, trained: RunFolder, run: RunFolder
) -> None:
    write_phantom_studies(scans, normals=48, abnormals=8, seed=0, size=(96, 84))
    (scans / "notes.txt").write_text("not a scan")
    config.write_text(yaml.safe_dump(CONFIG))
    done("prepare", run.path, "--config", config, "--data", scans)
    copy(run, prepared.path)
    done("train", run.path, "--device", "cpu")
    copy(run, trained.path)
    for stage in ("calibrate", "score", "evaluate", "report"):
        done(stage, run.path)


@pytest.fixture
def run(road: Road, tmp_path: Path) -> RunFolder:
    """Return a copy of the finished run that a test may change."""
    return copy(road.run, tmp_path / "run")
