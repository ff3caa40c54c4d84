"""A small phantom archive that has gone the whole road, for the tests that start from there."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anomaly.data.table.manifest import Manifest
from anomaly.pipelines.__main__ import main
from anomaly.pipelines.run import RunFolder
from anomaly.store.results import ScoreRow

STEPS = 40
SILENCED = ("pydicom", "nibabel", "monai", "pynetdicom", "highdicom")
CONFIG = {
    "name": "Small phantoms",
    "data": {
        "labels": {"normal": ["normal/*"], "abnormal": ["abnormal/*"]},
        "masks": "masks",
        "splits": {"train": 0.3, "validation": 0.25, "calibration": 0.3, "test": 0.15},
        "allow_synthetic": True,
        "workers": 0,
    },
    "preprocessing": {"size": 16},
    "augmentation": {"rotate": 3, "zoom": 0.04, "shift": 0.03, "gamma": 0.1},
    "levels": {"steps": 20},
    "network": {"widths": [8, 8], "features": 8},
    "features": {"noise_to_signal": [0.25, 1.0], "draws": 1},
    "training": {
        "steps": STEPS,
        "batch_size": 8,
        "learning_rate": 0.008,
        "warmup_steps": 2,
        "validate_every": STEPS,
        "checkpoint_every": 10,
    },
    "detector": {
        "candidates": [
            {"use": ["energy"]},
            {"use": ["evidence_peak"]},
            {
                "kind": "combined",
                "use": ["energy", "texture"],
                "guard": ["octave", "agreement"],
                "given": ["scale_rows", "scale_columns", "shift_rows", "shift_columns"],
            },
        ],
        "fit_on": ["train", "validation"],
        "nuisance_copies": 3,
    },
    "alpha": 0.1,
    "look_alikes": 5,
}


class Said(NamedTuple):
    code: int
    out: str
    err: str


def anomaly(*arguments: object) -> Said:
    """Run a command in this process as a shell would, and leave no trace in it."""
    loggers = [logging.getLogger(name) for name in SILENCED]
    before = sys.argv, [logger.level for logger in loggers]
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["anomaly", *map(str, arguments)]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
    finally:
        sys.argv = before[0]
        for logger, level in zip(loggers, before[1], strict=True):
            logger.setLevel(level)
    assert isinstance(code, int)
    return Said(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Said:
    said = anomaly(*arguments)
    assert said.code == 0, said.err
    return said


def refused(*arguments: object) -> str:
    """Run a command that must fail as one sentence for a person, and return the sentence."""
    said = anomaly(*arguments)
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.code == 1, said
    assert len(errors) == 1, said.err
    assert said.err.rstrip().endswith(errors[0])  # the last line, and a single one
    assert "Traceback" not in said.err
    return errors[0]


@dataclass(frozen=True)
class Road:
    """An archive, a configuration and the run at three of its stages; copy before changing it."""

    scans: Path
    config: Path
    prepared: RunFolder
    trained: RunFolder
    run: RunFolder

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.run.manifest, self.scans)

    @property
    def rows(self) -> list[ScoreRow]:
        return self.run.results.read()[0]


def damage_map(path: Path, key: str) -> None:
    """Turn bytes over in the middle of one member; its neighbours stay whole."""
    with np.load(path) as arrays:
        assert key in arrays
        member = next(info for info in arrays.zip.infolist() if info.filename == f"{key}.npy")
    content = bytearray(path.read_bytes())
    # local header: 30 bytes, the name and extra fields; then the deflated map
    begin = member.header_offset + 30 + len(member.filename) + 40
    for place in range(begin, begin + 16):
        content[place] ^= 0xFF
    path.write_bytes(content)


def copy(run: RunFolder, path: Path) -> RunFolder:
    shutil.copytree(run.path, path)
    return RunFolder(path)
