"""Choosing without abnormal scans: the margin by hand, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from anomaly.detection.selection import choose, margin, standard_error
from anomaly.errors import CalibrationError


@pytest.mark.parametrize(
    ("nuisance", "perturbed", "expected"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 3], [2, 4], 0.75),  # of four pairs only 3 > 2 is lost
        ([1, 2, 2], [2], (1 + 0.5 + 0.5) / 3),  # a tie is half a win
        ([5], [5], 0.5),
        ([0, 0, 0], [0, 0], 0.5),
        ([-1, 0], [0, 0, 2], (1 + 1 + 1 + 0.5 + 0.5 + 1) / 6),
    ],
)
def test_margin_by_hand(nuisance: list[float], perturbed: list[float], expected: float) -> None:
    assert margin(np.array(nuisance, float), np.array(perturbed, float)) == pytest.approx(expected)


def scores(count: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=count).round(1)  # with ties


def test_margin_is_the_area_under_the_curve() -> None:
    nuisance, perturbed = scores(40, 0), scores(70, 1) + 0.5
    labels = np.repeat([0, 1], [40, 70])
    expected = roc_auc_score(labels, np.concatenate([nuisance, perturbed]))
    assert margin(nuisance, perturbed) == pytest.approx(expected, rel=1e-12)


def test_equal_distributions_have_no_margin() -> None:
    same = scores(50, 0)
    assert margin(same, same) == 0.5
    # Of 1000 and 1000 the deviation of the estimate is sqrt(1 / 6000) = 0.013; four of those.
    assert margin(scores(1000, 1), scores(1000, 2)) == pytest.approx(0.5, abs=0.052)


def test_only_the_order_of_scores_matters() -> None:
    nuisance, perturbed = scores(30, 0), scores(20, 1)
    there = margin(nuisance, perturbed)
    assert margin(np.exp(nuisance), np.exp(perturbed)) == there
    assert margin(nuisance[::-1], np.roll(perturbed, 3)) == there
    assert margin(perturbed, nuisance) == pytest.approx(1 - there)


@pytest.mark.parametrize(
    ("nuisance", "perturbed", "said"),
    [
        ([], [1.0], "0 nuisance scores"),
        ([1.0], [], "0 perturbed scores"),
        ([1.0, np.nan], [1.0], "2 nuisance scores, 1 not finite"),
        ([1.0], [np.inf, -np.inf, 0.0], "3 perturbed scores, 2 not finite"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(
    nuisance: list[float], perturbed: list[float], said: str
) -> None:
    with pytest.raises(CalibrationError, match=said):
        margin(np.array(nuisance), np.array(perturbed))


def test_the_first_within_one_standard_error_of_the_widest_is_chosen() -> None:
    margins = {"a": 0.6, "b": 0.85, "c": 0.9, "d": 0.88}
    assert choose(margins, 0.0) == "c"
    assert choose(margins, 0.03) == "c"
    assert choose(margins, 0.051) == "b"
    assert choose(margins, 0.31) == "a"
    assert choose({"z": 0.5, "a": 0.5}, 0.0) == "z"


def test_the_standard_error_is_that_of_repeated_experiments() -> None:
    # Exponential scores, for which Hanley and McNeil's formula is exact: perturbed with mean 3
    # against nuisance with mean 1 have AUROC 3 / 4.
    rng = np.random.default_rng(0)
    areas = [margin(rng.exponential(1, 60), rng.exponential(3, 40)) for _ in range(2000)]
    assert np.mean(areas) == pytest.approx(0.75, abs=0.005)
    # The deviation of 2000 draws is known to 1.6 %; four of those.
    assert standard_error(0.75, 60, 40) == pytest.approx(np.std(areas), rel=0.065)
    assert standard_error(1.0, 10, 10) == 0
