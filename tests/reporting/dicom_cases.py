"""Judged images to write objects of, and what reads the objects again."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset

from anomaly.regions import find_regions
from anomaly.reporting.dicom.objects import KINDS, DicomCase, Kind, write_objects
from anomaly.types import JudgedScan, ScanScore

THRESHOLD, CEILING = 2.0, 6.0
SPACING = (0.2, 0.1)
FEW: tuple[Kind, ...] = ("report", "overlay")
PLANAR = {"CT", "MR"}


def expected_kinds(modality: str) -> tuple[Kind, ...]:
    if modality == "enhanced":
        return FEW
    return tuple(kind for kind in KINDS if kind != "parametric_map" or modality in PLANAR)


def spots(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Usual everywhere but in a block off the centre, in a corner pixel and on a diagonal."""
    evidence = np.full(shape, 1.0, dtype=np.float32)
    evidence[3:6, 30:34] = 4.0  # 12 pixels
    evidence[0, 0] = 7.5  # beyond the ceiling
    evidence[20, 5] = 2.0  # at the threshold itself
    evidence[21, 6] = 3.3  # touches it at a corner: one region of 2
    return evidence


def make_case(
    source: Path, evidence: NDArray[np.float32] | None = None, **others: Any
) -> DicomCase:
    header = dcmread(source, stop_before_pixels=True)
    shape = (header.Rows, header.Columns)
    evidence = spots(shape) if evidence is None else evidence
    verdict = JudgedScan(
        scan=ScanScore("key", 1.2345678901234567, {}, evidence),
        p_value=0.0123456789012345,
        alpha=0.05,
        threshold=1.1,
        flagged=True,
        regions=find_regions(evidence, THRESHOLD, SPACING),
    )
    image = np.linspace(0, 1, evidence.size, dtype=np.float32).reshape(shape)
    case = DicomCase(source, 0, verdict, image, THRESHOLD, CEILING, 199, "ab" * 32)
    return replace(case, **others)


def write(case: DicomCase, kind: Kind, folder: Path) -> Dataset:
    (path,) = write_objects(case, [kind], folder)
    return dcmread(path)


def errors(program: str, *paths: Path) -> list[str]:
    """Errors that David Clunie's programs find."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt-get install dicom3tools")
    done = subprocess.run([program, *map(str, paths)], capture_output=True, check=False)
    # They quote values in the character set of the file.
    said = (done.stdout + done.stderr).decode("iso8859-1").splitlines()
    return [line for line in said if "error" in line.lower()]


def items(dataset: Dataset) -> list[Dataset]:
    """Content items of a structured report, in order, at any depth."""
    below = list(dataset.get("ContentSequence", []))
    return [item for child in below for item in (child, *items(child))]


def numbers(dataset: Dataset) -> dict[str, float]:
    return {
        item.ConceptNameCodeSequence[0].CodeValue: item.MeasuredValueSequence[0].FloatingPointValue
        for item in items(dataset)
        if item.ValueType == "NUM"
    }
