"""Input of the report: scored scans, unscored scans, calibration scores and scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import NotCalibrated
from anomaly.types import JudgedScan

__all__ = ["ReportCase", "ReportData", "SkippedCase"]


@dataclass(frozen=True)
class ReportCase:
    """One scored image.

    Attributes
    ----------
    verdict : JudgedScan
        Its ``scan.evidence`` has the shape of `image` if both are given.
    image : ndarray (H, W) float32 in [0, 1], or None
        Source pixels as displayed; None if the image must not be shown.
    view : str
        Coarse, non-identifying view, such as ``"PA"``.
    note : str
        A sentence for the reader, such as why no image is shown.
    site : str
        Name of the site in the configuration.
    expected : ndarray (H, W) float32 in [0, 1], or None
        The healthy counterfactual: the image that the model expects. Shown only with `image`.
    study : str
        Pseudonym of the study; scans of one study are shown together. Empty if unknown.
    look_alike : ndarray (H, W) float32 in [0, 1], or None
        The most similar normal scan among those that the bundle may show, resampled to the pixels
        of this scan. Shown only with `image`.
    used_to_fit : bool
        The scan was used for training or calibration; the page excludes it from rates.
    grey : str
        Source of the grey levels of `image`, such as ``"window 40 / 400 of the file"``.
    """

    verdict: JudgedScan
    image: NDArray[np.float32] | None
    view: str = ""
    note: str = ""
    site: str = ""
    expected: NDArray[np.float32] | None = None
    study: str = ""
    look_alike: NDArray[np.float32] | None = None
    grey: str = ""
    used_to_fit: bool = False

    def check(self) -> None:
        """Raise an error if the case cannot be shown.

        Raises
        ------
        ValueError
            The score is not finite, the p-value is not in (0, 1], or the pictures differ in shape.
        """
        scan = self.verdict.scan
        if not np.isfinite(scan.score):
            raise ValueError(f"{scan.key}: score {scan.score} cannot be ranked; list it as skipped")
        if not 0.0 < self.verdict.p_value <= 1.0:
            raise ValueError(f"{scan.key}: a p-value lies in (0, 1]; got {self.verdict.p_value}")
        pictures = (self.image, scan.evidence, self.expected, self.look_alike)
        shapes = {picture.shape for picture in pictures if picture is not None}
        if len(shapes) > 1:
            raise ValueError(f"{scan.key}: its pictures and maps differ in shape: {shapes}")


@dataclass(frozen=True)
class SkippedCase:
    """One image that was not scored.

    Attributes
    ----------
    key : str
        Pseudonym of the scan.
    reason : str
        Short, stable word, such as ``"truncated"``.
    view, site, study : str
        As in `ReportCase`; empty if unknown.
    """

    key: str
    reason: str
    view: str = ""
    site: str = ""
    study: str = ""


@dataclass(frozen=True)
class ReportData:
    """Complete input of a page.

    Attributes
    ----------
    title : str
    cases : iterable of ReportCase
        In any order; the page sorts them by p-value, then by score and by the highest peak of the
        regions, highest first. It is iterated once and keeps no case, so with a generator only one
        image is in memory.
    skipped : sequence of SkippedCase
    calibration_scores : ndarray (n,) float64
        Sorted scores of held-out normal scans, n >= 1.
    alpha : float in (0, 1)
        Stated false-alarm rate.
    threshold : float
        Score at and above which a scan is flagged.
    evidence_threshold : float
        Minimum evidence of a region, set on normal scans.
    evidence_ceiling : float
        Top of the colour scale, the same for the whole run; above `evidence_threshold`.
    provenance : mapping of str to str
        Bundle hash, versions and so on, shown at the end of the page.
    holds_identifiers : bool
        The keys or notes identify patients; the page says which.
    feature_ranges : mapping of str to (float, float)
        5 % and 95 % quantile of a feature on normal scans, the first below the second. A feature
        without a range is shown as a number only.
    warnings : sequence of str
        Sentences on differences between this run and the calibration scans, for which the p-values
        may be invalid.
    """

    title: str
    cases: Iterable[ReportCase]
    skipped: Sequence[SkippedCase]
    calibration_scores: NDArray[np.float64]
    alpha: float
    threshold: float
    evidence_threshold: float
    evidence_ceiling: float
    provenance: Mapping[str, str]
    holds_identifiers: bool = False
    feature_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def check(self) -> None:
        """Raise an error if no page can be made; cases are checked separately.

        Raises
        ------
        NotCalibrated
            There are no calibration scores, or the threshold is not finite.
        ValueError
            A feature's range is empty.
        """
        if self.calibration_scores.size == 0 or not np.isfinite(self.threshold):
            raise NotCalibrated(
                "a report needs scores of held-out normal scans and a finite threshold; "
                f"got {self.calibration_scores.size} scores and threshold {self.threshold}"
            )
        for name, (low, high) in self.feature_ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(
                    f"{name}: a range is two finite numbers, low < high; got {low}, {high}"
                )
