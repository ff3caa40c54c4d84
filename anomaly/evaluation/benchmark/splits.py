"""The scans of a benchmark: a split with its hash, and an archive's own test set.

The split is named by its own hash, over content, frame, split and label of every labelled scan: two
tables may be compared where their split hashes are equal.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomaly.config import Config
from anomaly.data.table.manifest import Manifest, ManifestRow, scan_marks

__all__ = [
    "PUBLISHED",
    "published_config",
    "published_labels",
    "split_hash",
    "split_rows",
    "unfamiliar",
]

log = logging.getLogger(__name__)

PUBLISHED = "test"
"""Folder of an archive's own test set."""


def split_hash(manifest: Manifest) -> str:
    """SHA-256 in hex over content, frame, split and label of the usable *labelled* scans.

    Equal to `Manifest.hash` where every scan has a label; scans without one, such as a published
    test set that the labels do not name, take no part in the split and do not change it.
    """
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.label)).hash


def split_rows(manifest: Manifest, split: str, label: str | None = None) -> tuple[ManifestRow, ...]:
    """Labelled rows of a split."""
    return tuple(row for row in manifest.select(split=split, label=label) if row.label)


def published_labels(config: Config) -> dict[str, list[str]]:
    """Label -> patterns for the folders within ``test`` of an archive, by their names.

    A folder is normal if its name is ``normal``, or holds the name of the folder of the
    configuration's normal scans as a word of its own (``ABNORMAL`` does not hold ``NORMAL``),
    whatever the case. Every other folder is a class of its own name. Empty without such folders.
    """
    root = config.data.root / PUBLISHED
    folders = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    patterns = (Path(pattern).parts[:-1] for pattern in config.data.labels[config.data.normal])
    names = {"normal"} | {parts[-1].lower() for parts in patterns if parts}
    labels: dict[str, list[str]] = {config.data.normal: []}
    for folder in (f for f in folders if not f.startswith(".")):
        words = any(re.search(rf"(?<![a-z]){re.escape(n)}(?![a-z])", folder.lower()) for n in names)
        labels.setdefault(config.data.normal if words else folder.lower(), []).append(f"{folder}/*")
    return labels if folders else {}


def published_config(config: Config) -> Config:
    """Return the settings by which the archive's own test set is read."""
    root = config.data.root / PUBLISHED
    data = replace(config.data, root=root, labels=published_labels(config), masks=None)
    return replace(config, data=data)


def unfamiliar(rows: Sequence[ManifestRow], manifest: Manifest) -> list[ManifestRow]:
    """Leave out scans and patients that training, fitting or calibration know.

    A copy of a training scan is a duplicate to the manifest, which then leaves its patient there;
    its picture is known in any container.
    """
    known = [row for row in manifest.select() if row.split != "test"]
    patients = {row.patient for row in known}
    marks = {mark for row in known for mark in scan_marks(row)}
    kept = [
        row for row in rows if row.patient not in patients and scan_marks(row).isdisjoint(marks)
    ]
    if len(kept) < len(rows):
        log.warning(
            "%d of %d published scans are of patients of the other splits: left out",
            len(rows) - len(kept),
            len(rows),
        )
    return kept
