"""The scans of a benchmark: a split with its hash, and an archive's published test set.

A split is identified by a hash over content, frame, split and label of every labelled scan: two
tables can be compared if their split hashes are equal.
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
"""Folder of an archive's published test set."""


def split_hash(manifest: Manifest) -> str:
    """SHA-256 in hex over content, frame, split and label of the usable *labelled* scans.

    Equal to `Manifest.hash` if every scan has a label. Scans without a label, such as a published
    test set that no label pattern matches, are not part of the split and do not change its hash.
    """
    return replace(manifest, rows=tuple(row for row in manifest.rows if row.label)).hash


def split_rows(manifest: Manifest, split: str, label: str | None = None) -> tuple[ManifestRow, ...]:
    """Labelled rows of a split."""
    return tuple(row for row in manifest.select(split=split, label=label) if row.label)


def published_labels(config: Config) -> dict[str, list[str]]:
    """Label -> patterns for the folders within ``test`` of an archive, by their names.

    A folder is normal if its name contains ``normal``, or the name of the folder of the
    configuration's normal scans, as a separate word (``ABNORMAL`` does not contain ``NORMAL``), in
    any case. Every other folder is a class with the folder's name. Empty without such folders.
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
    """Return the configuration for reading the archive's published test set."""
    root = config.data.root / PUBLISHED
    data = replace(config.data, root=root, labels=published_labels(config), masks=None)
    return replace(config, data=data)


def unfamiliar(rows: Sequence[ManifestRow], manifest: Manifest) -> list[ManifestRow]:
    """Rows without the scans and patients used in training, fitting or calibration.

    The manifest marks a copy of a training scan as a duplicate, and so leaves its patient in the
    split; the hash of its picture still recognises the scan in any file format.
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
