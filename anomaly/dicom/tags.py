"""Tags of a dataset, or of the functional group that holds them for one of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.errors import BytesLengthException
from pydicom.sequence import Sequence as DicomSequence

__all__ = ["functional_group", "is_there", "numbers", "text", "value_of", "whole_number"]


def value_of(dataset: Dataset, keyword: str) -> Any:
    """Value of a tag; None where it is absent, or where its text is not of its type.

    pydicom converts a value when it is asked for, and raises what it likes on a decimal comma or
    on letters in a number, or gives the text. Only for tags that an image can do without;
    `is_there` tells the two apart.
    """
    try:
        return dataset.get(keyword, None)
    except (ValueError, TypeError, ArithmeticError, LookupError, BytesLengthException):
        return None


def is_there(dataset: Dataset, keyword: str) -> bool:
    """Whether a tag is there with some value, be it of its type or not."""
    if keyword not in dataset:
        return False
    try:
        return not dataset[keyword].is_empty
    except (ValueError, TypeError, ArithmeticError, LookupError, BytesLengthException):
        return True


def text(dataset: Dataset, keyword: str) -> str:
    """Value of a tag as text without padding; empty where it is absent, empty or broken."""
    value = value_of(dataset, keyword)
    return "" if value is None else str(value).strip()


def whole_number(dataset: Dataset, tag: str | tuple[int, int]) -> int | None:
    """Whole number of a tag; None where it is absent, empty, several or none."""
    try:
        stored: Any = dataset.get(tag, None)
        value = stored if isinstance(tag, str) or stored is None else stored.value
        return None if value is None else int(value)
    except (ValueError, TypeError, ArithmeticError, LookupError, BytesLengthException):
        return None


def numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Numbers of a tag; None where it is absent or broken, or does not hold `count` of them."""
    value = value_of(dataset, keyword)
    if value is None or isinstance(value, str):
        return None
    try:
        values = tuple(float(item) for item in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        return None
    return values if count in (None, len(values)) else None


def functional_group(dataset: Dataset, index: int, keyword: str) -> Dataset | None:
    """Item of an enhanced multi-frame object that applies to one frame, or None."""
    per_frame = _items(dataset, "PerFrameFunctionalGroupsSequence")
    shared = _items(dataset, "SharedFunctionalGroupsSequence")
    for group in (*per_frame[index : index + 1], *shared[:1]):
        items = _items(group, keyword)
        if items:
            return items[0]
    return None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; none where it is absent, or no sequence."""
    value = value_of(dataset, keyword)
    return list(value) if isinstance(value, DicomSequence) else []
