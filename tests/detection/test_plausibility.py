"""Negatives: told by their correlation with the mean normal scan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly.detection.plausibility import NEGATIVE, are_negatives


def test_the_limit_is_a_correlation() -> None:
    rng = np.random.default_rng(0)
    reference, other = rng.normal(size=(2, 1, 8, 8))
    reference, other = reference - reference.mean(), other - other.mean()
    other -= reference * (other * reference).sum() / (reference**2).sum()  # orthogonal
    reference, other = (a / np.linalg.norm(a) for a in (reference, other))

    def of_correlation(r: float) -> NDArray[Any]:
        return r * reference + np.sqrt(1 - r**2) * other

    wanted = (1, 0.3, 0, NEGATIVE + 1e-6, NEGATIVE - 1e-6, -1)
    images = np.stack([of_correlation(r) for r in wanted])
    expected = [False, False, False, False, True, True]
    assert are_negatives(images, reference).tolist() == expected
    # neither exposure nor contrast matters
    assert are_negatives(images * 7 - 3, reference + 5).tolist() == expected


@pytest.mark.parametrize("constant", ["image", "reference"])
def test_a_constant_is_no_negative(constant: str) -> None:
    image: NDArray[Any] = np.zeros((1, 1, 4, 4))
    reference: NDArray[Any] = np.arange(16.0).reshape(1, 4, 4)
    if constant == "reference":
        image, reference = reference[None], image[0]
    assert are_negatives(image, reference).tolist() == [False]
