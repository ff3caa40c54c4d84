"""Text for the numbers of a report."""

from __future__ import annotations

__all__ = [
    "count_text",
    "flagged_against_expected",
    "number_text",
    "odds_in_words",
    "odds_sentence",
    "p_value_text",
]


def odds_in_words(p_value: float, calibration_size: int) -> str:
    """Write a p-value as a share of normal scans.

    Parameters
    ----------
    p_value : float in (0, 1]
    calibration_size : int
        Number n of calibration scans; no p-value below ``1 / (n + 1)`` can be measured.

    Returns
    -------
    str
        ``"1 in 80"``; ``"37 in 100"`` for shares above a tenth; ``"fewer than 1 in n+1"`` if no
        calibration scan scored as high.
    """
    scans = calibration_size + 1
    if p_value * scans < 1.5:  # p is a multiple of 1 / (n + 1), so this is p = 1 / (n + 1)
        return f"fewer than 1 in {scans:,}"
    if p_value <= 0.1:
        return f"1 in {round(1 / p_value):,}"
    return f"{round(100 * p_value)} in 100"


def odds_sentence(odds: str) -> str:
    """Return the result of `odds_in_words` as a sentence without a full stop."""
    verb = "looks" if odds.removeprefix("fewer than ").startswith("1 in ") else "look"
    return f"{odds} normal scans {verb} at least this unusual"


def number_text(value: float) -> str:
    """Return a number with four significant digits."""
    return f"{value:.4g}"


def p_value_text(p_value: float) -> str:
    """Return a p-value with four decimals, or two significant digits below 0.001."""
    return f"{p_value:.4f}" if p_value >= 0.001 else f"{p_value:.2g}"


def count_text(count: float) -> str:
    """Return an expected number of scans: no decimals from 10, one from 1, two digits below 1."""
    if count >= 10:
        return f"{count:,.0f}"
    return f"{count:.1f}" if count >= 1 else f"{count:.2g}"


def flagged_against_expected(flagged: int, expected: float, not_counted: int) -> str:
    """Compare the number of flagged scans with the number expected if every scan were normal.

    Parameters
    ----------
    flagged : int
    expected : float
        Expected number of false alarms; with 0 there is no comparison.
    not_counted : int
        Number of scans that were used for training or calibration.
    """
    rest = (
        f" Not counted: {not_counted:,} that took part in training or calibration."
        if not_counted
        else ""
    )
    return f"{_comparison(flagged, expected)}{rest}".strip()


def _comparison(flagged: int, expected: float) -> str:
    if not expected:
        return ""
    text = f"{flagged:,} flagged against {count_text(expected)} expected if every scan were normal"
    if expected < 1:  # a ratio of such small numbers is meaningless
        return f"{text}."
    ratio = flagged / expected
    return f"{text}: {f'{ratio:,.0f}' if ratio >= 10 else f'{ratio:.2g}'} times as many."
