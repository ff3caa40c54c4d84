"""Features against their ranges: distance, share and side, computed once for page and PDF."""

from __future__ import annotations

import pytest

from anomaly.reporting.html.features import feature_columns, feature_values


def test_the_farthest_outside_its_range_comes_first() -> None:
    ranges = {"in": (1.0, 2.0), "low": (1.0, 2.0), "high": (0.0, 10.0)}
    columns = feature_columns(("bare", "in", "low", "high"), ranges)
    features = {"bare": 4.0, "in": 1.5, "low": -1.0, "high": 25.0}
    values = feature_values(features, columns)
    # widths outside: low 2, high 1.5, in 0, bare unknown
    assert [columns[value.feature].name for value in values] == ["low", "high", "in", "bare"]
    assert [value.side for value in values] == [-1, 1, 0, 0]
    assert [value.share for value in values] == [0.0, pytest.approx(1.0), 0.5, None]


def test_equally_distant_features_follow_the_order_of_the_run() -> None:
    columns = feature_columns("abc", dict.fromkeys("abc", (0.0, 1.0)))
    values = feature_values({"c": 0.1, "a": 0.9, "b": 0.5}, columns)
    assert [value.feature for value in values] == [0, 1, 2]


def test_a_value_that_is_shown_as_the_limit_lies_within() -> None:
    (column,) = feature_columns(["a"], {"a": (0.0, 1.8)})
    (value,) = feature_values({"a": 1.80001}, [column])
    assert (value.value, value.side) == (1.8, 0)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (2.0, 4.0, "2.00 to 4.00"),
        (-0.5, 0.0, "-0.500 to 0.00"),
        (99.96, 999.4, "100 to 999"),
        (1234.5, 99_999.0, "1.23e+3 to 1.00e+5"),
        (1.5e-7, 1.23456e-5, "1.50e-7 to 0.0000123"),
    ],
)
def test_a_range_is_written_with_three_digits(low: float, high: float, text: str) -> None:
    """As ``Number.toPrecision(3)`` writes them."""
    (column,) = feature_columns(["a"], {"a": (low, high)})
    assert column.range_text == text
