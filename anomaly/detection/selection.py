r"""Selection of a detector without any abnormal scan.

Normal scans are altered in two ways: by mild acquisition nuisance, which should not matter, and by
synthetic perturbations, which should (`anomaly.data.synthetic.alterations`). With :math:`s` the
score of a detector that was fitted on neither,

.. math:: \mathrm{margin} = P\bigl(s(\text{perturbed}) > s(\text{under nuisance})\bigr),

the AUROC between the two sets. A detector that mistakes a softer image for an abnormal one gains
nothing from detecting the perturbations, because nuisance scans score as high.

The selection follows the one-standard-error rule (Breiman et al. 1984): of all candidates whose
margin is within one standard error of the widest, the first in the configuration is chosen. A
margin on a few hundred synthetic alterations cannot distinguish closer candidates; the order in the
configuration then gives the preference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from anomaly.errors import CalibrationError

__all__ = ["choose", "margin", "standard_error"]


def margin(nuisance: NDArray[np.float64], perturbed: NDArray[np.float64]) -> float:
    """Return the AUROC of scores (M,) of perturbed normals against scores (N,) under nuisance.

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


def standard_error(area: float, nuisance: int, perturbed: int) -> float:
    """Return the standard error of an AUROC (Hanley and McNeil 1982, eq. 2)."""
    above, below = area / (2 - area), 2 * area**2 / (1 + area)
    spread = (
        area * (1 - area) + (perturbed - 1) * (above - area**2) + (nuisance - 1) * (below - area**2)
    )
    return math.sqrt(spread / (nuisance * perturbed))


def choose(margins: Mapping[str, float], error: float) -> str:
    """Return the name of the candidate that the one-standard-error rule chooses.

    Parameters
    ----------
    margins : mapping of str to float
        By candidate, in order of preference.
    error : float
        Standard error of the widest margin.
    """
    widest = max(margins.values())
    return next(name for name, value in margins.items() if value >= widest - error)
