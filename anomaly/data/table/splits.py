"""Splits by patient of the normals: training, validation, calibration and test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from anomaly.data.table.manifest import Manifest, ManifestRow, prove_disjoint
from anomaly.errors import ConfigError, ManifestError, Reason

__all__ = ["SPLITS", "assign_splits"]

SPLITS = ("train", "validation", "calibration", "test")


def assign_splits(
    manifest: Manifest,
    fractions: Mapping[str, float],
    *,
    normal_label: str,
    seed: int,
    allow_synthetic: bool = False,
) -> Manifest:
    """Assign the patients with only normal scans to the splits; all other scans go to test.

    Patients who share a picture (`anomaly.data.table.manifest.pixel_hash`) count as one: it is the
    same image under two names. All scans of a patient with any scan of another label go to test,
    even if that scan itself cannot be used. The patients are sorted, shuffled by
    ``numpy.random.default_rng(seed)`` and cut at the cumulative fractions, so each split is within
    one patient of its fraction.

    Parameters
    ----------
    manifest : Manifest
        Existing splits are replaced.
    fractions : mapping of str to float
        Share of *patients* for each of `SPLITS`; 0 for a split not listed. They sum to 1.
    normal_label : str
    seed : int
    allow_synthetic : bool
        Accept scans marked SyntheticData=YES as normals (phantoms). Otherwise they become skipped
        rows with reason ``"synthetic"``: a model of normal anatomy must not be trained or
        calibrated on generated images.

    Returns
    -------
    Manifest

    Raises
    ------
    ConfigError
        A split is unknown, a fraction is negative, or they do not sum to 1 within 1e-9.
    ManifestError
        No usable scan has `normal_label`, or the splits are not disjoint.
    """
    _check_fractions(fractions)
    rows = [replace(row, split="") for row in manifest.rows]
    person = _persons(rows)
    if not allow_synthetic:
        rows = [_skip_synthetic(row, normal_label) for row in rows]
    normal = {
        person[row.patient] for row in rows if row.status == "ok" and row.label == normal_label
    }
    if not normal:
        labels = sorted({row.label for row in rows if row.status == "ok"})
        raise ManifestError(
            f"No usable scan has label {normal_label!r}; the labels of usable scans are {labels}."
        )
    # An unlabelled row that cannot be used does not count; a report or text file, for example.
    other = {
        person[row.patient]
        for row in rows
        if row.label != normal_label and (row.status == "ok" or row.label)
    }
    dealt = _deal(sorted(normal - other), fractions, seed)
    result = replace(
        manifest,
        rows=tuple(
            replace(row, split=dealt.get(person[row.patient], "test"))
            if row.status == "ok"
            else row
            for row in rows
        ),
    )
    prove_disjoint(result)
    return result


def _persons(rows: Sequence[ManifestRow]) -> dict[str, str]:
    """Map each patient to a representative: patients who share a picture have the same one."""
    parent = {row.patient: row.patient for row in rows}

    def first(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    holder: dict[str, str] = {}
    for row in rows:
        if row.status == "ok" and row.pixels:
            one, other = first(row.patient), first(holder.setdefault(row.pixels, row.patient))
            parent[max(one, other)] = min(one, other)
    return {patient: first(patient) for patient in parent}


def _check_fractions(fractions: Mapping[str, float]) -> None:
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise ConfigError(f"Unknown splits {unknown}; expected some of {list(SPLITS)}.")
    total = math.fsum(fractions.values())
    if any(not value >= 0 for value in fractions.values()) or not abs(total - 1) <= 1e-9:
        raise ConfigError(
            f"The split fractions {dict(fractions)} sum to {total:g}; expected numbers of 0 or "
            "more that sum to 1."
        )


def _skip_synthetic(row: ManifestRow, normal_label: str) -> ManifestRow:
    if row.status != "ok" or not row.synthetic or row.label != normal_label:
        return row
    return row.skipped(
        Reason.SYNTHETIC,
        f"{row.path} is marked SyntheticData=YES, so it cannot stand for normal anatomy; "
        "allow synthetic scans for phantoms only.",
    )


def _deal(patients: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Split of each patient; the shuffled list is cut at the rounded cumulative fractions."""
    order = np.random.default_rng(seed).permutation(len(patients))
    shares = np.array([fractions.get(split, 0.0) for split in SPLITS])
    cuts = np.rint(np.cumsum(shares) * len(patients)).astype(int)
    names = np.searchsorted(cuts, np.arange(len(patients)), side="right").clip(max=len(SPLITS) - 1)
    return {patients[place]: SPLITS[name] for place, name in zip(order, names, strict=True)}
