"""Tags of a dataset, or of the functional group that holds them for one of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset

__all__ = ["first_number", "functional_group", "is_broken", "numbers", "text", "value_of"]


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Value of a tag; None where it is absent, or where its text is not of its type.

    pydicom converts a value when it is asked for, and raises what it likes on a decimal comma or
    on letters in a number. Only for tags that an image can do without: `is_broken` tells the two
    apart.
    """
    try:
        return dataset.get(keyword, None)
    except (ValueError, TypeError, ArithmeticError, LookupError):
        return None


def is_broken(dataset: Dataset, keyword: str) -> bool:
    """Whether a tag is there with a value that is not of its type."""
    return (
        keyword in dataset
        and value_of(dataset, keyword) is None
        and not _is_empty(dataset, keyword)
    )


def _is_empty(dataset: Dataset, keyword: str) -> bool:
    try:
        return dataset[keyword].is_empty
    except (ValueError, TypeError, ArithmeticError, LookupError):
        return False


def text(dataset: Dataset, keyword: str) -> str:
    """Value of a tag as text without padding; empty where it is absent, empty or broken."""
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip()


def first_number(value: Any) -> float:
    """First number of a value that may hold one or several."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0]
    return float(value)


def numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Numbers of a tag; None where it is absent or broken, or does not hold `count` of them."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, str):
        return None
    try:
        found = tuple(float(item) for item in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        return None
    return found if count in (None, len(found)) else None


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Item of an enhanced multi-frame object that applies to one frame, or None."""
    per_frame = value_of(dataset, "PerFrameFunctionalGroupsSequence") or []
    shared = value_of(dataset, "SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        items = value_of(group, keyword)
        if items:
            item: Dataset = items[0]
            return item
    return None
