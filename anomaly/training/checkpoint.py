"""Files of a training run: ``checkpoint.pt`` to resume from, and ``metrics.jsonl``.

Checkpoints are written atomically, records of metrics have checksums, and reading executes no code.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anomaly.errors import CheckpointError
from anomaly.files import checked_line, read_checked, whole

__all__ = [
    "Metrics",
    "append_metrics",
    "keep_metrics_until",
    "read_checkpoint",
    "read_metrics",
    "write_checkpoint",
]

Metrics = dict[str, Any]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint. It contains tensors and plain values only; no code is executed.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or not a training checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not check the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {path}: train first") from error
    except Exception as error:  # torch raises many types for a damaged zip file
        raise CheckpointError(f"checkpoint {path} is damaged ({error}): train again") from error
    expected = {"conditions", "step", "network", "averaged", "optimizer"}
    if not isinstance(saved, dict) or not expected <= saved.keys():
        raise CheckpointError(
            f"{path} is not a training checkpoint of this version: expected {sorted(expected)}"
        )
    return saved


def write_checkpoint(path: Path, saved: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises
    ------
    CheckpointError
        If it cannot be written (disk full); the previous checkpoint is unchanged.
    """
    try:
        with whole(path) as file:
            torch.save(dict(saved), file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns ENOSPC into RuntimeError
        raise CheckpointError(
            f"the checkpoint at step {saved['step']} could not be written to {path.parent} "
            f"({error}); the previous one is untouched. Free some space and run again to resume"
        ) from error


def read_metrics(path: Path) -> list[Metrics]:
    """Read ``metrics.jsonl``: one record per validation, by step.

    Raises
    ------
    CheckpointError
        If a record does not match its checksum.
    """
    if not path.exists():
        return []
    # Text after the last line end is an incomplete record of a run that was killed.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    try:
        return [read_checked(line) for line in lines]
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): remove it, and training goes on without what it tells"
        ) from error


def append_metrics(path: Path, record: Metrics) -> None:
    """Add a record to ``metrics.jsonl``."""
    try:
        with path.open("a") as file:
            file.write(checked_line(record))
    except OSError as error:
        raise _unwritten(path, error) from error


def keep_metrics_until(path: Path, step: int) -> None:
    """Remove records after step `step`; the resumed run writes them again."""
    if path.exists():
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        try:
            with whole(path) as file:
                file.write("".join(map(checked_line, kept)).encode())
        except OSError as error:
            raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written ({error}); the last checkpoint is untouched. Free some space "
        "and run again to resume"
    )
