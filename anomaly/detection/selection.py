r"""Choosing a detector without any abnormal scan.

Normal scans are changed in two ways: by mild acquisition nuisance, which should not matter, and by
synthetic perturbations, which should (`anomaly.data.alterations`). With :math:`s` the score
of a detector that has seen neither,

.. math:: \mathrm{margin} = P\bigl(s(\text{perturbed}) > s(\text{under nuisance})\bigr),

the AUROC between the two sets. A detector that mistakes a softer image for an ill one gains
nothing from seeing the perturbations, as the nuisance scans score as high. The largest margin wins;
of equal ones, the one named first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anomaly.errors import CalibrationError

__all__ = ["margin", "widest"]


def margin(nuisance: NDArray[np.float64], perturbed: NDArray[np.float64]) -> float:
    """AUROC of scores (M,) of perturbed normals against scores (N,) of normals under nuisance.

    Raises
    ------
    CalibrationError
        If one set is empty or a score is not finite.
    """
    for name, scores in (("nuisance", nuisance), ("perturbed", perturbed)):
        if not len(scores) or not np.isfinite(scores).all():
            raise CalibrationError(
                f"{len(scores)} {name} scores, {int((~np.isfinite(scores)).sum())} not finite: "
                "expected at least one, all finite"
            )
    ranks = stats.mannwhitneyu(perturbed, nuisance).statistic
    return float(ranks / (len(nuisance) * len(perturbed)))


def widest(margins: Mapping[str, float]) -> str:
    """Name with the largest margin; of equal ones the first."""
    return max(margins, key=lambda name: margins[name])
