r"""Features of a scan relative to their range on normal scans.

With the range :math:`[l, h]` of a feature, a value :math:`v` lies

.. math:: \max(0, l - v, v - h) / (h - l)

range widths outside the range; tables are sorted by this distance. The position of the value in a
drawing is :math:`(1 + (v - l) / (h - l)) / 3`, clipped to [0, 1]: the range is the middle third.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from anomaly.reporting.html.rows import FeatureColumn, FeatureValue

__all__ = ["feature_columns", "feature_values"]

_UNITS = {"nll": "bits/dim"}


def feature_columns(
    names: Iterable[str], ranges: Mapping[str, tuple[float, float]]
) -> tuple[FeatureColumn, ...]:
    """Return name, unit and range of each feature of the run.

    Parameters
    ----------
    names : iterable of str
    ranges : mapping of str to (float, float)
        Ranges on normal scans, for the features that have one.
    """
    return tuple(
        FeatureColumn(name, _UNITS.get(name, ""), ranges.get(name), _range_text(ranges.get(name)))
        for name in names
    )


def feature_values(
    features: Mapping[str, float], columns: Sequence[FeatureColumn]
) -> tuple[FeatureValue, ...]:
    """Return the features of a scan, sorted by decreasing distance outside their ranges.

    Parameters
    ----------
    features : mapping of str to float
        Values that are not finite are omitted.
    columns : sequence of FeatureColumn
        Features of the run; features at equal distance keep this order.
    """
    numbers = [
        (place, column.range, _four_digits(features[column.name]))
        for place, column in enumerate(columns)
        if math.isfinite(features.get(column.name, math.nan))
    ]
    numbers.sort(key=lambda number: -_distance(number[2], number[1]))
    return tuple(
        FeatureValue(place, value, _share(value, span), _side(value, span))
        for place, span, value in numbers
    )


def _four_digits(value: float) -> float:
    """Round a value as displayed, so that its mark and its number agree."""
    return float(f"{value:.4g}")


def _distance(value: float, span: tuple[float, float] | None) -> float:
    """Distance of a value outside its range, in range widths; -1 without a range."""
    if span is None:
        return -1.0
    low, high = span
    return max(0.0, low - value, value - high) / (high - low)


def _share(value: float, span: tuple[float, float] | None) -> float | None:
    if span is None:
        return None
    low, high = span
    share = (1 + (value - low) / (high - low)) / 3
    return round(min(1.0, max(0.0, share)), 6)  # finer than any drawing, but short in the page


def _side(value: float, span: tuple[float, float] | None) -> int:
    if span is None:
        return 0
    low, high = span
    return (value > high) - (value < low)


def _range_text(span: tuple[float, float] | None) -> str:
    return f"{_three_digits(span[0])} to {_three_digits(span[1])}" if span else ""


def _three_digits(value: float) -> str:
    """Three significant digits, with trailing zeros."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    power = int(exponent)
    return f"{value:.{2 - power}f}" if -7 < power < 3 else f"{mantissa}e{power:+d}"
