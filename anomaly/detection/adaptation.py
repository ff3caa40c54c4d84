r"""Adaptation of a detector and its heatmap to the normal scans of another site.

With :math:`m` normals of the site, whose features have mean :math:`\hat\mu` and covariance
:math:`\hat\Sigma` about :math:`\mu'`, and the statistics :math:`\mu, \Sigma` that the detector was
fitted with,

.. math::
    \mu' = \mu + \frac{m}{m + \kappa_\mu} (\hat\mu - \mu), \qquad
    \Sigma' = \frac{\kappa_\Sigma \Sigma + m \hat\Sigma}{\kappa_\Sigma + m} :

the mean is that of the site almost at once, the covariance only with many scans, because it has far
more numbers. The statistics of the heatmap follow in the same way, place by place. The laws of the
parts of a score (`anomaly.detection.kinds.combined`) move by their mean over the site's scans, each
scored by an adaptation to the others.

An adapted detector must be calibrated on normals of the site that it was *not* adapted on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from anomaly.detection.detector import FeatureDetector
from anomaly.detection.extractor import Observation
from anomaly.detection.features import FeatureSettings
from anomaly.detection.heatmap import HeatmapModel
from anomaly.detection.kinds.base import FOLDS, AdaptableDensity, Array, fold_of
from anomaly.detection.scoring import new_table
from anomaly.errors import CalibrationError

__all__ = ["FEWEST_SITE_SCANS", "adapt"]

FEWEST_SITE_SCANS = 25
"""Smallest number of scans to adapt to."""

MEAN_WEIGHT = 10.0
"""kappa of the mean, in scans."""


def adapt(
    detector: FeatureDetector,
    heatmap: HeatmapModel,
    observed: Observation,
    features: FeatureSettings,
    scans: NDArray[np.intp] | None = None,
) -> tuple[FeatureDetector, HeatmapModel]:
    """Return detector and heatmap adapted to an observation of normal scans of a site.

    Parameters
    ----------
    detector : FeatureDetector
    heatmap : HeatmapModel
    observed : Observation
        Under the same nuisance as the normals that the detector was fitted on.
    features : FeatureSettings
    scans : ndarray (N,) int, optional
        Images with the same number show the same scan, which counts once; by default every image
        is a scan of its own.

    Raises
    ------
    CalibrationError
        If there are fewer than `FEWEST_SITE_SCANS` scans, or the detector's kind cannot be adapted.
    """
    images = len(observed.residuals)
    scans = np.arange(images) if scans is None else scans
    count = len(np.unique(scans))
    if count < FEWEST_SITE_SCANS:
        raise CalibrationError(
            f"{count} normal scans to adapt to: expected at least {FEWEST_SITE_SCANS}"
        )
    density = detector.density
    if not isinstance(density, AdaptableDensity):
        raise CalibrationError(
            f"a detector of kind {detector.kind} cannot be adapted: expected kind combined; "
            "calibrate without adaptation"
        )

    def values(model: HeatmapModel, seen: Observation) -> Array:
        return new_table(seen, features, model).use(detector.names).values

    fold = fold_of(scans)
    rest = np.zeros((0, images))
    for number in range(FOLDS):
        out = fold == number
        others, own = observed.select(~out), observed.select(out)
        model = _adapted_heatmap(heatmap, others)
        known = len(np.unique(scans[~out]))
        mean, partly = _moved(detector, density, values(model, others), known)
        own_rest = partly.rest(replace(detector, mean=mean).judged(values(model, own)))
        rest = np.zeros((len(own_rest), images)) if not rest.size else rest
        rest[:, out] = own_rest
    model = _adapted_heatmap(heatmap, observed)
    mean, moved = _moved(detector, density, values(model, observed), count)
    if not np.isfinite(mean).all():
        raise CalibrationError(
            "a feature of the site's normal scans is not finite: is one of them empty? Leave it out"
        )
    return replace(detector, mean=mean, density=moved.recentred(rest.mean(1))), model


def _adapted_heatmap(heatmap: HeatmapModel, observed: Observation) -> HeatmapModel:
    return heatmap.adapted(observed.residuals, observed.placement, observed.blank)


def _moved(
    detector: FeatureDetector, density: AdaptableDensity, own: Array, scans: int
) -> tuple[Array, AdaptableDensity]:
    """Move mean and covariance towards those of the features (M, F) of a number of scans."""
    share = scans / (scans + MEAN_WEIGHT)
    mean = detector.mean + share * (own.mean(0) - detector.mean)
    return mean, density.adapted((own - mean) / detector.scale, scans)
